"""A quantity over the seeds of two arms: compared, and put as a statement of means, equality, spread or failed runs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dynprobe.experiments.statements import Statement
from dynprobe.experiments.tables import interval, points
from dynprobe.metrics import (
    MeanDifference,
    SpreadTest,
    brown_forsythe,
    paired_difference,
    sd_ratio_interval,
    welch_difference,
    wilson_interval,
)

SHARES = "%"
_TOO_FEW = "too few seeds, or a value that is not finite"


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """What was measured of one arm with each seed.

    Attributes
    ----------
    values
        Seed to value.
    resolution
        Step of the values, such as 1 / n_test for an accuracy, or 0 when there is none.
    unit
        ``"%"`` for shares, which are shown as percentages; else a word to stand after the numbers, or nothing.
    digits
        Digits after the point of other values than shares.
    paired
        Whether a seed means the same as in other arms; not so after an earlier training that these did not have.
    """

    values: Mapping[int, float]
    resolution: float = 0.0
    unit: str = ""
    digits: int = 3
    paired: bool = True

    @property
    def array(self) -> np.ndarray:
        """The values, (n_seeds,)."""
        return np.array(list(self.values.values()), dtype=float)

    def of(self, seeds: Iterable[int]) -> np.ndarray:
        """The values of some seeds."""
        return np.array([self.values[seed] for seed in seeds], dtype=float)

    def shifted(self, by: float) -> "OverSeeds":
        """The same with a number added to each value."""
        return replace(self, values={seed: value + by for seed, value in self.values.items()})

    def mean_words(self, values: np.ndarray) -> str:
        """The mean of some of the values, with its unit if that is a share."""
        return f"{points(float(values.mean()))} %" if self.unit == SHARES else f"{values.mean():.{self.digits}f}"

    def gap_words(self, gap: MeanDifference) -> str:
        """A difference of such values with its interval and unit."""
        if self.unit == SHARES:
            return f"{interval(gap.difference, gap.low, gap.high)} points"
        value, low, high = (f"{number:+.{self.digits}f}" for number in (gap.difference, gap.low, gap.high))
        return f"{value} [{low}, {high}]" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The values of one arm beside those of another.

    Attributes
    ----------
    paired
        Mean difference over the seeds that both have; ``None`` for fewer than two, or where a seed does not mean the same.
    welch
        The same as if the seeds had nothing to do with each other, over all seeds of both; ``None`` for fewer than two.
    spread
        Whether both vary equally; ``None`` for fewer than three seeds, or where it has no scale.
    sd_ratio
        95 % interval of the ratio of the standard deviations; ``None`` likewise, or where one side does not vary.
    shared
        Seeds that both have, when they are paired.
    """

    paired: MeanDifference | None
    welch: MeanDifference | None
    spread: SpreadTest | None
    sd_ratio: tuple[float, float] | None
    shared: tuple[int, ...]

    @property
    def mean(self) -> MeanDifference | None:
        """Paired where that is possible."""
        return self.paired or self.welch

    def values_of(self, side: OverSeeds) -> np.ndarray:
        """The values that :attr:`mean` is about."""
        return side.of(self.shared) if self.paired else side.array

    @property
    def ratio_words(self) -> str:
        """The ratio of the standard deviations with its interval, or a dash."""
        if self.spread is None or self.sd_ratio is None:
            return "–"
        one, other = self.spread.sds
        return f"{one / other:.2f} [{self.sd_ratio[0]:.2f}, {self.sd_ratio[1]:.2f}]"

    @property
    def seed_words(self) -> str:
        """How many seeds, or that they are not paired."""
        return f"{len(self.shared)} seeds" if self.paired else "seeds that are not paired"


def beside(x: OverSeeds, y: OverSeeds) -> Beside:
    """Compare two arms, x - y.

    Parameters
    ----------
    x, y
        The same quantity of both.
    """
    shared = [seed for seed in x.values if seed in y.values]
    is_paired, one, other = x.paired and y.paired, x.array, y.array
    enough = min(len(one), len(other)) > 1 and bool(np.isfinite([*one, *other]).all())
    paired = welch = spread = ratio = None
    if enough:
        welch = welch_difference(one, other, resolution=x.resolution)
    if enough and is_paired and len(shared) > 1:
        paired = paired_difference(x.of(shared), y.of(shared), resolution=x.resolution)
    if enough and min(len(one), len(other)) > 2:
        spread = _spread(one, other)
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            ratio = sd_ratio_interval(one, other)
    return Beside(paired=paired, welch=welch, spread=spread, sd_ratio=ratio, shared=tuple(shared) if is_paired else ())


def discordant(x: pd.Series, y: pd.Series) -> tuple[int, int, float]:
    """Which of two arms fails with more seeds: pairs in which only one does.

    Parameters
    ----------
    x, y
        Seed to whether its run failed.

    Returns
    -------
    tuple
        Number of seeds with which only x failed, only y, and the two-sided p of McNemar's exact test.

    Examples
    --------
    >>> discordant(pd.Series([True] * 6), pd.Series([False] * 6))
    (6, 0, 0.03125)
    """
    shared = x.index.intersection(y.index)
    one, other = x[shared].to_numpy(dtype=bool), y[shared].to_numpy(dtype=bool)
    only_x, only_y = int((one & ~other).sum()), int((other & ~one).sum())
    n = only_x + only_y
    tail = sum(math.comb(n, k) for k in range(min(only_x, only_y) + 1)) / 2**n
    return only_x, only_y, min(1.0, 2 * tail)


