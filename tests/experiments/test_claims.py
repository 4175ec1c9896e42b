"""Claims about paired trainings: what holds, what does not, what cannot be told."""

import math

import numpy as np
import pytest

from dynprobe.experiments.claims import FAILS, HOLDS, OPEN, Claim, in_words, judge, p_in_words
from dynprobe.metrics import paired_difference


def claim(gaps: list[float], *, direction: int = 1, **more: float) -> Claim:
    others = {seed: 0.5 + 0.01 * seed for seed in range(len(gaps))}
    values = {seed: others[seed] + gap for seed, gap in enumerate(gaps)}
    return Claim(text="It is more", values=values, others=others, direction=direction, **more)


CLEAR, UNCLEAR = [0.10, 0.11, 0.09, 0.10], [0.10, -0.11, 0.09, -0.10]


def test_the_verdict_follows_difference_direction_and_margin() -> None:
    assert [found.verdict for found in judge([claim(CLEAR)])] == [HOLDS]
    assert [found.verdict for found in judge([claim(CLEAR, direction=-1)])] == [FAILS]
    assert [found.verdict for found in judge([claim(UNCLEAR)])] == [OPEN]
    assert [found.verdict for found in judge([claim(UNCLEAR, margin=0.3)])] == [FAILS], "too small to matter"
    small = [0.001, -0.001, 0.002, 0.001]
    assert [found.verdict for found in judge([claim(small), claim(small, margin=0.02)])] == [OPEN, FAILS]


def test_p_is_that_of_the_paired_test_times_the_number_of_claims() -> None:
    one, other = claim(CLEAR), claim(UNCLEAR)
    alone = paired_difference(list(one.values.values()), list(one.others.values()))
    together = judge([one, other])
    assert together[0].p == pytest.approx(2 * alone.p_two_sided, rel=1e-12)
    assert judge([one])[0].p == pytest.approx(alone.p_two_sided, rel=1e-12)
    assert (together[0].difference, together[0].low, together[0].high) == (alone.difference, alone.low, alone.high)
    rare = [0.010, 0.014, 0.006, 0.011]  # p of 0.009 alone
    assert judge([claim(rare)])[0].verdict == HOLDS
    assert judge([claim(rare)] * 8)[0].verdict == OPEN, "one of many"


def test_only_seeds_that_both_have_and_that_are_finite_count() -> None:
    more = Claim(
        text="t",
        values={0: 1.0, 1: 2.0, 2: math.nan, 3: 4.0, 9: 5.0},
        others={3: 1.0, 1: 1.0, 2: 1.0, 0: 1.0},
        direction=1,
    )
    (found,) = judge([more])
    assert (found.n, found.mean, found.other) == (3, pytest.approx(7 / 3), 1.0)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_seeds_tell_nothing(n: int) -> None:
    (found,) = judge([claim([0.1] * n)])
    assert (found.verdict, found.p, found.n, found.low, found.high) == (OPEN, 1.0, n, -math.inf, math.inf)
    assert judge([]) == []


def test_in_words() -> None:
    shares, plain = claim(CLEAR, unit="%"), claim(CLEAR, unit="steps", digits=0)
    first, second = (in_words(found, where="small") for found in judge([shares, plain]))
    assert first.startswith("It is more (**small**): 61.5 % against 51.5 %, +10.0 [+8.7, +11.3] points, p < 0.001")
    assert second.endswith("[+0, +0] steps, p < 0.001, 4 seeds.")
    assert (p_in_words(0.5), p_in_words(1e-9)) == ("p = 0.500", "p < 0.001")
    assert np.isfinite(judge([shares])[0].p)
