"""Synthetic run directories with arrays that a test controls, written with the package's own writers."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynprobe.probe_set import ProbeSet
from dynprobe.run import Run, open_run
from dynprobe.storage.directory import append_scalars, write_manifest
from dynprobe.storage.layout import probe_path, snapshot_path
from dynprobe.storage.probe_file import write_probe_set
from dynprobe.storage.writer import FileWriter


@dataclass(frozen=True)
class Recipe:
    """What a synthetic run holds. Arrays at step t are those of step 0 plus `drift` · t · noise."""

    steps: tuple[int, ...] = (0, 2, 6)
    seed: int = 0
    drift: float = 0.05
    n_examples: int = 40
    n_layers: int = 2
    n_heads: int = 3
    d_model: int = 8
    n_classes: int = 3
    n_attention: int = 12
    stacks: tuple[str, ...] = ("model",)
    left_padded: bool = False
    labels: Any = "classes"
    outputs: str | None = "logits"
    hidden: bool = True
    attention: bool = True
    pooled: tuple[str, ...] = ("first", "mean")
    n_virtual: int = 0
    causal: bool = False
    dtype: Any = np.float16
    probe_seed: int = 0
    max_steps: int | None = None
    lengths: tuple[int, int] = (3, 9)
    drop_rows: int = 0
    rogue: tuple[int, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)


def make_probe(recipe: Recipe) -> ProbeSet:
    rng = np.random.default_rng(recipe.probe_seed)
    n, (low, high) = recipe.n_examples, recipe.lengths
    inputs, real, special = {}, {}, {}
    for stack in recipe.stacks:
        lengths = rng.integers(low, high + 1, size=n)
        column = np.arange(high)
        mask = column >= (high - lengths)[:, None] if recipe.left_padded else column < lengths[:, None]
        ids = np.where(mask, rng.integers(5, 100, size=(n, high)), 0)
        first = mask.argmax(axis=1)
        last = high - 1 - mask[:, ::-1].argmax(axis=1)
        marks = np.zeros_like(mask)
        marks[np.arange(n), first] = marks[np.arange(n), last] = True
        inputs["decoder_input_ids" if stack == "decoder" else "input_ids"] = ids
        real[stack], special[stack] = mask, marks
    labels = recipe.labels
    if isinstance(labels, str):
        labels = np.arange(n) % recipe.n_classes if labels == "classes" else rng.normal(size=n)
    return ProbeSet(inputs=inputs, real=real, special=special, labels=labels, origin="evaluation data")


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class _Noise:
    """The same start for every run of a recipe, its own drift for every seed."""

    def __init__(self, recipe: Recipe, step: int) -> None:
        self._start = np.random.default_rng(1234)
        self._own = np.random.default_rng([recipe.seed, 7])
        self._scale = recipe.drift * step

    def __call__(self, *shape: int) -> np.ndarray:
        start, own = self._start.normal(size=shape), self._own.normal(size=shape)
        return start + self._scale * own


def _write_stack(file: FileWriter, recipe: Recipe, probe: ProbeSet, stack: str, noise: _Noise) -> None:
    prefix = f"main/{stack}"
    rows = np.argwhere(probe.real[stack]).astype(np.int32)
    rows = rows[: len(rows) - recipe.drop_rows]
    if recipe.hidden:
        file.write(f"{prefix}/index/hidden_rows", rows)
    for layer in range(recipe.n_layers + 1):
        states = noise(int(probe.real[stack].sum()), recipe.d_model)
        states[:, list(recipe.rogue)] *= 20.0 if layer else 1.0
        if recipe.hidden:
            file.write(f"{prefix}/hidden_states/{layer}", states[: len(rows)].astype(recipe.dtype))
        for kind in recipe.pooled:
            vectors = noise(recipe.n_examples, recipe.d_model)
            if layer == 0 and kind == "first":
                vectors[:] = vectors[0]
            file.write(f"{prefix}/pooled/{kind}/{layer}", vectors.astype(recipe.dtype))
    if recipe.attention:
        file.write(f"{prefix}/index/attention_examples", np.arange(recipe.n_attention, dtype=np.int32))
        for kind in ("self", "cross") if stack == "decoder" else ("self",):
            _write_attention(file, recipe, probe, (stack, kind), noise)


def _write_attention(file: FileWriter, recipe: Recipe, probe: ProbeSet, where: tuple[str, str], noise: _Noise) -> None:
    stack, kind = where
    n_query = probe.real[stack][: recipe.n_attention].sum(axis=1)
    n_key = probe.real["encoder" if kind == "cross" else stack][: recipe.n_attention].sum(axis=1) + recipe.n_virtual
    prefix = "" if kind == "self" else "cross_"
    shape = np.stack([n_query, n_key], axis=1).astype(np.int32)
    file.write(f"main/{stack}/index/{prefix}attention_shape", shape)
    for layer in range(1, recipe.n_layers + 1):
        scores = [noise(recipe.n_heads, q, k) for q, k in zip(n_query, n_key, strict=True)]
        if recipe.causal and kind == "self" and stack != "encoder":
            scores = [np.where(np.tri(*x.shape[1:], k=recipe.n_virtual, dtype=bool), x, -np.inf) for x in scores]
        blocks = [_softmax(x).ravel() for x in scores]
        flat = np.concatenate(blocks).astype(recipe.dtype)
        facts = {"n_heads": recipe.n_heads, "n_virtual_keys": recipe.n_virtual}
        file.write(f"main/{stack}/{kind}_attention/{layer}", flat, **facts)


def _write_outputs(file: FileWriter, recipe: Recipe, probe: ProbeSet, noise: _Noise) -> None:
    lengths = probe.real[recipe.stacks[-1]].sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if recipe.outputs == "logits":
        file.write("main/outputs/logits", noise(recipe.n_examples, recipe.n_classes).astype(np.float32))
    elif recipe.outputs == "nll":
        file.write("main/outputs/nll", np.abs(noise(int(offsets[-1]))).astype(np.float32))
        file.write("main/outputs/nll_offsets", offsets)
    elif recipe.outputs == "token_logits":
        file.write("main/outputs/token_logits", noise(int(offsets[-1]), recipe.n_classes).astype(np.float32))
        file.write("main/outputs/token_logits_offsets", offsets)


def write_run(path: Path, recipe: Recipe) -> Run:
    (path / "probes").mkdir(parents=True)
    (path / "snapshots").mkdir()
    probe = make_probe(recipe)
    write_probe_set(probe_path(path), probe)
    facts = {"notes": [], "max_steps": recipe.max_steps, "training": {"seed": recipe.seed}, "command": ["train.py"]}
    write_manifest(path, {**facts, "model": {"name": "synthetic"}, **recipe.manifest})
    for step in recipe.steps:
        noise = _Noise(recipe, step)
        with FileWriter(snapshot_path(path, step), {"kind": "snapshot", "step": step}) as file:
            for stack in recipe.stacks:
                _write_stack(file, recipe, probe, stack, noise)
            _write_outputs(file, recipe, probe, noise)
        append_scalars(path, {"step": step, "loss": 1.0 / (1 + step)})
    return open_run(path)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Write a synthetic run: ``make_run("a", steps=(0, 5), drift=0.1)``."""

    def make(name: str = "run", **changes: Any) -> Run:
        return write_run(tmp_path / name, replace(Recipe(), **changes))

    return make
