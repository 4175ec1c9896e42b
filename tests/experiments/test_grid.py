"""Running an experiment: results, chains, interruption, cells that fail, what is not finished."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments import cell_work
from dynprobe.experiments.checks import require_usable
from dynprobe.experiments.experiment import Experiment, parse_experiment
from dynprobe.experiments.grid import OWNER, cell_folder, collect, run_experiment, standing
from dynprobe.experiments.results import RESULTS, read_results, write_results
from dynprobe.experiments.tables import arm_table, last_stages, score_frame
from dynprobe.storage.claim import claim


def experiment(model: Path, arms: dict[str, Any], **more: Any) -> Experiment:
    small = {"train_examples": 24, "validation_examples": 16, "test_examples": 16, "max_length": 16}
    training = {"task": "wic", "max_steps": 2, "batch_size": 4, "evaluations": 1, "learning_rate": 1e-3, **small}
    return parse_experiment(
        {
            "name": "e",
            "models": {"small": {"model": str(model)}},
            "training": training,
            "arms": arms,
            "seeds": 1,
            **more,
        }
    )


def test_results_are_those_of_the_trainings_and_are_not_made_twice(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(saved_model, {"standard": {}, "rdrop": {"methods": "rdrop"}}, seeds=2)
    told: list[tuple[int, int, str]] = []
    results = run_experiment(asked, tmp_path / "e", progress=lambda *what: told.append(what))
    assert told[0] == (0, 4, "e")
    assert told[-1] == (4, 4, "small rdrop seed 1")
    assert [(r["arm"], r["seed"]) for r in results] == [("standard", 0), ("standard", 1), ("rdrop", 0), ("rdrop", 1)]
    stage = results[2]["stages"][0]
    assert stage["setup"]["methods"] == {"rdrop": {}}
    assert stage["n_test"] == 16
    assert stage["majority"] == 0.5
    assert stage["training"]["extra_forwards"][0] > 0
    assert results[0]["stages"][0]["training"].keys() == {"step", "loss", "grad_norm"}
    assert stage["evaluations"]["step"] == [2]
    assert {"block_1", "block_2", "embeddings", "other"} == stage["weights"].keys() == stage["distances"].keys()
    assert stage["drift"].keys() == {"0", "2"}
    assert not list((tmp_path / "e").rglob("*.h5")), "run directories are not kept"
    assert read_results(tmp_path / "e" / RESULTS) == results

    monkeypatch.setattr(cell_work, "train_with_capture", None)  # nothing is left to train
    assert run_experiment(asked, tmp_path / "e") == results
    table = arm_table(last_stages(score_frame(results)))
    assert table["verdict"].notna().tolist() == [False, True]
    assert table.loc[1, "difference"] == pytest.approx(
        sum(r["stages"][0]["scores"]["test_accuracy"] * (1 if r["arm"] == "rdrop" else -1) for r in results) / 2
    )


@pytest.mark.slow
def test_a_chain_hands_its_encoder_on_and_goes_on_after_an_interruption(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(saved_model, {"chain": {"stages": ["wic", {"task": "supersense"}, "wic"]}})
    whole = run_experiment(asked, tmp_path / "whole")
    train, calls = cell_work.train_with_capture, []

    def interrupted(task: Any, recipe: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((task.name, recipe.model, recipe.seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(task, recipe, *args, **kwargs)

    monkeypatch.setattr(cell_work, "train_with_capture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, tmp_path / "e")
    with pytest.raises(DynprobeError, match="is not finished: 0 of 1 cells finished; missing: small chain seed 0"):
        collect(asked, tmp_path / "e")
    again = run_experiment(asked, tmp_path / "e")
    assert [name for name, _, _ in calls] == ["wic", "supersense", "wic", "wic"], "only the third is done again"
    assert calls[0][1] == str(saved_model)
    assert calls[1][1].endswith("encoder-0")
    assert calls[3][1].endswith("encoder-1")
    assert len({seed for _, _, seed in calls[:3]}) == 3, "each training has draws of its own"

    def without_times(results: Any) -> Any:
        return [[{k: v for k, v in stage.items() if k != "seconds"} for stage in r["stages"]] for r in results]

    assert without_times(again) == without_times(whole)
    assert {stage["n_classes"] for stage in again[0]["stages"]} == {2, 10}


def test_a_cell_that_fails_leaves_the_others_alone(saved_model: Path, tmp_path: Path) -> None:
    asked = experiment(saved_model, {"bad": {"dropout": 0.0, "methods": "rdrop"}, "standard": {}})
    with pytest.raises(
        DynprobeError, match=r"1 of 2 failed\. small bad seed 0: UsageError: the model must have dropout"
    ):
        run_experiment(asked, tmp_path / "e")
    bad, good = (cell_folder(tmp_path / "e", cell) for cell in asked.cells)
    assert "UsageError" in (bad / "failed.txt").read_text()
    assert (good / "result.json").is_file()
    assert [result["arm"] for result in read_results(tmp_path / "e" / RESULTS)] == ["standard"]
    found = standing(asked, tmp_path / "e")
    assert found.in_words == "1 of 2 cells finished; failed: small bad seed 0"
    assert found.missing == found.failed == ("small bad seed 0",)


def test_one_process_works_in_a_folder(saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with claim(tmp_path / "e"), pytest.raises(UsageError, match="must have one writer"):
        run_experiment(experiment(saved_model, {"standard": {}}), tmp_path / "e")
    with pytest.raises(UsageError, match="number of jobs must be at least 1"):
        run_experiment(experiment(saved_model, {"standard": {}}), tmp_path / "e", n_jobs=0)


def test_damaged_files_are_said(saved_model: Path, tmp_path: Path) -> None:
    asked = experiment(saved_model, {"standard": {}})
    place = cell_folder(tmp_path / "e", asked.cells[0])
    place.mkdir(parents=True)
    (place / "result.json").write_text("{")
    with pytest.raises(DynprobeError, match=r"result\.json: must be JSON as it was written"):
        run_experiment(asked, tmp_path / "e")
    (tmp_path / "r.jsonl").write_text("{}\n[")
    with pytest.raises(DynprobeError, match="must be the results of an experiment"):
        read_results(tmp_path / "r.jsonl")


def test_what_is_not_there_is_said_before_anything_is_trained(saved_model: Path, tmp_path: Path) -> None:
    for words, message in (
        ({"arms": {"a": {"stages": ["wic", "wick"]}}}, "`wick`, which does not exist"),
        ({"arms": {"a": {}}, "measure": {"probes": ["nothing"]}}, "`nothing`, which does not exist"),
        ({"arms": {"a": {}}, "measure": {"probe_task": "nowhere"}}, "`nowhere`, which does not exist"),
        ({"arms": {"a": {"model": "package:no-such-package"}}}, "the package 'no-such-package' must be installed"),
    ):
        with pytest.raises(UsageError, match=message):
            run_experiment(experiment(saved_model, **words), tmp_path / "e")
    numbers = "\n".join(f"word number {n},{n / 7}" for n in range(60))
    (tmp_path / "grades.csv").write_text(f"text,label\n{numbers}")
    with pytest.raises(UsageError, match=r"probe task .*grades\.csv must have classes"):
        run_experiment(
            experiment(saved_model, {"a": {}}, measure={"probes": [str(tmp_path / "grades.csv")]}), tmp_path / "e"
        )
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("n_train", "n_test", "rare", "measure", "message"),
    [
        (40, 0, 20, {}, "must have labelled splits to fit and to score probes on; it lacks test"),
        (40, 29, 20, {}, "must have enough examples; 29 test examples; at least 30 are needed"),
        (40, 40, 20, {"probe_test": 8}, "must have enough examples; 8 test examples; at least 30 are needed"),
        (40, 40, 2, {}, "must have enough examples; a class has 2 training examples; at least 5 are needed"),
        (40, 40, 40, {}, "must have enough examples; all training examples of the probe task have the same label"),
    ],
)
def test_what_cannot_be_probed_is_said_before_anything_is_trained(
    tmp_path: Path, n_train: int, n_test: int, rare: int, measure: dict[str, Any], message: str
) -> None:
    splits = {"train": n_train, "validation": 4, "test": n_test}
    rows = [(name, int(k < rare) if name == "train" else k % 2) for name, n in splits.items() for k in range(n)]
    lines = [f"{name} text {n},{'ab'[label]},{name}" for n, (name, label) in enumerate(rows)]
    file = tmp_path / "own.csv"
    file.write_text("\n".join(["text,label,split", *lines]))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    asked = experiment(model, {"a": {}}, measure={"probes": [str(file)], **measure})
    with pytest.raises(UsageError, match=rf"e: probe task .*own\.csv {message}"):
        run_experiment(asked, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_enough_examples_can_be_probed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    require_usable(experiment(model, {"a": {}}, measure={"probes": ["wic", "supersense"], "probe_test": 30}))


def test_a_task_without_labels_cannot_be_trained_on(saved_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    lines = [
        f"{name} text {n},{n % 2 if name == 'train' else -1},{name}" for name in ("train", "dev") for n in range(4)
    ]
    file.write_text("\n".join(["text,label,split", *lines]))
    with pytest.raises(UsageError, match=r"must have the labelled splits to train on; it lacks \['validation'\]"):
        run_experiment(experiment(saved_model, {"a": {"task": str(file)}}), tmp_path / "e")


def test_a_file_that_is_changed_meanwhile_is_not_trained_on(saved_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(
        "\n".join(["text,label,split", *(f"{s} text {n},{n % 2},{s}" for s in ("train", "dev") for n in range(4))])
    )
    asked = experiment(saved_model, {"a": {"task": str(file)}})
    file.write_text(file.read_text().replace("train text 0", "train text x"))
    with pytest.raises(DynprobeError, match=r"own\.csv: must not be changed while the experiment runs; run it again"):
        cell_work.run_cell(asked.cells[0], tmp_path / "cell")
    assert not (tmp_path / "cell").exists()


def test_results_are_whole_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / RESULTS
    write_results(file, [{"model": "m"}])
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cell_work.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(file, [{"model": "other"}])
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


def test_a_folder_of_before_folders_had_names_is_gone_on_with(saved_model: Path, tmp_path: Path) -> None:
    asked = experiment(saved_model, {"standard": {}})
    results = run_experiment(asked, tmp_path / "e")
    (tmp_path / "e" / OWNER).unlink()
    assert run_experiment(asked, tmp_path / "e") == results
    assert json.loads((tmp_path / "e" / OWNER).read_text()) == {"name": "e"}


@pytest.mark.slow
def test_side_by_side_is_as_one_after_another(saved_model: Path, tmp_path: Path) -> None:
    asked = experiment(saved_model, {"standard": {}, "r3f": {"methods": "r3f"}}, seeds=2)
    one, two = (run_experiment(asked, tmp_path / str(n), n_jobs=n) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert a["stages"][0]["scores"] == pytest.approx(b["stages"][0]["scores"], abs=1e-5)
        assert json.dumps(a["stages"][0]["setup"]) == json.dumps(b["stages"][0]["setup"])
