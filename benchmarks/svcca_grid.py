"""Seconds, multiples of the bare matrix products, memory and error of the 13 x 13 SVCCA heat map of two 13-layer runs.

Run: python benchmarks/svcca_grid.py [--rows 8192] [--width 768] [--layers 13]. All times are taken in one process, one after
the other, and only their ratios mean anything.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from dynprobe.metrics.grid import svcca_grid


def representations(n: int, d: int, n_layers: int, *, seed: int, shared: np.ndarray) -> list[np.ndarray]:
    """Power-law spectrum, two rogue directions, a large mean; layers and runs share part of their signal."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** -0.57
    scale[:2] *= 4.0
    layers = []
    for layer in range(n_layers):
        rotation = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
        own = rng.normal(size=(n, d)).astype(np.float32)
        weight = np.float32(0.9 - 0.04 * layer)
        signal = weight * shared + np.sqrt(1 - weight**2) * own
        layers.append(
            (signal * scale.astype(np.float32)) @ rotation + np.float32(3.0) * rng.normal(size=d).astype(np.float32)
        )
    return layers


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The least of several times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def floor(x: list[torch.Tensor], y: list[torch.Tensor], k_x: tuple[int, ...], k_y: tuple[int, ...]) -> None:
    """The products alone: upper-triangle Gram (half of one product), whitening, cross products."""
    for block in (*x, *y):
        half = block.shape[1] // 2
        block[:, :half].mT @ block[:, :half]  # the two diagonal tiles and one off-diagonal tile, as two calls
        block[:, half:].mT @ block[:, : half // 2 + block.shape[1] // 4]
    a = torch.cat([block @ torch.ones(block.shape[1], k) for block, k in zip(x, k_x, strict=True)], dim=1)
    b = torch.cat([block @ torch.ones(block.shape[1], k) for block, k in zip(y, k_y, strict=True)], dim=1)
    a.mT @ b


def peak_megabytes() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    shared = np.random.default_rng(0).normal(size=(options.rows, options.width)).astype(np.float32)
    x = representations(options.rows, options.width, options.layers, seed=1, shared=shared)
    y = representations(options.rows, options.width, options.layers, seed=2, shared=shared)
    before = peak_megabytes()
    grid = svcca_grid(x, y)
    print(f"memory above the inputs: {peak_megabytes() - before:.0f} MB")
    print(f"kept directions: {grid.n_kept_x}")
    k_x, k_y = sum(grid.n_kept_x), sum(grid.n_kept_y)
    flops = options.rows * (2 * options.layers * options.width**2 + 2 * options.width * (k_x + k_y) + 2 * k_x * k_y)
    print(f"products: {flops / 1e9:.0f} GFLOP")
    tensors_x, tensors_y = ([torch.from_numpy(layer) for layer in side] for side in (x, y))
    bare = seconds(lambda: floor(tensors_x, tensors_y, grid.n_kept_x, grid.n_kept_y), options.repeats)
    print(f"bare products: {bare:.2f} s")
    for solver in ("eigh", "svd"):
        ours = seconds(lambda solver=solver: svcca_grid(x, y, solver=solver), options.repeats)
        print(f"grid, solver {solver}: {ours:.2f} s, {ours / bare:.2f} x the bare products")
    bases_x, bases_y = ([exact_basis(layer) for layer in side] for side in (x, y))
    reference = np.array([[np.linalg.svd(a.T @ b, compute_uv=False).mean() for b in bases_y] for a in bases_x])
    print(
        f"largest error of {reference.size} pairs against float64 SVD: {np.abs(grid.similarity - reference).max():.1e}"
    )
    one = seconds(lambda: straightforward(x[0], y[0]), 1)
    print(f"one pair by two SVDs and a CCA: {one:.2f} s, so the map takes {one * options.layers**2 / bare:.0f} x")


def exact_basis(x: np.ndarray) -> np.ndarray:
    """Variates of the float64 reference: QR, then SVD of R, no second moments."""
    wide = x.astype(np.float64)
    q, r = np.linalg.qr(wide - wide.mean(axis=0))
    u, s, _ = np.linalg.svd(r)
    return q @ u[:, : int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.99)) + 1]


def straightforward(x: np.ndarray, y: np.ndarray) -> float:
    """What most published code does for every pair."""
    kept = []
    for side in (x, y):
        u, s, _ = np.linalg.svd(side - side.mean(axis=0), full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        kept.append(u[:, : int(np.searchsorted(share, 0.99)) + 1])
    return float(np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean())


if __name__ == "__main__":
    main()
