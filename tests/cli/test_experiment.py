"""`dynprobe experiment`: what is typed, what is said, and the exit codes."""

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dynprobe.cli.experiment import WORDS, show_plan
from dynprobe.cli.finetune import finetune
from dynprobe.cli.main import entry_point
from dynprobe.errors import UsageError
from dynprobe.experiments import grid
from dynprobe.experiments.cell_work import RESULT, write_json
from dynprobe.experiments.experiment import Cell, Measure, _File, parse_experiment
from dynprobe.experiments.results import read_results
from dynprobe.experiments.setup import Setup
from dynprobe.storage.claim import claim

SETTINGS = next(title for title in WORDS if title.startswith("Settings"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dynprobe", "experiment", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry_point()
    return int(str(ended.value.code))


def test_the_help_names_every_word_of_a_file_and_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"all": None, "empty": "", "model's": None, "own task": None, "required": MISSING}
    for kind, words in zip(
        (_File, Setup, Measure), (WORDS[title] for title in WORDS if title != "In an arm"), strict=True
    ):
        assert [name for name, _, _ in words] == [entry.name for entry in fields(kind)]
        for entry, (name, default, _) in zip(fields(kind), words, strict=True):
            if default == "none":
                assert entry.default == () or entry.default_factory is dict, name
            else:
                own = str(entry.default).lower() if isinstance(entry.default, bool) else entry.default
                assert named.get(default, default) == (own if default in named else str(own)), name
    assert command(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert all(f"  {name}  [{default}]" in said for words in WORDS.values() for name, default, _ in words)
    assert max(map(len, said.splitlines())) <= 100


def test_the_help_says_where_finetune_has_another_default() -> None:
    of_setup, of_finetune = (
        {name: told for name, _, told in WORDS[SETTINGS]},
        {p.name: p.default for p in finetune.params},
    )
    assert f"(finetune: {of_finetune['steps']})" in of_setup["max_steps"]
    others = {entry.name: of_finetune[entry.name] for entry in fields(Setup) if entry.name in of_finetune}
    for entry in fields(Setup):
        if entry.name in others and entry.default is not MISSING:
            assert (f"(finetune: {others[entry.name]})" in of_setup[entry.name]) == (
                others[entry.name] != entry.default
            )


CONFIG = """
name: {name}
models: {{small: {{model: "{model}"}}}}
training:
  {{task: wic, max_steps: 1, batch_size: 4, evaluations: 1, train_examples: 20, validation_examples: 8, test_examples: 8}}
seeds: 2
arms:
  standard: {{}}
  untouched: {{learning_rate: 1e-9, capture: false}}
"""


def fake_cell(fails: Callable[[Cell], bool]) -> Callable[..., dict[str, Any]]:
    """In place of the training of a cell: a result at once, or an error."""

    def work(cell: Cell, folder: Path, *, n_threads: int | None = None) -> dict[str, Any]:
        if fails(cell):
            raise UsageError("no such luck")
        scores = {f"{split}_accuracy": 0.5 + 0.01 * cell.seed for split in ("eval", "test")}
        stage = {"setup": {"task": "wic"}, "scores": scores, "majority": 0.5, "n_test": 100, "seconds": 1.0}
        result = {"model": cell.model, "arm": cell.arm, "seed": cell.seed, "stages": [stage]}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT, result)
        return result

    return work


def test_from_a_plan_to_a_table(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "first.yaml"
    config.write_text(CONFIG.format(name="first", model=saved_model))
    assert command(monkeypatch, config, "--table") == 3
    assert "must hold finished cells to make a table of; got 0 of 4 cells finished" in capsys.readouterr().err
    assert command(monkeypatch, config, "--dry-run") == 0
    assert "4 cells, 4 trainings, 4 optimizer steps" in capsys.readouterr().out
    assert not (tmp_path / "first").exists()
    assert command(monkeypatch, config) == 0
    made, told = capsys.readouterr()
    assert "untouched" in made
    lines = ["0 of 4: first", "1 of 4: small standard seed 0", "2 of 4: small standard seed 1"]
    assert told.splitlines()[:3] == lines, "a line for each cell where there is no terminal"
    assert (tmp_path / "first" / "table.csv").read_text().startswith("model,arm,n,mean")
    assert command(monkeypatch, config, "--table") == 0
    assert capsys.readouterr().out == made
    config.write_text("name: first")
    assert command(monkeypatch, config) == 2
    assert "must also give models, arms" in capsys.readouterr().err


def test_a_dry_run_finds_what_is_not_there(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "first.yaml"
    for content, message in (
        (
            CONFIG.format(name="first", model="package:no-such-package"),
            "the package 'no-such-package' must be installed",
        ),
        (CONFIG.format(name="first", model=saved_model).replace("wic", "wick"), "`wick`, which does not exist"),
    ):
        config.write_text(content)
        for more in (["--dry-run"], []):
            assert command(monkeypatch, config, *more) == 2
            assert message in capsys.readouterr().err


def test_a_plan_shows_the_methods_of_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    chain = [{"methods": "r3f"}, {}, {"methods": ["r3f", "mixout"]}]
    arms = {"chain": {"stages": chain}, "same": {"methods": "r4f", "stages": ["wic", "wic"]}, "plain": {}}
    words = {"name": "e", "models": {"m": {"model": "x"}}, "training": {"task": "wic"}, "arms": arms}
    show_plan(parse_experiment(words))
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "r3f → – → r3f, mixout" in said
    assert "r4f" in said
    assert "r4f → r4f" not in said


def test_what_is_finished_has_a_table_though_others_failed(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, place = tmp_path / "first.yaml", tmp_path / "first"
    config.write_text(CONFIG.format(name="first", model=saved_model))
    monkeypatch.setattr(grid, "run_cell", fake_cell(lambda cell: (cell.arm, cell.seed) == ("standard", 1)))
    assert command(monkeypatch, config) == 3
    said, complained = capsys.readouterr()
    assert "3 of 4 cells finished; failed: small standard seed 1" in said
    assert "1 of 4 failed. small standard seed 1: UsageError: no such luck" in complained.replace("\n", " ")
    assert "2 of 4: small standard seed 1: failed" in complained
    assert [(r["arm"], r["seed"]) for r in read_results(place / "results.jsonl")] == [
        ("standard", 0),
        ("untouched", 0),
        ("untouched", 1),
    ]
    table = pd.read_csv(place / "table.csv")
    assert table[["arm", "n"]].to_numpy().tolist() == [["standard", 1], ["untouched", 2]]
    assert "difference" not in table, "one seed of the other has no partner yet"

    for file in ("results.jsonl", "table.csv"):
        (place / file).unlink()
    assert command(monkeypatch, config, "--table") == 3
    again, complained = capsys.readouterr()
    assert again == said
    assert "the experiment is not finished: 3 of 4 cells finished" in complained
    assert (place / "results.jsonl").is_file()
    assert (place / "table.csv").is_file()

    with claim(place):
        for file in ("results.jsonl", "table.csv"):
            (place / file).unlink()
        assert command(monkeypatch, config, "--table") == 3
        assert "results.jsonl and table.csv are left as they are" in capsys.readouterr().err
    assert not (place / "results.jsonl").exists()
    assert not (place / "table.csv").exists()

    monkeypatch.setattr(grid, "run_cell", fake_cell(lambda _: False))
    assert command(monkeypatch, config) == 0
    assert "cells finished" not in capsys.readouterr().out
    assert len(read_results(place / "results.jsonl")) == 4


def test_where_all_failed_there_is_no_table(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "first.yaml"
    config.write_text(CONFIG.format(name="first", model=saved_model))
    monkeypatch.setattr(grid, "run_cell", fake_cell(lambda _: True))
    assert command(monkeypatch, config) == 3
    said, complained = capsys.readouterr()
    assert said == ""
    assert "4 of 4 failed" in complained
    assert not (tmp_path / "first" / "results.jsonl").exists()


def test_the_folder_of_another_experiment_is_left_alone(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, other, place = tmp_path / "first.yaml", tmp_path / "second.yaml", tmp_path / "first"
    config.write_text(CONFIG.format(name="first", model=saved_model))
    other.write_text(CONFIG.format(name="second", model=saved_model).replace("untouched", "moved"))
    monkeypatch.setattr(grid, "run_cell", fake_cell(lambda _: False))
    assert command(monkeypatch, config) == 0
    kept = {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()}
    capsys.readouterr()
    for more in ([], ["--table"], ["--dry-run"]):
        assert command(monkeypatch, other, "-o", place, *more) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "must be the folder of the experiment 'second'; got that of 'first'. Name another one with -o" in said
        assert f"remove {place / 'experiment.json'}" in said
    assert {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()} == kept
    config.write_text(config.read_text().replace("seeds: 2", "seeds: 3") + "  more: {max_steps: 2}\n")
    assert command(monkeypatch, config) == 0
    assert len(read_results(place / "results.jsonl")) == 9
    assert command(monkeypatch, config, "-o", config) == 2
    assert "must be a folder for the experiment to work in; got a file" in capsys.readouterr().err


def test_who_interrupts_is_told_how_to_go_on(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    config = tmp_path / "first.yaml"
    config.write_text(CONFIG.format(name="first", model=saved_model))
    monkeypatch.setattr(grid, "run_cell", interrupted)
    assert command(monkeypatch, config) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "Interrupted; the same command goes on from here"
