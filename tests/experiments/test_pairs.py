"""Trainings of an experiment compared with each other: which, how, and what cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynprobe.analysis import compare
from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments import pair_work
from dynprobe.experiments.cell_work import run_folder
from dynprobe.experiments.comparisons import comparisons_of
from dynprobe.experiments.experiment import Experiment, parse_experiment
from dynprobe.experiments.grid import cell_folder, run_experiment
from dynprobe.experiments.pair_work import run_comparison
from dynprobe.experiments.results import RESULTS, cells_of, pairs_of, read_results
from dynprobe.experiments.tables import pair_frame, score_frame
from dynprobe.run import open_run
from tests.conftest import tiny_probe_set

ALL = ["start", "end", "seeds", "arms"]
ARMS = {"one": {"seeds": [0, 1]}, "two": {"seeds": [0], "task": "supersense"}}


def experiment(model: Path | str, arms: dict[str, Any], **measure: Any) -> Experiment:
    small = {"train_examples": 24, "validation_examples": 16, "test_examples": 16, "max_length": 16}
    training = {"task": "wic", "max_steps": 2, "batch_size": 4, "evaluations": 1, "learning_rate": 1e-2, **small}
    asked = {"probe_task": "wic", "probe_examples": 12, "pairs": ALL, **measure}
    return parse_experiment(
        {"name": "e", "models": {"small": {"model": str(model)}}, "training": training, "arms": arms, "measure": asked}
    )


def asked_pairs(found: Experiment) -> list[tuple[str, str, int, str, int]]:
    return [(c.kind, c.a.arm, c.a.seed, c.b.arm, c.b.seed) for c in comparisons_of(found)]


def test_seeds_are_paired_within_an_arm_and_arms_within_a_seed() -> None:
    found = experiment("somewhere", {"one": {"seeds": 3}, "two": {"seeds": [0, 2]}}, pairs=["seeds", "arms"])
    assert asked_pairs(found) == [
        ("seeds", "one", 0, "one", 1),
        ("seeds", "one", 0, "one", 2),
        ("seeds", "one", 1, "one", 2),
        ("seeds", "two", 0, "two", 2),
        ("arms", "one", 0, "two", 0),
        ("arms", "one", 2, "two", 2),
    ]
    assert asked_pairs(experiment("somewhere", ARMS, pairs=["end"])) == [
        ("end", arm, seed, arm, seed) for arm, seed in (("one", 0), ("one", 1), ("two", 0))
    ]
    assert asked_pairs(experiment("somewhere", ARMS, pairs=[])) == []


def test_the_name_of_a_comparison_changes_with_both_cells() -> None:
    def keys(**of_two: Any) -> list[str]:
        arms = {"one": {"seeds": [0]}, "two": {"seeds": [0], **of_two}}
        return [found.key for found in comparisons_of(experiment("somewhere", arms, pairs=["arms", "end"]))]

    arms, end_of_one, end_of_two = keys(max_steps=5)
    assert arms.startswith("arms.small.one.0.two.0.")
    assert keys(max_steps=5) == [arms, end_of_one, end_of_two]
    assert keys(max_steps=6)[1] == end_of_one
    assert not {arms, end_of_two} & set(keys(max_steps=6))


@pytest.mark.slow
def test_trainings_are_compared_as_their_runs_would_be(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = experiment(saved_model, ARMS), []
    results = run_experiment(asked, tmp_path / "e", progress=lambda *what: told.append(what))
    assert told[0] == (0, 11, "e")
    assert told[-1] == (11, 11, "small one seed 0 against two seed 0")
    assert [(r["pair"], r["arm_a"], r["seed_a"], r["arm_b"], r["seed_b"]) for r in pairs_of(results)] == asked_pairs(
        asked
    )
    assert len(score_frame(results)) == len(cells_of(results)) == 3
    kept = read_results(tmp_path / "e" / RESULTS)
    assert pair_frame(kept).equals(pair_frame(results))

    monkeypatch.setattr(pair_work, "hidden_state_similarity", None)  # nothing is left to compare
    assert run_experiment(asked, tmp_path / "e") == results

    one, other, two = (open_run(run_folder(cell_folder(tmp_path / "e", cell), 0)) for cell in asked.cells)
    frame = pair_frame(results).dropna(subset=["value"])
    for kind, run in (("seeds", other), ("arms", two)):
        found = compare(one, run, metrics=["attention_js_divergence", "linear_cka_similarity"]).table
        of_ends = found[(found["comparison"] == "between") & (found["step_a"] == 2) & found["head"].isna()]
        pair = frame[(frame["pair"] == kind) & (frame["metric"] != "svcca_similarity")]
        assert pair["metric"].tolist() == of_ends["metric"].tolist()
        assert pair["layer"].tolist() == of_ends["layer"].tolist() == [1, 2, 0, 1, 2]
        assert pair["value"].to_numpy() == pytest.approx(of_ends["value"].to_numpy(float), rel=1e-6)
        assert (pair[["step_a", "step_b"]] == 2).all(axis=None)
    start, end = (frame[(frame["pair"] == kind) & (frame["arm_a"] == "two")] for kind in ("start", "end"))
    assert set(start["step_b"]) == {0} == set(end["step_b"])  # of two snapshots, either is the other's partner
    assert start["value"].tolist() == end["value"].tolist()


def linked(place: Path, run: Path) -> Path:
    """The folder of a cell that left a run."""
    place.mkdir()
    run_folder(place, 0).symlink_to(run)
    return place


def test_floors_are_below_what_training_changes_and_runs_must_be_there(run_a: Path, tmp_path: Path) -> None:
    (asked, *_) = comparisons_of(experiment("somewhere", ARMS, pairs=["start"]))
    with pytest.raises(DynprobeError, match="must be the run directory of a finished cell; got none"):
        run_comparison(asked, tmp_path / "pair", (tmp_path / "cell", tmp_path / "cell"))
    cell = linked(tmp_path / "cell", run_a)
    found = run_comparison(asked, tmp_path / "pair", (cell, cell))
    frame = pair_frame([found]).query("metric == 'attention_js_divergence'")
    assert frame["step_a"].tolist() == [2, 6, 2, 6]
    moved = frame[frame["step_a"] == 6].set_index("layer")["value"]
    for layer, floor in found["floors"]["attention_js_divergence"].items():
        assert 2.0**-20 / 8 <= floor < moved[int(layer)]


def test_what_was_measured_on_other_examples_is_not_compared(
    run_a: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"must have a `probe_task`.*; got none, and arm one on wic, arm two on supersense"
    ):
        experiment("somewhere", ARMS, probe_task=None)
    other = make_run("other-examples", probe=tiny_probe_set(12), steps=(0, 1))
    (asked,) = comparisons_of(experiment("somewhere", ARMS, pairs=["arms"]))
    cells = linked(tmp_path / "a", run_a), linked(tmp_path / "b", other)
    with pytest.raises(UsageError, match=r"against two seed 0: must be .* same examples; got 40 and 12 .*`max_length`"):
        run_comparison(asked, tmp_path / "pair", cells)


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="`pairs` must be among start, end, seeds, arms; got 'layers'"):
        experiment("somewhere", ARMS, pairs=["layers"])
    with pytest.raises(UsageError, match="`budget`: a size must be a positive number with a unit"):
        experiment("somewhere", ARMS, budget="much")
