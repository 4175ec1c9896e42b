"""Statements about a quantity over seeds: compared, corrected together, decided, and put into words."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, levene, ttest_ind, ttest_rel

from dynprobe.experiments.over_seeds import (
    SHARES,
    OverSeeds,
    beside,
    discordant,
    equivalence_p,
    fails_more,
    larger,
    same,
    smaller,
    varies,
)
from dynprobe.experiments.statements import (
    FAILS,
    HOLDS,
    NOTHING,
    OPEN,
    Statement,
    headlines,
    in_words,
    judge,
    listed,
    p_in_words,
)


def arm(values: list[float], *, first: int = 0, paired: bool = True, unit: str = SHARES) -> OverSeeds:
    numbered = dict(enumerate(values, start=first))
    return OverSeeds(values=numbered, resolution=0.001, unit=unit, paired=paired)


X, Y = [0.50, 0.56, 0.61, 0.69, 0.72, 0.80], [0.41, 0.45, 0.53, 0.56, 0.65, 0.69]


def verdict(said: Statement) -> str:
    return judge([said])[0].verdict


def test_arms_are_paired_by_seed_and_compared_as_if_they_were_not() -> None:
    found = beside(arm(X), arm(Y))
    assert found.paired is not None
    assert found.welch is not None
    assert found.spread is not None
    assert found.mean is found.paired
    assert found.paired.p_two_sided == pytest.approx(ttest_rel(X, Y).pvalue, rel=1e-9)
    assert found.welch.p_two_sided == pytest.approx(ttest_ind(X, Y, equal_var=False).pvalue, rel=1e-9)
    assert found.spread.p_value == pytest.approx(levene(X, Y, center="median").pvalue, rel=1e-9)
    assert found.ratio_words.startswith(f"{np.std(X, ddof=1) / np.std(Y, ddof=1):.2f} [")


def test_only_shared_seeds_are_paired_and_all_are_compared_unpaired() -> None:
    found = beside(arm(X[2:], first=2), arm(Y))
    assert found.shared == (2, 3, 4, 5)
    assert found.paired is not None
    assert found.paired.difference == pytest.approx(np.mean(X[2:]) - np.mean(Y[2:]))
    assert found.welch is not None
    assert found.welch.n_y == 6


def test_what_is_not_paired_is_not_taken_for_it() -> None:
    found = beside(arm(X, paired=False), arm(Y))
    assert found.paired is None
    assert found.shared == ()
    assert found.mean is found.welch
    assert "seeds that are not paired" in larger("", arm(X, paired=False), arm(Y)).shown


@pytest.mark.parametrize("values", [[0.5], [0.5, np.inf]])
def test_too_few_or_infinite_values_tell_nothing(values: list[float]) -> None:
    found = beside(arm(values), arm(values))
    assert (found.paired, found.welch, found.spread, found.sd_ratio, found.ratio_words) == (None, None, None, None, "–")
    for said in (larger("", arm(values), arm(values)), same("", arm(values), arm(values), margin=0.02)):
        assert said.shown == "too few seeds, or a value that is not finite"
        assert verdict(said) == OPEN


def test_a_spread_without_a_scale_tells_nothing() -> None:
    found = beside(arm([0.1, 0.1, 0.2, 0.2]), arm([0.1, 0.1, 0.4, 0.4]))
    assert found.spread is None
    assert verdict(varies("", arm([0.1, 0.1, 0.2, 0.2]), arm([0.1, 0.1, 0.4, 0.4]), more=False)) == OPEN


def test_a_difference_holds_its_way_and_fails_the_other() -> None:
    said = larger("", arm(X), arm(Y))
    assert said.shown.startswith("64.7 % against 54.8 %, +9.8 [+7.5, +12.2] points, 6 seeds")
    assert (verdict(said), verdict(smaller("", arm(X), arm(Y)))) == (HOLDS, FAILS)
    other = smaller("", arm(Y, unit="nats"), arm(X, unit="nats"))
    assert other.shown == "0.548 against 0.647, -0.098 [-0.122, -0.075] nats, 6 seeds"
    assert other.brief == "-0.098 [-0.122, -0.075] nats, 6 seeds"
    assert verdict(other) == HOLDS


def test_a_small_difference_fails_only_within_the_margin() -> None:
    near = [value + shift for value, shift in zip(X, [0.001, -0.001] * 3, strict=True)]
    assert verdict(larger("", arm(near), arm(X), margin=0.02)) == FAILS
    assert verdict(larger("", arm(near), arm(X))) == OPEN


def test_equality_holds_within_the_margin_and_fails_beyond_it() -> None:
    near = [*X[:-1], X[-1] + 0.001]
    said = same("", arm(near), arm(X), margin=0.02)
    assert "the very same value with 5 of 6 seeds" in said.shown
    assert verdict(said) == HOLDS
    assert verdict(same("", arm(X), arm(Y), margin=0.02)) == FAILS
    assert verdict(same("", arm(X), arm(Y), margin=0.08)) == OPEN


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_is_decided_where_the_interval_meets_the_margin(paired: bool) -> None:
    gap = beside(arm(X, paired=paired), arm(Y)).mean
    assert gap is not None
    for one, other in ((X, Y), (Y, X)):
        assert equivalence_p(arm(one, paired=paired), arm(other), margin=gap.high) == pytest.approx(0.05, rel=1e-9)


def test_spreads_are_told_by_their_way() -> None:
    wide, narrow = arm([0.1 * k for k in range(10)]), arm([0.5 + 0.01 * k for k in range(10)])
    assert verdict(varies("", wide, narrow, more=True)) == HOLDS
    assert verdict(varies("", wide, narrow, more=False)) == FAILS
    assert "ratio 10.00 [" in varies("", wide, narrow, more=True).shown


def test_failures_are_counted_by_seed() -> None:
    many, none = pd.Series([True] * 7 + [False]), pd.Series([False] * 8)
    assert verdict(fails_more("", many, none)) == HOLDS
    assert verdict(fails_more("", none, many)) == FAILS
    assert discordant(many, many) == (0, 0, 1.0)
    some = pd.Series([False] * 5 + [True] * 3)
    assert discordant(many, some) == (5, 1, pytest.approx(binomtest(1, 6).pvalue, rel=1e-12))
    assert "7 of 8 [53 to 98 %] against 0 of 8 [0 to 32 %]; with 7 and 0 seeds" in fails_more("", many, none).shown


def test_many_statements_are_corrected_for_their_number() -> None:
    one, untested = larger("", arm(X), arm(Y)), same("", arm([0.5]), arm([0.5]), margin=0.1)
    assert judge([one])[0].p == pytest.approx(one.p)
    assert judge([one, *[varies("", arm(X), arm(X), more=True)] * 9])[0].p == pytest.approx(10 * one.p)
    assert judge([one, *[untested] * 9])[0].p == pytest.approx(one.p), "what cannot be tested does not count"
    assert judge([]) == []
    assert judge([untested]) == [untested]
    rare = Statement(text="", shown="", p=0.009, as_claimed=True)
    assert [said.verdict for said in judge([rare] * 8)] == [OPEN] * 8, "one of many"


def test_what_is_refuted_fails_whatever_p_is() -> None:
    said = Statement(text="", shown="", p=0.9, refuted=True)
    assert (verdict(said), verdict(Statement(text="", shown="", p=0.9))) == (FAILS, OPEN)


def test_statements_in_words() -> None:
    made = [
        Statement(text="It grows", shown="2 against 1, +1", brief="+1", p=1e-9, as_claimed=True),
        Statement(text="It lasts", shown="not measured"),
    ]
    judged = {"small": judge(made), "large": judge(made[1:])}
    assert in_words(judged["small"][0]) == "It grows: 2 against 1, +1, p < 0.001"
    assert listed(judged, HOLDS) == "* **small**: It grows: 2 against 1, +1, p < 0.001."
    assert listed(judged, OPEN) == "* **small**: It lasts: not measured.\n* **large**: It lasts: not measured."
    assert listed(judged, FAILS) == NOTHING
    assert list(headlines(judged, ["It lasts", "It grows", "It sings"])) == [
        ("It lasts", "small: not measured<br>large: not measured", "**cannot be told**: small, large"),
        ("It grows", "small: +1", "**holds here**: small"),
    ]
    assert (p_in_words(0.5), p_in_words(1e-9)) == ("p = 0.500", "p < 0.001")
