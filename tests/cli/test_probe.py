"""`dynprobe probe`: runs with probe tasks, saved models, and what cannot be probed."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.cli.main import entry_point
from dynprobe.probe_task import ProbeTask
from tests.conftest import tiny_classifier, tiny_probe_set, train_a_little

SETTINGS = CaptureSettings(hidden="pooled", attention="none")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trainings with the probe task "first", and snapshots at steps 0 and 4."""
    paths = []
    task = ProbeTask(train=tiny_probe_set(120, seed=5), test=tiny_probe_set(90, seed=6))
    for seed in (1, 2):
        path = tmp_path_factory.mktemp("probed") / f"run-{seed}"
        model, probe = tiny_classifier(), tiny_probe_set()
        with Recorder(model, probe, path, settings=SETTINGS, probe_tasks={"first": task}) as recorder:
            recorder.snapshot(0)
            train_a_little(model, probe, 4, seed)
            recorder.snapshot(4)
        paths.append(path)
    return paths[0], paths[1]


@pytest.fixture
def dynprobe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Call the command line; gives its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["dynprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry_point()
        return int(ended.value.code or 0)

    return call


def test_two_runs(
    runs: tuple[Path, Path], tmp_path: Path, dynprobe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "probes.json"
    options = ("--fractions", "0.5,1", "--probe-seeds", 2, "--margin", 0.05)
    assert dynprobe("probe", *runs, *options, "--json", numbers) == 0
    shown = capsys.readouterr().out
    assert "run-1, step 4, task first: at the last layer" in shown
    for words in ("random", "step 0", "change", "verdict", "first, 50 %", "run-1 against run-2, at the end"):
        assert words in shown
    result = json.loads(numbers.read_text(encoding="utf-8"))
    rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
    names = ("by_layer", "accuracy", "change", "difference", "selectivity")
    assert {row["metric"] for row in rows} == {f"knowledge_{name}" for name in names}
    assert result["provenance"]["options"]["margin"] == 0.05
    assert list(result["provenance"]["runs"]) == ["run-1", "run-2"]
    layers = [row for row in rows if row["metric"] == "knowledge_by_layer" and row["group"] == "first"]
    # the same start, and the same architecture with random weights, in both runs
    assert (
        len({(row["layer"], row["position"], row["value"]) for row in layers if row["step_a"] == 0}) == len(layers) / 4
    )
    assert all(row["reference"] is not None for row in layers)


@pytest.mark.slow
def test_the_page_has_the_pictures(runs: tuple[Path, Path], tmp_path: Path, dynprobe: Callable[..., int]) -> None:
    for command in ("probe", "compare"):
        page = tmp_path / f"{command}.html"
        assert dynprobe(command, *runs, "-o", page) == 0
        html = page.read_text(encoding="utf-8")
        for words in ("Knowledge of other tasks", "random weights", "first, by step", "first token, first, by layer"):
            assert words in html


def test_one_layer_of_one_task(runs: tuple[Path, Path], tmp_path: Path, dynprobe: Callable[..., int]) -> None:
    numbers = tmp_path / "probes.json"
    assert dynprobe("probe", runs[0], "--task", "first", "--layer", 1, "--no-control", "--json", numbers) == 0
    result = json.loads(numbers.read_text(encoding="utf-8"))
    rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
    assert {row["layer"] for row in rows} == {1, None}
    assert not any(row["metric"] == "knowledge_selectivity" for row in rows)


def test_compare_shows_the_same_numbers(runs: tuple[Path, Path], tmp_path: Path, dynprobe: Callable[..., int]) -> None:
    alone, both = tmp_path / "alone.json", tmp_path / "both.json"
    assert dynprobe("probe", *runs, "--json", alone) == 0
    assert dynprobe("compare", *runs, "--json", both) == 0
    ours, theirs = (json.loads(path.read_text(encoding="utf-8")) for path in (alone, both))
    knowledge = [row for row in theirs["rows"] if str(row[0]).startswith("knowledge_")]
    assert knowledge == ours["rows"]
    said = [line.partition(" Brackets hold")[0] for line in theirs["findings"] if "task first" in line]
    assert said == ours["findings"]


def test_a_saved_model(
    saved_model: Path, tmp_path: Path, dynprobe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "letters.csv"
    lines = [
        f"{'abcdefghij'[i % 10] * 2} {'klmnopqrst'[i // 10 % 10]} {i // 100},{'low' if i % 10 < 5 else 'high'}"
        for i in range(400)
    ]
    texts.write_text("text,label\n" + "\n".join(dict.fromkeys(lines)), encoding="utf-8")
    assert dynprobe("probe", saved_model, "--task", texts) == 0
    shown = capsys.readouterr().out
    assert "model: accuracy of linear probes on other tasks" in shown
    assert "letters" in shown
    assert "verdict" not in shown  # one snapshot: nothing changed
    assert dynprobe("probe", saved_model) == 2
    assert "--task must name what to probe the model" in capsys.readouterr().err
    assert dynprobe("probe", saved_model, "--task", "supersens") == 3
    assert re.search(
        r"--task must be a shipped task .* got `supersens`, .* 'supersense' meant", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--task", "fist"), 2, "probe tasks that were captured: first; got 'fist'. Is 'first' meant?"),
        (("--task", "wic"), 2, "--task must be among the probe tasks that were captured: first; got 'wic'\n"),
        (("--layer", "9"), 2, "--layer must be among those that were captured, [0, 1, 2]; got 9"),
        (("--fractions", "0,1"), 2, "--fractions must be shares above 0 and at most 1, such as 0.1,1; got '0,1'"),
        (("--fractions", "few"), 2, "--fractions must be shares"),
        (("--margin", "1.5"), 2, "--margin"),
        (("--fractions", "0.02"), 3, "no task could be probed: a class has 1 training examples; at least 5 are needed"),
        (("-o", "same", "--json", "same"), 2, "-o and --json must be two files; got same for both"),
    ],
)
def test_what_cannot_be_done(
    runs: tuple[Path, Path],
    dynprobe: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert dynprobe("probe", runs[0], *arguments) == code
    assert message in capsys.readouterr().err


def test_runs_without_tasks_and_places_without_runs(
    run_a: Path, tmp_path: Path, dynprobe: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dynprobe("probe", run_a) == 2
    assert "must hold probe tasks; got none. Capture it again with --probe-task NAME" in capsys.readouterr().err
    assert dynprobe("probe", tmp_path / "nothing") == 3
    assert "nothing" in capsys.readouterr().err
    assert dynprobe("probe") == 2


def test_help_names_the_command(dynprobe: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert dynprobe("--help") == 0
    shown = capsys.readouterr().out
    for words in ("dynprobe probe runs/a", "make study", "analyses/"):
        assert words in shown
    assert dynprobe("probe", "--help") == 0
    shown = capsys.readouterr().out
    assert "held-out folds of the training examples" in " ".join(shown.split())
    for option in ("--task", "--layer", "--fractions", "--probe-seeds", "--no-control", "--margin", "--json"):
        assert option in shown
