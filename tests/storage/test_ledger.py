"""The ledger and the seals: what is lost, exchanged or changed is found, and a killed writer is no damage."""

import json
import os
import shutil

import numpy as np
import pytest

from dynprobe.errors import RunFormatError, UsageError
from dynprobe.run import open_run
from dynprobe.storage import ledger as module
from dynprobe.storage.directory import (
    append_scalars,
    prepare,
    read_manifest,
    read_scalars,
    write_manifest,
    write_status,
)
from dynprobe.storage.layout import LEDGER, MANIFEST, SCALARS, probe_path, snapshot_path
from dynprobe.storage.ledger import entry_of, problems_of, read_ledger
from dynprobe.storage.reader import FileReader
from dynprobe.storage.sealed import append_line, has_broken_seal, has_seal, read_lines, seal
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter


def problems(run):
    return {
        check.path.relative_to(run).as_posix(): " ".join(check.problems) for check in verify_run(run) if check.problems
    }


def remarks(run):
    return {check.path.name: check.remarks[0] for check in verify_run(run) if check.remarks}


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


def step(run, number, probe, value=0):
    meta = {"kind": "snapshot", "step": number, "probe_fingerprint": probe.fingerprint}
    with FileWriter(snapshot_path(run, number), meta) as file:
        file.write("main/outputs/logits", np.full((2, 2), value, dtype=np.float32))


def test_every_finished_file_is_in_the_ledger(run):
    ledger = read_ledger(run)
    names = ["probes/main.h5", "snapshots/step-00000000.h5", "snapshots/step-00000010.h5"]
    assert (list(ledger.entries), ledger.scalars_from, ledger.problems) == (names, 0, ())
    for name, entry in ledger.entries.items():
        assert entry.n_bytes == (run / name).stat().st_size
        assert problems_of(run / name, entry) == []
        with FileReader(run / name) as file:
            assert entry.arrays == file.extents()
            stored = (run / name).read_bytes()
            for array, (start, size, _) in entry.arrays.items():
                assert stored[start : start + size] == file.read(array).tobytes()


@pytest.mark.parametrize("stride", [131, pytest.param(5, marks=pytest.mark.slow)])
def test_one_flipped_bit_is_always_found(run, stride):
    """One bit of every byte of every file of a run, or of some of them: verify names the file."""
    append_scalars(run, {"step": 1, "loss": 0.5})
    append_scalars(run, {"step": 2, "loss": float("nan")})
    assert problems(run) == {}
    for file in [run / MANIFEST, run / LEDGER, run / SCALARS, probe_path(run), snapshot_path(run, 10)]:
        whole = file.read_bytes()
        for position in [*range(0, len(whole), stride), len(whole) - 2, len(whole) - 1]:
            flip(file, position, position % 8)
            assert file.relative_to(run).as_posix() in problems(run), (file.name, position)
            file.write_bytes(whole)


def test_an_exchanged_lost_or_renamed_snapshot_is_found(run, probe):
    step(run, 20, probe, 1)
    step(run, 30, probe, 2)  # of the same size as step 20
    shutil.copy(snapshot_path(run, 20), snapshot_path(run, 30))
    assert problems(run) == {"snapshots/step-00000030.h5": "has another description or structure than was written"}
    with pytest.raises(RunFormatError, match="must be the file that was written; it has another description"):
        _ = open_run(run)[30].step
    snapshot_path(run, 10).unlink()
    snapshot_path(run, 20).rename(snapshot_path(run, 40))
    assert problems(run)["snapshots/step-00000010.h5"] == "is missing; it was finished, and the ledger has it"
    assert problems(run)["snapshots/step-00000040.h5"] == "holds step 20, not the one in its name"
    assert "snapshots/step-00000020.h5" in problems(run)


