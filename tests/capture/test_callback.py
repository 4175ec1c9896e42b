"""Capture inside transformers' Trainer: when snapshots are taken, of which weights, and what happens when something fails."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from dynprobe.capture.callback import DynprobeCallback, attach
from dynprobe.capture.default_probe import probe_set_from_trainer
from dynprobe.capture.injected import InjectedCallback
from dynprobe.capture.news import run_names
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError, IncompatibleRunsError, ProbeSetError, UsageError
from dynprobe.run import open_run

Make = Callable[..., Trainer]
Rows = Callable[[int, int], list[dict[str, Any]]]


def weights_of(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize(
    "options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2, "activation_checkpointing": True}]
)
def test_training_ends_with_the_same_bits(options: dict[str, Any], make_trainer: Make, tmp_path: Path) -> None:
    plain = make_trainer(**options)
    plain.train()
    captured = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run")], **options)
    captured.train()
    assert weights_of(captured.model) == weights_of(plain.model)
    assert [r.get("loss") for r in captured.state.log_history] == [r.get("loss") for r in plain.state.log_history]
    assert open_run(tmp_path / "run").steps == (0, 1, 2, 3, 4, 6, 8, 12)


def test_the_last_snapshot_holds_the_last_weights(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    attach(trainer, tmp_path / "run", settings=CaptureSettings(schedule="at:5"))
    trainer.train()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 5, 12)
    said = run[12].outputs()
    assert said is not None
    inputs = {name: torch.as_tensor(np.array(value)) for name, value in run.probe_set.inputs.items()}
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).logits.numpy()
    np.testing.assert_allclose(said.values, expected, atol=1e-5)
    assert [record["step"] for record in run.scalars if "loss" in record] == [4, 8, 12]
    assert run.max_steps == 12
    assert run.manifest["training"]["seed"] == 42


class WorseAndWorse(TrainerCallback):
    """Makes every evaluation worse than the one before, so that early stopping sets in."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        metrics["eval_loss"] = float(state.global_step)


@pytest.mark.slow
@pytest.mark.parametrize("capture_first", [True, False])
def test_early_stopping_with_the_best_model_reloaded(capture_first: bool, make_trainer: Make, tmp_path: Path) -> None:
    ours = DynprobeCallback(tmp_path / "run", settings=CaptureSettings(schedule="ends"))
    others = [WorseAndWorse(), EarlyStoppingCallback(1)]
    trainer = make_trainer(
        callbacks=[ours, *others] if capture_first else [*others, ours],
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        max_steps=30,
    )
    trainer.train()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 6), "stopped after the second evaluation"
    last = run[6].parameter_changes()["classifier.weight"][1]
    now = float(torch.linalg.vector_norm(trainer.model.classifier.weight.detach(), dtype=torch.float64))
    assert now != last, "the best model, of step 3, is back"


# An interrupted Trainer tells its callbacks nothing, so the claim on the run ends with the process, here with the garbage.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_going_on_from_a_checkpoint_goes_on_with_the_run(make_trainer: Make, tmp_path: Path) -> None:
    settings = CaptureSettings(schedule="every:4")
    options = {"save_strategy": "steps", "save_steps": 8}
    make_trainer(callbacks=[DynprobeCallback(tmp_path / "whole", settings=settings)], **options).train()

    class Killed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=settings), Killed()], **options).train()
    assert open_run(tmp_path / "run").steps == (0, 4, 8)
    resumed = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=settings)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-8"))
    run, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
    assert run.steps == whole.steps == (0, 4, 8, 12)
    assert np.array_equal(run[12].outputs().values, whole[12].outputs().values)  # type: ignore[union-attr]


def test_a_fault_switches_capture_off_and_not_training(make_trainer: Make, tmp_path: Path) -> None:
    def full(step: int, path: Path) -> None:
        if step == 3:
            raise OSError(28, "No space left on device")

    plain = make_trainer()
    plain.train()
    trainer = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", on_snapshot=full)])
    with pytest.warns(UserWarning, match="capture is switched off, training goes on: .*No space left"):
        trainer.train()
    assert weights_of(trainer.model) == weights_of(plain.model)
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 1, 2, 3)
    assert "switched off by a fault" in run.notes[-1]


