"""Trainings of two processes: captured once, by the first; the same bits on both; and a fault of one leaves none waiting."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification

import dynprobe
from dynprobe.capture.inject import InjectedOptions, run_with_capture
from dynprobe.capture.recorder import Recorder
from dynprobe.errors import NothingCapturedError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run

pytestmark = pytest.mark.slow

# On the loopback, at a free port.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CASES = (
    "plain", "ok", "tasks", "disk", "nan", "overflow", "on_snapshot", "there", "other_probe", "ddp_plain", "ddp", "ddp_tasks",
)  # fmt: skip
N_STEPS = 4
HEARD = "CaptureError: another process of this training could not go on"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(dynprobe.__file__).parents[1]))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """How each case ended, on each process."""
    folder = tmp_path_factory.mktemp("cases")
    script = Path(__file__).parent / "distributed_cases.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dynprobe.__file__).parents[1])}
    subprocess.run([*TORCHRUN, str(script), str(folder), *CASES], check=True, timeout=300, env=environment)
    return [json.loads((folder / f"ended-{rank}.json").read_text()) for rank in range(2)], folder


@pytest.mark.parametrize("case", [case for case in CASES if "plain" not in case] + ["trainer"])
def test_no_bit_changes_on_any_process_and_only_the_first_writes(case: str, ended: Any) -> None:
    plain = {"ddp": "ddp_plain", "ddp_tasks": "ddp_plain", "trainer": "trainer_plain"}.get(case, "plain")
    for rank, of_rank in enumerate(ended[0]):
        assert of_rank[case]["digest"] == of_rank[plain]["digest"], f"process {rank}"
    assert ended[0][1][case]["files"] == []
    assert not (ended[1] / f"{case}-1").exists(), "not even its folder"


def test_a_sharded_model_is_measured_by_all(ended: Any) -> None:
    (first, other), folder = ended
    assert open_run(folder / "ok-0").steps == open_run(folder / "trainer-0").steps == tuple(range(N_STEPS + 1))
    assert (first["ok"]["error"], other["ok"]["error"]) == ("", "")
    assert first["ok"]["kinds"] == other["ok"]["kinds"] == ["DTensor"], "each keeps its own part after each snapshot"
    ddp = open_run(folder / "ddp-0")
    assert ddp.steps == tuple(range(N_STEPS + 1))
    # Before the first step both are the same model, measured whole or in parts.
    assert np.array_equal(open_run(folder / "ok-0")[0].hidden_states(2), ddp[0].hidden_states(2))
    wide = open_run(folder / "overflow-0")
    assert wide.steps == tuple(range(N_STEPS + 1))
    assert wide[4].hidden_states(2).dtype == np.float32, "the pass was repeated, by both"


def test_probe_tasks_are_measured_by_all_as_well(ended: Any) -> None:
    sharded, whole = (open_run(ended[1] / f"{case}-0") for case in ("tasks", "ddp_tasks"))
    assert ended[0][0]["tasks"]["error"] == ended[0][1]["tasks"]["error"] == ""
    assert sharded.steps == whole.steps == tuple(range(N_STEPS + 1))
    of_both = [run[0].pooled("mean", 2, probe="own.train") for run in (sharded, whole)]
    assert np.array_equal(*of_both)
    assert whole.random_encoder("own", "train", "mean", 2) is not None
    assert sharded.random_encoder("own", "train", "mean", 2) is None
    assert "A random encoder, the baseline for probes, was not measured: the model is sharded." in sharded.notes


def test_weights_that_are_sharded_moved_as_far_as_whole_ones(ended: Any) -> None:
    found = open_run(ended[1] / "ok-0")[N_STEPS].parameter_changes()
    expected = ended[0][0]["ok"]["moved"]  # of the weights put together again
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(tuple(pair), rel=1e-12) for name, pair in expected.items())
    assert min(moved for moved, _ in found.values()) > 0


@pytest.mark.parametrize(
    ("case", "reason", "heard", "n_snapshots"),
    [
        ("disk", "OSError: [Errno 28] No space left on device", HEARD, 2),
        ("on_snapshot", "ValueError: not today", HEARD, 3),
        ("there", "UsageError: ", HEARD, 0),
        ("nan", "CaptureError: step 0: activations must be finite; got NaN", "CaptureError: step 0: activations", 0),
        (
            "other_probe",
            "CaptureError: all processes of a sharded training must have the same settings",
            "CaptureError: all",
            0,
        ),
    ],
)
def test_a_fault_of_one_switches_all_off(case: str, reason: str, heard: str, n_snapshots: int, ended: Any) -> None:
    first, other = ended[0]
    assert first[case]["error"].startswith(reason)
    assert other[case]["error"].startswith(heard)
    assert sum(name.startswith("step-") for name in first[case]["files"]) == n_snapshots


SCRIPT = """
import hashlib, os, sys, torch, torch.distributed as dist
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
out, kind, *how = sys.argv[1:]
torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64, num_labels=3, max_position_embeddings=32))
rows = [{"input_ids": torch.randint(5, 100, (9,)).tolist(), "labels": i % 3} for i in range(40)]
if kind == "trainer":
    args = TrainingArguments(output_dir=out + "-out", max_steps=5, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", ddp_find_unused_parameters=False)
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows[:20])
    trainer.train()
    rank = trainer.args.process_index
