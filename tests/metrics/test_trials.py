"""Scores of one recipe over seeds."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, t, ttest_1samp

from dynprobe.metrics import best_of_n, failed_runs, summarise_trials, wilson_interval
from dynprobe.metrics._scores import mean_error, t_quantile

law = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)
EPS = float(np.finfo(np.float64).eps)


# --- summary


def test_summary_by_hand() -> None:
    found = summarise_trials([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (found.n, found.mean, found.median) == (5, 4.0, 3.0)
    assert (found.lower_quartile, found.upper_quartile, found.minimum, found.maximum) == (2.0, 4.0, 1.0, 10.0)
    assert found.sd == pytest.approx(math.sqrt(12.5), abs=1e-14)  # (0 + 9 + 4 + 1 + 36) / 4
    assert (found.median_low, found.median_high, found.median_level) == (1.0, 10.0, 1 - 2 / 32)
    margin = 2.7764451051977987 * math.sqrt(12.5 / 5)  # t(0.975) of four degrees of freedom
    assert (found.mean_low, found.mean_high) == pytest.approx((4 - margin, 4 + margin), abs=1e-13)
    assert not found.degenerate


@given(seed=seeds, n=st.integers(2, 40), level=st.floats(0.5, 0.999))
@law
def test_summary_against_scipy(seed: int, n: int, level: float) -> None:
    values = np.random.default_rng(seed).normal(size=n)
    found = summarise_trials(values, level=level)
    slow = ttest_1samp(values, 0.0).confidence_interval(level)
    assert (found.mean_low, found.mean_high) == pytest.approx((slow.low, slow.high), rel=1e-9, abs=1e-12)
    k = int(np.searchsorted(np.sort(values), found.median_low)) + 1
    assert np.sort(values)[n - k] == found.median_high
    assert found.median_level == pytest.approx(1 - 2 * binom.cdf(k - 1, n, 0.5), abs=1e-12)
    if k > 1:  # it covers as asked, and the next narrower one would not
        assert found.median_level >= level - 1e-12
    if n > 2 * k:
        assert 1 - 2 * binom.cdf(k, n, 0.5) < level + 1e-12
    assert found.minimum <= found.median_low <= found.median <= found.median_high <= found.maximum


@given(seed=seeds, shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
@law
def test_summary_moves_with_the_scores_and_forgets_their_order(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=8)
    plain, moved = summarise_trials(values), summarise_trials(scale * rng.permutation(values) + shift)
    for name in ("mean", "mean_low", "mean_high", "median", "median_low", "median_high", "lower_quartile", "maximum"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(plain, name) + shift, abs=1e-12)
    assert moved.sd == pytest.approx(scale * plain.sd, abs=1e-12)


def test_from_six_seeds_on_the_median_is_covered_as_asked() -> None:
    five, six = summarise_trials(range(5)), summarise_trials(range(6))
    assert five.median_level == 0.9375
    assert (six.median_low, six.median_high, six.median_level) == (0, 5, 1 - 2 / 64)
    assert summarise_trials(range(9)).median_low == 1  # 1 - 2 (1 + 9) / 512 = 0.961


def test_equal_scores_say_nothing_of_their_spread_unless_their_step_is_known() -> None:
    found = summarise_trials([0.7] * 5)
    assert found.degenerate
    assert (found.mean_low, found.mean_high, found.sd) == (-math.inf, math.inf, 0.0)
    known = summarise_trials([0.7] * 5, resolution=0.01)
    assert known.mean_high - 0.7 == pytest.approx(0.01 * (1 - 0.025**0.2), abs=1e-15)
    assert summarise_trials([0.1 + 0.2, 0.3, 0.3]).degenerate  # the same but for rounding
    assert not summarise_trials([0.3 + 1e-12, 0.3, 0.3]).degenerate


def test_the_least_margin_is_what_seeds_one_step_away_can_hide() -> None:
    # with a share q of other values all n agree with a chance of (1 - q)^n: exactly the tail
    for n, level in ((2, 0.95), (5, 0.9), (30, 0.99)):
        margin = t_quantile(n - 1, level=level) * mean_error(0.0, n, level=level, resolution=1.0)
        assert (1 - margin) ** n == pytest.approx((1 - level) / 2, abs=1e-12)
    assert mean_error(1.0, 10, level=0.95, resolution=0.5) == 1 / math.sqrt(10)  # the spread counts where it is more
    assert t_quantile(9, level=0.95) == pytest.approx(t.ppf(0.975, 9), abs=1e-12)


@pytest.mark.slow
def test_intervals_of_mean_and_median_cover() -> None:
    rng = np.random.default_rng(0)
    normal = [summarise_trials(rng.normal(size=8)) for _ in range(4000)]
    noise = 4 * math.sqrt(0.95 * 0.05 / 4000)
    assert np.mean([s.mean_low <= 0 <= s.mean_high for s in normal]) == pytest.approx(0.95, abs=noise)
    skewed = [summarise_trials(rng.exponential(size=8)) for _ in range(4000)]
    exact = skewed[0].median_level
    inside = np.mean([s.median_low <= math.log(2) <= s.median_high for s in skewed])
    assert inside == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


@pytest.mark.slow
@pytest.mark.parametrize("away", [0.0, 0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_with_the_step_known_scores_of_two_neighbouring_values_are_covered(n: int, away: float) -> None:
    drawn = np.random.default_rng(1).random((4000, n)) < away
    found = [summarise_trials(row.astype(float), resolution=1.0) for row in drawn]
    inside = np.mean([s.mean_low - 1e-12 <= away <= s.mean_high + 1e-12 for s in found])
    # samples of one value alone are covered by the least margin; a t interval of two values may fall a little short
    assert inside >= 0.93 - 4 * math.sqrt(0.93 * 0.07 / 4000)


def test_summary_complaints() -> None:
    for bad in ([0.5], [], [[0.5, 0.6]], [0.5, math.nan], [0.5, math.inf]):
        with pytest.raises(ValueError, match="`scores` must hold one finite score for each of at least 2 seeds"):
            summarise_trials(bad)
    with pytest.raises(ValueError, match=r"got shape \(2,\) with NaN or Inf"):
        summarise_trials([0.5, math.nan])
    with pytest.raises(ValueError, match=r"`level` must be a probability in \(0, 1\); got 95"):
        summarise_trials([0.5, 0.6], level=95)
    for bad_step in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="`resolution` must be 0 or more and finite"):
            summarise_trials([0.5, 0.6], resolution=bad_step)


def test_tensors_are_scores_too() -> None:
    assert summarise_trials(torch.tensor([0.5, 0.75])) == summarise_trials([0.5, 0.75])


# --- failed runs


def test_failed_runs_by_hand() -> None:
    found = failed_runs([0.52, 0.55, 0.5501, 0.9], majority=0.53)
    assert (found.failed, found.share, found.n, found.n_failed) == ((True, True, False, False), 0.5, 4, 2)
    assert (found.low, found.high) == wilson_interval(2, 4)
    assert found.threshold == pytest.approx(0.55, abs=EPS)


def test_a_score_at_the_threshold_failed_whatever_the_rounding() -> None:
    for hundredths in range(3, 98):
        majority, score = hundredths / 100, (hundredths + 2) / 100
        assert failed_runs([score], majority).failed == (True,)
        assert failed_runs([score + 1e-9], majority).failed == (False,)


def test_no_run_failed_is_no_proof() -> None:
    found = failed_runs([0.9] * 5, majority=0.5)
    assert found.share == found.low == 0.0
    assert found.high == pytest.approx(0.4344825, abs=1e-7)  # z^2 / (5 + z^2)
    assert failed_runs([0.5] * 5, majority=0.5, margin=0).share == 1.0


def test_failed_runs_complaints() -> None:
    with pytest.raises(ValueError, match="`scores` must hold one finite score for each of at least 1 seeds"):
        failed_runs([], 0.5)
    for majority, margin in ((math.nan, 0.02), (0.5, -0.1), (0.5, math.inf)):
        with pytest.raises(ValueError, match="`majority` and `margin` must be finite, `margin` not negative"):
            failed_runs([0.5], majority, margin=margin)
    with pytest.raises(ValueError, match="`level` must be a probability"):
        failed_runs([0.5], 0.5, level=1.0)


# --- best of n


def every_subset(validation: np.ndarray, test: np.ndarray, n: int) -> tuple[float, float]:
    """Mean and standard deviation over all subsets; tied runs of a subset share its weight."""
    outcomes, weights = [], []
    for subset in map(list, combinations(range(len(test)), n)):
        best = [i for i in subset if validation[i] == validation[subset].max()]
        outcomes += [test[i] for i in best]
        weights += [1 / len(best)] * len(best)
    mean = np.average(outcomes, weights=weights)
    return float(mean), math.sqrt(np.average((np.array(outcomes) - mean) ** 2, weights=weights))


def test_best_of_two_of_three() -> None:
    found = best_of_n([1, 2, 3], [1, 2, 3], 2)
    assert (found.mean, found.sd) == pytest.approx((8 / 3, math.sqrt(2) / 3), abs=1e-15)
    assert (found.n, found.n_trials) == (2, 3)


def test_ties_in_validation_share_the_chance() -> None:
    found = best_of_n([1, 1], [0.0, 1.0], 2)
    assert (found.mean, found.sd) == (0.5, 0.5)


@given(scores=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=8), pick=st.integers(1, 8))
@law
def test_best_of_n_against_every_subset(scores: list[tuple[int, float]], pick: int) -> None:
    validation, test = np.array(scores).T
    n = min(pick, len(scores))
    found = best_of_n(validation, test, n)
    mean, sd = every_subset(validation, test, n)
    assert found.mean == pytest.approx(mean, abs=1e-14)
    # squares of size one are rounded by EPS, so that a standard deviation of 0 is known up to a few roots of it
    assert found.sd**2 == pytest.approx(sd**2, abs=64 * EPS)


@given(seed=seeds)
@law
def test_best_of_one_all_and_the_laws_between(seed: int) -> None:
    rng = np.random.default_rng(seed)
    validation, test = rng.normal(size=12), rng.normal(size=12)
    one, everyone = best_of_n(validation, test, 1), best_of_n(validation, test, 12)
    assert (one.mean, one.sd) == pytest.approx((test.mean(), test.std()), abs=1e-14)
    assert (everyone.mean, everyone.sd) == (test[validation.argmax()], 0.0)
    order = rng.permutation(12)
    shuffled = best_of_n(validation[order], test[order], 5)
    plain = best_of_n(validation, test, 5)
    assert (shuffled.mean, shuffled.sd) == pytest.approx((plain.mean, plain.sd), abs=1e-14)
    # only the order of the validation scores counts
    assert best_of_n(np.exp(validation), test, 5) == plain
    # what is best on what is reported can only gain from more choice
    curve = [best_of_n(test, test, n).mean for n in range(1, 13)]
    assert np.all(np.diff(curve) > 0)


def test_validation_that_knows_nothing_promises_the_mean() -> None:
    # every order of the test scores, each as likely: the best of n is on average the mean of all
    from itertools import permutations

    test = np.array([0.1, 0.4, 0.9, 0.95])
    for n in (1, 2, 3, 4):
        promised = [best_of_n(order, test, n).mean for order in permutations(range(4))]
        assert np.mean(promised) == pytest.approx(test.mean(), abs=1e-14)


def test_best_of_n_of_many_runs_does_not_overflow() -> None:
    scores = np.arange(3000) / 3000
    found = best_of_n(scores, scores, 1500)
    assert found.mean == pytest.approx((1500 * 3001 / 1501 - 1) / 3000, abs=1e-12)  # mean of the largest of n of 1..N


def test_best_of_n_complaints() -> None:
    with pytest.raises(ValueError, match="`test` must have a score for each run of `validation`; got 1 and 2"):
        best_of_n([1, 2], [1], 1)
    for n in (0, 3):
        with pytest.raises(ValueError, match="`n` must be from 1 to 2, the number of runs"):
            best_of_n([1, 2], [1, 2], n)
    with pytest.raises(ValueError, match="`validation` must hold one finite score"):
        best_of_n([1, math.nan], [1, 2], 1)
