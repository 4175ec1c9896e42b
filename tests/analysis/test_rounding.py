"""What rounding to the stored type can cause."""

import numpy as np

from dynprobe.analysis import attention_js, hidden_state_similarity
from dynprobe.analysis.moments import Moment, Pair, pairs_from_start
from dynprobe.analysis.rounding import rounding_floors
from dynprobe.metrics import principal_subspace

JS, SVCCA = "attention_js_divergence", "svcca_similarity"


def test_floors_are_above_a_change_of_rounding_and_below_any_other(make_run):
    run = make_run(drift=0.05)
    floors = rounding_floors(Moment(run, "a", 6))
    assert set(floors[JS]) == {"1", "2"}
    assert set(floors[SVCCA]) == {"0", "1", "2"}
    # float16: one unit in the last place is between 2^-11 and 2^-10 of a number that is not very small
    assert all(2.0**-22 / 8 <= floor < 1e-5 for floor in floors[JS].values())
    assert all(0 < floor < 2.0**-20 for floor in floors[SVCCA].values())
    moved = [attention_js(pairs_from_start(run)), hidden_state_similarity(pairs_from_start(run))]
    divergence, similarity = (result.select(step_a=6) for result in moved)
    for layer, floor in floors[JS].items():
        assert floor < divergence[(divergence["layer"] == int(layer)) & divergence["head"].isna()]["value"].item()
    for layer, floor in floors[SVCCA].items():
        of_layer = similarity[(similarity["layer"] == int(layer)) & (similarity["metric"] == SVCCA)]
        assert floor < 1 - of_layer["value"].item()


def test_what_was_not_captured_or_does_not_vary_has_none(make_run):
    assert rounding_floors(Moment(make_run(attention=False, hidden=False), "a", 0)) == {JS: {}, SVCCA: {}}
    few = make_run("few", n_examples=2, n_attention=2, d_model=40)
    assert rounding_floors(Moment(few, "a", 0))[SVCCA] == {}


def test_another_snapshot_can_decide_how_many_directions_are_kept(make_run):
    run, other = make_run("a", seed=1, rogue=(0,)), make_run("b", seed=2)
    pair = Pair("between", Moment(run, "a", 6), Moment(other, "b", 6))
    kept = hidden_state_similarity([pair], kept_as=Moment(other, "b", 0)).select(metric=SVCCA, layer=1)["n_kept"].item()
    assert kept != hidden_state_similarity([pair]).select(metric=SVCCA, layer=1)["n_kept"].item()
    states = other[0].hidden_states(1).astype(np.float64)
    rows = other[0].hidden_rows()
    plain = ~other.probe_set.special["model"][rows[:, 0], rows[:, 1]]
    assert kept == principal_subspace(states[plain]).n_kept