def equivalence_p(x: OverSeeds, y: OverSeeds, *, margin: float) -> float:
    """Test that two arms are the same within a margin, by two one-sided tests.

    Parameters
    ----------
    x, y
        As for :func:`beside`.
    margin
        Above 0.

    Returns
    -------
    float
        p, doubled, so that it is below 0.05 just where the 95 % interval lies within the margin; 1 where there is no difference
        to test. Schuirmann (1987).
    """
    found = [beside(one.shifted(margin), other).mean for one, other in ((x, y), (y, x))]
    return min(1.0, 2 * max(1.0 if gap is None else gap.p_greater for gap in found))


def larger(text: str, x: OverSeeds, y: OverSeeds, *, margin: float = 0.0) -> Statement:
    """That the mean of x is larger than that of y.

    Parameters
    ----------
    text
        What is claimed.
    x, y
        The same quantity of two arms.
    margin
        The claim is refuted when the whole interval is no further from 0 than this.

    Examples
    --------
    >>> x, y = OverSeeds(values={0: 0.5, 1: 0.52, 2: 0.51}, unit="%"), OverSeeds(values={0: 0.4, 1: 0.4, 2: 0.4}, unit="%")
    >>> larger("x is larger", x, y).shown
    '51.0 % against 40.0 %, +11.0 [+8.5, +13.5] points, 3 seeds'
    """
    return _mean_statement(text, x, y, margin=margin, direction=1)


def smaller(text: str, x: OverSeeds, y: OverSeeds, *, margin: float = 0.0) -> Statement:
    """That the mean of x is smaller than that of y; see :func:`larger`."""
    return _mean_statement(text, x, y, margin=margin, direction=-1)


def same(text: str, x: OverSeeds, y: OverSeeds, *, margin: float) -> Statement:
    """That x and y are the same within a margin; refuted when the whole interval of the difference lies beyond it.

    Parameters
    ----------
    text, x, y
        As for :func:`larger`.
    margin
        What is too small to matter.
    """
    found = beside(x, y)
    gap = found.mean
    if gap is None:
        return Statement(text=text, shown=_TOO_FEW)
    equal = sum(x.values[seed] == y.values[seed] for seed in found.shared)
    seeds = f"the very same value with {equal} of {found.seed_words}" if found.paired else found.seed_words
    shown = f"{x.gap_words(gap)}, {seeds}"
    p, apart = equivalence_p(x, y, margin=margin), gap.low > margin or gap.high < -margin
    return Statement(text=text, shown=shown, brief=x.gap_words(gap), p=p, as_claimed=True, refuted=apart)


def varies(text: str, x: OverSeeds, y: OverSeeds, *, more: bool) -> Statement:
    """That x varies more over the seeds than y, or less.

    Parameters
    ----------
    text, x, y
        As for :func:`larger`; shares.
    more
        More, or less.
    """
    found = beside(x, y)
    if found.spread is None:
        return Statement(text=text, shown="too few seeds to compare spreads")
    one, other = found.spread.sds
    sds = f"standard deviation {points(one)} against {points(other)} points"
    shown = f"{sds}, ratio {found.ratio_words}, {len(x.values)} and {len(y.values)} seeds"
    far, near = (float(np.abs(side.array - np.median(side.array)).mean()) for side in (x, y))  # what is tested
    as_claimed = far > near if more else far < near
    return Statement(text=text, shown=shown, brief=sds, p=found.spread.p_value, as_claimed=as_claimed)


def fails_more(text: str, x: pd.Series, y: pd.Series) -> Statement:
    """That x fails with more seeds than y.

    Parameters
    ----------
    text
        What is claimed.
    x, y
        Seed to whether the run failed.
    """
    only, other, p = discordant(x, y)
    shown = f"{share_words(x)} against {share_words(y)}; with {only} and {other} seeds only one of the two"
    brief = f"{int(x.sum())} of {len(x)} against {int(y.sum())} of {len(y)}"
    return Statement(text=text, shown=shown, brief=brief, p=p, as_claimed=only > other)


def share_words(flags: Iterable[bool]) -> str:
    """How many, with the 95 % interval of their share.

    Examples
    --------
    >>> share_words([True, False, False, False])
    '1 of 4 [5 to 70 %]'
    """
    found = [bool(flag) for flag in flags]
    low, high = wilson_interval(sum(found), len(found))
    return f"{sum(found)} of {len(found)} [{100 * low:.0f} to {100 * high:.0f} %]"


def _spread(first: np.ndarray, second: np.ndarray) -> SpreadTest | None:
    try:
        return brown_forsythe(first, second)
    except ValueError:  # all equally far from their medians: the test has no scale
        return None


def _mean_statement(text: str, x: OverSeeds, y: OverSeeds, *, margin: float, direction: int) -> Statement:
    found = beside(x, y)
    gap = found.mean
    if gap is None:
        return Statement(text=text, shown=_TOO_FEW)
    one, other = (side.mean_words(found.values_of(side)) for side in (x, y))
    return Statement(
        text=text,
        shown=f"{one} against {other}, {x.gap_words(gap)}, {found.seed_words}",
        brief=f"{x.gap_words(gap)}, {found.seed_words}",
        p=gap.p_two_sided,
        as_claimed=gap.difference * direction > 0,
        refuted=-margin <= gap.low and gap.high <= margin,
    )