def test_a_forged_name_with_its_old_numbers_is_found(run, probe):
    """The step in the description is right, the file is not the one that was written."""
    before = (run / LEDGER).read_bytes()
    step(run, 20, probe, 1)
    first = snapshot_path(run, 20).read_bytes()
    (run / LEDGER).write_bytes(before)
    step(run, 20, probe, 2)
    assert problems(run) == {}
    snapshot_path(run, 20).write_bytes(first)
    assert problems(run) == {"snapshots/step-00000020.h5": "has another description or structure than was written"}


def test_a_kill_between_the_rename_and_the_line_is_no_damage(run, probe, monkeypatch):
    monkeypatch.setattr("dynprobe.storage.writer.enter", lambda *arguments: None)
    step(run, 20, probe)
    monkeypatch.undo()
    assert problems(run) == {}
    assert list(remarks(run)) == ["step-00000020.h5"]
    assert remarks(run)["step-00000020.h5"].startswith("is not in the ledger")
    assert open_run(run, verify=True)[20].outputs().values.shape == (2, 2)
    prepare(run, force=False, resume=True)
    assert (problems(run), remarks(run)) == ({}, {})
    assert entry_of(snapshot_path(run, 20)) is not None


@pytest.mark.parametrize("length", [1, 40, -2, -1])
def test_half_a_line_is_no_damage_and_is_taken_away(run, probe, length):
    whole = (run / LEDGER).read_bytes()
    step(run, 20, probe)
    line = (run / LEDGER).read_bytes()[len(whole) :]
    (run / LEDGER).write_bytes(whole + line[:length])
    assert problems(run) == {}
    assert list(remarks(run)) == ["step-00000020.h5"]
    step(run, 30, probe)
    assert b"\n\n" not in (run / LEDGER).read_bytes()
    assert read_ledger(run).problems == ()
    prepare(run, force=False, resume=True)
    assert (problems(run), remarks(run)) == ({}, {})


def test_a_run_of_before_is_valid_and_gets_a_ledger_when_it_goes_on(run, probe):
    (run / LEDGER).unlink()
    (run / MANIFEST).write_text(json.dumps({"format": 1, "model": {}}))
    (run / SCALARS).write_text('{"step": 1}\n{"step": 2, "lo')
    assert (problems(run), remarks(run)) == ({}, {})
    assert open_run(run, verify=True)[10].hidden_states.__name__
    prepare(run, force=False, resume=True)
    write_manifest(run, read_manifest(run))
    append_scalars(run, {"step": 3})
    step(run, 20, probe)
    assert (problems(run), remarks(run)) == ({}, {})
    assert len(read_ledger(run).entries) == 4
    assert read_scalars(run) == [{"step": 1}, {"step": 3}]
    flip(run / SCALARS, 45)
    assert problems(run) == {SCALARS: "line 2 is damaged"}


def test_a_damaged_ledger_is_not_covered_up(run, probe):
    flip(run / LEDGER, 200)
    assert "line 2 is damaged" in problems(run)[LEDGER]
    with pytest.raises(RunFormatError, match=r"ledger\.jsonl: line 2 is damaged.*lists all that is damaged"):
        open_run(run, verify=True)
    assert open_run(run)[10].step == 10, "without being asked to verify, what is intact is read"
    before = (run / LEDGER).read_bytes()
    prepare(run, force=False, resume=True)
    assert (run / LEDGER).read_bytes() == before


def test_a_lost_or_emptied_ledger_is_found(run):
    (run / LEDGER).write_bytes(b"")
    assert problems(run) == {LEDGER: "must begin with `scalars_from`; got an empty file"}
    (run / LEDGER).unlink()
    assert problems(run) == {MANIFEST: "was written with a ledger, and ledger.jsonl is missing"}


