"""The side of capture that runs inside somebody else's program: it may fail, but never the program."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.inject import OPTIONS, STATUS, InjectedOptions
from dynprobe.capture.injected import InjectedCallback, attach_from_environment
from dynprobe.capture.news import report, run_names
from dynprobe.errors import CaptureError
from dynprobe.run import open_run

Make = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def a_new_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No training captured yet, and a file for its news."""
    monkeypatch.setattr(run_names, "n_taken", 0)
    monkeypatch.setenv(STATUS, str(tmp_path / "status"))
    return tmp_path / "status"


def news(status: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in status.read_text().splitlines()]


def options(monkeypatch: pytest.MonkeyPatch, run_dir: Path, **more: Any) -> None:
    monkeypatch.setenv(OPTIONS, json.dumps(asdict(InjectedOptions(str(run_dir), **more))))


def test_a_trainer_is_captured_as_the_environment_says(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_new_program: Path
) -> None:
    asked = {"schedule": "every:5", "attention": 3, "attention_dtype": "float32"}
    options(monkeypatch, tmp_path / "run", settings=asked)
    trainer = make_trainer()
    attach_from_environment(trainer)
    trainer.train()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 5, 10, 12)
    assert len(run[0].attention_examples()) == 3
    assert run[12].attentions(1).dtype == np.float32
    assert news(a_new_program) == [{"event": "trainer"}, {"event": "capturing"}]


def test_the_probe_set_of_another_run(make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options(monkeypatch, tmp_path / "one")
    trainer = make_trainer(max_steps=1)
    attach_from_environment(trainer)
    trainer.train()
    options(monkeypatch, tmp_path / "two", probe_run=str(tmp_path / "one"))
    other = list(trainer.train_dataset)[:9]
    trainer = make_trainer({"eval_dataset": other}, max_steps=1)
    attach_from_environment(trainer)
    trainer.train()
    one, two = open_run(tmp_path / "one"), open_run(tmp_path / "two-2")
    assert one.probe_set.fingerprint == two.probe_set.fingerprint


def test_texts_as_the_probe_set_of_a_trainer(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_model: Path
) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([["a cat"], ["the dog"]]))
    options(monkeypatch, tmp_path / "run", probe_texts=str(texts), tokenizer=str(saved_model))
    trainer = make_trainer(max_steps=1)
    attach_from_environment(trainer)
    trainer.train()
    assert open_run(tmp_path / "run").probe_set.n_examples == 2


def tasks_as_json(tmp_path: Path) -> str:
    """One probe task, as the command line hands it over."""
    split = {"texts": [["a cat"], ["the dog"], ["that is it"]], "labels": [0, 1, 1]}
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"own": {"label_names": ["no", "yes"], "train": split, "test": split}}))
    return str(file)


def test_probe_tasks_beside_the_probe_set_of_a_trainer(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_model: Path, a_new_program: Path
) -> None:
    tasks = tasks_as_json(tmp_path)
    options(monkeypatch, tmp_path / "run", probe_tasks=tasks, tokenizer=str(saved_model))
    trainer = make_trainer(max_steps=1)
    attach_from_environment(trainer)
    trainer.train()
    run = open_run(tmp_path / "run")
    assert run.probe_set.origin == "evaluation data of the trainer"
    assert run.probe_task("own", "train").label_names == ("no", "yes")
    assert run[1].pooled("first", 2, probe="own.test").shape == (3, 32)
    assert run.random_encoder("own", "test", "first", 2) is not None
    options(monkeypatch, tmp_path / "other", probe_tasks=tasks)
    with pytest.raises(CaptureError, match="the texts of --probe and --probe-task must be tokenised as in the program"):
        attach_from_environment(make_trainer(max_steps=1))


def test_several_trainings_make_several_runs(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(callbacks=[InjectedCallback(tmp_path / "run")], max_steps=1)
    trainer.train()
    trainer.train()
    make_trainer(callbacks=[InjectedCallback(tmp_path / "run")], max_steps=1).train()
    assert [open_run(tmp_path / name).steps for name in ("run", "run-2", "run-3")] == [(0, 1)] * 3


def test_a_fault_at_the_start_is_reported_and_the_program_trains_on(
    make_trainer: Make, tmp_path: Path, a_new_program: Path
) -> None:
    plain = make_trainer(max_steps=3)
    plain.train()
    callback = InjectedCallback(tmp_path / "run", settings=None)
    unusable = make_trainer({"eval_dataset": [{"text": "no tokens"}]}, callbacks=[callback], max_steps=3)
    with pytest.warns(UserWarning, match="this training is not captured"):
        unusable.train()
    assert torch.equal(unusable.model.classifier.weight, plain.model.classifier.weight)
    assert news(a_new_program)[-1]["event"] == "fault"
    make_trainer(callbacks=[InjectedCallback(tmp_path / "run")], max_steps=1).train()
    assert open_run(tmp_path / "run").steps == (0, 1), "the first training that can be captured has the name"


def test_the_explicit_callback_does_raise(make_trainer: Make, tmp_path: Path) -> None:
    """Who asks for capture in so many words must learn before training that there will be none."""
    trainer = make_trainer({"eval_dataset": []}, callbacks=[DynprobeCallback(tmp_path / "run")])
    with pytest.raises(Exception, match="must hold at least one example"):
        trainer.train()


def test_news_that_nobody_takes_end_no_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(STATUS, str(tmp_path / "no" / "folder"))
    report({"event": "trainer"})
    assert "could not write" in capsys.readouterr().err
    monkeypatch.delenv(STATUS)
    report({"event": "trainer"})


def test_a_rehearsal_ends_where_training_would_begin(
    make_trainer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    a_new_program: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options(monkeypatch, tmp_path / "run", dry_run=True, settings={"schedule": "every:5"})
    trainer = make_trainer()
    attach_from_environment(trainer)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 0
    assert trainer.state.global_step == 0
    said = capsys.readouterr().err
    assert "a rehearsal, nothing is captured" in said
    assert "for each snapshot" in said
    assert "4 snapshots:" in said
    assert "free on the disk" in said
    assert {"event": "rehearsal"} in news(a_new_program)
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_that_fails_ends_the_program_too(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_new_program: Path
) -> None:
    options(monkeypatch, tmp_path / "run", dry_run=True, settings={"layers": "77"})
    trainer = make_trainer()
    attach_from_environment(trainer)
    with (
        pytest.warns(UserWarning, match="this training is not captured: `layers` must lie in"),
        pytest.raises(SystemExit),
    ):
        trainer.train()
    assert news(a_new_program)[-1]["event"] == "fault"
