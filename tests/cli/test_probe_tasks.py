"""`--probe-task`: wherever something is captured, the same words; what they mean, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from dynprobe.cli.main import entry_point
from dynprobe.run import open_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dynprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry_point()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A task of the user's own, of two classes."""
    rows = [f"the {word} number {n},{word}" for n in range(30) for word in ("cat", "dog")]
    (tmp_path / "mine.csv").write_text("text,label\n" + "\n".join(rows))
    return tmp_path / "mine.csv"


def test_what_capture_hands_over(call: Call, mine: Path, tmp_path: Path) -> None:
    code = (
        "import json, os, sys; asked = json.loads(os.environ['DYNPROBE_CAPTURE'])\n"
        f"asked['tasks'] = json.load(open(asked['probe_tasks'])); json.dump(asked, open({str(tmp_path / 'got')!r}, 'w'))\n"
        "sys.exit(7)"
    )
    options = ("--probe-task", "hyp", "--probe-task", mine, "--probe-task-examples", "10,4", "--tokenizer", "any")
    assert call("capture", "-o", tmp_path / "run", *options, "--", sys.executable, "-c", code)[0] == 7
    got = json.loads((tmp_path / "got").read_text())
    assert got["tokenizer"] == "any"
    assert got["tasks"].keys() == {"hyp", "mine"}
    for name, n_texts in (("hyp", 2), ("mine", 1)):
        task = got["tasks"][name]
        assert [len(task[split]["texts"]) for split in ("train", "test")] == [10, 4]
        assert [len(task[split]["labels"]) for split in ("train", "test")] == [10, 4]
        assert {len(texts) for texts in task["train"]["texts"]} == {n_texts}
        assert set(task["train"]["labels"]) == {0, 1}
    assert got["tasks"]["mine"]["label_names"] == ["cat", "dog"]
    assert not Path(got["probe_tasks"]).exists(), "gone with the command"


def test_finetune_and_replay_and_info(call: Call, mine: Path, saved_model: Path, tmp_path: Path) -> None:
    train = ("finetune", "--model", saved_model, "--task", mine, "--steps", 1, "-o", tmp_path / "run")
    options = ("--probe-task", "wic", "--probe-task-examples", "8,6", "--max-length", 12)
    assert call(*train, *options)[0] == 0
    run = open_run(tmp_path / "run")
    assert run.probe_tasks == ("wic",)
    assert run.probe_task("wic", "train").real["model"].shape == (8, 12)
    assert [snapshot.pooled("mean", 2, probe="wic.test").shape for snapshot in run] == [(6, 16)] * 2
    assert run.random_encoder("wic", "train", "first", 1).shape == (8, 16)
    assert "wic (8 + 6 examples)" in call("info", tmp_path / "run")[1]
    assert call("verify", tmp_path / "run")[0] == 0
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(saved_model, num_labels=2).save_pretrained(
        tmp_path / "output" / "checkpoint-10"
    )
    again = ("replay", tmp_path / "output", "-o", tmp_path / "after", "--probe", tmp_path / "run", *options[:4])
    assert call(*again)[0] == 2, "no tokenizer to read the task with"
    assert call(*again, "--tokenizer", saved_model)[0] == 0
    after = open_run(tmp_path / "after")
    assert after[10].pooled("mean", 2, probe="wic.test").shape == (6, 16)
    assert after.random_encoder("wic", "train", "first", 1).shape == (8, 16)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--probe-task", "no such"), 3, "--probe-task must be a shipped task (hyp, shift, supersense, wic)"),
        (("--probe-task", "supersens"), 3, "got `supersens`, which does not exist. Is 'supersense' meant?"),
        (
            ("--probe-task", "kinds.csv"),
            3,
            "found columns 'text', 'kind'. Name yours with label=\"...\" in Python, or call it",
        ),
        (("--probe-task", "hyp", "--probe-task", "hyp"), 2, "must be given once for each name; got 'hyp' twice"),
        (
            ("--probe-task", "hyp", "--probe-task-examples", "many"),
            2,
            "must be two numbers such as 1000,500; got 'many'",
        ),
        (("--probe-task", "hyp", "--probe-task-examples", "1,2,3"), 2, "must be two numbers such as 1000,500"),
        (
            ("--probe-task", "hyp", "--probe-task-examples", "0,2"),
            2,
            "--probe-task-examples must be at least 1 example",
        ),
        (("--probe-task-examples", "9,9"), 2, "--probe-task-examples must go with a --probe-task; got '9,9' alone"),
        (("--probe-task", "numbers.csv"), 2, "must have classes; got the regression `numbers`"),
        (("--probe-task", "my data.csv", "--probe-task", "my-data.csv"), 2, "got 'my-data' twice"),
        (("--probe-task", "one.csv"), 3, "task `one` must have at least two classes"),
    ],
)
@pytest.mark.parametrize(
    "words", [("capture", "-o", "run"), ("finetune", "--model", "m", "--task", "wic", "-o", "run")]
)
def test_what_is_typed_wrongly_is_explained_before_anything_begins(
    words: tuple[str, ...],
    options: tuple[str, ...],
    code: int,
    said: str,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("numbers.csv").write_text("text,label\n" + "".join(f"text {i},{i / 7}\n" for i in range(90)))
    for name in ("my data.csv", "my-data.csv"):
        Path(name).write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(90)))
    Path("kinds.csv").write_text("text,kind\nx,1\n")
    Path("one.csv").write_text("text,label\n" + "".join(f"text {i},same\n" for i in range(90)))
    command = ("--", "touch", "begun") if words[0] == "capture" else ()
    found, _, problem = call(*words, *options, *command)
    assert (found, Path("begun").exists(), Path("run").exists()) == (code, False, False)
    assert said in problem
