"""Two recipes over seeds: means, verdicts, several tests at once."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel

from dynprobe.metrics import holm, paired_difference, verdict, welch_difference

law = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)


# --- paired


def test_paired_by_hand() -> None:
    found = paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # differences 1, 2, 3
    # t(0.975) of two degrees of freedom solves t^2 / (2 + t^2) = 0.95^2
    margin = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert found.difference == 2.0
    assert found.interval == pytest.approx((2 - margin, 2 + margin), abs=1e-12)
    # with two degrees of freedom P(T > t) = (1 - t / sqrt(2 + t^2)) / 2, here at t = 2 sqrt(3)
    assert found.p_greater == pytest.approx((1 - math.sqrt(12 / 14)) / 2, abs=1e-14)
    assert found.p_two_sided == pytest.approx(2 * found.p_greater, abs=1e-14)
    assert (found.n_x, found.n_y, found.degrees_of_freedom, found.degenerate) == (3, 3, 2.0, False)


@given(seed=seeds, n=st.integers(2, 30), level=st.floats(0.5, 0.999))
@law
def test_paired_against_scipy(seed: int, n: int, level: float) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, n))
    found, slow = paired_difference(x, y, level=level), ttest_rel(x, y)
    ends = slow.confidence_interval(level)
    assert found.interval == pytest.approx((ends.low, ends.high), rel=1e-9, abs=1e-12)
    assert found.p_two_sided == pytest.approx(slow.pvalue, rel=1e-9)
    assert found.p_greater == pytest.approx(ttest_rel(x, y, alternative="greater").pvalue, rel=1e-9)


@given(seed=seeds)
@law
def test_paired_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, luck, order = rng.normal(size=7), rng.normal(size=7), rng.normal(size=7), rng.permutation(7)
    found = paired_difference(x, y)
    assert paired_difference(x + luck, y + luck).interval == pytest.approx(found.interval, abs=1e-13)  # luck cancels
    assert paired_difference(x[order], y[order]).interval == pytest.approx(found.interval, abs=1e-13)
    low, high = paired_difference(y, x).interval
    assert (-high, -low) == pytest.approx(found.interval, abs=1e-14)
    wide = paired_difference(x, y, level=0.99)
    assert wide.low < found.low < found.high < wide.high
    assert wide.p_two_sided == found.p_two_sided
    assert (found.p_two_sided < 0.05) == (found.low > 0 or found.high < 0)


def test_equal_differences_are_no_certainty() -> None:
    x, y = [0.73, 0.83, 0.93], [0.71, 0.81, 0.91]  # 0.02 each, up to rounding
    blind = paired_difference(x, y)
    assert blind.degenerate
    assert blind.difference == pytest.approx(0.02, abs=1e-15)
    assert (blind.low, blind.high, blind.p_two_sided, blind.p_greater) == (-math.inf, math.inf, 1.0, 0.5)
    assert verdict(blind.interval, 0.01) == "cannot tell"
    known = paired_difference(x, y, resolution=0.01)
    margin = 0.01 * (1 - 0.025 ** (1 / 3))
    assert known.degenerate
    assert known.interval == pytest.approx((0.02 - margin, 0.02 + margin), abs=1e-14)
    assert verdict(known.interval, 0.01) == "better"


@given(step=st.floats(0.001, 0.2), seed=seeds, same=st.booleans())
@law
def test_a_known_step_only_widens_and_p_follows(step: float, seed: int, same: bool) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, 5)) * (0.0 if same else 0.05) + np.array([[0.05], [0.0]])
    blind, found = paired_difference(x, y), paired_difference(x, y, resolution=step)
    least = step * (1 - 0.025**0.2)
    assert found.high - found.difference >= least * (1 - 1e-9)
    if not same:
        assert found.high >= blind.high
    if abs(min(abs(found.low), abs(found.high))) > 1e-9:
        assert (found.p_two_sided < 0.05) == (found.low > 0 or found.high < 0)


@pytest.mark.slow
def test_paired_and_welch_cover() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 1.0, size=(4000, 6)), rng.normal(0.0, 3.0, size=(4000, 12))
    noise = 4 * math.sqrt(0.95 * 0.05 / 4000)
    paired = [paired_difference(a, b[:6]) for a, b in zip(x, y, strict=True)]
    assert np.mean([d.low <= 1 <= d.high for d in paired]) == pytest.approx(0.95, abs=noise)
    unpaired = [welch_difference(a, b) for a, b in zip(x, y, strict=True)]
    # Welch's degrees of freedom are an approximation, good to half a per cent here
    assert np.mean([d.low <= 1 <= d.high for d in unpaired]) == pytest.approx(0.95, abs=noise + 0.005)


def test_paired_complaints() -> None:
    with pytest.raises(ValueError, match=r"`y` must have the seeds of `x`; got 2 and 3 scores\. Use welch_difference"):
        paired_difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="`x` must hold one finite score for each of at least 2 seeds"):
        paired_difference([1], [2])
    with pytest.raises(ValueError, match=r"`y` must hold one finite score .* with NaN or Inf"):
        paired_difference([1, 2], [2, math.nan])
    with pytest.raises(ValueError, match="`level` must be a probability"):
        paired_difference([1, 2], [2, 4], level=0)
    with pytest.raises(ValueError, match="`resolution` must be 0 or more"):
        paired_difference([1, 2], [2, 4], resolution=-1)


# --- Welch


def test_welch_by_hand() -> None:
    # variances 1 and 4 of three and four: 1/3 + 1 = 4/3; df = (4/3)^2 / ((1/3)^2 / 2 + 1 / 3)
    y = np.array([-3.0, -1.0, 1.0, 3.0]) * math.sqrt(3 / 5)  # variance 20 / 3 times 3 / 5
    found = welch_difference([4.0, 5.0, 6.0], y)
    assert found.standard_error == pytest.approx(math.sqrt(4 / 3), abs=1e-14)
    assert found.degrees_of_freedom == pytest.approx((16 / 9) / (1 / 18 + 1 / 3), abs=1e-12)
    assert (found.difference, found.n_x, found.n_y) == (5.0, 3, 4)


@given(seed=seeds, n=st.integers(2, 20), m=st.integers(2, 20), ratio=st.floats(0.01, 100))
@law
def test_welch_against_scipy(seed: int, n: int, m: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), ratio * rng.normal(size=m)
    found, slow = welch_difference(x, y, level=0.9), ttest_ind(x, y, equal_var=False)
    ends = slow.confidence_interval(0.9)
    assert found.interval == pytest.approx((ends.low, ends.high), rel=1e-8, abs=1e-10)
    assert found.degrees_of_freedom == pytest.approx(slow.df, rel=1e-9)
    assert found.p_two_sided == pytest.approx(slow.pvalue, rel=1e-8)
    greater = ttest_ind(x, y, equal_var=False, alternative="greater")
    assert found.p_greater == pytest.approx(greater.pvalue, rel=1e-8)


@given(seed=seeds)
@law
def test_welch_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=5), rng.normal(size=9)
    found = welch_difference(x, y)
    low, high = welch_difference(y, x).interval
    assert (-high, -low) == pytest.approx(found.interval, abs=1e-14)
    assert welch_difference(rng.permutation(x), y + 3).high == pytest.approx(found.high - 3, abs=1e-12)
    assert 4 <= found.degrees_of_freedom <= 12  # from the smaller side's to those of both


def test_one_constant_side_is_no_obstacle_and_two_are_no_certainty() -> None:
    varied = welch_difference([1.0, 2.0, 3.0], [0.5] * 10)
    assert not varied.degenerate
    assert varied.degrees_of_freedom == 2.0
    blind = welch_difference([1.0] * 3, [0.5] * 10)
    assert blind.degenerate
    assert (blind.difference, blind.low, blind.high, blind.p_two_sided) == (0.5, -math.inf, math.inf, 1.0)
    known = welch_difference([1.0] * 3, [0.5] * 10, resolution=0.01)
    margin = 0.01 * (2 - 0.0125 ** (1 / 3) - 0.0125 ** (1 / 10))
    assert known.interval == pytest.approx((0.5 - margin, 0.5 + margin), abs=1e-14)


def test_tiny_spreads_are_spreads() -> None:
    plain = welch_difference([1.0, 2.0, 4.0], [0.0, 3.0])
    tiny = welch_difference(np.array([1.0, 2.0, 4.0]) * 2.0**-500, np.array([0.0, 3.0]) * 2.0**-500)
    assert tiny.degrees_of_freedom == pytest.approx(plain.degrees_of_freedom, rel=1e-12)
    assert tiny.low * 2.0**500 == pytest.approx(plain.low, rel=1e-12)


def test_welch_complaints() -> None:
    with pytest.raises(ValueError, match="`x` must hold one finite score for each of at least 2 seeds"):
        welch_difference([1], [2, 3])
    with pytest.raises(ValueError, match="`level` must be a probability"):
        welch_difference([1, 2], [2, 3], level=2)
    with pytest.raises(ValueError, match="`resolution` must be 0 or more"):
        welch_difference([1, 2], [2, 3], resolution=math.nan)


# --- verdict


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [  # the cases of figure 1 of Piaggio et al. (2012), with a margin of 1
        (0.1, 2.0, "better"),
        (-0.9, 2.0, "non-inferior"),
        (-0.9, 0.5, "non-inferior"),
        (-0.9, -0.1, "non-inferior"),  # surely worse, but by less than matters
        (-1.5, 0.5, "cannot tell"),
        (-3.0, 3.0, "cannot tell"),
        (-1.5, -0.1, "cannot tell"),  # surely worse; whether by more than matters is open
        (-2.0, -1.1, "inferior"),
        (0.0, 1.0, "non-inferior"),  # an end at a bound is not beyond it
        (-1.0, 1.0, "cannot tell"),
        (-2.0, -1.0, "cannot tell"),
        (-math.inf, math.inf, "cannot tell"),
    ],
)
def test_verdicts(low: float, high: float, said: str) -> None:
    assert verdict((low, high), 1.0) == said


def test_without_a_margin_there_is_no_middle() -> None:
    assert [verdict(ends, 0.0) for ends in ((0.1, 1), (0, 1), (-1, 1), (-1, -0.1))] == [
        "better", "cannot tell", "cannot tell", "inferior",
    ]  # fmt: skip


@given(low=st.floats(-2, 2), width=st.floats(0, 2), shrink=st.floats(0, 1), margin=st.floats(0.01, 1))
@law
def test_more_seeds_never_turn_a_verdict_around(low: float, width: float, shrink: float, margin: float) -> None:
    rank = {"inferior": -1, "cannot tell": 0, "non-inferior": 1, "better": 1}
    wide = verdict((low, low + width), margin)
    narrow = verdict((low + shrink * width / 2, low + width - shrink * width / 2 + 1e-12), margin)
    if rank[wide] != 0:
        assert rank[narrow] == rank[wide]


def test_verdict_complaints() -> None:
    for ends in ((1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match=r"`interval` must be \(low, high\)"):
            verdict(ends, 0.1)
    for margin in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="`margin` must be 0 or more and finite"):
            verdict((0.0, 1.0), margin)


# --- Holm


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1; then made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06], abs=1e-15)
    assert holm([0.7, 0.6]).tolist() == [1.0, 1.0]
    assert holm([0.3]).tolist() == [0.3]


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8), alpha=st.floats(0.001, 0.999))
@law
def test_holm_rejects_as_the_step_down_procedure_does(p: list[float], alpha: float) -> None:
    rejected = np.zeros(len(p), dtype=bool)
    for k, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] * (len(p) - k) > alpha:
            break
        rejected[i] = True
    found = holm(p)
    np.testing.assert_array_equal(found <= alpha, rejected)
    assert np.all((found >= np.array(p)) & (found <= np.minimum(1.0, len(p) * np.array(p))))


def test_holm_keeps_the_family_error() -> None:
    p = np.random.default_rng(0).random((4000, 6))
    wrong = np.mean([holm(row).min() <= 0.05 for row in p])
    assert wrong == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_holm_complaints() -> None:
    with pytest.raises(ValueError, match="`p_values` must hold one finite score for each of at least 1"):
        holm([])
    for bad in ([-0.1, 0.5], [0.5, 1.1]):
        with pytest.raises(ValueError, match=r"`p_values` must be in \[0, 1\]"):
            holm(bad)