def test_an_existing_run_is_refused_before_training(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(callbacks=[DynprobeCallback(tmp_path / "run")]).train()
    trainer = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run")])
    with pytest.raises(UsageError, match="must be new"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_training_data_as_probe_is_said(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer({"eval_dataset": None}, callbacks=[DynprobeCallback(tmp_path / "run")])
    with pytest.warns(UserWarning, match="The probe examples are training data"):
        trainer.train()
    assert open_run(tmp_path / "run").probe_set.origin == "training data of the trainer"


def test_the_default_probe_set_does_not_depend_on_seed_or_order(make_trainer: Make) -> None:
    trainer = make_trainer()
    data = list(trainer.eval_dataset)
    state = torch.get_rng_state()
    probe = probe_set_from_trainer(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    shuffled = make_trainer({"eval_dataset": data[::-1]}, seed=7)
    assert probe_set_from_trainer(shuffled).fingerprint == probe.fingerprint
    assert probe.label_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    few = probe_set_from_trainer(trainer, n_examples=9)
    assert np.bincount(few.labels).min() >= 2, "stratified by label"


def test_the_default_probe_set_of_other_kinds_of_data(make_trainer: Make) -> None:
    trainer = make_trainer()
    data = list(trainer.eval_dataset)
    expected = probe_set_from_trainer(trainer).fingerprint
    assert (
        probe_set_from_trainer(make_trainer({"eval_dataset": {"one": data, "two": data[:3]}})).fingerprint == expected
    )

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(data)

    assert probe_set_from_trainer(make_trainer({"eval_dataset": Stream()})).fingerprint == expected

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[int(word) for word in row["text"].split()] for row in batch])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor([r["y"] for r in batch]),
        }

    raw = [{"text": " ".join(map(str, row["input_ids"])), "y": row["labels"]} for row in data]
    probe = probe_set_from_trainer(make_trainer({"eval_dataset": raw, "data_collator": collate}))
    assert probe.fingerprint == expected
    assert probe.texts is not None


def test_no_data_at_all_is_said(make_trainer: Make) -> None:
    with pytest.raises(ProbeSetError, match="neither evaluation nor training data"):
        probe_set_from_trainer(make_trainer({"eval_dataset": None, "train_dataset": None}))


def test_outside_a_trainer_a_probe_set_is_needed(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    callback = DynprobeCallback(tmp_path / "run")
    with pytest.raises(CaptureError, match="`probe_set` must be given"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [("ends", (0, 12)), ("every:5", (0, 5, 10, 12)), ("at:1,7,99", (0, 1, 7, 12)), ("log:3", (0, 1, 3, 12))],
)
def test_step_0_and_the_last_belong_to_every_schedule(
    schedule: str, steps: tuple[int, ...], make_trainer: Make, tmp_path: Path
) -> None:
    ours = DynprobeCallback(tmp_path / "run", settings=CaptureSettings(schedule=schedule, attention="none"))
    make_trainer(callbacks=[ours]).train()
    assert open_run(tmp_path / "run").steps == steps


@pytest.mark.slow
def test_optimizer_and_random_states_end_as_without_capture(make_trainer: Make, tmp_path: Path) -> None:
    def state(callbacks: list[Any]) -> tuple[Any, ...]:
        trainer = make_trainer(callbacks=callbacks, max_steps=6)
        trainer.train()
        moments = [value for state in trainer.optimizer.optimizer.state.values() for value in state.values()]
        numbers = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
        return weights_of(trainer.model), [moment.tolist() for moment in moments], numbers

    assert state([DynprobeCallback(tmp_path / "run")]) == state([])


def test_data_that_end_early_end_the_run(make_trainer: Make, tmp_path: Path) -> None:
    """A stream shorter than the planned number of steps: the last step is known only when it is over."""
    rows = list(make_trainer().train_dataset)[:24]

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(rows)

    class Stop(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    ours = DynprobeCallback(tmp_path / "run", settings=CaptureSettings(schedule="ends"))
    make_trainer({"train_dataset": Stream()}, callbacks=[ours, Stop()], max_steps=50).train()
    assert open_run(tmp_path / "run").steps == (0, 3)


@pytest.mark.slow
def test_two_trainers_in_one_process(make_trainer: Make, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_trainer(callbacks=[DynprobeCallback(tmp_path / name)], max_steps=2).train()
    one, two = open_run(tmp_path / "one"), open_run(tmp_path / "two")
    assert one.steps == two.steps == (0, 1, 2)
    assert one.probe_set.fingerprint == two.probe_set.fingerprint
    assert np.array_equal(one[2].outputs().values, two[2].outputs().values)  # type: ignore[union-attr]


def poison(callback: DynprobeCallback, step: int) -> None:
    """Make the snapshot of a step fail as a full disk makes it fail, and count what is tried afterwards."""
    snapshot = Recorder.snapshot

    class Full(Recorder):
        def snapshot(self, at: int) -> Path:
            if at == step:
                raise OSError(28, "No space left on device")
            return snapshot(self, at)

    callback.recorder.__class__ = Full  # type: ignore[union-attr]


class Breaks(TrainerCallback):
    """Breaks capture, or the model for the moment of one snapshot, at step 3."""

    def __init__(self, ours: DynprobeCallback, how: str) -> None:
        self.ours, self.how = ours, how

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 0 and self.how == "disk":
            poison(self.ours, 3)
        if state.global_step == 2 and self.how == "nan":
            self.handle = model.classifier.register_forward_hook(
                lambda module, _, out: out if module.training else out * float("nan")
            )
        if state.global_step == 4 and self.how == "nan":
            self.handle.remove()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*NaN")
@pytest.mark.parametrize(("how", "reason"), [("disk", "No space left"), ("nan", "step 3: activations must be finite")])
def test_a_failing_snapshot_ends_capture_and_not_training(
    how: str, reason: str, make_trainer: Make, tmp_path: Path
) -> None:
    plain = make_trainer()
    plain.train()
    ours = DynprobeCallback(tmp_path / "run")
    trainer = make_trainer(callbacks=[ours, Breaks(ours, how)])
    with pytest.warns(UserWarning, match=f"capture is switched off, training goes on: .*{reason}") as said:
        trainer.train()
    assert sum("switched off" in str(warning.message) for warning in said) == 1, "said once"
    assert weights_of(trainer.model) == weights_of(plain.model)
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 1, 2), "what was there before is safe"
    assert run[2].hidden_states(1).shape[1] == 32
    assert reason in run.notes[-1]
    assert ours.recorder is None


def test_a_program_that_makes_errors_of_warnings_still_trains(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import warnings

    ours = DynprobeCallback(tmp_path / "run")
    trainer = make_trainer({"eval_dataset": None}, callbacks=[ours, Breaks(ours, "disk")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert trainer.state.global_step == 12
    assert "training data" in caplog.text
    assert "switched off" in caplog.text


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on_in_the_same_notebook(make_trainer: Make, tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    ours, interrupt = DynprobeCallback(tmp_path / "run", settings=CaptureSettings(schedule="every:4")), Interrupt()
    trainer = make_trainer(callbacks=[ours, interrupt], save_strategy="steps", save_steps=8)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(interrupt)
    trainer.train(resume_from_checkpoint=True)
    assert open_run(tmp_path / "run").steps == (0, 4, 8, 12)


@pytest.mark.slow
def test_going_on_says_what_is_not_known_any_more(make_trainer: Make, tmp_path: Path) -> None:
    """How far weights have moved needs the weights of step 0, which a resumed process has not seen."""
    options = {"save_strategy": "steps", "save_steps": 8}
    settings = CaptureSettings(schedule="at:8")
    make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=settings)], **options).train()
    (tmp_path / "run" / "snapshots" / "step-00000012.h5").unlink()
    resumed = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=settings)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-8"))
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 8, 12)
    assert run[8].parameter_changes()
    assert run[12].parameter_changes() == {}
    assert any("from step 12 on: this process did not see step 0" in note for note in run.notes)
    other = DynprobeCallback(tmp_path / "run", settings=CaptureSettings(schedule="at:8", attention=3))
    with pytest.raises(IncompatibleRunsError, match="must go on with the same model and amounts"):
        make_trainer(callbacks=[other], **options).train(
            resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-8")
        )


@pytest.mark.parametrize("kind", [pytest.param(DynprobeCallback, marks=pytest.mark.slow), InjectedCallback])
def test_a_training_that_starts_again_with_a_smaller_batch(
    kind: type[DynprobeCallback], make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_names, "n_taken", 0)

    class OutOfMemory(TrainerCallback):
        done = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3 and not self.done:
                self.done = True
                raise RuntimeError("CUDA out of memory.")

    ours = kind(tmp_path / "run", settings=CaptureSettings(schedule="at:2,3"))
    trainer = make_trainer(callbacks=[ours, OutOfMemory()], auto_find_batch_size=True)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run"]
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2, 3, 12)
    assert run[12].parameter_changes()["classifier.weight"][0] > 0
