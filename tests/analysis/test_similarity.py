"""SVCCA and CKA against direct computation; identical states, chance, rows, layer maps, statuses."""

import numpy as np
import pytest
import torch

from dynprobe.analysis import hidden_state_similarity, pairs_between, pairs_from_start
from dynprobe.metrics import (
    balanced_half_samples,
    half_sample_interval,
    linear_cka_similarity,
    principal_subspace,
    subspace_correlations,
    svcca_similarity,
)

SVCCA, CKA = "svcca_similarity", "linear_cka_similarity"
ROUNDING = 1e-10  # float64 through a Gram matrix of condition about 100 d


def plain_rows(run, step):
    rows = run[step].hidden_rows()
    return ~run.probe_set.special["model"][rows[:, 0], rows[:, 1]]


@pytest.mark.parametrize("specials", [False, True])
def test_equals_the_metrics_on_the_same_tokens(make_run, specials):
    run = make_run(drift=0.2)
    result = hidden_state_similarity(pairs_from_start(run), specials=specials)
    keep = np.ones(len(run[0].hidden_rows()), bool) if specials else plain_rows(run, 0)
    for layer in (0, 1, 2):
        x, y = (run[step].hidden_states(layer).astype(np.float64)[keep] for step in (6, 0))
        rows = result.select(layer=layer, step_a=6).set_index("metric")
        assert abs(rows.loc[SVCCA, "value"] - svcca_similarity(x, y)) < ROUNDING
        assert abs(rows.loc[CKA, "value"] - linear_cka_similarity(x, y, debiased=True)) < ROUNDING
        assert (rows["n"] == keep.sum()).all()


def test_identical_states_give_one(make_run):
    result = hidden_state_similarity(pairs_between(make_run("a", seed=1), make_run("b", seed=2)))
    start = result.select(step_a=0)
    assert (abs(start["value"] - 1) < ROUNDING).all()
    assert (abs(result.select(step_a=6)["value"] - 1) > 1e-3).all()


def test_every_value_has_interval_and_chance(make_run):
    frame = hidden_state_similarity(pairs_from_start(make_run(drift=0.1))).frame
    assert set(frame["step_a"]) == {2, 6}
    assert ((frame["low"] <= frame["value"]) & (frame["value"] <= frame["high"])).all()
    assert (frame["chance"] < frame["low"]).all()
    assert frame["bias"].notna().all()


def test_unrelated_states_lie_at_chance(make_run):
    # drift 100: the start is lost in noise. 158 tokens of 8 independent dimensions: mean correlation near sqrt(8/157) = 0.2.
    frame = hidden_state_similarity(pairs_from_start(make_run(drift=100.0))).select(step_a=6)
    svcca, cka = frame[frame["metric"] == SVCCA], frame[frame["metric"] == CKA]
    assert (abs(svcca["value"] - svcca["chance"]) < 0.15).all()
    assert (svcca["value"] < 0.4).all()
    assert (abs(cka["value"]) < 0.2).all()


def counted(monkeypatch, name):
    """Calls of a function of torch.linalg."""
    calls, real = [], getattr(torch.linalg, name)
    monkeypatch.setattr(torch.linalg, name, lambda x, *args: calls.append(x.shape) or real(x, *args))
    return calls


@pytest.mark.parametrize("lengths", [(3, 9), (5, 12)])  # CKA by products of tokens, and of features
def test_few_tokens_per_direction_are_insufficient(make_run, lengths, monkeypatch):
    """Only the eigenvalues of the start are computed, and the entry says how many tokens they ask for."""
    whole, values = counted(monkeypatch, "eigh"), counted(monkeypatch, "eigvalsh")
    run = make_run(d_model=40, lengths=lengths, drift=0.2)
    result = hidden_state_similarity(pairs_from_start(run))
    assert (len(whole), len(values)) == (0, 3), "one count for each layer"
    svcca, cka = (result.select(metric=metric) for metric in (SVCCA, CKA))
    assert set(svcca["status"]) == {"insufficient-sample"}
    assert svcca[["value", "low", "high", "chance", "bias", "free_value"]].isna().all(axis=None)
    keep = plain_rows(run, 0)
    k = int(principal_subspace(run[0].hidden_states(1)[keep]).n_kept)
    row = svcca[svcca["layer"] == 1].iloc[0]
    assert row["n_kept"] == k
    assert f"{keep.sum()} tokens for {k} directions; at least {10 * k} tokens are needed" in row["reason"]
    assert not result.arrays
    assert set(cka["status"]) == {"measured"}
    assert cka[["low", "high", "chance", "bias"]].notna().all(axis=None)