@pytest.mark.parametrize(
    "record",
    [
        {"file": "../../etc/passwd", "bytes": 1, "rest": "0", "arrays": {}},
        {"file": "/etc/passwd", "bytes": 1, "rest": "0", "arrays": {}},
        {"file": "snapshots/../../x/step-00000001.h5", "bytes": 1, "rest": "0", "arrays": {}},
        {"file": "snapshots//step-00000001.h5", "bytes": 1, "rest": "0", "arrays": {}},
        {"file": "x/snapshots/step-00000001.h5", "bytes": 1, "rest": "0", "arrays": {}},
        {"file": "snapshots/step-00000001.h5", "bytes": "1", "rest": "0", "arrays": {}},
        {"file": "snapshots/step-00000001.h5", "bytes": 9, "rest": "0", "arrays": {"a": [5, 5, "0" * 64]}},
        {"file": "snapshots/step-00000001.h5", "bytes": 9, "rest": "0", "arrays": {"a": [-1, 5, "0" * 64]}},
        {"file": "snapshots/step-00000001.h5", "bytes": 9, "rest": "0", "arrays": {"a": [1, 5, "0"]}},
        {"file": "snapshots/step-00000001.h5", "bytes": 9, "rest": "0", "arrays": {"a": [1, 5]}},
        {"file": "snapshots/step-00000001.h5", "bytes": 9, "rest": "0", "arrays": {"a": 3}},
        {
            "file": "snapshots/step-00000001.h5",
            "bytes": 9,
            "rest": "0",
            "arrays": {"a": [1, 5, "0" * 64], "b": [3, 4, "0" * 64]},
        },
        {"file": ["snapshots/step-00000001.h5"], "bytes": 1, "rest": "0", "arrays": {}},
        {},
    ],
)
def test_a_line_that_is_no_entry_is_damage(run, record):
    """Its seal fits: a stranger wrote it."""
    append_line(run / LEDGER, record)
    assert read_ledger(run).problems == ("line 5 is damaged",)
    assert len(read_ledger(run).entries) == 3


def test_a_ledger_that_is_a_link_is_refused(run, tmp_path):
    (run / LEDGER).rename(tmp_path / "elsewhere")
    (run / LEDGER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFormatError, match="must be an ordinary file"):
        read_ledger(run)
    with pytest.raises(RunFormatError, match="must be an ordinary file"):
        FileReader(snapshot_path(run, 10))
    with pytest.raises(UsageError, match="must be a file of the run itself; got a symbolic link"):
        prepare(run, force=True, resume=False)
    assert "must be an ordinary file" in problems(run)[LEDGER]


def test_scalars_are_never_written_through_a_link(run, tmp_path):
    (tmp_path / "precious").write_text("keep\n")
    (run / SCALARS).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        append_scalars(run, {"step": 1})
    assert (tmp_path / "precious").read_text() == "keep\n"


def test_lines_exchanged_repeated_or_dropped_are_found(run):
    for number in range(5):
        append_scalars(run, {"step": number})
    lines = (run / SCALARS).read_bytes().splitlines(keepends=True)
    for changed in (
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:2], lines[1], *lines[2:]],
        [lines[0], *lines[2:]],
        lines[1:],
    ):
        (run / SCALARS).write_bytes(b"".join(changed))
        assert "is damaged" in problems(run)[SCALARS]
        with pytest.raises(RunFormatError, match=r"line \d must be as it was written"):
            read_scalars(run)


def test_scalars_that_were_cut_are_found_when_the_run_had_finished(run):
    for number in range(3):
        append_scalars(run, {"step": number})
    write_status(run, "finished", step=10)
    assert problems(run) == {}
    lines = (run / SCALARS).read_bytes().splitlines(keepends=True)
    (run / SCALARS).write_bytes(b"".join(lines[:2]))
    assert "scalars.jsonl has" in problems(run)[MANIFEST]
    (run / SCALARS).unlink()
    assert "it has 0" in problems(run)[MANIFEST]


