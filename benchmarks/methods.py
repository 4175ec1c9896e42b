"""What each training method costs beside standard training: matrix products, wall time, memory.

Run: python benchmarks/methods.py [--layers 6 --width 256 --batch 16 --tokens 64 --turns 15 --device cpu]. A BERT with random
weights. Products are counted. For wall time all methods take turns in one process, a whole step each (with AdamW); ratios are
medians over the turns. For memory each method has a process of its own: the model, what the method puts beside it, gradients,
optimizer and three steps; on the CPU (Linux) by resident size, on a GPU by what was allocated. The share of dropout is not
measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from dynprobe import finetune
from dynprobe.finetune.cost import flops_per_batch

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("standard", "standard", {}),
    ("r3f", "r3f", {"share_every": 0}),
    ("r3f, one branch with gradient", "r3f", {"share_every": 0, "grad_through": "clean"}),
    ("r4f", "r4f", {"share_every": 0}),
    ("rdrop", "rdrop", {"share_every": 0}),
    ("smart, 1 step, no teacher", "smart", {"share_every": 0, "proximal_weight": 0.0}),
    ("smart, 1 step, teacher", "smart", {"share_every": 0}),
    ("smart as released", "smart", {"share_every": 0, "as_released": True}),
    ("freelb, 2 passes", "freelb", {"steps": 2}),
    ("freelb, 3 passes", "freelb", {"steps": 3}),
    ("freelb as released, 3 steps", "freelb", {"steps": 3, "as_released": True}),
    ("isobn", "isobn", {}),
    ("batch-norm", "batch-norm", {}),
    ("mixout", "mixout", {}),
    ("pull", "pull", {}),
    ("bert-adam", "bert-adam", {}),
    ("layer-rates", "layer-rates", {}),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 6), ("width", 256), ("batch", 16), ("tokens", 64), ("turns", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory_of is not None:
        print(json.dumps(memory(asked, asked.memory_of)))
        return
    print(f"{asked.layers} layers, width {asked.width}, {asked.batch} texts of {asked.tokens} tokens, {asked.device}")
    times = wall_times(asked)
    standard, used = flops(asked, 0), [memory_elsewhere(number) for number in range(len(CASES))]
    print(
        "| method | FLOPs | wall time (from, to) | memory, MB | above standard, MB |\n| --- | --- | --- | --- | --- |"
    )
    for number, (title, _, _) in enumerate(CASES):
        ratios = [mine / base for mine, base in zip(times[number], times[0], strict=True)]
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        extra = f"{used[number] - used[0]:+.0f}"
        print(f"| {title} | {flops(asked, number) / standard:.2f} | {span} | {used[number]:.0f} | {extra} |")


def training(
    asked: argparse.Namespace, number: int
) -> tuple[finetune.Method, Any, dict[str, torch.Tensor], Callable[[], None]]:
    """A method, its model, a batch, and one whole step of training."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8000,
        hidden_size=asked.width,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.width // 64,
        intermediate_size=4 * asked.width,
        num_labels=2,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config).to(asked.device).train()
    shape = (asked.batch, asked.tokens)
    inputs = {"input_ids": torch.randint(5, 8000, shape), "labels": torch.randint(0, 2, (asked.batch,))}
    inputs = {name: value.to(asked.device) for name, value in inputs.items()}
    method = finetune.method(CASES[number][1], **CASES[number][2]).prepare(model)
    optimizer = method.optimise(torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0), model)

    def step() -> None:
        method.loss(model, inputs).loss.backward()
        optimizer.step()
        method.after_step(model)
        optimizer.zero_grad()
        if asked.device != "cpu":
            torch.cuda.synchronize()

    return method, model, inputs, step


def wall_times(asked: argparse.Namespace) -> list[list[float]]:
    """Seconds of each step, by method; all take turns."""
    steps = [training(asked, number)[-1] for number in range(len(CASES))]
    for step in steps:
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(asked.turns):
        for number, step in enumerate(steps):
            start = time.perf_counter()
            step()
            seconds[number].append(time.perf_counter() - start)
    return seconds


def flops(asked: argparse.Namespace, number: int) -> int:
    """Operations in the matrix products of one batch."""
    method, model, inputs, _ = training(asked, number)
    return flops_per_batch(method, model, inputs)


def memory(asked: argparse.Namespace, number: int) -> float:
    """Megabytes that model, method and three steps need beyond the libraries."""
    on_cpu = asked.device == "cpu"
    torch.ones(1, requires_grad=True).sum().backward()  # what autograd needs once
    if on_cpu:
        Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far; children inherit their parent's
    before = largest_size() if on_cpu else 0.0
    step = training(asked, number)[-1]
    for _ in range(3):
        step()
    return largest_size() - before if on_cpu else torch.cuda.max_memory_allocated() / 1e6


def largest_size() -> float:
    """Largest resident size of this process, in megabytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def memory_elsewhere(number: int) -> float:
    """The same in a process of its own."""
    found = subprocess.run(
        [sys.executable, *sys.argv, "--memory-of", str(number)], check=True, capture_output=True, text=True
    )
    return float(json.loads(found.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