def test_wide_layers_have_svcca_when_it_is_asked_for(make_run, monkeypatch):
    monkeypatch.setattr("dynprobe.analysis.similarity.WIDEST_SVCCA", 7)
    pairs = pairs_from_start(make_run(d_model=8, drift=0.2))
    by_default, asked = (hidden_state_similarity(pairs, metrics=metrics) for metrics in (None, (SVCCA, CKA)))
    left_out = by_default.select(metric=SVCCA)
    assert set(left_out["status"]) == {"not-computed"}
    assert left_out["reason"].str.contains("8 features takes minutes; ask for it by name").all()
    assert set(asked.select(metric=SVCCA)["status"]) == {"measured"}
    assert by_default.select(metric=CKA).equals(asked.select(metric=CKA))


@pytest.mark.parametrize("d_model", [30, 200])  # more and fewer tokens than features
def test_cka_alone_of_few_tokens_equals_that_beside_svcca(make_run, d_model, monkeypatch):
    """By products of tokens and of features: value, interval, bias and chance level."""
    pairs = pairs_from_start(make_run(d_model=d_model, lengths=(3, 6), drift=0.2))
    by_tokens = hidden_state_similarity(pairs, metrics=(CKA,)).frame
    monkeypatch.setattr("dynprobe.analysis.similarity.MOST_ROWS_PER_FEATURE", 0)
    by_features = hidden_state_similarity(pairs, metrics=(CKA,)).frame
    columns = ["value", "low", "high", "chance", "bias"]
    np.testing.assert_allclose(by_tokens[columns], by_features[columns], atol=ROUNDING)
    assert (by_tokens["status"] == "measured").all()


def test_only_shared_tokens_are_compared(make_run):
    a, b = make_run("a", seed=1), make_run("b", seed=2, drop_rows=30)
    result = hidden_state_similarity(pairs_between(a, b), specials=True)
    n = len(b[0].hidden_rows())
    assert len(a[0].hidden_rows()) == n + 30
    x, y = a[6].hidden_states(1)[:n].astype(float), b[6].hidden_states(1).astype(float)
    row = result.select(metric=SVCCA, layer=1, step_a=6).iloc[0]
    assert row["n"] == n
    assert abs(row["value"] - svcca_similarity(x, y)) < ROUNDING
    assert any("30 tokens that not all snapshots hold" in note for note in result.notes)


def test_layer_maps_take_other_depths_and_widths(make_run):
    a, b = make_run("a"), make_run("b", n_layers=3, d_model=6)
    result = hidden_state_similarity(pairs_between(a, b))
    grid = result.arrays["svcca_layers:a@6|b@6"]
    assert grid.shape == (3, 4)
    keep = plain_rows(a, 6)
    x, y = a[6].hidden_states(2)[keep].astype(float), b[6].hidden_states(3)[keep].astype(float)
    assert abs(grid[2, 3] - svcca_similarity(x, y)) < ROUNDING
    assert set(result.frame["status"]) == {"incompatible"}
    assert "cannot be matched one to one" in result.frame["reason"][0]


def test_map_of_a_run_against_its_start(make_run):
    run = make_run("a", drift=0.1)
    result = hidden_state_similarity(pairs_from_start(run))
    grid = result.arrays["svcca_layers:a@6|a@0"]
    values = result.select(metric=SVCCA, step_a=6).sort_values("layer")["value"]
    np.testing.assert_allclose(np.diag(grid), values, atol=ROUNDING)


def test_both_stacks(make_run):
    result = hidden_state_similarity(pairs_from_start(make_run("a", stacks=("encoder", "decoder"))))
    assert set(result.frame["stack"]) == {"encoder", "decoder"}
    assert "svcca_layers:decoder of a@6|decoder of a@0" in result.arrays


def test_no_hidden_states_is_not_captured(make_run):
    frame = hidden_state_similarity(pairs_from_start(make_run(hidden=False))).frame
    assert frame["status"].tolist() == ["not-captured", "not-captured"]


def test_one_example_has_no_interval(make_run):
    run = make_run(n_examples=1, n_attention=1, lengths=(90, 90), drift=0.1)
    frame = hidden_state_similarity(pairs_from_start(run)).frame
    assert frame["value"].notna().all()
    assert frame[["low", "high", "chance"]].isna().all(axis=None)


def test_hardly_any_token(make_run):
    run = make_run(n_examples=1, n_attention=1, lengths=(4, 4))
    frame = hidden_state_similarity(pairs_from_start(run)).frame
    assert set(frame["status"]) == {"insufficient-sample"}
    assert frame["reason"].str.contains("share 2 tokens").all()


def test_all_shared_tokens_are_used(make_run):
    run = make_run(n_examples=100, n_attention=1, lengths=(60, 80), steps=(0, 1), n_layers=1, labels=None)
    result = hidden_state_similarity(pairs_from_start(run), specials=True)
    assert set(result.frame["n"]) == {len(run[0].hidden_rows())}


