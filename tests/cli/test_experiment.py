"""`dynprobe experiment`: what is typed, what is said, and the exit codes."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from dynprobe.cli.experiment import experiment
from dynprobe.cli.main import entry_point
from dynprobe.experiments.experiment import Measure
from dynprobe.experiments.setup import Setup


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dynprobe", "experiment", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry_point()
    return int(str(ended.value.code))


def test_the_help_names_every_word_of_a_file() -> None:
    words = (experiment.help or "").split("Words of `training`")[1].replace("\n", " ")
    of_training, of_measure = (part.replace(".", ",").replace(";", ",") for part in words.split("of `measure`:"))
    for kind, told in ((Setup, of_training), (Measure, of_measure)):
        assert {entry.name for entry in fields(kind)} <= {word.strip() for word in told.replace(":", ",").split(",")}


def test_from_a_plan_to_a_table(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "first.yaml"
    config.write_text(
        f"""
name: first
models: {{small: {{model: {saved_model}}}}}
training:
  {{task: wic, max_steps: 1, batch_size: 4, evaluations: 1, train_examples: 20, validation_examples: 8, test_examples: 8}}
seeds: 2
arms:
  standard: {{}}
  untouched: {{learning_rate: 1e-9, capture: false}}
"""
    )
    assert command(monkeypatch, config, "--table") == 3
    assert "is not finished: 4 of 4 cells are missing" in capsys.readouterr().err
    assert command(monkeypatch, config, "--dry-run") == 0
    assert "4 cells, 4 trainings, 4 optimizer steps" in capsys.readouterr().out
    assert not (tmp_path / "first").exists()
    assert command(monkeypatch, config) == 0
    made = capsys.readouterr().out
    assert "untouched" in made
    assert (tmp_path / "first" / "table.csv").read_text().startswith("model,arm,n,mean")
    assert command(monkeypatch, config, "--table") == 0
    assert capsys.readouterr().out == made
    config.write_text("name: first")
    assert command(monkeypatch, config) == 2
    assert "must also give models, arms" in capsys.readouterr().err