def test_status_stands_beside_what_was_there(run):
    write_manifest(run, {"model": {"name": "x"}, "notes": ["a"], "mine": 1})
    write_status(run, "fault", step=3, reason="disk full")
    manifest = read_manifest(run)
    assert manifest["status"] == {"state": "fault", "reason": "disk full", "step": 3, "scalars_bytes": 0}
    assert manifest["notes"] == ["a", "Capture was switched off by a fault: disk full"]
    assert (manifest["model"], manifest["mine"]) == ({"name": "x"}, 1)
    assert has_seal((run / MANIFEST).read_bytes())


def test_a_manifest_that_was_changed_is_refused_until_its_seal_is_removed(run):
    text = (run / MANIFEST).read_bytes()
    (run / MANIFEST).write_bytes(text.replace(b"tiny", b"huge"))
    with pytest.raises(RunFormatError, match=r"its checksum `seal` does not fit.*changed on purpose, remove that key"):
        open_run(run)
    without = {key: value for key, value in json.loads((run / MANIFEST).read_text()).items() if key != "seal"}
    (run / MANIFEST).write_text(json.dumps(without))
    assert open_run(run).manifest["model"] == {"name": "huge"}


@pytest.mark.parametrize(
    "document", [{}, {"a": 1}, {"a": {"b": []}, "seal": "mine"}, {"text": 'é "seal": "' + "0" * 64}]
)
def test_a_seal_covers_every_byte(document):
    text = seal(document)
    back = json.loads(text)
    assert {key: value for key, value in back.items() if key != "seal"} == {
        k: v for k, v in document.items() if k != "seal"
    }
    assert has_seal(text)
    assert not has_broken_seal(text)
    for position in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[position] ^= 1 << bit
            assert has_broken_seal(bytes(changed)) or not has_seal(bytes(changed)), (position, bit)


def test_a_full_disk_leaves_the_log_as_it_was(run, monkeypatch):
    append_scalars(run, {"step": 1})
    before = (run / SCALARS).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_line(run / SCALARS, {"step": 2}, sync=True)
    assert (run / SCALARS).read_bytes() == before
    append_scalars(run, {"step": 3})
    assert [line.is_intact for line in read_lines(run / SCALARS, max_bytes=10**6, max_line=10**6)] == [True, True]


def test_a_very_long_half_line_is_taken_away_too(run):
    append_scalars(run, {"step": 1})
    with (run / SCALARS).open("ab") as stream:
        stream.write(b"x" * 100_000)
    append_scalars(run, {"step": 2})
    assert read_scalars(run) == [{"step": 1}, {"step": 2}]
    assert problems(run) == {}


def test_the_ledger_is_read_again_only_when_it_has_changed(run, probe):
    module._parsed.cache_clear()
    for _ in range(3):
        entry_of(snapshot_path(run, 10))
    assert module._parsed.cache_info().misses == 1
    step(run, 20, probe)
    assert entry_of(snapshot_path(run, 20)) is not None


def test_verified_reading_finds_a_changed_number_when_it_is_read(run):
    ten = np.full((7, 4), 10, dtype="<f2").tobytes()
    position = snapshot_path(run, 10).read_bytes().index(ten)
    flip(snapshot_path(run, 10), position + 3)
    snapshot = open_run(run, verify=True)[10]
    for _ in range(2):
        with pytest.raises(
            RunFormatError, match="array `main/model/hidden_states/0` must have the sha256 that was stored"
        ):
            snapshot._file.read("main/model/hidden_states/0", slice(0, 1))
    assert snapshot.outputs().values.tolist() == [[1, 1], [1, 1]], "what is intact is read"
    assert open_run(run)[10]._file.read("main/model/hidden_states/0").shape == (7, 4), "not asked, not looked for"


def test_verified_opening_misses_a_lost_snapshot(run):
    snapshot_path(run, 10).unlink()
    assert open_run(run).steps == (0,)
    with pytest.raises(RunFormatError, match=r"step-00000010\.h5: is missing; it was finished"):
        open_run(run, verify=True)
