"""Cross-validated linear probes against scikit-learn; folds; labels that cannot be probed."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dynprobe.analysis import moments, probe_accuracy
from dynprobe.analysis.probing import stratified_folds


def test_equals_scikit_learn_on_the_same_folds(make_run):
    run = make_run(n_examples=60)
    probe = run.probe_set
    folds = stratified_folds(probe.labels, probe.example_ids)
    result = probe_accuracy(moments(run)[-1:], penalty=1.0)
    for layer in (1, 2):
        x = run[6].pooled("mean", layer).astype(float)
        right = 0
        for fold in range(5):
            train, test = folds != fold, folds == fold
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-10, max_iter=5000))
            right += (model.fit(x[train], probe.labels[train]).predict(x[test]) == probe.labels[test]).sum()
        row = result.select(layer=layer, position="mean", step_a=6).iloc[0]
        assert row["value"] == right / 60
        assert row["chance"] == 20 / 60
        assert row["n"] == 60
        assert row["low"] < row["value"] < row["high"]


def test_a_label_that_is_there_is_read(make_run):
    # Positive control: the labels follow from the vectors themselves.
    first = make_run("a", n_examples=60)
    labels = (first[0].pooled("mean", 1)[:, 0] > 0).astype(int)
    frame = probe_accuracy(moments(make_run("b", n_examples=60, labels=labels))[:1]).frame
    there = frame[(frame["layer"] == 1) & (frame["position"] == "mean") & (frame["step_a"] == 0)].iloc[0]
    assert there["low"] > there["chance"]


def test_folds_are_stratified_and_follow_content():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 10])
    ids = [f"{value:08x}" for value in rng.permutation(40)]
    folds = stratified_folds(labels, ids)
    assert np.bincount(folds).tolist() == [8] * 5
    assert np.bincount(folds[labels == 1]).tolist() == [2] * 5
    order = rng.permutation(40)
    assert (stratified_folds(labels[order], [ids[i] for i in order]) == folds[order]).all()


@pytest.mark.parametrize(
    ("labels", "status", "reason"),
    [
        (None, "not-captured", "no labels"),
        ("numbers", "undefined", "numbers, not classes"),
        (np.zeros(40, dtype=int), "undefined", "the same label"),
        (np.array([0] * 37 + [1] * 3), "insufficient-sample", "a class has 3 examples; at least 5"),
        (np.eye(40, 3, dtype=int), "undefined", "numbers, not classes"),
    ],
)
def test_labels_that_cannot_be_probed(make_run, labels, status, reason):
    frame = probe_accuracy(moments(make_run(labels=labels))).frame
    assert set(frame["status"]) == {status}
    assert frame["reason"].str.contains(reason).all()


def test_labels_need_not_start_at_zero(make_run):
    plain = probe_accuracy(moments(make_run("a"))[:1]).frame["value"]
    shifted = probe_accuracy(moments(make_run("b", labels=np.arange(40) % 3 * 7 - 4))[:1]).frame["value"]
    assert plain.tolist() == shifted.tolist()
