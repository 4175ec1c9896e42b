"""What statistics of scores over seeds share: the check of the scores, their spread, and how narrow an interval may be."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from dynprobe.metrics._arrays import Array
from dynprobe.metrics._options import check_level

Scores: TypeAlias = Array | Sequence[float]
ROUNDINGS = 4  # of the largest score: scores that differ by no more are equal


def mean_error(sd: float, n: int, *, level: float, resolution: float) -> float:
    """Standard error of a mean over seeds, never below what the resolution of the scores allows.

    Parameters
    ----------
    sd
        Standard deviation of the values, n - 1 in the denominator.
    n
        Number of values, at least 2.
    level
        Probability that an interval from it covers, in (0, 1).
    resolution
        Step of the values; 0 when it is not known.

    Returns
    -------
    float
        Above 0; infinite for values that are all equal and whose resolution is not known.

    Raises
    ------
    ValueError
        For a negative resolution or a level outside (0, 1).

    Notes
    -----
    Equal values are no proof that there is no spread. When all n agree, at most the share q = 1 - ((1 - level) / 2)^(1/n) of
    all seeds gives another value (Clopper and Pearson 1934). When these are one step away, the mean is off by at most
    q · resolution: the least half width of an interval. A failed run is many steps away, so it does not hold where runs may
    fail.

    Examples
    --------
    >>> half_width = mean_error(0.0, 5, level=0.95, resolution=0.01) * t_quantile(4, level=0.95)
    >>> round(half_width, 6) == round(0.01 * (1 - 0.025 ** 0.2), 6)
    True
    """
    check_level(level)
    check_resolution(resolution)
    if sd == 0 and resolution == 0:
        return math.inf
    least = off_by_one_step(n, (1 - level) / 2) * resolution
    return max(sd / math.sqrt(n), least / t_quantile(n - 1, level=level))


def t_quantile(degrees_of_freedom: float, *, level: float) -> float:
    """Half width of a two-sided t interval in standard errors."""
    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))


def off_by_one_step(n: int, tail: float) -> float:
    """Largest share of all seeds that may give another value when `n` seeds gave the same, missed with chance `tail`."""
    return -math.expm1(math.log(tail) / n)


def spread(values: np.ndarray, *, size: float | None = None) -> float:
    """Standard deviation (n - 1), exactly 0 when the values differ by nothing but rounding of numbers of that size."""
    largest = float(np.abs(values).max()) if size is None else size
    if float(np.ptp(values)) <= ROUNDINGS * np.finfo(np.float64).eps * largest:
        return 0.0
    return float(values.std(ddof=1))


def as_scores(name: str, scores: Scores, *, at_least: int = 2) -> np.ndarray:
    """Scores as a float64 vector.

    Raises
    ------
    ValueError
        When they are no vector of enough finite numbers.
    """
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < at_least or not np.isfinite(values).all():
        raise ValueError(
            f"`{name}` must hold one finite score for each of at least {at_least} seeds; got shape {values.shape}"
            + ("" if np.isfinite(values).all() else " with NaN or Inf")
        )
    return values


def check_resolution(resolution: float) -> None:
    """Complain about a step that is negative, infinite or NaN."""
    if not 0 <= resolution < math.inf:
        raise ValueError(f"`resolution` must be 0 or more and finite; got {resolution}")