@pytest.mark.parametrize(("n_examples", "n_groups"), [(60, 8), (6, 4)])
def test_interval_and_bias_equal_those_of_the_metrics_on_halves(make_run, n_examples, n_groups):
    run = make_run(n_examples=n_examples, n_attention=1, lengths=(60, 80), drift=0.3)
    row = hidden_state_similarity(pairs_from_start(run)).select(layer=1, step_a=6).set_index("metric")
    keep = plain_rows(run, 0)
    x, y = (run[step].hidden_states(1).astype(np.float64)[keep] for step in (6, 0))
    groups = run[0].hidden_rows()[keep][:, 0] * n_groups // n_examples
    k = int(row.loc[SVCCA, "n_kept"])

    def svcca(kept):
        a, b = (principal_subspace(side[kept], n_kept=k) for side in (x, y))
        return float(subspace_correlations(a, b).mean())

    def cka(kept):
        return float(linear_cka_similarity(x[kept], y[kept], debiased=True))

    for metric, measure in ((SVCCA, svcca), (CKA, cka)):
        halves = [measure(half[groups]) for half in balanced_half_samples(n_groups)]
        low, high = half_sample_interval(row.loc[metric, "value"], halves)
        assert abs(row.loc[metric, "low"] - max(low, 0.0 if metric == SVCCA else -1.0)) < 1e-8
        assert abs(row.loc[metric, "high"] - min(high, 1.0)) < 1e-8
        assert abs(row.loc[metric, "bias"] - (np.mean(halves) - row.loc[metric, "value"])) < 1e-8


def test_the_number_of_directions_is_held_over_steps_and_runs(make_run):
    """The start of the first run decides; what each snapshot would choose itself stands beside it."""
    a, b = make_run("a", seed=1, drift=0.5), make_run("b", seed=2, drift=0.5)
    rows = hidden_state_similarity([*pairs_from_start(a), *pairs_from_start(b), *pairs_between(a, b)]).select(
        metric=SVCCA, layer=2
    )
    keep = plain_rows(a, 0)
    k = int(principal_subspace(a[0].hidden_states(2)[keep]).n_kept)
    assert set(rows["n_kept"]) == {k}
    last = rows[(rows["comparison"] == "between") & (rows["step_a"] == 6)].iloc[0]
    x, y = (run[6].hidden_states(2)[keep] for run in (a, b))
    assert abs(last["free_value"] - svcca_similarity(x, y)) < ROUNDING
    held = [principal_subspace(side.astype(np.float64), n_kept=k) for side in (x, y)]
    assert abs(last["value"] - subspace_correlations(*held).mean()) < ROUNDING


def test_standardized_features_have_equal_weight(make_run):
    run = make_run(drift=0.2)
    keep = plain_rows(run, 0)
    row = hidden_state_similarity(pairs_from_start(run), standardize=True).select(layer=1, step_a=6).set_index("metric")
    x, y = (run[step].hidden_states(1).astype(np.float64)[keep] for step in (6, 0))
    x, y = ((side - side.mean(0)) / side.std(0) for side in (x, y))
    assert abs(row.loc[CKA, "value"] - linear_cka_similarity(x, y, debiased=True)) < 1e-6  # scaled rows are float32
    assert abs(row.loc[SVCCA, "free_value"] - svcca_similarity(x, y)) < 1e-6


def test_every_value_says_how_exactly_the_states_were_stored(make_run):
    run = make_run()
    frame = hidden_state_similarity(pairs_from_start(run)).frame
    assert set(frame["resolution"]) == {run[0].resolution("hidden_states", 1)}


@pytest.mark.parametrize("lengths", [(3, 9), (200, 200)])
def test_states_that_are_not_finite_are_undefined_and_the_rest_goes_on(make_run, lengths, monkeypatch):
    """Capture refuses them, a file may hold them: at the first row, or beyond the first block of rows."""
    run = make_run(n_examples=20, n_attention=1, lengths=lengths, drift=0.1)
    read = type(run[0]).hidden_states

    def with_nan(self, layer, stack="model", *, rows=slice(None)):
        found = read(self, layer, stack, rows=rows).copy()
        if layer == 1 and self.step == 6:
            found[-1] = np.nan
        return found

    monkeypatch.setattr(type(run[0]), "hidden_states", with_nan)
    frame = hidden_state_similarity(pairs_from_start(run), specials=True).frame
    bad = (frame["layer"] == 1) & (frame["step_a"] == 6)
    assert set(frame.loc[bad, "status"]) == {"undefined"}
    assert frame.loc[bad, "reason"].str.contains("must be finite").all()
    assert (frame.loc[~bad, "status"] == "measured").all()


def test_no_chance_level_where_one_example_holds_most_tokens(make_run):
    """Shifted by less than its length it would be compared with itself."""
    run = make_run(n_examples=2, n_attention=1, lengths=(30, 90), drift=0.3, probe_seed=1)
    tokens = np.bincount(run[0].hidden_rows()[:, 0])
    assert tokens.max() > tokens.sum() / 2
    frame = hidden_state_similarity(pairs_from_start(run), specials=True).frame
    assert frame["chance"].isna().all()
    assert frame["value"].notna().all()
