"""Capture inside Lightning's Trainer: the right steps, what was logged, and no bit of the training changed."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from dynprobe.capture.inject import InjectedOptions, run_with_capture
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run

pl = pytest.importorskip("lightning.pytorch")

from dynprobe.capture.lightning import LightningCallback, largest_transformer  # noqa: E402

pytestmark = [
    # Lightning's own, about workers, loggers, small data and older torch.
    pytest.mark.filterwarnings(
        r"ignore:.*(does not have many workers|LeafSpec|litlogger|sync_dist|smaller than the logging):"
    ),
    pytest.mark.filterwarnings("ignore:.*(resuming from a checkpoint|Checkpoint directory).*"),
]


def bert(d_model: int = 32) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=100,
        hidden_size=d_model,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


class Module(pl.LightningModule):
    """A classifier beside a small teacher, which is a transformers model too."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = bert(16).requires_grad_(False)
        self.parts = nn.ModuleDict({"student": bert()})

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.parts["student"](input_ids=batch[0], labels=batch[1]).loss
        self.log("loss", loss)
        self.log("rate", 0.5)
        self.log("train", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("valid", self.parts["student"](input_ids=batch[0], labels=batch[1]).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parts.parameters(), lr=1e-3)


Fit = Callable[..., tuple[list[bytes], Any]]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Train for a few steps from the same start; gives weights and random state at the end, and the trainer."""

    def run(callbacks: list[Any], *, ckpt_path: str | None = None, **options: Any) -> tuple[list[bytes], Any]:
        torch.manual_seed(0)
        module = Module()
        data = torch.utils.data.TensorDataset(torch.randint(5, 100, (32, 9)), torch.arange(32) % 3)
        settings = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 2,
            "default_root_dir": str(tmp_path),
            **options,
        }
        trainer = pl.Trainer(callbacks=callbacks, **settings)
        loaders = [torch.utils.data.DataLoader(data, batch_size=8, shuffle=shuffle) for shuffle in (True, False)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainer.fit(module, *loaders, ckpt_path=ckpt_path)
        weights = [value.numpy().tobytes() for value in module.state_dict().values()]
        return [*weights, torch.get_rng_state().numpy().tobytes()], trainer

    return run


@pytest.fixture(scope="module")
def probe() -> ProbeSet:
    rng = np.random.default_rng(0)
    return ProbeSet.from_features([{"input_ids": rng.integers(5, 100, size=n)} for n in rng.integers(3, 20, size=12)])


def every(n: int) -> CaptureSettings:
    return CaptureSettings(schedule=f"every:{n}")


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_step_0_scheduled_steps_and_the_last_and_no_bit_changed(
    accumulate: int, fit: Fit, probe: ProbeSet, tmp_path: Path
) -> None:
    """Eight batches: with two of them to a step, each step is reported twice, and taken once."""
    options = {"accumulate_grad_batches": accumulate}
    plain, _ = fit([], **options)
    taken: list[int] = []
    ours = LightningCallback(
        tmp_path / "run", probe_set=probe, settings=every(3), on_snapshot=lambda step, path: taken.append(step)
    )
    captured, trainer = fit([ours], **options)
    assert captured == plain
    run = open_run(tmp_path / "run")
    assert run.steps == tuple(taken) == ((0, 3, 6, 8) if accumulate == 1 else (0, 3, 4))
    assert run.max_steps == trainer.global_step == run.steps[-1]
    assert run[0].hidden_states(1).shape[1] == 32, "the largest transformer of the module"
    assert ours.recorder is None
    assert run.manifest["training"]["optim"] == "AdamW"


@pytest.mark.slow
def test_the_snapshots_are_those_of_a_recorder(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    class Own(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Module) -> None:
            self.recorder = Recorder(pl_module.parts["student"], probe, tmp_path / "own").__enter__()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.recorder.snapshot(trainer.global_step)

    own = Own()
    fit([own], max_epochs=1)
    own.recorder.close()
    fit([LightningCallback(tmp_path / "run", probe_set=probe, settings=every(2))], max_epochs=1)
    mine, theirs = open_run(tmp_path / "run")[4], open_run(tmp_path / "own")[4]
    assert np.array_equal(mine.hidden_states(2), theirs.hidden_states(2))


def test_what_the_module_logs_is_kept_once(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    fit([LightningCallback(tmp_path / "run", probe_set=probe, settings=every(8))])
    scalars = open_run(tmp_path / "run").scalars
    found = {
        name: [record["step"] for record in scalars if name in record] for name in ("loss", "rate", "valid", "train")
    }
    # A number that never changes is still logged at each step; one of an epoch is not logged again by the steps after it.
    assert found == {"loss": [2, 4, 6, 8], "rate": [2, 4, 6, 8], "valid": [4, 8], "train": [4, 8]}
    assert len({record["valid"] for record in scalars if "valid" in record}) == 2


@pytest.mark.slow
def test_going_on_from_a_checkpoint_goes_on_with_the_run(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    options = {"enable_checkpointing": True}
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / "checkpoints", save_last=True)

    def ours(name: str) -> LightningCallback:
        return LightningCallback(tmp_path / name, probe_set=probe, settings=every(3))

    fit([ours("whole")])
    fit([ours("run"), checkpoint], max_epochs=1, **options)
    assert open_run(tmp_path / "run").steps == (0, 3, 4)
    fit([ours("run"), checkpoint], **options, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    run, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
    assert run.steps == (0, 3, 4, 6, 8)
    assert run[8].parameter_changes() == {}
    assert any("from step 6 on: this process did not see step 0" in note for note in run.notes)
    assert whole.steps == (0, 3, 6, 8)


def test_a_fault_switches_capture_off_and_not_training(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    def full(step: int, path: Path) -> None:
        if step == 3:
            raise OSError(28, "No space left on device")

    plain, _ = fit([])
    ours = LightningCallback(tmp_path / "run", probe_set=probe, settings=every(3), on_snapshot=full)
    with pytest.warns(UserWarning, match="capture is switched off, training goes on: .*No space left"):
        captured, trainer = fit([ours])
    assert captured == plain
    assert trainer.global_step == 8
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 3)
    assert ours.recorder is None
    with pytest.raises(OSError, match="No space left"):
        fit([LightningCallback(tmp_path / "two", probe_set=probe, settings=every(3), on_snapshot=full, strict=True)])


def test_what_cannot_begin_is_said_before_training(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="`probe_set` must be given to a LightningCallback"):
        fit([LightningCallback(tmp_path / "run")])
    with pytest.raises(
        CaptureError, match=r"`model_attr` must be the path of a module inside Module; got 'parts.pupil'"
    ):
        fit([LightningCallback(tmp_path / "run", probe_set=probe, model_attr="parts.pupil")])
    fit([LightningCallback(tmp_path / "run", probe_set=probe)], max_steps=1)
    with pytest.raises(UsageError, match="must be new"):
        fit([LightningCallback(tmp_path / "run", probe_set=probe)])
    with pytest.raises(CaptureError, match="must contain a transformers model; got none in Linear"):
        largest_transformer(nn.Linear(1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["teacher", lambda module: module.teacher])
def test_another_model_of_the_module(which: Any, fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    fit([LightningCallback(tmp_path / "run", probe_set=probe, model_attr=which, settings=every(4))], max_steps=2)
    assert open_run(tmp_path / "run")[2].hidden_states(1).shape[1] == 16


@pytest.mark.slow
def test_a_training_of_unknown_length_that_stops_early(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 5

    ours = LightningCallback(tmp_path / "run", probe_set=probe, settings=every(2))
    fit([Stop(), ours], max_epochs=-1)
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2, 4, 5)
    assert run.max_steps is None


@pytest.mark.slow
def test_a_training_that_crashes_keeps_what_was_captured(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    class Crash(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise ValueError("out of luck")

    ours = LightningCallback(tmp_path / "run", probe_set=probe, settings=every(2))
    with pytest.raises(ValueError, match="out of luck"):
        fit([ours, Crash()])
    assert open_run(tmp_path / "run").steps == (0, 2)
    assert "out of luck" in json.loads((tmp_path / "run" / "manifest.json").read_text())["status"]["reason"]
    ours.existing = "replace"
    fit([ours], max_steps=1)
    assert open_run(tmp_path / "run").steps == (0, 1)


@pytest.mark.slow
def test_live_drift_goes_to_the_loggers(fit: Fit, probe: ProbeSet, tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    ours = LightningCallback(tmp_path / "run", probe_set=probe, settings=every(4), live=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*probe set is too small")
        fit([ours], logger=logger)
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert "dynprobe/" in header


SCRIPT = """
import hashlib, sys, torch
import lightning.pytorch as pl
from transformers import BertConfig, BertForSequenceClassification

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = BertForSequenceClassification(BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=64, num_labels=3, max_position_embeddings=32))
    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch[0], labels=batch[1]).loss
    def validation_step(self, batch, batch_idx):
        self.model(input_ids=batch[0])
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

