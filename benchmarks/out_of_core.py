"""Memory and time of comparing the hidden states of two runs, by number of tokens and of snapshots.

Run: python benchmarks/out_of_core.py [--tokens 12500 25000 50000 100000] [--snapshots 5 10 20] [--layers 13] [--width 768].
Hidden states are made when they are read, block by block, so that nothing but the comparison takes memory. Each size runs in a
process of its own; the slope is that of log time over log size, 1 for linear growth.
"""

import argparse
import multiprocessing
import resource
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from dynprobe.analysis import hidden_state_similarity
from dynprobe.analysis.moments import Moment, Pair

TOKENS_PER_EXAMPLE = 25
POOL_ROWS = 16384
EXPONENT = -0.57


@dataclass(frozen=True)
class Size:
    """Of both runs."""

    n_tokens: int
    n_snapshots: int
    n_layers: int
    d_model: int


class Pool:
    """Random rows; those beyond its end are the first ones with other signs."""

    def __init__(self, d_model: int, n_tokens: int) -> None:
        rng = np.random.default_rng(0)
        scale = np.arange(1, d_model + 1) ** EXPONENT
        self._rows = (rng.normal(size=(POOL_ROWS, d_model)) * scale).astype(np.float32)
        n_rounds = 2 + (n_tokens + 977 * 10_000) // POOL_ROWS
        self._signs = rng.choice(np.array([-1, 1], dtype=np.float32), size=(n_rounds, d_model))

    def rows(self, rows: slice, series: int) -> np.ndarray:
        """Some rows of one of many different series."""
        index = np.arange(rows.start, rows.stop) + 977 * series
        return self._rows[index % POOL_ROWS] * self._signs[index // POOL_ROWS]


class Snapshot:
    """What the comparison asks of a snapshot, with hidden states that are made when they are read."""

    def __init__(self, pool: Pool, size: Size, seed: int, step: int) -> None:
        self._pool, self._size, self._seed, self._step = pool, size, seed, step

    def layers(self, stack: str) -> tuple[int, ...]:
        """Layers with hidden states."""
        return tuple(range(self._size.n_layers))

    @property
    def stacks(self) -> tuple[str, ...]:
        """One."""
        return ("model",)

    def pooled_kinds(self, stack: str) -> tuple[str, ...]:
        """None."""
        return ()

    def attention_layers(self, stack: str) -> tuple[int, ...]:
        """None."""
        return ()

    def hidden_rows(self, stack: str) -> np.ndarray:
        """(n_rows, 2) example and position."""
        rows = np.arange(self._size.n_tokens, dtype=np.int32)
        return np.stack([rows // TOKENS_PER_EXAMPLE, rows % TOKENS_PER_EXAMPLE], axis=1)

    def d_model(self, layer: int, stack: str) -> int:
        """Width."""
        return self._size.d_model

    def resolution(self, quantity: str, layer: int, stack: str) -> float:
        """That of float16."""
        return float(np.finfo(np.float16).eps)

    def hidden_states(self, layer: int, stack: str, *, rows: slice = slice(None)) -> np.ndarray:
        """The pretrained part, less of it after each step, and a part of the run's own."""
        rows = slice(*rows.indices(self._size.n_tokens)[:2])
        found = self._pool.rows(rows, layer)
        if self._step:
            away = np.float32(0.1 * self._step / self._size.n_snapshots * (1 + layer))
            found += away * self._pool.rows(rows, 1000 + 100 * self._seed + layer)
        return found


def compare(size: Size) -> tuple[float, float]:
    """Seconds and peak megabytes of one comparison."""
    pool = Pool(size.d_model, size.n_tokens)
    sides = []
    for seed in (1, 2):
        run = {step: Snapshot(pool, size, seed, step) for step in range(size.n_snapshots)}
        run_like = _RunLike(run)
        sides.append([Moment(run_like, f"run-{seed}", step) for step in run])
    pairs = [Pair("from_start", later, side[0]) for side in sides for later in side[1:]]
    pairs += [Pair("between", a, b) for a, b in zip(*sides, strict=True)]
    start = time.perf_counter()
    hidden_state_similarity(pairs)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _RunLike(dict):  # type: ignore[type-arg]
    """Snapshots by step, and a probe set that says nothing of special tokens; compared by identity."""

    probe_set = SimpleNamespace(special={})
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def in_own_process(size: Size) -> tuple[float, float]:
    """As :func:`compare`, so that the peak is that of this size alone."""
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        return processes.apply(compare, (size,))


def series(name: str, sizes: list[Size]) -> None:
    """Print one line per size, and the slope."""
    print(f"| {name} | resident MB | seconds | seconds per token and snapshot (ms) |\n| --- | --- | --- | --- |")
    times = []
    for size in sizes:
        seconds, megabytes = in_own_process(size)
        times.append(seconds)
        work = size.n_tokens * size.n_snapshots
        print(f"| {getattr(size, name)} | {megabytes:.0f} | {seconds:.1f} | {1e3 * seconds / work:.3f} |", flush=True)
    if len(sizes) > 1:
        x = np.log([getattr(size, name) for size in sizes])
        print(f"slope {np.polyfit(x, np.log(times), 1)[0]:.2f}\n", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12500, 25000, 50000, 100000])
    parser.add_argument("--snapshots", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    few, short = min(options.snapshots, default=3), min(options.tokens, default=12500)
    series("n_tokens", [Size(n, min(3, few), options.layers, options.width) for n in options.tokens])
    series("n_snapshots", [Size(short, n, options.layers, options.width) for n in options.snapshots])


if __name__ == "__main__":
    main()