else:
    dist.init_process_group("gloo")
    rank, wrapped = dist.get_rank(), model
    if kind == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    else:
        from torch.distributed.fsdp import fully_shard
        for layer in model.bert.encoder.layer:
            fully_shard(layer)
        wrapped = fully_shard(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    torch.manual_seed(rank)
    wrapped.train()
    for step in range(5):
        wrapped(input_ids=torch.randint(5, 100, (4, 9)), labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if "crash" in how and rank == 1 and step == 2:
            raise ValueError("out of luck")
parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
state = [part.detach().numpy().tobytes() for part in parts], torch.get_rng_state().tolist()
open(out + str(rank), "w").write(hashlib.sha256(repr(state).encode()).hexdigest())
if "destroy" in how:
    dist.destroy_process_group()
"""


@pytest.fixture
def options(tmp_path: Path) -> InjectedOptions:
    rng = np.random.default_rng(0)
    probe = ProbeSet.from_features([{"input_ids": rng.integers(5, 100, size=9)} for _ in range(12)])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with Recorder(
        BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)), probe, tmp_path / "probe"
    ) as recorder:
        recorder.snapshot(0)
    return InjectedOptions(str(tmp_path / "run"), probe_run=str(tmp_path / "probe"), settings={"schedule": "every:2"})


def program(tmp_path: Path, *arguments: str) -> list[str]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return [str(script), str(tmp_path / "digest"), *arguments]


def digests(tmp_path: Path) -> list[str]:
    found = [path.read_text() for path in sorted(tmp_path.glob("digest[01]"))]
    for path in tmp_path.glob("digest[01]"):
        path.unlink()
    return found


@pytest.mark.parametrize("kind", [("trainer",), ("ddp",), ("fsdp",), ("fsdp", "destroy")], ids=" ".join)
def test_an_unmodified_program_is_captured_once(
    kind: tuple[str, ...], options: InjectedOptions, tmp_path: Path
) -> None:
    command = [*TORCHRUN, *program(tmp_path, *kind)]
    assert run_with_capture(command, options, tmp_path / "status") == 0
    captured = digests(tmp_path)
    assert open_run(tmp_path / "run").steps == (0, 2, 4, 5)
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run"]
    subprocess.run(command, check=True, timeout=120)
    assert digests(tmp_path) == captured
    assert len(captured) == 2


def test_accelerate_launch(options: InjectedOptions, tmp_path: Path) -> None:
    """Without a configuration of its own it starts one process on a CPU, however many it is asked for."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += program(tmp_path, "trainer")
    assert run_with_capture(command, options, tmp_path / "status") == 0
    captured = digests(tmp_path)
    assert open_run(tmp_path / "run").steps == (0, 2, 4, 5)
    subprocess.run(command, check=True, timeout=120)
    assert digests(tmp_path) == captured


def test_a_process_that_crashes_is_not_waited_for(options: InjectedOptions, tmp_path: Path) -> None:
    assert run_with_capture([*TORCHRUN, *program(tmp_path, "fsdp", "crash")], options, tmp_path / "status") == 1
    assert open_run(tmp_path / "run").steps == (0, 2)


def test_weights_out_of_reach_are_refused_by_name_and_trained(options: InjectedOptions, tmp_path: Path) -> None:
    with pytest.raises(NothingCapturedError, match="got weights sharded by FullyShardedDataParallel"):
        run_with_capture([*TORCHRUN, *program(tmp_path, "fsdp1")], options, tmp_path / "status")
    assert len(digests(tmp_path)) == 2
