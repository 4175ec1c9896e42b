"""Thousands of damaged runs: no crash, no hang, and never a wrong number that verification does not find."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.storage.mutations import KINDS, Fuzz, make_run, mutated, read_everything

AGES = ["new", "old"]


@pytest.mark.parametrize("age", AGES)
def test_a_hundred_damaged_runs(tmp_path, age):
    fuzz = Fuzz(make_run(tmp_path / "source", old=age == "old"), tmp_path / "scratch", old=age == "old")
    said = [fuzz.outcome(number) for number in range(50)]
    assert [word for word in said if word.startswith("WRONG")] == []
    assert sum(word.startswith("error") for word in said) > 20, "damage is found"
    assert read_everything(fuzz.run, verify=True) == read_everything(tmp_path / "source", verify=True)


def test_every_kind_of_damage_does_damage():
    import random

    content, seen = bytes(range(256)) * 4, Counter()
    for number in range(300):
        changed, kind = mutated(content, random.Random(number))
        seen[kind] += changed != content
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > 20


def test_a_reader_that_believes_its_file_is_found_out(tmp_path, monkeypatch):
    """The check can fail: without checksums, other numbers come back."""
    fuzz = Fuzz(make_run(tmp_path / "source", old=True), tmp_path / "scratch", old=True)
    monkeypatch.setattr("dynprobe.storage.reader.FileReader.is_intact", lambda self, name: True)
    assert any(fuzz.outcome(number).startswith("WRONG") for number in range(60))


def _cases(folder: Path, age: str, first: int, last: int) -> tuple[dict[int, str], list[str]]:
    """Run cases in a process of their own; when it dies, name the case and go on behind it."""
    ended, died = {}, []
    script = Path(__file__).with_name("mutations.py")
    while first < last:
        scratch = folder / f"scratch-{age}-{first}"
        command = [sys.executable, str(script), str(folder / age), str(scratch), age, str(first), str(last)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
        ended |= {int(line[1]): line[2] for line in lines if line[0] == "end"}
        if done.returncode == 0:
            break
        at = max((int(line[1]) for line in lines if line[0] == "begin"), default=first)
        died.append(f"case {at} of {age}: exit code {done.returncode} {done.stderr[-300:]}")
        first = at + 1
    return ended, died


@pytest.mark.slow
@pytest.mark.parametrize("age", AGES)
def test_thousands_of_damaged_runs_in_processes_of_their_own(tmp_path, age):
    make_run(tmp_path / age, old=age == "old")
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda first: _cases(tmp_path, age, first, first + 1000), (1000, 2000)))
    assert [word for _, died in parts for word in died] == [], "crashed or hung"
    ended = {number: word for part, _ in parts for number, word in part.items()}
    assert len(ended) == 2000
    assert {number: word for number, word in ended.items() if word.startswith("WRONG")} == {}
    assert sum(word.startswith("error") for word in ended.values()) > 1000


def test_a_case_that_crashes_or_hangs_is_named(tmp_path, monkeypatch):
    make_run(tmp_path / "new")
    script = tmp_path / "mutations.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "for number in range(int(sys.argv[4]), int(sys.argv[5])):\n"
        "    print('begin', number, flush=True)\n"
        "    if number == 2: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if number == 4:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "        time.sleep(60)\n"
        "    print('end', number, 'same', flush=True)\n"
    )
    monkeypatch.setattr(Path, "with_name", lambda path, name: script)
    ended, died = _cases(tmp_path, "new", 0, 6)
    assert sorted(ended) == [0, 1, 3, 5]
    assert [word.split(": ")[0] for word in died] == ["case 2 of new", "case 4 of new"]
    assert "-11" in died[0]
    assert "-14" in died[1]
