"""Intervals of right and wrong answers: published values, McNemar's test, coverage in simulations, degenerate counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynprobe.metrics.paired_answers import crossed_mean_interval, design_effect, paired_accuracy_interval


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [(12, 2, 50, 0.0611, 0.3447), (0, 0, 54, -0.0664, 0.0664), (14, 0, 54, 0.1612, 0.3893)],
)
def test_the_score_interval_solves_its_equation(gained: int, lost: int, n: int, low: float, high: float) -> None:
    found = paired_accuracy_interval(gained, lost, n)
    assert found == pytest.approx((low, high), abs=5e-5)
    for end in found:  # the constrained estimate, written as a likelihood equation, by a search of its own
        grid = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]
        stay = n - gained - lost
        likelihood = lost * np.log(grid) + gained * np.log(grid + end) + stay * np.log1p(-2 * grid - end)
        share = grid[np.nanargmax(likelihood)] if gained + lost else max(0.0, -end)
        z = (gained - lost - n * end) / math.sqrt(n * (2 * share + end - end**2))
        assert abs(z) == pytest.approx(1.959964, abs=2e-3)


@given(
    gained=st.integers(0, 60),
    lost=st.integers(0, 60),
    more=st.integers(0, 500),
    level=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_it_leaves_out_0_as_mcnemar_does_and_is_symmetric(gained: int, lost: int, more: int, level: float) -> None:
    n = max(1, gained + lost + more)
    low, high = paired_accuracy_interval(gained, lost, n, level=level)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    back = paired_accuracy_interval(lost, gained, n, level=level)
    assert (-back[1], -back[0]) == pytest.approx((low, high), abs=1e-12)
    if gained + lost:
        z = abs(gained - lost) / math.sqrt(gained + lost)
        critical = {0.8: 1.2815516, 0.95: 1.9599640, 0.99: 2.5758293}[level]
        if abs(z - critical) > 1e-6:
            assert (low > 0 or high < 0) == (z > critical)


def test_all_examples_changed() -> None:
    low, high = paired_accuracy_interval(20, 0, 20)
    assert high == 1.0
    assert 0.5 < low < 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("p_gain", "p_loss"), [(0.02, 0.02), (0.05, 0.10), (0.0, 0.05), (0.2, 0.1), (0.001, 0.001)])
@pytest.mark.parametrize("n", [60, 500])
def test_the_interval_covers(p_gain: float, p_loss: float, n: int) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(n, [p_gain, p_loss, 1 - p_gain - p_loss], size=4000)
    counts, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    ends = np.array([paired_accuracy_interval(int(a), int(b), n) for a, b in counts])
    inside = (ends[:, 0] <= p_gain - p_loss) & (p_gain - p_loss <= ends[:, 1])
    # a lattice of few counts cannot give 0.95 exactly; three standard errors of 4000 draws are 0.010
    assert times[inside].sum() / 4000 > 0.93


@pytest.mark.slow
def test_texts_that_share_a_fate_are_allowed_for() -> None:
    rng = np.random.default_rng(2)
    n_groups, covered, naive = 120, 0, 0
    groups = np.repeat([str(i) for i in range(n_groups)], 4)
    for _ in range(1000):
        change = np.repeat(rng.choice([1, -1, 0], p=[0.1, 0.2, 0.7], size=n_groups), 4)
        for factor, counted in ((design_effect(change, groups), True), (1.0, False)):
            ends = paired_accuracy_interval(
                (change > 0).sum() / factor, (change < 0).sum() / factor, len(change) / factor
            )
            hit = ends[0] <= -0.1 <= ends[1]
            covered, naive = covered + (hit and counted), naive + (hit and not counted)
    assert 0.93 < covered / 1000 < 0.97
    assert naive / 1000 < 0.8


def test_design_effect_by_hand() -> None:
    # means of the pairs 1, 1/2, 0: sums of deviations 1, 0, -1; squares 2 over 6 * 1/4
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert design_effect(values, ["a", "a", "b", "b", "c", "c"]) == pytest.approx(2 / 1.5)
    assert design_effect(values, list("abcdef")) == 1.0
    assert design_effect(values, ["a", "b", "c", "a", "b", "c"]) == 1.0  # they balance each other out: not less than 1
    assert design_effect(np.ones(6), ["a", "a", "a", "b", "b", "b"]) == 3.0
    assert design_effect(values, ["a"] * 6) == 6.0


def test_crossed_intervals_know_both_sources() -> None:
    rng = np.random.default_rng(3)
    examples, fits = rng.normal(size=200), rng.normal(size=6)
    only_examples = np.tile(examples, (6, 1))
    low, high = crossed_mean_interval(only_examples)
    t = 1.971957  # of 199 degrees of freedom
    assert high - low == pytest.approx(2 * t * examples.std(ddof=1) / math.sqrt(200), rel=1e-6)
    low, high = crossed_mean_interval(np.tile(fits[:, None], (1, 200)))
    assert high - low == pytest.approx(2 * 2.570582 * fits.std(ddof=1) / math.sqrt(6), rel=1e-6)
    assert crossed_mean_interval(np.ones((3, 5))) == (1.0, 1.0)
    wide = crossed_mean_interval(only_examples, effect=4.0)
    assert wide[1] - wide[0] == pytest.approx(2 * (crossed_mean_interval(only_examples)[1] - only_examples.mean()) * 2)


@pytest.mark.slow
def test_crossed_intervals_cover() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(2000):
        values = 0.3 * rng.normal(size=(3, 1)) + rng.normal(size=60) + rng.normal(size=(3, 60))
        low, high = crossed_mean_interval(values)
        covered += low <= 0 <= high
    assert 0.93 < covered / 2000 < 0.97


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired_accuracy_interval(3, 3, 5),
            "`gained` and `lost` must be 0 or more and at most `n` together; got 3",
        ),
        (lambda: paired_accuracy_interval(-1, 3, 5), "`gained` and `lost` must be 0 or more"),
        (lambda: paired_accuracy_interval(0, 0, 0), "`gained` and `lost` must be 0 or more"),
        (lambda: paired_accuracy_interval(0, 0, math.inf), "`gained` and `lost` must be 0 or more"),
        (lambda: paired_accuracy_interval(0, 0, 5, level=1.0), "`level` must be a probability"),
        (
            lambda: crossed_mean_interval(np.ones((1, 5))),
            r"`values` must be \(n_fits, n_examples\).* got shape \(1, 5\)",
        ),
        (lambda: crossed_mean_interval(np.ones((2, 5)), level=0.0), "`level` must be a probability"),
        (
            lambda: design_effect(np.ones(3), ["a"]),
            r"`groups` must name a group for each value; got 1 for shape \(3,\)",
        ),
        (lambda: design_effect(np.ones(0), []), "`groups` must name a group for each value"),
    ],
)
def test_what_is_no_count(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
