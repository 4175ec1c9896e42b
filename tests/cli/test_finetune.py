"""`dynprobe finetune`: what is typed, what is said, and the exit codes."""

import sys
from pathlib import Path

import pytest

from dynprobe.cli.main import entry_point
from dynprobe.finetune import METHODS
from dynprobe.run import open_run


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dynprobe", "finetune", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry_point()
    return int(str(ended.value.code))


def test_methods_and_options_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--methods") == 0
    said = capsys.readouterr().out
    for name, kind in METHODS.items():
        assert f"{name}: {kind.summary}" in said
        assert all(f"    {option}=" in said for option in kind.options())


def test_a_training_from_the_command_line(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"the {word} number {n},{word}" for n in range(30) for word in ("cat", "dog")]
    (tmp_path / "mine.csv").write_text("text,label\n" + "\n".join(rows))
    arguments = ["--model", saved_model, "--task", tmp_path / "mine.csv", "--steps", 2, "-o", tmp_path / "run"]
    options = ["--method", "r3f", "--option", "eps=1e-3", "--method", "bert-adam", "--layers", "0,-1"]
    assert command(monkeypatch, *arguments, *options) == 2
    assert "--option must be KEY=VALUE of the one --method" in capsys.readouterr().err
    options[3] = "r3f.eps=1e-3"
    assert command(monkeypatch, *arguments, *options) == 0
    said = capsys.readouterr()
    assert "test_accuracy: " in said.out
    assert "Next: dynprobe info" in said.err
    run = open_run(tmp_path / "run")
    assert run[2].layers() == (0, 2)
    assert run.manifest["training"]["methods"] == [{"name": "r3f", "eps": 1e-3}, {"name": "bert-adam"}]
    assert command(monkeypatch, *arguments) != 0, "the run is there"
    assert not (tmp_path / "run.checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "--model, --task, -o must be given"),
        (("--model", "m", "--task", "wic", "-o", "x", "--force", "--resume"), "must not be given together"),
        (("--model", "m", "--task", "wic", "-o", "x", "--method", "r4"), "--method must be one of standard, r3f"),
        (("--model", "m", "--task", "wic", "-o", "x", "--method", "r3f", "--option", "epss=1"), "Did you mean 'eps'"),
        (
            ("--model", "m", "--task", "wic", "-o", "x", "--method", "r3f", "--option", "eps=much"),
            "`eps` must be float",
        ),
    ],
)
def test_bad_usage_is_said(
    arguments: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *arguments) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
