"""Two recipes over seeds: how far apart their mean scores are, and what may be said of it."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import stdtr

from dynprobe.metrics._options import check_level
from dynprobe.metrics._scores import (
    Scores,
    as_scores,
    check_resolution,
    mean_error,
    off_by_one_step,
    spread,
    t_quantile,
)

Verdict: TypeAlias = Literal["better", "non-inferior", "inferior", "cannot tell"]


@dataclass(frozen=True)
class MeanDifference:
    """Difference of two mean scores over seeds, x - y, in the unit of the scores.

    Attributes
    ----------
    difference
        Mean of x minus mean of y.
    low, high
        Interval of the difference.
    standard_error, degrees_of_freedom
        Of the t distribution behind interval and p.
    p_two_sided
        Chance of a difference at least as large in size when there is none.
    p_greater
        One-tailed: chance of a difference at least as large when x is no better than y.
    n_x, n_y
        Number of seeds.
    level
        Probability that the interval covers.
    degenerate
        Whether the spread was 0, so that interval and p rest on the resolution alone; without one, nothing is known:
        the interval is infinite, p is 1.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    p_two_sided: float
    p_greater: float
    n_x: int
    n_y: int
    level: float
    degenerate: bool

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high, for :func:`verdict`."""
        return self.low, self.high


def paired_difference(x: Scores, y: Scores, *, level: float = 0.95, resolution: float = 0.0) -> MeanDifference:
    """Mean difference of two recipes that were run with the same seeds, with its t interval.

    The seed must mean the same for both (same order of data, same start of the head): then much of its luck cancels.

    Parameters
    ----------
    x, y
        (n,) scores, the same seed at the same place; at least two.
    level
        Probability that the interval covers, in (0, 1).
    resolution
        Step of the scores, such as 1 / n_test for an accuracy, or 0 when it is not known. The interval is never narrower than
        the step allows.

    Returns
    -------
    MeanDifference
        With n - 1 degrees of freedom.

    Raises
    ------
    ValueError
        For unequal lengths, fewer than two or non-finite scores, a negative resolution, or a level outside (0, 1).

    Notes
    -----
    Student (1908). Exact for normal differences. Differences that are all equal, up to rounding, are no proof that there is no
    spread: then at most the share q = 1 - ((1 - level) / 2)^(1/n) of all seeds gives another one (Clopper and Pearson 1934);
    when that is one step away, the mean is off by at most q · resolution. This is the least margin; where it widens the
    interval, p follows: below 1 - level just where the interval leaves 0 out. A failed run is many steps away, so that the
    least margin does not hold where runs may fail.

    Examples
    --------
    >>> found = paired_difference([0.70, 0.72, 0.74], [0.69, 0.70, 0.71])
    >>> round(found.difference, 6), found.degrees_of_freedom, round(found.low, 4), round(found.high, 4)
    (0.02, 2.0, -0.0048, 0.0448)
    """
    first, second = as_scores("x", x), as_scores("y", y)
    if len(first) != len(second):
        raise ValueError(
            f"`y` must have the seeds of `x`; got {len(second)} and {len(first)} scores. "
            "Use welch_difference for seeds that are not paired"
        )
    differences, n = first - second, len(first)
    size = float(max(np.abs(first).max(), np.abs(second).max()))
    sd = spread(differences, size=size)
    standard_error = mean_error(sd, n, level=level, resolution=resolution)
    return _mean_difference(
        float(differences.mean()), standard_error, df=n - 1, n=(n, n), level=level, degenerate=sd == 0
    )


def welch_difference(x: Scores, y: Scores, *, level: float = 0.95, resolution: float = 0.0) -> MeanDifference:
    """Difference of the mean scores of two recipes whose seeds have nothing to do with each other.

    Parameters
    ----------
    x, y
        (n_x,) and (n_y,) scores, at least two each.
    level, resolution
        As for :func:`paired_difference`.

    Returns
    -------
    MeanDifference
        With the degrees of freedom of Welch and Satterthwaite, not whole.

    Raises
    ------
    ValueError
        As :func:`paired_difference`, but for the lengths, which may differ.

    Notes
    -----
    Welch (1947): the recipes may vary by different amounts, as a stable and an unstable one do. One constant side is no
    obstacle; two are `degenerate`: then the margin is the sum of what the resolution allows for each side.

    Examples
    --------
    >>> found = welch_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    >>> found.difference, found.degrees_of_freedom, round(found.low, 4), round(found.p_two_sided, 4)
    (2.0, 2.0, -0.4841, 0.0742)
    """
    check_level(level)
    check_resolution(resolution)
    first, second = as_scores("x", x), as_scores("y", y)
    n_x, n_y = len(first), len(second)
    a, b = spread(first) ** 2 / n_x, spread(second) ** 2 / n_y
    degenerate = a + b == 0
    if degenerate:
        df = float(min(n_x, n_y) - 1)
    else:
        share = a / (a + b)  # of the variance; its square cannot vanish as that of a tiny variance would
        df = 1 / (share**2 / (n_x - 1) + (1 - share) ** 2 / (n_y - 1))
    tail = (1 - level) / 4  # both sides must hold at once
    least = (off_by_one_step(n_x, tail) + off_by_one_step(n_y, tail)) * resolution
    known = max(math.sqrt(a + b), least / t_quantile(df, level=level))
    standard_error = math.inf if degenerate and resolution == 0 else known
    difference = float(first.mean() - second.mean())
    return _mean_difference(difference, standard_error, df=df, n=(n_x, n_y), level=level, degenerate=degenerate)


def verdict(interval: tuple[float, float], margin: float) -> Verdict:
    """What an interval of the difference between a new and an old recipe says, for a margin that was set beforehand.

    Parameters
    ----------
    interval
        Low and high end of new - old, higher being better, such as :attr:`MeanDifference.interval`. A two-sided 95 % interval
        makes each claim with an error of at most 2.5 %.
    margin
        The largest loss that would still not matter, 0 or more.

    Returns
    -------
    str
        ``"better"``: the whole interval is above 0. ``"non-inferior"``: above -margin. ``"inferior"``: below -margin, the loss
        matters. ``"cannot tell"``: anything else; also when the new recipe is worse, but not surely by more than the margin.

    Raises
    ------
    ValueError
        For ends that are NaN or in the wrong order, or a negative margin.

    Notes
    -----
    Piaggio et al. (2012), "Reporting of noninferiority and equivalence randomized trials: extension of the CONSORT 2010
    statement", JAMA 308, figure 1. An end at 0 or -margin exactly is not beyond it. "Non-inferior" may be worse, surely,
    but by less than the margin; "cannot tell" is no evidence that there is no difference.

    Examples
    --------
    >>> [verdict(ends, 0.01) for ends in [(0.001, 0.02), (-0.005, 0.02), (-0.03, -0.02), (-0.03, -0.001)]]
    ['better', 'non-inferior', 'inferior', 'cannot tell']
    """
    low, high = interval
    if not low <= high:
        raise ValueError(f"`interval` must be (low, high); got ({low}, {high})")
    if not 0 <= margin < math.inf:
        raise ValueError(f"`margin` must be 0 or more and finite; got {margin}")
    if low > 0:
        return "better"
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "cannot tell"


def holm(p_values: Scores) -> np.ndarray:
    """Adjusted p values of several tests: any that stays below α may be called significant, wrongly with a chance below α.

    Parameters
    ----------
    p_values
        (m,) p values, each in [0, 1], in any order; the tests may depend on each other in any way.

    Returns
    -------
    ndarray
        (m,) adjusted p values in the order given, each at least what it was and at most 1.

    Raises
    ------
    ValueError
        Without p values or for one outside [0, 1].

    Notes
    -----
    Holm (1979): the k-th smallest of m times m - k + 1, made monotone.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = as_scores("p_values", p_values, at_least=1)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"`p_values` must be in [0, 1]; got {values.min()} to {values.max()}")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def _mean_difference(
    difference: float,
    standard_error: float,
    *,
    df: float,
    n: tuple[int, int],
    level: float,
    degenerate: bool,
) -> MeanDifference:
    t, margin = difference / standard_error, t_quantile(df, level=level) * standard_error
    return MeanDifference(
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        standard_error=standard_error,
        degrees_of_freedom=float(df),
        p_two_sided=float(2 * stdtr(df, -abs(t))),
        p_greater=float(stdtr(df, -t)),
        n_x=n[0],
        n_y=n[1],
        level=level,
        degenerate=degenerate,
    )