pl.seed_everything(0)
data = torch.utils.data.TensorDataset(torch.randint(5, 100, (32, 9)), torch.arange(32) % 3)
module, devices = Module(), int(sys.argv[2])
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
    accumulate_grad_batches=2, enable_checkpointing=False, enable_progress_bar=False)
loaders = [torch.utils.data.DataLoader(data, batch_size=4, shuffle=shuffle) for shuffle in (True, False)]
trainer.fit(module, *loaders)
weights = [value.numpy().tobytes() for value in module.state_dict().values()]
digest = hashlib.sha256(repr((weights, torch.get_rng_state().tolist())).encode()).hexdigest()
open(sys.argv[1] + str(trainer.global_rank), "w").write(digest)
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_an_unmodified_program_is_captured_once(
    devices: int, probe: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the torch optimizer, as any loop: the same steps, the same bits; of two processes by the first."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Recorder(bert(), probe, tmp_path / "probe") as recorder:
        recorder.snapshot(0)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    options = InjectedOptions(
        str(tmp_path / "run"), probe_run=str(tmp_path / "probe"), settings={"schedule": "every:3"}
    )
    command = [sys.executable, str(script), str(tmp_path / "captured"), str(devices)]
    assert run_with_capture(command, options, tmp_path / "status") == 0
    command[2] = str(tmp_path / "plain")
    subprocess.run(command, check=True)
    for rank in range(devices):
        assert (tmp_path / f"captured{rank}").read_text() == (tmp_path / f"plain{rank}").read_text()
    assert open_run(tmp_path / "run").steps == ((0, 3, 4) if devices == 1 else (0, 2))
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]
