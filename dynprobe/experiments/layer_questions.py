"""In which layers fine-tuning changes a model, and whether seeds or data sets matter more: answered over seeds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dynprobe.experiments.layer_distances import ATTENTION, HIDDEN, profile, thirds
from dynprobe.metrics import paired_difference

_N_PERMUTATIONS = 20_000
_ROUNDING = 1e-12  # of means of correlations that are equal

# From the distances of one model, for each data set the number that is expected to be above zero.
Statistic = Callable[[pd.DataFrame], pd.Series]


@dataclass(frozen=True, kw_only=True)
class _Told:
    """A value that was expected to be above zero, and the chance of one as far from it if it were."""

    value: float = math.nan
    p: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Answer(_Told):
    """What the seeds say to one question.

    Attributes
    ----------
    value, low, high
        Mean over the data sets with its 95 % interval over seeds. NaN where there are too few seeds, or nothing was measured.
    p
        Two-sided.
    by_arm
        The value of each data set.
    """

    low: float = math.nan
    high: float = math.nan
    by_arm: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trend(_Told):
    """Rank correlation of layer and distance from the start.

    Attributes
    ----------
    value
        Mean over the data sets of Spearman's correlation, from -1 to 1.
    lowest, highest
        Of all single trainings.
    p
        Two-sided, of a mean as far from 0 when no layer differs from another.
    """

    lowest: float = math.nan
    highest: float = math.nan


def last_against_others(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Logarithm of the mean distance from the start in the last third of the layers over that in the others."""
    table = profile(frame, "start", measure)
    first, middle, last = thirds([int(layer) for layer in table.columns])
    return _log_ratio(table, last, [*first, *middle])


def later_against_first(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Logarithm of the mean distance from the start in the middle and last layers over that in the first third."""
    table = profile(frame, "start", measure)
    first, middle, last = thirds([int(layer) for layer in table.columns])
    return _log_ratio(table, [*middle, *last], first)


def lower_than_attention(frame: pd.DataFrame) -> pd.Series:
    """How many layers the centre of change of the hidden states lies below that of attention."""
    return _centre(profile(frame, "start", ATTENTION)) - _centre(profile(frame, "start", HIDDEN))


def start_against_seeds(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Logarithm of the distance from the start over that between two seeds, each a mean over the layers."""
    return _log(profile(frame, "start", measure).mean(axis=1) / profile(frame, "seeds", measure).mean(axis=1))


def arms_against_seeds(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Logarithm of the distance between two data sets over that between two seeds of them."""
    of_seeds, of_arms = (profile(frame, pair, measure).mean(axis=1) for pair in ("seeds", "arms"))
    found = {}
    for both, distance in of_arms.items():
        own = [of_seeds.get(arm, math.nan) for arm in str(both).split(" and ")]
        found[str(both)] = distance / float(np.mean(own))
    return _log(pd.Series(found, dtype=float))


def answer(statistic: Statistic, frame: pd.DataFrame) -> Answer:
    """The mean of a statistic over the data sets, with its interval over seeds.

    Parameters
    ----------
    statistic
        What is asked.
    frame
        Distances of one model, as :func:`~dynprobe.experiments.layer_distances.at_the_end` gives them.

    Returns
    -------
    Answer
        Its ``p`` is not corrected for the number of questions.

    Notes
    -----
    Jackknife: a seed is left out of all data sets and all pairs at once, so that pairs that share a seed are not taken for
    independent ones. Interval and p are those of Student's t for the pseudo-values, with one degree of freedom less than seeds.
    Tukey (1958). The data sets are fixed: the interval does not cover the choice of others.
    """
    by_arm = statistic(frame)
    value = float(by_arm.mean(skipna=False)) if len(by_arm) else math.nan
    told = {str(arm): float(one) for arm, one in by_arm.dropna().items()}
    seeds = sorted(frame["seed_a"].unique())
    without = [statistic(frame[(frame["seed_a"] != seed) & (frame["seed_b"] != seed)]) for seed in seeds]
    complete = len(seeds) > 1 and all(len(one) == len(by_arm) and np.isfinite(one).all() for one in without)
    if not complete or not math.isfinite(value):
        return Answer(value=value, by_arm=told)
    n = len(seeds)
    pseudo = np.array([n * value - (n - 1) * float(one.mean()) for one in without])
    gap = paired_difference(pseudo, np.zeros(n))
    return Answer(value=gap.difference, low=gap.low, high=gap.high, p=gap.p_two_sided, by_arm=told)


def layer_trend(frame: pd.DataFrame, measure: str, *, seed: int = 0) -> Trend:
    """Whether the distance from the start grows with the layer.

    Parameters
    ----------
    frame
        Distances of one model, as :func:`~dynprobe.experiments.layer_distances.at_the_end` gives them.
    measure
        Which distance.
    seed
        Of the permutations.

    Returns
    -------
    Trend
        Of the mean over the seeds of each data set; NaN with fewer than two layers.

    Notes
    -----
    p by 20,000 permutations of the layers within each data set, independently: trainings on one data set from one pretrained
    model are not taken for independent. With two layers and four data sets it is never below 1/8.
    """
    table = profile(frame, "start", measure)
    if len(table) == 0 or table.shape[1] < 2 or table.isna().any(axis=None):
        return Trend()
    single = [_with_layer(_ranks(profile(rows, "start", measure))) for _, rows in frame.groupby("seed_a")]
    ranks = _ranks(table)
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(ranks, (_N_PERMUTATIONS, *ranks.shape)), axis=2)
    observed, by_chance = _with_layer(ranks).mean(), _with_layer(shuffled).mean(axis=1)
    as_high = min(int((by_chance >= observed - _ROUNDING).sum()), int((by_chance <= observed + _ROUNDING).sum()))
    p = min(1.0, 2 * (1 + as_high) / (1 + _N_PERMUTATIONS))
    every = np.concatenate(single)
    return Trend(value=float(observed), p=p, lowest=float(every.min()), highest=float(every.max()))


def _ranks(table: pd.DataFrame) -> np.ndarray:
    """Rank of each layer in its row; ties share their mean."""
    return np.asarray(table.rank(axis=1), dtype=float)


def _with_layer(ranks: np.ndarray) -> np.ndarray:
    """Correlation of ranks with the layer, along the last axis; 0 where all are tied."""
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    layers = np.arange(ranks.shape[-1]) - (ranks.shape[-1] - 1) / 2
    size = np.sqrt((centred**2).sum(axis=-1) * (layers**2).sum())
    return np.divide(centred @ layers, size, out=np.zeros(size.shape), where=size > 0)


def _log_ratio(table: pd.DataFrame, above: list[int], below: list[int]) -> pd.Series:
    if not above or not below:
        return pd.Series(dtype=float)
    return _log(table[above].mean(axis=1) / table[below].mean(axis=1))


def _log(ratio: pd.Series) -> pd.Series:
    """NaN where there is no ratio of two distances above zero."""
    usable = ratio.where(np.isfinite(ratio) & (ratio > 0))
    return np.log(usable)


def _centre(table: pd.DataFrame) -> pd.Series:
    """Mean layer, each with the weight of its distance."""
    return (table * np.asarray(table.columns, dtype=float)).sum(axis=1) / table.sum(axis=1)
