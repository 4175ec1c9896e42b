"""Intervals and chance levels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from dynprobe.metrics import (
    bootstrap_interval,
    cca_chance_level,
    cca_similarity,
    jackknife_interval,
    principal_subspace,
    svcca_chance_level,
    svcca_similarity,
    wilson_interval,
)

law = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)


# --- bootstrap


def test_bootstrap_of_two_values_by_hand() -> None:
    # the mean of two draws from {0, 1} is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4
    low, high = bootstrap_interval(np.array([0.0, 1.0]), level=0.4)
    assert (low, high) == (0.5, 0.5)
    low, high = bootstrap_interval(np.array([0.0, 1.0]), level=0.8)
    assert (low, high) == (0.0, 1.0)


def test_bootstrap_against_drawing_one_by_one() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    rng = np.random.default_rng(4)
    means = [values[rng.integers(40, size=40)].mean() for _ in range(20_000)]
    low, high = bootstrap_interval(values, n_resamples=20_000)
    # the standard error of a 2.5 % quantile: sqrt(0.025 · 0.975 / 20000) over a density of 0.06 per standard error, twice
    noise = 4 * np.sqrt(2) * math.sqrt(0.025 * 0.975 / 20_000) / 0.058 * values.std() / math.sqrt(40)
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=noise)


@given(seed=seeds, n=st.integers(1, 12))
@law
def test_bootstrap_lies_within_the_values_and_moves_with_them(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).normal(size=(n, 2, 3))
    low, high = bootstrap_interval(values, n_resamples=50)
    assert low.shape == high.shape == (2, 3)
    assert np.all((values.min(axis=0) <= low) & (low <= high) & (high <= values.max(axis=0)))
    moved = bootstrap_interval(2 * values + 5, n_resamples=50)
    assert moved[0] == pytest.approx(2 * low + 5, abs=1e-12)
    alone = bootstrap_interval(values[:, 1, 2], n_resamples=50)
    assert alone == pytest.approx((low[1, 2], high[1, 2]), abs=1e-14)


def test_bootstrap_seed_level_and_kind() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    tensors = bootstrap_interval(torch.from_numpy(values))
    assert all(isinstance(end, torch.Tensor) for end in tensors)
    assert [float(end) for end in tensors] == list(bootstrap_interval(values))


def test_bootstrap_covers() -> None:
    values = np.random.default_rng(0).normal(size=(60, 1500))
    low, high = bootstrap_interval(values, n_resamples=400)
    covered = float(((low <= 0) & (high >= 0)).mean())
    # a percentile interval of 60 normal values covers about 94.2 %; four standard errors of 1500 trials are 2.4 %
    assert covered == pytest.approx(0.942, abs=0.024)


def test_bootstrap_complaints() -> None:
    for bad in (np.array([]), np.array([1.0, np.nan]), np.float64(3.0)):
        with pytest.raises(ValueError, match="`values` must hold at least one finite value per unit"):
            bootstrap_interval(bad)
    with pytest.raises(ValueError, match="`n_resamples` must be at least 1; got 0"):
        bootstrap_interval(np.ones(3), n_resamples=0)
    for level in (0.0, 1.0, 95.0, float("nan")):
        with pytest.raises(ValueError, match=r"`level` must be a probability in \(0, 1\)"):
            bootstrap_interval(np.ones(3), level=level)


def test_bootstrap_of_huge_and_tiny_values() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, size=30)
    plain = bootstrap_interval(values)
    for scale in (2.0**-1060, 2.0**1023):  # powers of two, of which the small one rounds the values at 2^-14
        found = np.array(bootstrap_interval(values * scale)) / scale
        assert found == pytest.approx(plain, abs=2.0**-14 if scale < 1 else 1e-15)


# --- jackknife


def test_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    left_out = (values.sum() - values) / 3
    low, high = jackknife_interval(values.mean(), left_out)
    margin = 3.182446305 * values.std(ddof=1) / 2  # t(0.975) of three degrees of freedom
    assert [low, high] == pytest.approx([3.5 - margin, 3.5 + margin], abs=1e-8)


def test_jackknife_covers() -> None:
    values = np.random.default_rng(0).normal(size=(2000, 12))
    left_out = (values.sum(axis=1, keepdims=True) - values) / 11
    low, high = jackknife_interval(values.mean(axis=1), left_out)
    # of a mean of normal values it covers exactly; four standard errors of 2000 trials at 95 %
    assert float(((low <= 0) & (high >= 0)).mean()) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_jackknife_batches_and_kinds() -> None:
    rng = np.random.default_rng(0)
    estimate, left_out = rng.normal(size=3), rng.normal(size=(3, 6))
    low, high = jackknife_interval(estimate, left_out, level=0.9)
    assert (low[2], high[2]) == pytest.approx(
        jackknife_interval(float(estimate[2]), list(left_out[2]), level=0.9), abs=1e-14
    )
    assert isinstance(jackknife_interval(torch.tensor(0.5), torch.tensor([0.4, 0.6]))[0], torch.Tensor)
    assert isinstance(jackknife_interval(0.5, [0.4, 0.6])[0], float)


def test_jackknife_complaints() -> None:
    for estimate, left_out in ((0.5, [0.5]), (0.5, [0.5, np.nan]), (np.nan, [0.5, 0.5])):
        with pytest.raises(ValueError, match="finite value for each of at least 2 groups"):
            jackknife_interval(estimate, left_out)
    with pytest.raises(
        ValueError, match=r"`leave_out_estimates` must have the axes of `estimate`.* \(3, 4\) and \(4,\)"
    ):
        jackknife_interval(np.zeros(4), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="`level` must be a probability"):
        jackknife_interval(0.5, [0.4, 0.6], level=1.0)


# --- Wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 10), (1, 10), (5, 10), (10, 10), (973, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_against_scipy(successes: int, n: int, level: float) -> None:
    slow = binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson_interval(successes, n, level=level) == pytest.approx((slow.low, slow.high), abs=1e-14)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
@law
def test_wilson_is_mirrored_and_in_range(n: int, share: float) -> None:
    hits = round(share * n)
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored = wilson_interval(n - hits, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-14)


@pytest.mark.parametrize("n", [10, 40, 200])
def test_wilson_covers_on_average(n: int) -> None:
    rng = np.random.default_rng(0)
    share = rng.uniform(0.02, 0.98, size=4000)
    low, high = wilson_interval(rng.binomial(n, share), n)
    # its mean coverage is within half a percent of 95 % (Brown, Cai and DasGupta 2001); four standard errors are 1.4 %
    covered = float(((low <= share) & (share <= high)).mean())
    assert covered == pytest.approx(0.95, abs=0.005 + 4 * math.sqrt(0.95 * 0.05 / 4000))


def test_wilson_batches_and_complaints() -> None:
    low, high = wilson_interval(np.array([0, 5, 10]), 10)
    assert low[1] == pytest.approx(wilson_interval(5, 10)[0], abs=0.0)
    assert (low[0], high[2]) == (0.0, 1.0)
    for successes, n in ((11, 10), (-1, 10), (0, 0), (3, math.inf), (math.nan, 3)):
        with pytest.raises(ValueError, match="`successes` must be between 0 and n"):
            wilson_interval(successes, n)


# --- chance levels


def test_chance_of_one_direction_by_hand() -> None:
    # two independent lines in the plane of three centred samples: the mean of |cos| is 2/π
    assert cca_chance_level(1, 1, 3) == pytest.approx(2 / math.pi, abs=1e-14)
    # in three dimensions the cosine is uniform
    assert cca_chance_level(1, 1, 4) == pytest.approx(0.5, abs=1e-14)


def test_chance_where_everything_matches() -> None:
    assert cca_chance_level(10, 3, 11) == 1.0
    assert cca_chance_level(10, 3, 5) == 1.0
    # 8 and 7 of 10 dimensions share 5 by force: at least 5 of 7 correlations are 1
    assert 5 / 7 < cca_chance_level(8, 7, 11) < 1.0


@pytest.mark.parametrize(("k_x", "k_y", "n"), [(1, 6, 40), (3, 3, 60), (12, 5, 40), (20, 20, 100), (8, 7, 12)])
def test_chance_against_unrelated_data(k_x: int, k_y: int, n: int) -> None:
    rng = np.random.default_rng(0)
    found = cca_similarity(rng.normal(size=(400, n, k_x)), rng.normal(size=(400, n, k_y)))
    error = 4 * found.std() / math.sqrt(len(found))
    assert found.mean() == pytest.approx(cca_chance_level(k_x, k_y, n), abs=error + 0.01 * found.mean())


@given(k=st.integers(1, 60), other=st.integers(1, 60), n=st.integers(2, 200))
@law
def test_chance_is_symmetric_and_falls_with_samples(k: int, other: int, n: int) -> None:
    value = cca_chance_level(k, other, n)
    assert 0 < value <= 1
    assert value == cca_chance_level(other, k, n)
    assert cca_chance_level(k, other, n + 5) <= value
    # the mean of a positive number is at most its root mean square, which is known exactly
    assert value <= min(1.0, math.sqrt(max(k, other) / max(n - 1, max(k, other)))) + 1e-12


def test_chance_complaints() -> None:
    with pytest.raises(ValueError, match="counts must be at least 1; got k_x=0"):
        cca_chance_level(0, 1, 5)
    subspace = principal_subspace(np.eye(4))
    for shifts in ([], [0], [1, 4], [8]):
        with pytest.raises(ValueError, match="`shifts` must misalign the rows, each by 1 to 3 rows"):
            svcca_chance_level(subspace, subspace, shifts=shifts)


def test_shifted_rows_against_refactoring() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 60, 5))
    y[1, :, 2:] = 0.0
    levels = svcca_chance_level(principal_subspace(x), principal_subspace(y), shifts=[7, -20])
    assert levels.shape == (3, 2)
    assert levels[:, 0] == pytest.approx(svcca_similarity(x, np.roll(y, 7, axis=-2)), abs=1e-12)
    assert levels[:, 1] == pytest.approx(svcca_similarity(x, np.roll(y, -20, axis=-2)), abs=1e-12)


def test_shifted_unrelated_data_are_at_the_level_of_chance() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 60, 150, 8))
    levels = svcca_chance_level(principal_subspace(x), principal_subspace(y), shifts=range(10, 150, 20)).mean(axis=1)
    error = 4 * levels.std() / math.sqrt(len(levels))
    assert levels.mean() == pytest.approx(cca_chance_level(8, 8, 150), abs=error + 0.01 * levels.mean())
    assert svcca_similarity(x, x + 0.1 * y).min() > 0.9


def test_chance_beside_a_positive_control() -> None:
    x = np.random.default_rng(0).normal(size=(500, 8))
    subspace = principal_subspace(x)
    levels = svcca_chance_level(subspace, subspace, shifts=[50, 100, 150, 200])
    assert levels == pytest.approx([cca_chance_level(8, 8, 500)] * 4, abs=0.05)
    assert svcca_similarity(x, x) - levels.max() > 0.8
