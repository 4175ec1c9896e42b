"""What a stranger's run says reaches page and terminal as text: no script, no escape sequence."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynprobe.cli.console import plain
from dynprobe.cli.main import entry_point
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.directory import read_manifest, write_manifest, write_status
from tests.conftest import tiny_probe_set

HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07\r\u202e\x9b31m[bold]{{7*7}}"
MARKS = ("\x1b", "\x07", "\r", "\x9b", "\u202e")


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


@pytest.fixture(scope="module")
def hostile_runs(make_run: Callable[..., Path]) -> tuple[Path, Path]:
    """Two runs whose every text is hostile: labels, examples, tokenizer, origin, and all of the manifest."""
    good = tiny_probe_set()
    names = tuple(f"{HOSTILE}{number}" for number in range(3))
    texts = tuple((HOSTILE,) for _ in range(good.n_examples))
    parts = {"inputs": good.inputs, "real": good.real, "special": good.special, "labels": good.labels}
    probe = ProbeSet(
        **{key: dict(value) if key != "labels" else np.array(value) for key, value in parts.items()},
        label_names=names,
        texts=texts,
        tokenizer={"class": HOSTILE, "name": HOSTILE},
        origin=HOSTILE,
    )
    paths = []
    for name, seed in (("one", 1), ("two", 2)):
        path = make_run(name, steps=(0, 2), probe=probe, seed=seed)
        manifest = read_manifest(path)
        hostile = dict.fromkeys(("created", "dtype", "schedule", "attention_implementation"), HOSTILE)
        hostile |= {"notes": [HOSTILE], "versions": {HOSTILE: HOSTILE}, "training": {HOSTILE: HOSTILE, "seed": HOSTILE}}
        hostile["model"] = {**manifest["model"], "name": HOSTILE, "model_class": HOSTILE}
        write_manifest(path, {**manifest, **hostile})
        write_status(path, "fault", step=2, reason=HOSTILE)
        paths.append(path)
    return paths[0], paths[1]


def clean(text: str) -> None:
    assert [mark for mark in MARKS if mark in text] == []


FEW = ("--metric", "linear_cka_similarity", "--metric", "prediction_flip_rate")


@pytest.mark.slow
def test_a_page_holds_no_script_and_no_escape(
    call: Callable[..., tuple[int, str, str]], hostile_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    code, _, errors = call("compare", *hostile_runs, *FEW, "-o", page, "--verify")
    assert code == 0, errors
    clean(errors)
    content = page.read_text(encoding="utf-8")
    assert "alert(1)" in content, "the hostile texts are there"
    assert "<script>alert(1)" not in content
    assert "49[" not in content
    clean(content)


def test_what_compare_prints_holds_no_escape(
    call: Callable[..., tuple[int, str, str]], hostile_runs: tuple[Path, Path]
) -> None:
    code, text, _ = call("compare", *hostile_runs, *FEW)
    assert code == 0
    assert "alert(1)" in text, "the hostile texts are there"
    clean(text)


@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["verify"]])
def test_info_and_verify_spell_out_control_characters(
    command: list[str], call: Callable[..., tuple[int, str, str]], hostile_runs: tuple[Path, Path]
) -> None:
    code, text, errors = call(*command, hostile_runs[0])
    assert code == 0, errors
    clean(text)
    clean(errors)
    if command == ["info"]:
        assert "switched off by a fault at step 2: <script>alert(1)</script>\\x1b[2J" in text
        assert "Note: <script>" in text


def test_names_of_files_are_spelled_out(
    call: Callable[..., tuple[int, str, str]], hostile_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(hostile_runs[0], path)
    (path / "snapshots" / "x\x1b[2J.h5").touch()
    code, text, errors = call("verify", path)
    assert code == 3
    assert "x\\x1b[2J.h5: is no file of the run format" in errors
    clean(text)
    clean(errors)


def test_plain_keeps_what_can_be_read() -> None:
    assert plain("naïve 文字 – “a”") == "naïve 文字 – “a”"
    assert plain(HOSTILE).isprintable()
    assert plain("\ud800\n\t") == "\\ud800\\n\\t"


def test_info_shows_how_the_capture_stands(
    call: Callable[..., tuple[int, str, str]], make_run: Callable[..., Path]
) -> None:
    path = make_run("states", steps=(0, 2))
    assert "finished after step 2" in call("info", path)[1]
    write_status(path, "fault", step=7, reason="[Errno 28] No space left on device")
    code, text, _ = call("info", path)
    assert "switched off by a fault at step 7: [Errno 28] No space left on device" in text
    assert json.loads(call("info", path, "--json")[1])["status"]["state"] == "fault"
    write_status(path, "capturing", step=None)
    assert "being captured, or ended before it could say so" in call("info", path)[1]
    manifest = read_manifest(path)
    del manifest["status"]
    write_manifest(path, manifest)
    code, text, _ = call("info", path)
    assert code == 0
    assert "unknown" in next(line for line in text.splitlines() if line.strip().startswith("status"))


def test_verify_says_what_is_missing_and_what_is_only_not_listed(
    call: Callable[..., tuple[int, str, str]], make_run: Callable[..., Path]
) -> None:
    path = make_run("lost", steps=(0, 2, 4))
    ledger = (path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (path / "ledger.jsonl").write_bytes(b"".join(ledger[:-1]))
    code, text, errors = call("verify", path)
    assert (code, errors) == (0, "")
    assert "step-00000004.h5 is not in the ledger" in text
    (path / "snapshots" / "step-00000002.h5").unlink()
    code, _, errors = call("verify", path)
    assert code == 3
    assert "step-00000002.h5: is missing; it was finished, and the ledger has it" in errors


def test_compare_verifies_when_it_is_asked_to(
    call: Callable[..., tuple[int, str, str]], run_a: Path, run_b: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(run_b, copy)
    file = copy / "snapshots" / "step-00000006.h5"
    ledger = [json.loads(line) for line in (copy / "ledger.jsonl").read_text().splitlines()]
    arrays = next(line["arrays"] for line in ledger if line.get("file", "").endswith("06.h5"))
    content = bytearray(file.read_bytes())
    content[arrays["main/model/hidden_states/1"][0] + 1] ^= (
        1  # the lowest bits of an exponent: another number, and a fine one
    )
    file.write_bytes(bytes(content))
    assert call("compare", run_a, run_b, "--verify", "--metric", "linear_cka_similarity")[0] == 0
    assert call("compare", run_a, copy, "--metric", "linear_cka_similarity")[0] == 0
    code, _, errors = call("compare", run_a, copy, "--verify", "--metric", "linear_cka_similarity")
    assert code == 3
    assert "array `main/model/hidden_states/1` must have the sha256 that was stored; it is damaged" in errors
