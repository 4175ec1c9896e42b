"""Run by test_distributed.py in two processes: trains the same model again and again, captured, and says how it ended."""

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from dynprobe import CaptureSettings, DynprobeCallback, ProbeSet, Recorder
from dynprobe.probe_task import ProbeTask
from dynprobe.storage.writer import FileWriter

N_STEPS = 4


def classifier() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, max_position_embeddings=32, **sizes))


def sharded() -> Any:
    model = classifier()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    return fully_shard(model)


def probe_set() -> ProbeSet:
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 100, size=n) for n in rng.integers(3, 20, size=20)]
    return ProbeSet.from_features([{"input_ids": row} for row in ids], labels=np.arange(20) % 3, batch_size=4)


def digest(model: nn.Module) -> str:
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    state = [part.detach().numpy().tobytes() for part in parts]
    numbers = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return hashlib.sha256(repr((state, numbers)).encode()).hexdigest()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for name, p in parameters.items()}


def train(model: nn.Module, after_step: Callable[[int], object]) -> None:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(dist.get_rank())  # dropout and data differ between the processes
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    after_step(0)
    for step in range(1, N_STEPS + 1):
        model(input_ids=torch.randint(5, 100, (4, 9)), labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step(step)


class Capture:
    """Takes snapshots until the first error, which it remembers."""

    def __init__(self, model: nn.Module, path: Path, **options: Any) -> None:
        self.model, self.error, self.recorder = model, "", None
        self.kinds: set[str] = set()
        try:
            self.recorder = Recorder(model, probe_set(), path, max_steps=N_STEPS, **options).__enter__()
        except Exception as error:  # noqa: BLE001
            self.error = f"{type(error).__name__}: {error}"

    def __call__(self, step: int) -> None:
        if self.recorder is None:
            return
        try:
            self.recorder.snapshot(step)
        except Exception as error:  # noqa: BLE001
            self.error = f"{type(error).__name__}: {error}"
            self.recorder.close()
            self.recorder = None
        self.kinds |= {type(parameter).__name__ for parameter in self.model.parameters()}


def fail(error: Exception) -> None:
    raise error


def run_case(case: str, folder: Path) -> dict[str, Any]:
    """Train once; `case` says on which model and what goes wrong."""
    rank = dist.get_rank()
    # Each process has a path of its own, so that a process that must not write would be seen.
    path, options = folder / f"{case}-{rank}", {}
    model = nn.parallel.DistributedDataParallel(classifier()) if case.startswith("ddp") else sharded()
    inner = getattr(model, "module", model).bert.encoder.layer[1]
    append = FileWriter.append
    if case == "disk":
        n_calls: list[int] = []

        def full(self: FileWriter, name: str, block: np.ndarray) -> None:
            n_calls.extend([1] if self._path.name == "step-00000002.h5" else [])
            append(self, name, block) if len(n_calls) < 5 else fail(OSError(28, "No space left on device"))

        FileWriter.append = full  # type: ignore[method-assign]
    elif case == "nan":
        inner.register_forward_hook(lambda module, _, out: None if module.training else out * float("nan"))
    elif case == "overflow":
        inner.register_forward_hook(lambda module, _, out: None if module.training else out * 1e6)
    elif case == "on_snapshot":
        options["on_snapshot"] = lambda step, _: fail(ValueError("not today")) if step == 2 else None
    elif case == "there" and rank == 0:
        path.mkdir()
        (path / "notes.txt").touch()
    elif case == "other_probe" and rank == 1:
        options["settings"] = CaptureSettings(hidden=7)
    elif case.endswith("tasks"):
        options["probe_tasks"] = {"own": ProbeTask(probe_set(), probe_set())}
    capture = Capture(model, path, **options) if "plain" not in case else None
    start = whole_weights(model)
    train(model, capture or (lambda step: None))
    FileWriter.append = append  # type: ignore[method-assign]
    ended = {"digest": digest(model), "files": sorted(p.name for p in path.rglob("*.h5"))}
    if case == "ok":
        ended["moved"] = {
            name: [float((now - start[name]).double().norm()), float(now.double().norm())]
            for name, now in whole_weights(model).items()
        }
    if capture is not None:
        ended |= {"error": capture.error, "kinds": sorted(capture.kinds)}
        if capture.recorder is not None:
            capture.recorder.close()
    return ended


def run_trainer(folder: Path, *, captured: bool) -> dict[str, Any]:
    """A sharded model in transformers' Trainer, which takes each of the processes for the only one."""
    path = folder / f"trainer-{dist.get_rank()}"
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(5, 100, size=9).tolist(), "labels": i % 3} for i in range(20)]
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0}
    args = TrainingArguments(
        output_dir=str(path) + "-out", max_steps=4, per_device_train_batch_size=4, logging_steps=2, **options
    )
    callbacks = [DynprobeCallback(path)] if captured else []
    trainer = Trainer(sharded(), args, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)
    trainer.train()
    return {"digest": digest(trainer.model), "files": sorted(p.name for p in path.rglob("*.h5"))}


def main() -> None:
    folder, *cases = Path(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[name]  # the Trainer would wrap what is sharded already
    ended = {case: run_case(case, folder) for case in cases}
    ended["trainer_plain"] = run_trainer(folder, captured=False)
    ended["trainer"] = run_trainer(folder, captured=True)
    (folder / f"ended-{rank}.json").write_text(json.dumps(ended), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
