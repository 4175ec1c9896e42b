"""Whether the intervals, biases and chance levels of SVCCA and CKA say what they claim, on simulated texts.

Run: python benchmarks/coverage.py [--simulations 2000]. Each row is a population; `covered` is the share of intervals that hold
the expected value at the same n, to lie within 0.93 to 0.97. `chance` compares the level measured by shifting whole texts with
what two independent runs reach.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics import (
    half_sample_interval,
    linear_cka_similarity,
    principal_subspace,
    subspace_correlations,
    svcca_chance_level,
    svcca_half_samples,
)
from dynprobe.metrics.resampling import balanced_half_samples

BATCH = 250
N_GROUPS = 8
N_MANY = 20_000  # texts of the population value


@dataclass(frozen=True)
class Population:
    """How the hidden states of two snapshots are drawn.

    Attributes
    ----------
    n_texts, n_tokens
        Per sample, and per text.
    d
        Number of features.
    exponent
        Standard deviations fall as rank to the minus this.
    noise
        Size of what the second snapshot has of its own.
    within
        Share of the variance that tokens of a text have in common.
    variance
        Share of the variance that decides how many directions are held.
    spread
        Of the logarithm of the lengths of texts; 0 for texts of equal length.
    """

    n_texts: int = 100
    n_tokens: int = 10
    d: int = 24
    exponent: float = 0.6
    noise: float = 0.7
    within: float = 0.3
    variance: float = 0.99
    spread: float = 0.0

    def lengths(self, n_texts: int) -> np.ndarray:
        """Number of tokens of each text, the same for every sample."""
        drawn = np.exp(self.spread * np.random.default_rng(0).normal(size=n_texts))
        return np.maximum(1, np.round(self.n_tokens * drawn / drawn.mean())).astype(int)

    def draw(self, n_samples: int, n_texts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two representations (n_samples, rows, d) of the same tokens."""
        shared, own = (self._cloud(n_samples, n_texts, generator) for _ in range(2))
        scale = torch.arange(1, self.d + 1, dtype=torch.float64) ** -self.exponent
        kept = torch.linspace(1, 0.3, self.d, dtype=torch.float64)
        return shared * scale, (shared * kept + self.noise * own) * scale

    def _cloud(self, n_samples: int, n_texts: int, generator: torch.Generator) -> Tensor:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        lengths = torch.from_numpy(self.lengths(n_texts))
        texts = normal(n_samples, n_texts, self.d).repeat_interleave(lengths, dim=1) * self.within**0.5
        return texts + normal(*texts.shape) * (1 - self.within) ** 0.5


POPULATIONS = {
    "ordinary": Population(),
    "independent tokens": Population(within=0.0, n_texts=150, n_tokens=5),
    "tokens much alike": Population(within=0.5),
    "wide": Population(d=48, n_texts=200),
    "steep spectrum": Population(exponent=0.9),
    "hardly changed": Population(noise=0.2),
    "nearly unrelated": Population(noise=3.0),
    "all directions": Population(variance=1.0),
    "few texts": Population(n_texts=50),
    "two directions, near a tie": Population(d=12, exponent=0.1, variance=0.2),
    "texts of uneven length": Population(spread=1.0),
}


def svcca(x: Tensor, y: Tensor, kept: tuple[int, int]) -> np.ndarray:
    """SVCCA of batches with given numbers of directions."""
    sides = (principal_subspace(side, n_kept=k) for side, k in zip((x, y), kept, strict=True))
    return np.asarray(subspace_correlations(*sides).mean(dim=-1))


def halves_of_cka(x: Tensor, y: Tensor, groups: np.ndarray) -> np.ndarray:
    """Debiased CKA on the balanced halves, (n_samples, n_halves)."""
    rows = [np.flatnonzero(half[groups]) for half in balanced_half_samples(N_GROUPS)]
    return np.stack([np.asarray(linear_cka_similarity(x[:, i], y[:, i], debiased=True)) for i in rows], axis=1)


def covered(values: np.ndarray, halves: np.ndarray) -> float:
    """Share of intervals that hold the mean of all values."""
    ends = np.array([half_sample_interval(value, own) for value, own in zip(values, halves, strict=True)])
    return float(((ends[:, 0] <= values.mean()) & (values.mean() <= ends[:, 1])).mean())


def simulate(population: Population, n_simulations: int) -> dict[str, float]:
    """Coverage, bias and chance level of one population."""
    generator = torch.Generator().manual_seed(0)
    lengths = population.lengths(population.n_texts)
    groups = np.repeat(np.arange(population.n_texts) * N_GROUPS // population.n_texts, lengths)
    shift = int(lengths[: population.n_texts // 2].sum())
    found: dict[str, list[np.ndarray]] = {}
    kept = (0, 0)
    for _ in range(max(1, n_simulations // BATCH)):
        x, y = population.draw(BATCH, population.n_texts, generator)
        if kept == (0, 0):
            kept = tuple(int(principal_subspace(side[0], variance=population.variance).n_kept) for side in (x, y))
        other = population.draw(BATCH, population.n_texts, generator)[1]
        sides = [principal_subspace(side, n_kept=k) for side, k in zip((x, y), kept, strict=True)]
        parts = {
            "svcca": svcca(x, y, kept),
            "halves": np.asarray(svcca_half_samples(x, y, groups, n_kept=kept)),
            "cka": np.asarray(linear_cka_similarity(x, y, debiased=True)),
            "halves of cka": halves_of_cka(x, y, groups),
            "shifted": np.asarray(svcca_chance_level(*sides, shifts=[shift]))[:, 0],
            "independent": svcca(x, other, kept),
        }
        for name, part in parts.items():
            found.setdefault(name, []).append(part)
    all_of = {name: np.concatenate(parts) for name, parts in found.items()}
    many = svcca(*population.draw(1, N_MANY, generator), kept)[0]
    return {
        "covered": covered(all_of["svcca"], all_of["halves"]),
        "covered (CKA)": covered(all_of["cka"], all_of["halves of cka"]),
        "SVCCA": float(all_of["svcca"].mean()),
        "bias": float(all_of["svcca"].mean() - many),
        "bias told": float((all_of["halves"].mean(axis=1) - all_of["svcca"]).mean()),
        "chance told": float(all_of["shifted"].mean()),
        "independent runs": float(all_of["independent"].mean()),
    }


def main() -> None:
    """Print one row per population."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=POPULATIONS, default=list(POPULATIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # batches of small matrices
    for index, name in enumerate(options.only):
        row = simulate(POPULATIONS[name], options.simulations)
        if index == 0:
            print("| population | " + " | ".join(row) + " |\n|" + " --- |" * (len(row) + 1))
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
