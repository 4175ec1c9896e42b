"""Isotropy of pooled vectors against numpy, and where it is undefined."""

import numpy as np

from dynprobe.analysis import isotropy, moments
from dynprobe.analysis.catalog import ISOTROPY


def by_hand(x):
    n, d = x.shape
    values = np.linalg.eigvalsh(np.cov(x.T))
    shares = values / values.sum()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    correlation = np.abs(np.corrcoef(x.T))
    ratio = 1 / (shares**2).sum()
    return {
        "isoscore": (ratio - 1) / (d - 1),
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "participation_ratio": ratio,
        "ev1": shares.max(),
        "mean_cosine": (unit @ unit.T)[~np.eye(n, dtype=bool)].mean(),
        "cls_std_mean": x.std(axis=0).mean(),
        "cls_correlation": correlation[~np.eye(d, dtype=bool)].mean(),
    }


def test_equals_the_definitions(make_run):
    run = make_run("a")
    result = isotropy(moments(run))
    for kind, layer in (("first", 2), ("mean", 0)):
        expected = by_hand(run[6].pooled(kind, layer).astype(float))
        rows = result.select(step_a=6, position=kind, layer=layer).set_index("metric")
        assert set(rows.index) == set(ISOTROPY)
        np.testing.assert_allclose(rows.loc[list(expected), "value"].astype(float), list(expected.values()), rtol=1e-10)


def test_intervals_of_the_stand_in_at_both_ends(make_run):
    frame = isotropy(moments(make_run())).frame
    known = frame[frame["low"].notna()]
    assert set(known["step_a"]) == {0, 6}
    assert set(known["position"]) == {"first"}
    assert ((known["low"] <= known["value"]) & (known["value"] <= known["high"])).all()


def test_equal_vectors_are_undefined_with_a_reason(make_run):
    # Layer 0 of the first token holds the same vector for every example, as the embedding of [CLS] does.
    rows = isotropy(moments(make_run())).select(layer=0, position="first", step_a=0).set_index("metric")
    assert (rows.loc[["isoscore", "effective_rank", "participation_ratio", "ev1"], "status"] == "undefined").all()
    assert "must vary" in rows.loc["isoscore", "reason"]
    assert "two dimensions that vary" in rows.loc["cls_correlation", "reason"]
    assert rows.loc["cls_std_mean", "value"] == 0
    assert abs(rows.loc["mean_cosine", "value"] - 1) < 1e-12


def test_few_examples_are_insufficient(make_run):
    frame = isotropy(moments(make_run(n_examples=20))).frame
    assert set(frame["status"]) == {"insufficient-sample", "undefined"}
    assert frame["low"].isna().all()


def test_no_pooled_vectors(make_run):
    frame = isotropy(moments(make_run(pooled=()))).frame
    assert set(frame["status"]) == {"not-captured"}


def test_only_the_wanted_measures(make_run):
    assert set(isotropy(moments(make_run()), metrics=["ev1"]).frame["metric"]) == {"ev1"}
