"""SVCCA and CKA against direct computation; identical states, chance, rows, layer maps, statuses."""

import numpy as np
import pytest
import torch

from dynprobe.analysis import hidden_state_similarity, pairs_between, pairs_from_start
from dynprobe.analysis.cka_sides import CkaSide, leave_group_out, similarity
from dynprobe.metrics import linear_cka_similarity, svcca_similarity

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


def test_ends_have_interval_and_chance(make_run):
    frame = hidden_state_similarity(pairs_from_start(make_run(drift=0.1))).frame
    last, before = frame[frame["step_a"] == 6], frame[frame["step_a"] == 2]
    assert ((last["low"] <= last["value"]) & (last["value"] <= last["high"])).all()
    assert (last["chance"] < last["low"]).all()
    assert before[["low", "high", "chance"]].isna().all(axis=None)


def test_unrelated_states_lie_at_chance(make_run):
    # drift 100: the start is lost in noise. 158 tokens of 8 independent dimensions: mean correlation near sqrt(8/157) = 0.2.
    frame = hidden_state_similarity(pairs_from_start(make_run(drift=100.0))).select(step_a=6)
    svcca, cka = frame[frame["metric"] == SVCCA], frame[frame["metric"] == CKA]
    assert (abs(svcca["value"] - svcca["chance"]) < 0.15).all()
    assert (svcca["value"] < 0.4).all()
    assert (abs(cka["value"]) < 0.2).all()


def test_few_tokens_per_direction_are_insufficient(make_run):
    frame = hidden_state_similarity(pairs_from_start(make_run(d_model=40))).frame
    svcca = frame[frame["metric"] == SVCCA]
    assert (svcca["status"] == "insufficient-sample").all()
    assert svcca["reason"].str.contains("tokens for").all()
    assert (frame[frame["metric"] == CKA]["status"] == "measured").all()


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


def test_cka_without_a_group_equals_the_metric_without_its_rows():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(60, 5)) + 3, np.arange(60) % 4
    y = x @ rng.normal(size=(5, 7)) + rng.normal(size=(60, 7))
    a, b = CkaSide.of(torch.from_numpy(x)), CkaSide.of(torch.from_numpy(y))
    assert abs(similarity(a, b) - linear_cka_similarity(x, y, debiased=True)) < 1e-12
    found = leave_group_out(a, b, torch.from_numpy(groups), 4)
    expected = [linear_cka_similarity(x[groups != g], y[groups != g], debiased=True) for g in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_cka_of_equal_rows_is_undefined():
    with pytest.raises(ValueError, match="observations must vary"):
        CkaSide.of(torch.ones(5, 3) / 3)


def test_cka_needs_four_rows():
    side = CkaSide.of(torch.eye(3))
    with pytest.raises(ValueError, match="at least 4 samples; got 3"):
        similarity(side, side)


def test_many_tokens_are_cut_to_whole_examples(make_run):
    run = make_run(n_examples=100, n_attention=1, lengths=(60, 80), steps=(0, 1), n_layers=1, labels=None)
    result = hidden_state_similarity(pairs_from_start(run))
    n = int(result.frame["n"].iloc[0])
    assert 4096 <= n < 4096 + 80
    assert any(f"{n} of" in note for note in result.notes)
