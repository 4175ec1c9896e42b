"""The whole comparison: what is compared, refusals, notes, findings, determinism, side effects."""

import json
import random

import numpy as np
import pytest
import torch

from dynprobe.analysis import METRICS, compare
from dynprobe.errors import IncompatibleRunsError, UsageError


def test_every_comparison_is_there(make_run):
    a, b = make_run("a", seed=1, drift=0.2), make_run("b", seed=2, drift=0.2)
    result = compare(a, b)
    frame = result.frame
    assert set(frame["comparison"]) == {"within", "from_start", "consecutive", "between"}
    steps = frame[frame["metric"] == "attention_js_divergence"].groupby("comparison")["step_a"].unique()
    assert {name: sorted(found) for name, found in steps.items()} == {"from_start": [2, 6], "between": [0, 2, 6]}
    assert set(frame[frame["comparison"] == "from_start"]["run_a"]) == {"a", "b"}
    assert set(result.metrics) == set(frame["metric"])
    assert set(result.arrays) == {
        "svcca_layers:a@6|a@0",
        "svcca_layers:b@6|b@0",
        "svcca_layers:a@6|b@6",
    }
    assert 4 <= len(result.findings) <= 12
    json.loads(result.to_json())


def test_provenance(make_run):
    a, b = make_run("a", seed=1), make_run("b", seed=2)
    found = compare(a, b, metrics=["accuracy"], seed=5).provenance
    assert found["runs"]["a"]["seed"] == 1
    assert found["runs"]["b"]["probe_fingerprint"] == a.probe_set.fingerprint
    assert found["runs"]["a"]["steps"] == [0, 2, 6]
    assert found["scalars"]["b"][0] == {"step": 0, "loss": 1.0}
    assert found["options"] == {
        "metrics": ["accuracy"],
        "specials": False,
        "standardize": False,
        "level": 0.95,
        "seed": 5,
    }
    assert "dynprobe" in found


def test_a_run_against_itself_has_not_changed(make_run):
    run = make_run("a", drift=0.3)
    frame = compare(run, run).select(comparison="between", step_a=6)
    assert set(frame["run_a"]) == {"a"}
    assert set(frame["run_b"]) == {"a (2)"}
    for metric, expected in (
        ("attention_js_divergence", 0),
        ("prediction_flip_rate", 0),
        ("output_symmetric_kl", 0),
        ("svcca_similarity", 1),
        ("linear_cka_similarity", 1),
    ):
        values = frame[frame["metric"] == metric]["value"]
        assert len(values)
        assert (abs(values - expected) < 1e-10).all()


def test_same_folder_names_are_told_apart(make_run):
    frame = compare(make_run("a/run"), make_run("b/run"), metrics=["accuracy_difference"]).frame
    assert set(frame["run_a"]) == {"a/run"}
    assert set(frame["run_b"]) == {"b/run"}


def test_another_probe_set_is_refused(make_run):
    a, b = make_run("a"), make_run("b", probe_seed=1)
    with pytest.raises(IncompatibleRunsError, match="same probe set") as caught:
        compare(a, b)
    message = str(caught.value)
    assert a.probe_set.fingerprint[:16] in message
    assert b.probe_set.fingerprint[:16] in message
    assert f"--probe {a.path}" in message


def test_no_snapshot_is_refused(make_run):
    with pytest.raises(IncompatibleRunsError, match="at least one snapshot; got none"):
        compare(make_run("a"), make_run("b", steps=()))


def test_nothing_in_common_is_refused(make_run):
    bare = {"outputs": None, "hidden": False, "attention": False, "pooled": ()}
    with pytest.raises(IncompatibleRunsError, match="something in common"):
        compare(make_run("a"), make_run("b", **bare))


@pytest.mark.parametrize("metrics", [["speed"], []])
def test_unknown_metric(make_run, metrics):
    with pytest.raises(UsageError, match="`metrics` must be names among"):
        compare(make_run("a"), make_run("b"), metrics=metrics)


def test_level_outside_its_range(make_run):
    with pytest.raises(UsageError, match="`level` must be a confidence level"):
        compare(make_run("a"), make_run("b"), level=95)


