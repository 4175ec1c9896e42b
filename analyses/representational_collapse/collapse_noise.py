"""The grid of noise and dropout of R3F, read from the results of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprobe.experiments.over_seeds import SHARES, OverSeeds, beside
from dynprobe.metrics import MeanDifference

NOISE = "noise-"
WITHOUT = "-without-dropout"

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class NoiseRow:
    """One cell of the grid of noise and dropout.

    Attributes
    ----------
    noise
        Largest noise on a coordinate of a word embedding.
    with_dropout
        Whether the model has dropout.
    divergence
        Mean symmetric KL divergence between clean and noisy pass, in nats.
    share
        Part of it that dropout alone makes, by seed; empty without dropout.
    score
        Accuracy on the test split, by seed.
    base
        The same without noise (with dropout), or of standard training (without); ``None`` where that was not run, or is this.
    """

    noise: float
    with_dropout: bool
    divergence: float
    share: OverSeeds
    score: OverSeeds
    base: OverSeeds | None

    @property
    def gap(self) -> MeanDifference | None:
        """Score above the base, paired by seed."""
        return None if self.base is None else beside(self.score, self.base).paired

    @property
    def all_dropout(self) -> OverSeeds:
        """What :attr:`share` would be if noise made nothing."""
        return OverSeeds(values=dict.fromkeys(self.share.values, 1.0), unit=SHARES)


def noise_rows(results: Results) -> list[NoiseRow]:
    """The grid of noise and dropout, as far as it was run."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        arms.setdefault(result["arm"], []).append(result)
    bases = {True: arms.get(f"{NOISE}0"), False: arms.get(f"standard{WITHOUT}")}
    rows = []
    for own in (own for arm, own in arms.items() if arm.startswith(NOISE)):
        stages = [result["stages"][0] for result in own]
        with_dropout = not own[0]["arm"].endswith(WITHOUT)
        base = bases[with_dropout]
        rows.append(
            NoiseRow(
                noise=float(stages[0]["setup"]["methods"]["r3f"]["eps"]),
                with_dropout=with_dropout,
                divergence=float(np.mean([np.mean(stage["training"].get("regulariser", [0.0])) for stage in stages])),
                share=_shares(own if with_dropout else []),
                score=_scores(own),
                base=None if base is None or base is own else _scores(base),
            )
        )
    return sorted(rows, key=lambda row: (not row.with_dropout, row.noise))


def _shares(own: Results) -> OverSeeds:
    """The part that dropout makes, mean over the steps at which it was measured."""
    measured = {
        result["seed"]: [
            share for share in result["stages"][0]["training"].get("dropout_share", []) if share is not None
        ]
        for result in own
    }
    return OverSeeds(values={seed: float(np.mean(shares)) for seed, shares in measured.items() if shares}, unit=SHARES)


def _scores(own: Results) -> OverSeeds:
    values = {result["seed"]: float(result["stages"][0]["scores"]["test_accuracy"]) for result in own}
    return OverSeeds(values=values, resolution=1 / own[0]["stages"][0]["n_test"], unit=SHARES)
