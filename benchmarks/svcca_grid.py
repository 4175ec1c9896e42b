"""The SVCCA heat map of two runs: time as multiples of the bare matrix products, memory, and error of every pair.

Run: python benchmarks/svcca_grid.py [--rows 8192] [--width 768] [--layers 13] [--device cuda]. Ours, the bare products and the
straightforward way take turns in one process; only their ratios mean anything.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dynprobe.metrics import svcca_grid

EXPONENT = -0.555  # of the standard deviations; about 415 of 768 directions then hold 99 % of the variance
N_ROGUE, ROGUE_SCALE, MEAN_SCALE = 2, 4.0, 3.0


def representations(n: int, d: int, n_layers: int, *, seed: int, device: torch.device) -> list[torch.Tensor]:
    """Power-law spectrum, two rogue directions, a large mean; layers and runs share part of their signal."""
    own = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int, generator: torch.Generator = own) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    shared = normal(n, d, generator=torch.Generator(device=device).manual_seed(0))
    scale = torch.arange(1, d + 1, device=device, dtype=torch.float32) ** EXPONENT
    scale[:N_ROGUE] *= ROGUE_SCALE
    layers = []
    for layer in range(n_layers):
        rotation = torch.linalg.qr(normal(d, d)).Q
        weight = 0.9 - 0.5 * layer / n_layers
        signal = weight * shared + (1 - weight**2) ** 0.5 * normal(n, d)
        layers.append((signal * scale) @ rotation + MEAN_SCALE * normal(d))
    return layers


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def bare_products(x: list[torch.Tensor], y: list[torch.Tensor], k_x: list[int], k_y: list[int]) -> None:
    """The products alone: upper triangle of the Gram matrices, whitening, cross products."""
    for block in (*x, *y):
        half = block.shape[1] // 2
        block[:, :half].mT @ block[:, :half]  # half of a Gram matrix, as two products
        block[:, half:].mT @ block[:, : half // 2 + block.shape[1] // 4]
    whitened = [
        torch.cat(
            [block @ torch.ones(block.shape[1], k, device=block.device) for block, k in zip(side, kept, strict=True)], 1
        )
        for side, kept in ((x, k_x), (y, k_y))
    ]
    whitened[0].mT @ whitened[1]


def exact_basis(x: torch.Tensor) -> torch.Tensor:
    """Variates of the float64 reference: QR, then SVD of R, no second moments."""
    wide = x.double()
    q, r = torch.linalg.qr(wide - wide.mean(dim=0))
    u, s, _ = torch.linalg.svd(r)
    return q @ u[:, : kept_of(s)]


def kept_of(singular: torch.Tensor) -> int:
    """Smallest number of directions that hold 99 % of the variance."""
    share = singular.square().cumsum(0) / singular.square().sum()
    return int((share < 0.99).sum()) + 1


def straightforward(x: torch.Tensor, y: torch.Tensor) -> float:
    """What most published code does for every pair: two SVDs and a CCA."""
    kept = []
    for side in (x, y):
        u, s, _ = torch.linalg.svd(side - side.mean(dim=0), full_matrices=False)
        kept.append(u[:, : kept_of(s)])
    return float(torch.linalg.svdvals(kept[0].mT @ kept[1]).mean())


def peak_megabytes(device: torch.device) -> float:
    """Highest memory so far: of the process, or of the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes_now(device: torch.device) -> float:
    """Memory in use: of the process, or of the device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--no-reference", action="store_true", help="leave the slow float64 reference out")
    options = parser.parse_args()
    n, d, layers, device = options.rows, options.width, options.layers, options.device
    torch.backends.cuda.matmul.allow_tf32 = False
    x, y = (representations(n, d, layers, seed=seed, device=device) for seed in (1, 2))
    before = megabytes_now(device)
    grid = svcca_grid(x, y)
    print(f"memory above the inputs: {peak_megabytes(device) - before:.0f} MB")
    k_x, k_y = list(grid.n_kept_x), list(grid.n_kept_y)
    flops = n * (2 * layers * d**2 + 2 * d * (sum(k_x) + sum(k_y)) + 2 * sum(k_x) * sum(k_y))
    print(
        f"{layers} x {layers} pairs, n = {n}, d = {d}; {min(k_x)} to {max(k_x)} directions kept; {flops / 1e9:.0f} GFLOP"
    )
    bare_products(x, y, k_x, k_y)  # warm up
    turns = []
    for _ in range(options.turns):
        floor = timed(lambda: bare_products(x, y, k_x, k_y), device)
        turns.append(
            [floor, *(timed(lambda s=s: svcca_grid(x, y, solver=s), device) for s in ("auto", "svd", "polar"))]
        )
    floor = np.median([turn[0] for turn in turns])
    print(f"bare products: {floor:.2f} s, {flops / floor / 1e9:.0f} GFLOP/s")
    for column, name in enumerate(("auto", "svd", "polar"), start=1):
        ratios = [turn[column] / turn[0] for turn in turns]
        seconds = np.median([turn[column] for turn in turns])
        print(
            f"solver {name}: {np.median(ratios):.2f} x the products ({min(ratios):.2f} to {max(ratios):.2f}), {seconds:.2f} s"
        )
    ours = np.median([turn[1] for turn in turns])
    one_svd = timed(lambda: torch.linalg.svd(x[0], full_matrices=False), device)
    print(
        f"SVDs of the {2 * layers} matrices alone: {2 * layers * one_svd / ours:.0f} x ours (one timed, {one_svd:.2f} s)"
    )
    pair = timed(lambda: straightforward(x[0], y[0]), device)
    print(f"two SVDs and a CCA for every pair: {pair * layers**2 / ours:.0f} x ours (one pair timed, {pair:.2f} s)")
    if not options.no_reference:
        bases = [[exact_basis(layer) for layer in side] for side in (x, y)]
        exact = np.array([[float(torch.linalg.svdvals(a.mT @ b).mean()) for b in bases[1]] for a in bases[0]])
        print(
            f"largest error of {exact.size} pairs against float64 QR and SVD: {np.abs(grid.similarity - exact).max():.1e}"
        )


if __name__ == "__main__":
    main()
