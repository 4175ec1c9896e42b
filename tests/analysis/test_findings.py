"""Sentences say what the intervals allow, and no more."""

import pytest

from dynprobe.analysis.findings import findings
from dynprobe.result import tidy


def row(metric, comparison, value, low, high, **more):
    base = {
        "metric": metric,
        "comparison": comparison,
        "stack": "model",
        "value": value,
        "low": low,
        "high": high,
        "n": 100,
    }
    return {**base, **more}


def attention(layer, value, width=0.001, run="a"):
    bounds = (value - width, value + width)
    return row("attention_js_divergence", "from_start", value, *bounds, run_a=run, step_a=9, layer=layer)


def said(*rows):
    return findings(tidy(rows), ("a", "b"))


def test_the_layer_that_moved_most_is_named():
    (line,) = said(attention(1, 0.01), attention(2, 0.03), attention(3, 0.02))
    assert "moved most in layer 2 (up to 0.0300 [0.0290, 0.0310]" in line
    assert "least in layer 1" in line
    assert "95 % intervals" in line


def test_layers_whose_intervals_overlap_share_the_top():
    (line,) = said(attention(1, 0.01), attention(2, 0.0300), attention(3, 0.0295))
    assert "about as much, in layers 2, 3" in line


def test_no_layer_is_named_where_all_intervals_overlap():
    (line,) = said(attention(1, 0.0301), attention(2, 0.0300))
    assert "in no layer clearly more" in line


@pytest.mark.parametrize(
    ("low", "high", "words"), [(-0.02, 0.06, "cannot be told from 0"), (0.01, 0.05, "they differ")]
)
def test_a_difference_in_score_is_claimed_only_when_0_lies_outside(low, high, words):
    lines = said(
        row("accuracy", "within", 0.8, 0.7, 0.9, run_a="a", step_a=9),
        row("accuracy", "within", 0.78, 0.7, 0.9, run_a="b", step_a=9),
        row("accuracy_difference", "between", 0.02, low, high, run_a="a", run_b="b", step_a=9, step_b=9),
    )
    assert words in lines[0]


@pytest.mark.parametrize(
    ("low", "said_so"), [((0.45, 0.46), True), ((0.45, 0.52), False), ((0.52, 0.45), False), ((None, None), False)]
)
def test_two_models_at_the_commonest_class_are_said_to_be_there(low, said_so):
    chance = {} if low[0] is None else {"chance": 0.5}
    low = (0.45, 0.46) if low[0] is None else low
    lines = said(
        row("accuracy", "within", 0.53, low[0], 0.6, run_a="a", step_a=9, **chance),
        row("accuracy", "within", 0.53, low[1], 0.6, run_a="b", step_a=9, **chance),
        row("accuracy_difference", "between", 0.0, -0.02, 0.02, run_a="a", run_b="b", step_a=9, step_b=9),
    )
    assert ("on the same examples; neither is clearly above the commonest class, 0.500." in lines[0]) is said_so


def test_flips_are_counted():
    lines = said(row("prediction_flip_rate", "from_start", 0.12, 0.07, 0.2, run_a="a", step_a=9))
    assert "a gives another answer than at its start on 12 of 100 probe examples (12 % [7 %, 20 %])" in lines[0]


def test_a_probe_at_chance_is_no_success():
    (line,) = said(
        row("probe_accuracy", "within", 0.55, 0.45, 0.65, run_a="a", step_a=9, layer=3, position="first", chance=0.5)
    )
    assert "no layer lets a linear probe read the label clearly above chance" in line


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ((0.2, 0.15, 0.25), "less isotropic"),
        ((0.48, 0.4, 0.55), "did not clearly change"),
        ((0.9, 0.8, 1.0), "more isotropic"),
    ],
)
def test_isotropy_changes_only_where_intervals_part(last, words):
    where = {"run_a": "a", "layer": 3, "position": "first"}
    (line,) = said(
        row("isoscore", "within", 0.5, 0.45, 0.55, step_a=0, **where),
        row("isoscore", "within", *last, step_a=9, **where),
    )
    assert words in line


def test_runs_apart_are_judged_by_intervals():
    def svcca(comparison, run, value):
        names = {"run_a": run, "run_b": "b"}
        return row("svcca_similarity", comparison, value, value - 0.01, value + 0.01, step_a=9, layer=1, **names)

    near = said(svcca("from_start", "a", 0.5), svcca("from_start", "b", 0.5), svcca("between", "a", 0.9))
    far = said(svcca("from_start", "a", 0.9), svcca("from_start", "b", 0.9), svcca("between", "a", 0.5))
    open_ = said(svcca("from_start", "a", 0.9), svcca("from_start", "b", 0.5), svcca("between", "a", 0.5))
    assert "closer to each other than to their starts in layer 1" in near[0]
    assert "further from each other than from their starts in layer 1" in far[0]
    assert "neither clearly closer" in open_[0]


def test_unmeasured_values_are_not_spoken_of_but_named():
    (line,) = said(
        {"metric": "svcca_similarity", "comparison": "between", "status": "incompatible", "reason": "of depth"}
    )
    assert line == "Not compared: SVCCA similarity, because of depth."


def test_nothing_to_say():
    assert said() == ()
