"""Statements about arms of an experiment, with their figures in words: means, equality, spread, failed runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dynprobe.experiments.claims import FAILS, HOLDS, OPEN
from dynprobe.experiments.tables import interval, points
from dynprobe.metrics import (
    MeanDifference,
    SpreadTest,
    brown_forsythe,
    holm,
    paired_difference,
    sd_ratio_interval,
    welch_difference,
    wilson_interval,
)

_TOO_FEW = "too few seeds, or a value that is not finite"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The scores of one arm beside those of another.

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

    def shared_of(self, part: pd.DataFrame, column: str) -> pd.Series:
        """The values that :attr:`mean` is about."""
        values = part.set_index("seed")[column]
        return values[list(self.shared)] if self.paired else values

    @property
    def ratio_words(self) -> str:
        """The ratio of the standard deviations with its interval, or a dash."""
        if self.spread is None or self.sd_ratio is None:
            return "–"
        one, other = self.spread.sds
        return f"{one / other:.2f} [{self.sd_ratio[0]:.2f}, {self.sd_ratio[1]:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A claim with what was measured, before and after it is judged beside others.

    Attributes
    ----------
    text, shown
        What is claimed, and the figures, in words.
    p
        Chance of what was found, or of more, if the claim were void; corrected by Holm once it is judged.
    as_claimed
        Whether what was found goes the way of the claim.
    refuted
        Whether an interval rules the claim out, whatever p is.
    verdict
        :data:`~dynprobe.experiments.claims.HOLDS`, ``FAILS`` or ``OPEN``.
    """

    text: str
    shown: str
    p: float
    as_claimed: bool
    refuted: bool = False
    verdict: str = OPEN


def beside(x: pd.DataFrame, y: pd.DataFrame, *, column: str = "score") -> Beside:
    """Compare two arms, x - y.

    Parameters
    ----------
    x, y
        Their rows of :func:`trial_frame`.
    column
        What is compared; the step of a ``score`` is 1 / n_test.
    """
    resolution = 1.0 / float(x["n_test"].iloc[0]) if column == "score" else 0.0
    first, second = x.set_index("seed")[column], y.set_index("seed")[column]
    shared = first.index.intersection(second.index)
    is_paired = bool(x["paired"].all() and y["paired"].all())
    enough = min(len(first), len(second)) > 1 and bool(np.isfinite([*first, *second]).all())
    paired = welch = spread = ratio = None
    if enough:
        welch = welch_difference(first.to_numpy(), second.to_numpy(), resolution=resolution)
    if enough and is_paired and len(shared) > 1:
        paired = paired_difference(first[shared].to_numpy(), second[shared].to_numpy(), resolution=resolution)
    if enough and min(len(first), len(second)) > 2:
        spread = _spread(first, second)
        if np.ptp(first) > 0 and np.ptp(second) > 0:
            ratio = sd_ratio_interval(first.to_numpy(), second.to_numpy())
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


def equivalence_p(x: pd.DataFrame, y: pd.DataFrame, *, margin: float) -> float:
    """Test that two arms score the same within a margin, by two one-sided tests.

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
    raised = [(x.assign(score=x["score"] + margin), y), (y.assign(score=y["score"] + margin), x)]
    found = [beside(one, other).mean for one, other in raised]
    return min(1.0, 2 * max(1.0 if gap is None else gap.p_greater for gap in found))


def larger(text: str, x: pd.DataFrame, y: pd.DataFrame, *, column: str = "score", margin: float = 0.0) -> Statement:
    """That the mean of x is larger than that of y.

    Parameters
    ----------
    text
        What is claimed.
    x, y
        Rows of two arms, as for :func:`beside`.
    column
        What is compared; ``score`` is shown in points.
    margin
        The claim is refuted when the whole interval is no further from 0 than this.
    """
    return _mean_statement(text, x, y, column=column, margin=margin, direction=1)


def smaller(text: str, x: pd.DataFrame, y: pd.DataFrame, *, column: str = "score", margin: float = 0.0) -> Statement:
    """That the mean of x is smaller than that of y; see :func:`larger`."""
    return _mean_statement(text, x, y, column=column, margin=margin, direction=-1)


def same(text: str, x: pd.DataFrame, y: pd.DataFrame, *, margin: float) -> Statement:
    """That x and y score the same within a margin; refuted when the whole interval of the difference lies beyond it.

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
        return Statement(text=text, shown=_TOO_FEW, p=1.0, as_claimed=False)
    equal = int((x.set_index("seed")["score"] - y.set_index("seed")["score"]).dropna().eq(0).sum())
    shown = f"{_points(gap)}, the very same score with {equal} of {_seeds(found)}"
    apart = gap.low > margin or gap.high < -margin
    return Statement(text=text, shown=shown, p=equivalence_p(x, y, margin=margin), as_claimed=True, refuted=apart)


