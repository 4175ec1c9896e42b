"""The grid of noise and dropout of R3F, read from the results of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprobe.experiments.over_seeds import SHARES, OverSeeds, beside
from dynprobe.experiments.results import Results
from dynprobe.metrics import MeanDifference

NOISE = "noise-"
WITHOUT = "-without-dropout"


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
        That of the training with the same seed and the same dropout masks, but without noise, over it; empty without dropout,
        and for that training itself.
    measured
        Dropout alone over all of it, each with masks of its own, at the steps at which it was measured.
    score
        Accuracy on the test split, by seed.
    base
        The same without noise (with dropout), or of standard training (without); ``None`` where that was not run, or is this.
    """

    noise: float
    with_dropout: bool
    divergence: float
    share: OverSeeds
    measured: tuple[float, ...]
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
                divergence=float(np.mean(list(_divergences(own).values()))),
                share=_shares(own, base or []) if with_dropout and base is not own else OverSeeds(values={}),
                measured=_measured(stages),
                score=_scores(own),
                base=None if base is None or base is own else _scores(base),
            )
        )
    return sorted(rows, key=lambda row: (not row.with_dropout, row.noise))


def _divergences(own: Results) -> dict[int, float]:
    """Mean over the training, by seed."""
    return {result["seed"]: float(np.mean(result["stages"][0]["training"].get("regulariser", [0.0]))) for result in own}


def _shares(own: Results, base: Results) -> OverSeeds:
    """Divergence without noise over that with it, of the seeds that both have."""
    without, found = _divergences(base), _divergences(own)
    return OverSeeds(
        values={seed: without[seed] / value for seed, value in found.items() if seed in without}, unit=SHARES
    )


def _measured(stages: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    shares = (share for stage in stages for share in stage["training"].get("dropout_share", []))
    return tuple(share for share in shares if share is not None)


def _scores(own: Results) -> OverSeeds:
    values = {result["seed"]: float(result["stages"][0]["scores"]["test_accuracy"]) for result in own}
    return OverSeeds(values=values, resolution=1 / own[0]["stages"][0]["n_test"], unit=SHARES)