def test_other_labels_are_said_and_not_compared(make_run):
    result = compare(
        make_run("a"), make_run("b", labels=np.arange(40) // 14), metrics=["accuracy", "accuracy_difference"]
    )
    assert any("different labels" in note for note in result.notes)
    assert set(result.frame["metric"]) == {"accuracy"}


def test_other_depth_keeps_what_can_be_compared(make_run):
    result = compare(make_run("a"), make_run("b", n_layers=3))
    frame = result.frame
    between = frame[
        (frame["comparison"] == "between") & frame["metric"].isin(["svcca_similarity", "attention_js_divergence"])
    ]
    assert set(between["status"]) == {"incompatible"}
    assert result.arrays["svcca_layers:a@6|b@6"].shape == (3, 4)
    assert len(frame[(frame["comparison"] == "from_start") & (frame["run_a"] == "b") & (frame["layer"] == 3)])
    assert any(line.startswith("Not compared") for line in result.findings)


def test_steps_by_fraction_are_said(make_run):
    result = compare(
        make_run("a", steps=(0, 5, 10)), make_run("b", steps=(0, 51, 99)), metrics=["prediction_flip_rate"]
    )
    assert any("fraction of training" in note for note in result.notes)
    between = result.select(comparison="between")
    assert between[["step_a", "step_b"]].values.tolist() == [[0, 0], [5, 51], [10, 99]]


def test_a_single_snapshot_each(make_run):
    result = compare(make_run("a", steps=(0,), seed=1), make_run("b", steps=(0,), seed=2))
    assert "from_start" not in set(result.frame["comparison"])
    assert any("one snapshot only" in note for note in result.notes)


def test_notes_of_the_capture_and_of_training_data(make_run):
    manifest = {"notes": ["The budget of 1 MB made the capture smaller."], "probe_origin": "training data"}
    notes = compare(make_run("a", manifest=manifest), make_run("b"), metrics=["accuracy"]).notes
    assert "a: The budget of 1 MB made the capture smaller." in notes
    assert any("training data" in note and "generalisation" in note for note in notes)


def test_a_run_without_step_zero(make_run):
    notes = compare(make_run("a", steps=(4, 8)), make_run("b", steps=(4, 8)), metrics=["accuracy"]).notes
    assert "a has no snapshot of step 0; its start is step 4." in notes


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": False},
        {"hidden": False},
        {"pooled": ()},
        {"outputs": None},
        {"labels": None},
        {"n_layers": 1},
        {"n_examples": 1, "n_attention": 1},
        {"outputs": "nll", "labels": None, "pooled": ("last", "mean")},
        {"stacks": ("encoder", "decoder"), "outputs": "nll", "labels": None},
        {"n_classes": 1, "labels": "numbers"},
        {"attention": False, "hidden": False, "pooled": (), "outputs": "logits"},
    ],
)
def test_missing_pieces_are_no_errors(make_run, changes):
    result = compare(make_run("a", seed=1, **changes), make_run("b", seed=2, **changes))
    frame = result.frame
    assert len(frame)
    unexplained = frame[(frame["status"] != "measured") & frame["reason"].isna()]
    assert unexplained.empty
    assert frame[frame["status"] == "measured"]["value"].notna().all()


@pytest.mark.slow
def test_the_same_numbers_twice(make_run):
    a, b = make_run("a", seed=1), make_run("b", seed=2)
    assert compare(a, b).to_json() == compare(a, b).to_json()


def test_the_seed_moves_bootstrap_intervals_only(make_run):
    a, b = make_run("a", seed=1), make_run("b", seed=2)
    first, second = (compare(a, b, metrics=["output_symmetric_kl"], seed=seed).frame for seed in (0, 1))
    assert first["value"].tolist() == second["value"].tolist()
    assert first["low"].tolist() != second["low"].tolist()


@pytest.mark.slow
def test_random_state_and_threads_are_left_alone(make_run):
    a, b = make_run("a", seed=1), make_run("b", seed=2)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()
    compare(a, b)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2:] == (random.getstate(), torch.get_num_threads())


def test_progress_is_told(make_run):
    seen = []
    compare(make_run("a"), make_run("b"), progress=lambda done, total, label: seen.append((done, total, label)))
    assert {label for _, _, label in seen} == {
        "outputs",
        "attention",
        "hidden states (model)",
        "isotropy",
        "linear probes",
    }
    assert all(0 < done <= total for done, total, _ in seen)


def test_every_metric_is_described():
    for name, info in METRICS.items():
        assert info.label
        assert info.unit
        assert info.meaning.endswith("."), name
