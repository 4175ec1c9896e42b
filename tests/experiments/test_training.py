"""One training with capture on: pairs, early stopping, interruption, the test score."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from dynprobe.errors import UsageError
from dynprobe.experiments.training import Recipe, train_with_capture
from dynprobe.run import open_run
from dynprobe.storage.verify import verify_run
from dynprobe.tasks import Task, load_task


@pytest.fixture
def task() -> Task:
    whole = load_task("wic")
    splits = {name: split.head(48) for name, split in whole.splits.items()}
    return Task(name="wic", label_names=whole.label_names, splits=splits, text_columns=whole.text_columns)


def recipe(model: Path, **more: Any) -> Recipe:
    return Recipe(model=str(model), max_steps=4, batch_size=4, max_length=16, learning_rate=1e-3, **more)


def quiet(done: int, total: int) -> None:
    """Show nothing."""


@pytest.mark.slow
def test_trainings_with_the_same_seed_are_paired(saved_model: Path, task: Task, tmp_path: Path) -> None:
    runs = {}
    for name in ("standard", "rdrop"):
        asked = recipe(saved_model, methods=((name, {}),))
        scores = train_with_capture(task, asked, tmp_path / name, on_step=quiet).scores
        runs[name] = open_run(tmp_path / name)
        assert {"eval_accuracy", "eval_loss", "test_accuracy", "test_loss", "kept_step"} == scores.keys()
        last = runs[name].scalars[-1]
        assert last["final"] is True
        assert last["test_accuracy"] == scores["test_accuracy"]
    one, other = runs.values()
    assert np.array_equal(one[0].outputs().values, other[0].outputs().values), "the same new head"
    assert not np.array_equal(one[4].outputs().values, other[4].outputs().values)
    assert other.manifest["training"]["methods"] == [{"name": "rdrop"}]
    losses = [next(record["task_loss"] for record in run.scalars if "task_loss" in record) for run in runs.values()]
    assert losses[0] == pytest.approx(losses[1], abs=0.05), "the same first batch"


def test_an_interrupted_training_goes_on_to_the_same_end(saved_model: Path, task: Task, tmp_path: Path) -> None:
    own = {"on_step": quiet}
    whole = train_with_capture(task, recipe(saved_model), tmp_path / "whole", checkpoints=tmp_path / "w", **own).scores
    assert not (tmp_path / "w").exists(), "nothing is left when it is over"

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        train_with_capture(task, recipe(saved_model), tmp_path / "run", checkpoints=folder, on_step=interrupt)
    assert (folder / "checkpoint-2").is_dir()
    again = train_with_capture(
        task, recipe(saved_model), tmp_path / "run", checkpoints=folder, existing="resume", on_step=quiet
    ).scores
    assert again == whole
    a, b = open_run(tmp_path / "whole"), open_run(tmp_path / "run")
    assert a.steps == b.steps == (0, 1, 2, 3, 4)
    assert np.array_equal(a[4].hidden_states(2), b[4].hidden_states(2))


def test_early_stopping_keeps_the_best_weights(saved_model: Path, task: Task, tmp_path: Path) -> None:
    asked = recipe(saved_model, patience=1, n_evaluations=4)
    scores = train_with_capture(task, asked, tmp_path / "run", save_model=tmp_path / "tuned", on_step=quiet).scores
    evaluations = [
        record for record in open_run(tmp_path / "run").scalars if "eval_accuracy" in record and "final" not in record
    ]
    assert scores["eval_accuracy"] == max(record["eval_accuracy"] for record in evaluations)
    assert scores["kept_step"] in {record["step"] for record in evaluations}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").config.num_labels == 2


@pytest.mark.slow
def test_a_finished_run_verifies_and_is_not_trained_again(saved_model: Path, task: Task, tmp_path: Path) -> None:
    train_with_capture(task, recipe(saved_model), tmp_path / "run", checkpoints=tmp_path / "c", on_step=quiet)
    assert [problem for check in verify_run(tmp_path / "run") for problem in check.problems] == []
    scalars = (tmp_path / "run" / "scalars.jsonl").read_bytes()
    again = {"checkpoints": tmp_path / "c", "on_step": quiet, "existing": "resume"}
    with pytest.raises(UsageError, match="must be unfinished; this one is over"):
        train_with_capture(task, recipe(saved_model), tmp_path / "run", **again)
    with pytest.raises(UsageError, match="there must be one; got none"):
        train_with_capture(task, recipe(saved_model), tmp_path / "other", **again)
    assert (tmp_path / "run" / "scalars.jsonl").read_bytes() == scalars


@pytest.mark.slow
def test_only_the_same_training_goes_on_and_only_from_its_own_checkpoints(
    saved_model: Path, task: Task, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        train_with_capture(task, recipe(saved_model), tmp_path / "run", checkpoints=folder, on_step=interrupt)
    other = recipe(saved_model, seed=3, weight_decay=0.5)
    with pytest.raises(
        UsageError, match=r"must go on as it began; got seed 3 instead of 0, weight_decay 0\.5 instead of"
    ):
        train_with_capture(task, other, tmp_path / "run", checkpoints=folder, existing="resume", on_step=quiet)
    assert (folder / "checkpoint-2").is_dir(), "what can go on still can"

    def interrupt_early(done: int, total: int) -> None:
        assert not (folder / "checkpoint-2").exists(), "those of the other training are gone"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_with_capture(
            task, other, tmp_path / "run", checkpoints=folder, existing="replace", on_step=interrupt_early
        )


def test_a_folder_of_somebody_else_is_left_alone(saved_model: Path, task: Task, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("thesis")
    with pytest.raises(UsageError, match="must be new, or left by an interrupted training"):
        train_with_capture(task, recipe(saved_model), tmp_path / "run", checkpoints=tmp_path / "c", on_step=quiet)
    assert (tmp_path / "c" / "notes.txt").read_text() == "thesis"
    wrong = recipe(saved_model, methods=(("isobn", {"beta": 7.0}),))
    with pytest.raises(UsageError, match="beta"):
        train_with_capture(task, wrong, tmp_path / "run", checkpoints=tmp_path / "new", on_step=quiet)
    assert not (tmp_path / "new").exists()


def test_what_cannot_work_is_said_before_training(saved_model: Path, task: Task, tmp_path: Path) -> None:
    for methods, complaint in (
        ((("r3f", {"epsilon": 1.0}),), "Did you mean 'eps'"),
        ((("r3f", {}), ("smart", {})), "one at a time; got 'r3f' and 'smart'"),
        ((("reinit", {"n_blocks": 99}),), "n_blocks"),
    ):
        with pytest.raises(UsageError, match=complaint):
            train_with_capture(task, recipe(saved_model, methods=methods), tmp_path / "run", on_step=quiet)
    assert not (tmp_path / "run").exists()
