"""Whether recipes vary equally over seeds."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import levene

from dynprobe.metrics import brown_forsythe, sd_ratio_interval

law = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)


# --- Brown-Forsythe


def test_brown_forsythe_by_hand() -> None:
    found = brown_forsythe([1.0, 2.0, 3.0], [1.0, 4.0, 7.0])
    # distances 1 0 1 and 3 0 3: between 3 (2/3)^2 + 3 (2/3)^2 = 8/3, within (2/3 + 6) / 4 = 5/3
    assert found.statistic == pytest.approx(1.6, abs=1e-14)
    # F(1, 4) is the square of t with four degrees of freedom: P(|T| > t) = 1 - s (3 - s^2) / 2, s = t / sqrt(4 + t^2)
    s = math.sqrt(1.6 / 5.6)
    assert found.p_value == pytest.approx(1 - s * (3 - s**2) / 2, abs=1e-14)
    assert (found.sds, found.n) == ((1.0, 3.0), (3, 3))


@given(seed=seeds, sizes=st.lists(st.integers(3, 20), min_size=2, max_size=4))
@law
def test_brown_forsythe_against_scipy(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.normal(scale=rng.uniform(0.1, 5), size=n) for n in sizes]
    found, slow = brown_forsythe(*groups), levene(*groups, center="median")
    assert (found.statistic, found.p_value) == pytest.approx((slow.statistic, slow.pvalue), rel=1e-9)


@given(seed=seeds)
@law
def test_brown_forsythe_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=6), 3 * rng.normal(size=9)
    found = brown_forsythe(x, y)
    assert brown_forsythe(y, x).p_value == pytest.approx(found.p_value, rel=1e-10)
    moved = brown_forsythe(
        5 + 2 * rng.permutation(x), -1 - 2 * y
    )  # a mean is no spread; one scale for all does not count
    assert moved.p_value == pytest.approx(found.p_value, rel=1e-8)
    assert brown_forsythe(x, 9 * y).p_value != pytest.approx(found.p_value, rel=1e-3)  # a scale for one does


def test_groups_without_spread() -> None:
    both = brown_forsythe([0.7, 0.7, 0.7], [0.1 + 0.2, 0.3, 0.3])  # the second is constant but for rounding
    assert (both.statistic, both.p_value, both.sds) == (0.0, 1.0, (0.0, 0.0))
    rng = np.random.default_rng(0)
    one = brown_forsythe([0.7] * 20, 0.7 + 0.1 * rng.normal(size=20))
    assert one.p_value < 1e-4
    with pytest.raises(ValueError, match=r"`groups` must not all lie equally far from their medians; got distances"):
        brown_forsythe([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 5.0, 5.0])


@pytest.mark.slow
def test_brown_forsythe_keeps_its_error_and_finds_unequal_spreads() -> None:
    rng = np.random.default_rng(0)
    same = [brown_forsythe(*rng.exponential(size=(2, 20))).p_value for _ in range(2000)]
    # for skewed scores it is a little conservative: 0.03 to 0.05
    assert np.mean(np.array(same) < 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
    unlike = [brown_forsythe(rng.normal(size=20), 3 * rng.normal(size=20)).p_value for _ in range(500)]
    assert np.mean(np.array(unlike) < 0.05) > 0.9


def test_brown_forsythe_complaints() -> None:
    with pytest.raises(ValueError, match="`groups` must be at least two groups of scores; got 1"):
        brown_forsythe([1, 2, 3])
    with pytest.raises(ValueError, match=r"`groups\[1\]` must hold one finite score for each of at least 3 seeds"):
        brown_forsythe([1, 2, 3], [1, 2])


# --- ratio of standard deviations


def test_ratio_against_every_resample() -> None:
    x, y = np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 7.0, 8.5])

    def of_all(values: np.ndarray) -> np.ndarray:
        return np.array([np.std(drawn, ddof=1) for drawn in product(values, repeat=len(values))])

    top, bottom = np.repeat(of_all(x), 4**4), np.tile(of_all(y), 3**3)
    ratios = np.sort(np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.where(top > 0, np.inf, 1.0)))
    found = sd_ratio_interval(x, y, level=0.5, n_resamples=40_000)
    # the share of resamples below each end is known up to four standard errors of 40 000 draws
    noise = 4 * math.sqrt(0.25 * 0.75 / 40_000)
    for end, share in zip(found, (0.25, 0.75), strict=True):
        assert np.mean(ratios < end - 1e-9) <= share + noise
        assert np.mean(ratios <= end + 1e-9) >= share - noise


@given(seed=seeds, n=st.integers(3, 12))
@law
def test_ratio_laws(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=n + 2)
    low, high = sd_ratio_interval(x, y, n_resamples=200)
    assert 0 <= low <= high
    scaled = sd_ratio_interval(4 * x + 1, -y, n_resamples=200)
    assert scaled == pytest.approx((4 * low, 4 * high), rel=1e-9)
    assert sd_ratio_interval(x, y, n_resamples=200) == (low, high)
    narrow = sd_ratio_interval(x, y, n_resamples=200, level=0.5)
    assert low <= narrow[0] <= narrow[1] <= high


def test_the_seed_decides_the_resamples() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    assert sd_ratio_interval(x, y, n_resamples=200, seed=1) != sd_ratio_interval(x, y, n_resamples=200, seed=2)


def test_resamples_without_spread_reach_to_zero_and_infinity() -> None:
    # a third of nine of the resamples of three scores are constant
    low, high = sd_ratio_interval([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert (low, high) == (0.0, math.inf)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "covers"),
    [("normal", (0.89, 0.98)), ("two humps", (0.91, 0.99)), ("exponential", (0.85, 0.94))],
)
def test_ratio_covers_as_its_documentation_says(draw: str, covers: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    kinds = {
        "normal": lambda n: rng.normal(size=n),
        "two humps": lambda n: np.where(rng.random(n) < 0.3, 0.55, 0.7) + 0.02 * rng.normal(size=n),
        "exponential": lambda n: rng.exponential(size=n),
    }
    ends = [sd_ratio_interval(kinds[draw](20), kinds[draw](20), n_resamples=1000) for _ in range(1000)]
    # its documented range, and three standard errors of 1000 trials
    inside = np.mean([low <= 1 <= high for low, high in ends])
    assert covers[0] <= inside <= covers[1]


def test_ratio_complaints() -> None:
    for name, x, y in (("x", [1.0] * 4, [1.0, 2.0, 3.0]), ("y", [1.0, 2.0, 3.0], [1.0] * 4)):
        with pytest.raises(ValueError, match=f"`{name}` must vary; got 4 times 1.0"):
            sd_ratio_interval(x, y)
    with pytest.raises(ValueError, match="`x` must hold one finite score for each of at least 3 seeds"):
        sd_ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="`n_resamples` must be at least 1; got 0"):
        sd_ratio_interval([1, 2, 3], [1, 2, 3], n_resamples=0)
    with pytest.raises(ValueError, match="`level` must be a probability"):
        sd_ratio_interval([1, 2, 3], [1, 2, 3], level=1)
