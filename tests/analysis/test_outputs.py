"""Flips, symmetric KL, scores and their differences against numpy."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import spearmanr

from dynprobe.analysis import (
    consecutive_pairs,
    moments,
    output_changes,
    output_scores,
    pairs_between,
    pairs_from_start,
)


def value(result, metric, **where):
    rows = result.select(metric=metric, **where)
    assert len(rows) == 1
    return rows.iloc[0]


def symmetric_kl(a, b):
    log_p, log_q = log_softmax(a.astype(float), axis=-1), log_softmax(b.astype(float), axis=-1)
    return ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum(axis=-1)


def test_flips_and_kl(make_run):
    run = make_run(drift=0.3)
    a, b = run[6].outputs().values, run[0].outputs().values
    result = output_changes(pairs_from_start(run))
    flips = value(result, "prediction_flip_rate", step_a=6)
    assert flips["value"] == (a.argmax(1) != b.argmax(1)).mean()
    assert flips["low"] < flips["value"] < flips["high"]
    np.testing.assert_allclose(value(result, "output_symmetric_kl", step_a=6)["value"], symmetric_kl(a, b).mean())


def test_consecutive_pairs_have_kl_only(make_run):
    run = make_run(drift=0.3)
    result = output_changes(consecutive_pairs(run))
    assert result.frame[["metric", "step_a", "step_b"]].values.tolist() == [
        ["output_symmetric_kl", 2, 0],
        ["output_symmetric_kl", 6, 2],
    ]
    expected = symmetric_kl(run[6].outputs().values, run[2].outputs().values).mean()
    np.testing.assert_allclose(result.frame["value"][1], expected)


def test_same_answers_give_zero(make_run):
    frame = output_changes(pairs_between(make_run("a", seed=1), make_run("b", seed=2))).select(step_a=0)
    assert (frame["value"] == 0).all()
    assert set(frame["status"]) == {"measured"}


def test_accuracy_and_its_paired_difference(make_run):
    a, b = make_run("a", seed=1, drift=0.3), make_run("b", seed=2, drift=0.3)
    right = [run[6].outputs().values.argmax(1) == run.probe_set.labels for run in (a, b)]
    score = value(output_scores(moments(a)), "accuracy", step_a=6)
    assert (score["value"], score["n"], score["chance"]) == (right[0].mean(), 40, 14 / 40)
    difference = value(output_changes(pairs_between(a, b)), "accuracy_difference", step_a=6)
    np.testing.assert_allclose(difference["value"], right[0].mean() - right[1].mean(), atol=1e-15)


def test_other_labels_are_not_compared(make_run):
    a, b = make_run("a"), make_run("b", labels=np.arange(40) // 14)
    assert "accuracy_difference" not in set(output_changes(pairs_between(a, b)).frame["metric"])


def test_language_model(make_run):
    a, b = make_run("a", outputs="nll", seed=1), make_run("b", outputs="nll", seed=2)

    def means(run, step):
        outputs = run[step].outputs()
        return np.array([part.mean() for part in np.split(outputs.values.astype(float), outputs.offsets[1:-1])])

    np.testing.assert_allclose(value(output_scores(moments(a)), "mean_nll", step_a=6)["value"], means(a, 6).mean())
    row = value(output_changes(pairs_between(a, b)), "mean_nll_difference", step_a=6)
    np.testing.assert_allclose(row["value"], (means(a, 6) - means(b, 6)).mean(), atol=1e-14)
    assert len(output_changes(consecutive_pairs(a)).frame) == 0


def test_token_classes_are_averaged_within_examples(make_run):
    run = make_run(outputs="token_logits", drift=0.3)
    a, b = run[6].outputs(), run[0].outputs()
    flipped = (a.values.argmax(1) != b.values.argmax(1)).astype(float)
    expected = np.mean([part.mean() for part in np.split(flipped, a.offsets[1:-1])])
    np.testing.assert_allclose(
        value(output_changes(pairs_from_start(run)), "prediction_flip_rate", step_a=6)["value"], expected
    )
    assert value(output_scores(moments(run)), "accuracy", step_a=6)["status"] == "undefined"


def test_question_answering_is_no_classification(make_run):
    run = make_run(outputs="token_logits", n_classes=2, manifest={"model": {"model_class": "BertForQuestionAnswering"}})
    frame = output_changes(pairs_from_start(run)).frame
    assert frame["status"].tolist() == ["undefined"]
    assert "positions, not classes" in frame["reason"][0]


def test_regression(make_run):
    run = make_run(n_classes=1, labels="numbers", drift=0.3)
    a, b = run[6].outputs().values[:, 0].astype(float), run[0].outputs().values[:, 0].astype(float)
    labels = run.probe_set.labels
    scores = output_scores(moments(run))
    np.testing.assert_allclose(value(scores, "spearman", step_a=6)["value"], spearmanr(a, labels).statistic)
    np.testing.assert_allclose(value(scores, "mean_squared_error", step_a=6)["value"], ((a - labels) ** 2).mean())
    changes = output_changes(pairs_from_start(run))
    np.testing.assert_allclose(value(changes, "output_mean_squared_change", step_a=6)["value"], ((a - b) ** 2).mean())


def test_regression_of_a_constant_is_undefined(make_run):
    run = make_run(n_classes=1, labels=np.full(40, 0.5))
    assert value(output_scores(moments(run)), "spearman", step_a=0)["status"] == "undefined"


def test_no_head_is_not_captured(make_run):
    frame = output_changes(pairs_from_start(make_run(outputs=None))).frame
    assert frame["status"].tolist() == ["not-captured"]
    assert output_scores(moments(make_run("b", outputs=None))).frame.empty


@pytest.mark.parametrize("change", [{"n_classes": 4}, {"outputs": "nll"}])
def test_other_kinds_of_outputs_are_incompatible(make_run, change):
    labels = np.arange(40) % 3
    frame = output_changes(pairs_between(make_run("a", labels=labels), make_run("b", labels=labels, **change))).frame
    assert frame["status"].tolist() == ["incompatible"]


@pytest.mark.parametrize(
    ("labels", "status"), [(None, "not-captured"), (np.arange(40) % 9, "undefined"), (np.eye(40, 3), "undefined")]
)
def test_labels_that_do_not_fit(make_run, labels, status):
    assert value(output_scores(moments(make_run(labels=labels))), "accuracy", step_a=0)["status"] == status
