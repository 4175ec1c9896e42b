"""Isotropy of pooled vectors against numpy, and where it is undefined."""

import numpy as np
import pytest

from dynprobe.analysis import isotropy, moments
from dynprobe.analysis.catalog import ISOTROPY
from dynprobe.metrics import isotropic_reference


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


def test_rows_say_what_isotropic_data_of_the_same_size_give(make_run):
    frame = isotropy(moments(make_run(n_examples=400, d_model=8))).frame
    measured = frame[frame["status"] == "measured"]
    even = isotropic_reference(400, 8)
    expected = {"ev1": even.first_share, "cls_correlation": even.mean_correlation, **even._asdict()}
    for metric, rows in measured.groupby("metric"):
        if metric == "cls_std_mean":
            assert rows["reference"].isna().all(), "a standard deviation has a scale"
        else:
            assert (rows["reference"] == expected[metric]).all()
    # The recipe draws independent normal numbers. What they lack to a whole sphere is, up to 1/n, a χ² of 35 degrees of
    # freedom (the free entries of a symmetric 8 × 8 matrix of given trace), so that its relative spread is √(2/35).
    rows = measured.set_index(["metric", "position", "layer", "step_a"]).loc[:, "mean", 1, 0]
    for metric, best in (("isoscore", 1.0), ("effective_rank", 8.0), ("participation_ratio", 8.0)):
        lacking = (best - rows.loc[metric, "value"]) / (best - rows.loc[metric, "reference"])
        assert lacking == pytest.approx(1.0, abs=4 * np.sqrt(2 / 35))


def test_what_is_undefined_has_no_reference(make_run):
    frame = isotropy(moments(make_run())).frame
    assert frame.loc[frame["status"] == "undefined", "reference"].isna().all()
    assert isotropy(moments(make_run("b", d_model=1))).frame["reference"].isna().all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_carry_the_spacing_of_the_stored_vectors(make_run, dtype):
    assert (isotropy(moments(make_run(dtype=dtype))).frame["resolution"] == np.finfo(dtype).eps).all()


def test_runs_of_one_probe_set_are_measured_on_the_same_number_of_vectors(make_run):
    runs = make_run("a", n_attention=3, drop_rows=50), make_run("b", steps=(0, 9), hidden=False)
    found = isotropy([moment for run in runs for moment in moments(run)]).frame
    assert set(found["run_a"]) == {"a", "b"}
    assert set(found["n"]) == {runs[0].probe_set.n_examples}
