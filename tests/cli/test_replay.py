"""`dynprobe replay CHECKPOINT_DIR`: what is typed, what is said, and the exit codes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dynprobe.cli.main import entry_point
from dynprobe.run import open_run

TEXTS = [f"the {word} of a {other}" for word in ("cat", "dog", "fish", "bird") for other in ("man", "boy", "girl")]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dynprobe", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry_point()
    return int(ended.value.code or 0)


@pytest.fixture
def output(saved_model: Path, tmp_path: Path) -> Path:
    """Checkpoints of steps 10 and 20, without a tokenizer, of a classifier on the saved model."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(saved_model, num_labels=3)
    for step in (10, 20):
        model.bert.encoder.layer[1].output.dense.weight.data *= 1.5
        model.save_pretrained(tmp_path / "output" / f"checkpoint-{step}")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return tmp_path / "output"


def test_checkpoints_are_captured_and_compared(
    output: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, texts = output.parent / "a", output.parent / "b", output.parent / "texts.txt"
    assert command(monkeypatch, "replay", output, "-o", a, "--texts", texts, "--base", saved_model, "--hidden", 50) == 0
    said = capsys.readouterr()
    assert "3 snapshots, steps 0, 10, 20" in said.err
    assert "Note: Outputs of step 0 are not recorded" in said.out
    run = open_run(a)
    assert run.probe_set.n_examples == len(TEXTS)
    assert len(run[20].hidden_rows("model")) == 50
    assert run.manifest["training"]["origin"] == "replay"
    assert command(monkeypatch, "replay", output, "-o", b, "--probe", a, "--steps", "20", "--hidden", 50) == 0
    assert (open_run(b)[20].hidden_states(2) == run[20].hidden_states(2)).all()
    capsys.readouterr()
    numbers = output.parent / "numbers.json"
    assert command(monkeypatch, "compare", a, b, "--json", numbers) == 0
    result = json.loads(numbers.read_text(encoding="utf-8"))
    rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
    between = [r for r in rows if r["metric"] == "linear_cka_similarity" and r["comparison"] == "between"]
    assert [r["value"] for r in between if r["step_b"] == r["step_a"] == 20] == pytest.approx([1.0] * 3, abs=1e-6)
    assert command(monkeypatch, "info", a) == 0
    assert "replay" in capsys.readouterr().out


def test_going_on_replacing_and_refusing(
    output: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("replay", output, "-o", output.parent / "run", "--texts", output.parent / "texts.txt")
    given = (*given, "--tokenizer", saved_model)
    assert command(monkeypatch, *given, "--steps", "10") == 0
    assert command(monkeypatch, *given) == 2
    assert "give --resume to go on with it, or --force to replace it" in capsys.readouterr().err
    assert command(monkeypatch, *given, "--resume") == 0
    assert open_run(output.parent / "run").steps == (10, 20)
    assert command(monkeypatch, *given, "--steps", "20", "--force") == 0
    assert open_run(output.parent / "run").steps == (20,)
    assert command(monkeypatch, *given, "--force", "--resume") == 2


def test_a_checkpoint_that_cannot_be_read_is_exit_code_3(
    output: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "checkpoint-20" / "model.safetensors").write_bytes(b"no such thing")
    given = ("--texts", output.parent / "texts.txt", "--base", saved_model)
    assert command(monkeypatch, "replay", output, "-o", output.parent / "run", *given) == 3
    assert "checkpoint-20: must be a checkpoint that can be loaded" in capsys.readouterr().err
    assert open_run(output.parent / "run").steps == (0, 10)


def test_what_is_typed_wrongly_is_explained(
    output: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, texts = output.parent / "run", output.parent / "texts.txt"

    def complaint(*options: object, code: int = 2) -> str:
        assert command(monkeypatch, "replay", output, "-o", run, *options) == code
        assert not run.exists()
        return capsys.readouterr().err

    assert "one of --probe RUN and --texts FILE must be given, to say what to measure on; got none" in complaint()
    assert "got both" in complaint("--probe", run, "--texts", texts)
    assert "--tokenizer must be given with --texts or --probe-task only" in complaint(
        "--probe", run, "--tokenizer", saved_model
    )
    assert "--steps must be numbers of optimizer steps such as 100,200; got 'x'" in complaint(
        "--texts", texts, "--steps", "x"
    )
    assert "must come with a tokenizer; got none. Save the tokenizer beside the model, or give --tokenizer" in (
        complaint("--texts", texts)
    )
    assert "must be a run directory" in complaint("--probe", output, code=3)
    (output / "checkpoint-20").rename(output / "last")
    (output / "checkpoint-10").rename(output / "first")
    assert "must hold checkpoint-N folders" in complaint("--texts", texts)


def test_a_folder_with_a_tokenizer_alone(output: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AutoTokenizer.from_pretrained(saved_model).save_pretrained(output.parent / "words")
    given = ("--texts", output.parent / "texts.txt", "--tokenizer", output.parent / "words")
    assert command(monkeypatch, "replay", output, "-o", output.parent / "run", *given) == 0
    assert open_run(output.parent / "run").steps == (10, 20)
