"""Scores of one recipe over seeds (trials): what is typical, what fails, and what picking the best of n promises."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import bdtr

from dynprobe.metrics._scores import ROUNDINGS, Scores, as_scores, mean_error, spread, t_quantile
from dynprobe.metrics.resampling import wilson_interval


@dataclass(frozen=True)
class TrialSummary:
    """Scores of one recipe over seeds, in the unit of the scores.

    Attributes
    ----------
    n
        Number of seeds.
    mean, sd
        Mean, and standard deviation with n - 1 in the denominator.
    mean_low, mean_high
        Interval of the mean (t); infinite when all scores are equal and their resolution was not given.
    median, lower_quartile, upper_quartile
        Quantiles, interpolated linearly between the sorted scores.
    median_low, median_high
        Interval of the median: two of the sorted scores.
    median_level
        Probability with which that interval covers, at least: the level asked for from six seeds on (95 %), less below.
    minimum, maximum
        Lowest and highest score.
    level
        The level asked for.
    degenerate
        Whether all scores are equal, so that nothing can be said about their spread.
    """

    n: int
    mean: float
    sd: float
    mean_low: float
    mean_high: float
    median: float
    lower_quartile: float
    upper_quartile: float
    median_low: float
    median_high: float
    median_level: float
    minimum: float
    maximum: float
    level: float
    degenerate: bool


@dataclass(frozen=True)
class FailedRuns:
    """How many runs learned no more than the majority class.

    Attributes
    ----------
    share
        Share of the runs that failed, 0 to 1.
    low, high
        Wilson interval of the share.
    failed
        For each run, in the order given, whether it failed.
    threshold
        A run failed when its score is at most this: majority + margin.
    """

    share: float
    low: float
    high: float
    failed: tuple[bool, ...]
    threshold: float

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.failed)

    @property
    def n_failed(self) -> int:
        """Number of runs that failed."""
        return sum(self.failed)


@dataclass(frozen=True)
class BestOfN:
    """Test score of the run with the best validation score among `n`.

    Attributes
    ----------
    mean
        Expected test score.
    sd
        Its standard deviation over the choices of `n` runs. It falls to 0 as `n` nears `n_trials`, where only one choice is
        left; it says nothing about other runs than these.
    n
        Number of runs to choose from.
    n_trials
        Number of runs that there are.
    """

    mean: float
    sd: float
    n: int
    n_trials: int


def summarise_trials(scores: Scores, *, level: float = 0.95, resolution: float = 0.0) -> TrialSummary:
    """Mean, spread and quantiles of the scores of one recipe over seeds, with intervals of mean and median.

    Where some runs fail the scores have two humps: then the mean lies where no run does, and the median and the share of
    :func:`failed_runs` say more.

    Parameters
    ----------
    scores
        (n,) one score per seed, at least two.
    level
        Probability that each interval covers, in (0, 1).
    resolution
        Step of the scores, such as 1 / n_test for an accuracy, or 0 when it is not known. The interval of the mean is never
        narrower than the step allows: see :func:`~dynprobe.metrics.paired_difference`.

    Returns
    -------
    TrialSummary

    Raises
    ------
    ValueError
        For fewer than two or non-finite scores, a negative resolution, or a level outside (0, 1).

    Notes
    -----
    The interval of the median holds for any distribution: from the k-th lowest to the k-th highest score, k the largest for
    which it covers (David and Nagaraja 2003, "Order Statistics", section 7.1); the whole range where none does.

    Examples
    --------
    >>> found = summarise_trials([0.5, 0.7, 0.9])
    >>> found.median, found.minimum, found.maximum, found.median_low, found.median_high, found.median_level
    (0.7, 0.5, 0.9, 0.5, 0.9, 0.75)
    """
    values = as_scores("scores", scores)
    n, mean = len(values), float(values.mean())
    sd = spread(values)
    margin = t_quantile(n - 1, level=level) * mean_error(sd, n, level=level, resolution=resolution)
    ordered = np.sort(values)
    k = max(1, sum(2 * bdtr(k - 1, n, 0.5) <= 1 - level for k in range(1, n // 2 + 1)))
    lower, median, upper = (float(value) for value in np.quantile(ordered, [0.25, 0.5, 0.75]))
    return TrialSummary(
        n=n,
        mean=mean,
        sd=sd,
        mean_low=mean - margin,
        mean_high=mean + margin,
        median=median,
        lower_quartile=lower,
        upper_quartile=upper,
        median_low=float(ordered[k - 1]),
        median_high=float(ordered[n - k]),
        median_level=float(1 - 2 * bdtr(k - 1, n, 0.5)),
        minimum=float(ordered[0]),
        maximum=float(ordered[-1]),
        level=level,
        degenerate=sd == 0,
    )


def failed_runs(scores: Scores, majority: float, *, margin: float = 0.02, level: float = 0.95) -> FailedRuns:
    """Share of runs that learned no more than to give the most frequent class.

    0 for a stable recipe; a fifth to a half has been reported for large models on tasks of few examples.

    Parameters
    ----------
    scores
        (n,) one score per seed, at least one.
    majority
        Score of always giving the most frequent class.
    margin
        A run failed when it is at most this much better; 0.02 puts the threshold for RTE near the 55 % of Zhang et al. (2021).
    level
        Probability that the interval covers, in (0, 1).

    Returns
    -------
    FailedRuns

    Raises
    ------
    ValueError
        Without scores, for non-finite ones, a negative margin, or a level outside (0, 1).

    Notes
    -----
    Scores at the threshold, up to rounding, failed. The interval is that of :func:`wilson_interval`: it does not collapse when
    no run or every run failed.

    Examples
    --------
    >>> found = failed_runs([0.53, 0.55, 0.70, 0.71], majority=0.53)
    >>> found.share, found.failed
    (0.5, (True, True, False, False))
    """
    values = as_scores("scores", scores, at_least=1)
    if not (math.isfinite(majority) and 0 <= margin < math.inf):
        raise ValueError(f"`majority` and `margin` must be finite, `margin` not negative; got {majority} and {margin}")
    threshold = majority + margin
    failed = values <= threshold + ROUNDINGS * np.finfo(np.float64).eps * max(abs(majority), margin)
    low, high = wilson_interval(int(failed.sum()), len(values), level=level)
    return FailedRuns(
        share=float(failed.mean()),
        low=float(low),
        high=float(high),
        failed=tuple(bool(value) for value in failed),
        threshold=threshold,
    )


def best_of_n(validation: Scores, test: Scores, n: int) -> BestOfN:
    """Expected test score of the run that validates best among `n` of the runs that were made.

    A curve over `n` says how many seeds a recipe needs; an unstable recipe needs many to reach what a stable one gives at once.

    Parameters
    ----------
    validation, test
        (n_trials,) scores of the same runs; higher validation scores are better.
    n
        Number of runs to choose from, 1 to n_trials.

    Returns
    -------
    BestOfN

    Raises
    ------
    ValueError
        For unequal lengths, no or non-finite scores, or an `n` out of range.

    Notes
    -----
    Exact over all subsets of size `n`, drawn without replacement: the run of rank r (1 the worst) is the best of
    C(r - 1, n - 1) of C(n_trials, n) subsets. Runs with the same validation score share the chance evenly. This is the unbiased
    estimate of Tang et al. (2020), "Showing your work doesn't always work"; drawing with replacement (Dodge et al. 2019) is
    biased downward.

    Examples
    --------
    The best of two of (1, 2, 3) is 2, 3 or 3.

    >>> found = best_of_n([1, 2, 3], [1, 2, 3], 2)
    >>> round(found.mean, 4), round(found.sd, 4)
    (2.6667, 0.4714)
    """
    chosen_by, reported = as_scores("validation", validation, at_least=1), as_scores("test", test, at_least=1)
    n_trials = len(chosen_by)
    if len(reported) != n_trials:
        raise ValueError(f"`test` must have a score for each run of `validation`; got {len(reported)} and {n_trials}")
    if not 1 <= n <= n_trials:
        raise ValueError(f"`n` must be from 1 to {n_trials}, the number of runs; got {n}")
    _, group, sizes = np.unique(chosen_by, return_inverse=True, return_counts=True)
    up_to = [0, *np.cumsum(sizes).tolist()]  # runs that validate no better than each group
    subsets = math.comb(n_trials, n)
    chance = np.array(
        [(math.comb(high, n) - math.comb(low, n)) / (subsets * (high - low)) for low, high in pairwise(up_to)]
    )[group]
    mean = float(chance @ reported)
    return BestOfN(mean=mean, sd=math.sqrt(float(chance @ np.square(reported - mean))), n=n, n_trials=n_trials)