def varies(text: str, x: pd.DataFrame, y: pd.DataFrame, *, more: bool) -> Statement:
    """That the scores of x vary more over the seeds than those of y, or less.

    Parameters
    ----------
    text, x, y
        As for :func:`larger`.
    more
        More, or less.
    """
    found = beside(x, y)
    if found.spread is None:
        return Statement(text=text, shown="too few seeds to compare spreads", p=1.0, as_claimed=False)
    one, other = found.spread.sds
    shown = (
        f"standard deviation {points(one)} against {points(other)} points, ratio {found.ratio_words}, "
        f"{len(x)} and {len(y)} seeds"
    )
    return Statement(text=text, shown=shown, p=found.spread.p_value, as_claimed=one > other if more else one < other)


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
    return Statement(text=text, shown=shown, p=p, as_claimed=only > other)


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


def p_words(value: float) -> str:
    """A p value for a table.

    Examples
    --------
    >>> p_words(0.0321), p_words(0.0001)
    ('0.032', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def judge_statements(statements: Sequence[Statement], *, level: float = 0.95) -> list[Statement]:
    """Correct the p values of statements by Holm for their number, and decide.

    Parameters
    ----------
    statements
        What is judged together.
    level
        1 - level is the chance that any of them is wrongly said to hold, or its opposite.

    Examples
    --------
    >>> one = Statement(text="a", shown="", p=0.01, as_claimed=True)
    >>> [(found.p, found.verdict) for found in judge_statements([one, replace(one, p=0.04, as_claimed=False)])]
    [(0.02, 'holds here'), (0.04, 'does not hold here')]
    """
    if not statements:
        return []
    corrected = holm([said.p for said in statements])
    return [_decide(said, float(p), level) for said, p in zip(statements, corrected, strict=True)]


def _spread(first: pd.Series, second: pd.Series) -> SpreadTest | None:
    try:
        return brown_forsythe(first.to_numpy(), second.to_numpy())
    except ValueError:  # all equally far from their medians: the test has no scale
        return None


def _decide(said: Statement, p: float, level: float) -> Statement:
    verdict = FAILS if said.refuted else OPEN
    if p < 1 - level:
        verdict = HOLDS if said.as_claimed else FAILS
    return replace(said, p=p, verdict=verdict)


def _mean_statement(
    text: str, x: pd.DataFrame, y: pd.DataFrame, *, column: str, margin: float, direction: int
) -> Statement:
    found = beside(x, y, column=column)
    gap, is_score = found.mean, column == "score"
    if gap is None:
        return Statement(text=text, shown=_TOO_FEW, p=1.0, as_claimed=False)
    both = found.shared_of(x, column), found.shared_of(y, column)
    means = [f"{points(values.mean())} %" if is_score else f"{values.mean():.3f}" for values in both]
    plain = f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    shown = f"{means[0]} against {means[1]}, {_points(gap) if is_score else plain}, {_seeds(found)}"
    small = -margin <= gap.low and gap.high <= margin
    return Statement(
        text=text, shown=shown, p=gap.p_two_sided, as_claimed=gap.difference * direction > 0, refuted=small
    )


def _points(gap: MeanDifference) -> str:
    return f"{interval(gap.difference, gap.low, gap.high)} points"


def _seeds(found: Beside) -> str:
    return f"{len(found.shared)} seeds" if found.paired else "seeds that are not paired"
