"""What a change in the accuracy of a probe may be called, and its interval over the same test examples."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from dynprobe.metrics import wilson_interval
from dynprobe.metrics.paired_answers import crossed_mean_interval, design_effect, paired_accuracy_interval

DEFAULT_MARGIN = 0.02
POWER = 0.8

IMPROVED, DEGRADED, UNCLEAR = "improved", "degraded", "cannot tell"
# What the pretrained encoder may not be clearly above; then there is nothing that training could have kept or lost.
CHANCE, RANDOM = "chance", "a random encoder"


def accuracy_interval(right: np.ndarray, groups: Sequence[str], *, level: float) -> tuple[float, float]:
    """Interval of an accuracy: over test examples, and over training subsets where there are several.

    Parameters
    ----------
    right
        (n_fits, n_test) of bool.
    groups
        Group of each test example; what they share is allowed for.
    level
        Confidence level.

    Returns
    -------
    tuple of float
        Wilson's at the mean over the fits; with several fits widened to that of two crossed random factors. In [0, 1].
    """
    means = right.mean(axis=0)
    effect = design_effect(means, groups)
    n = right.shape[1] / effect
    low, high = (float(end) for end in wilson_interval(np.asarray(means.mean() * n), np.asarray(n), level=level))
    return _widened(low, high, right, effect=effect, level=level, bounds=(0.0, 1.0))


def change_interval(
    before: np.ndarray, after: np.ndarray, groups: Sequence[str], *, level: float
) -> tuple[float, float]:
    """Interval of accuracy after minus before, on the same test examples and training subsets.

    Parameters
    ----------
    before, after
        (n_fits, n_test) of bool.
    groups, level
        As for :func:`accuracy_interval`.

    Returns
    -------
    tuple of float
        Tango's score interval at the mean counts of the fits; with several fits widened to that of two crossed random
        factors. In [-1, 1].
    """
    change = after.astype(np.float64) - before
    effect = design_effect(change.mean(axis=0), groups)
    gained, lost = (float(way.sum()) / len(change) / effect for way in (change > 0, change < 0))
    low, high = paired_accuracy_interval(gained, lost, change.shape[1] / effect, level=level)
    return _widened(low, high, change, effect=effect, level=level, bounds=(-1.0, 1.0))


def _widened(
    low: float, high: float, values: np.ndarray, *, effect: float, level: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval of one fit, made as wide as several fits ask for.

    Their normal interval alone would shrink to nothing where all fits agree and few examples change.
    """
    if len(values) < 2:
        return low, high
    ends = crossed_mean_interval(values, effect=effect, level=level)
    return max(min(low, ends[0]), bounds[0]), min(max(high, ends[1]), bounds[1])


def verdict(low: float, high: float, *, margin: float) -> str:
    """What the interval of a change says: retained, improved, degraded, or that it cannot be told.

    Parameters
    ----------
    low, high
        Interval of the change in accuracy.
    margin
        Largest change that is called none, 0 or more: an interval wholly within it is "retained", even where it leaves out 0.

    Returns
    -------
    str
        Never that nothing changed because the data are few: that is "cannot tell".

    Notes
    -----
    Two one-sided tests (Schuirmann 1987): a 95 % interval within the margin rejects a larger change at 2.5 % on each side.

    Examples
    --------
    >>> [verdict(*ends, margin=0.02) for ends in ((0.01, 0.05), (-0.05, -0.01), (-0.01, 0.015), (-0.03, 0.01))]
    ['improved', 'degraded', 'retained within 2 points', 'cannot tell']
    """
    if -margin < low and high < margin:
        return retained(margin)
    if low > 0:
        return IMPROVED
    return DEGRADED if high < 0 else UNCLEAR


def retained(margin: float) -> str:
    """The verdict of a change that lies within the margin."""
    return f"retained within {100 * margin:.3g} points"


def nothing_known(floor: str) -> str:
    """The remark on a change whose start is not clearly above a floor: chance, or an encoder with random weights.

    Examples
    --------
    >>> nothing_known(RANDOM)
    'not clearly above a random encoder at step 0'
    """
    return f"not clearly above {floor} at step 0"


def detectable_change(low: float, high: float, *, level: float) -> float:
    """Smallest true change that an interval as wide as this would tell from 0 four times out of five.

    Examples
    --------
    >>> round(detectable_change(-0.0196, 0.0196, level=0.95), 4)
    0.028
    """
    z = float(ndtri((1 + level) / 2))
    return min(1.0, (high - low) / 2 * (1 + float(ndtri(POWER)) / z))


def require_margin(margin: float) -> float:
    """The margin, checked.

    Raises
    ------
    ValueError
        When it is not in [0, 1).
    """
    if not 0 <= margin < 1 or math.isnan(margin):
        raise ValueError(f"`margin` must be a difference in accuracy in [0, 1), such as 0.02; got {margin}")
    return margin
