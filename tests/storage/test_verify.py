"""Verification: an intact run has no problems, and each damage is named with its file."""

import numpy as np
import pytest

from dynprobe.errors import RunFormatError
from dynprobe.storage.layout import LEDGER, MANIFEST, PROBES, SNAPSHOTS, probe_path, snapshot_path
from dynprobe.storage.probe_file import write_probe_set
from dynprobe.storage.sealed import seal
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter


def _problems(run):
    return {
        check.path.relative_to(run).as_posix(): " ".join(check.problems) for check in verify_run(run) if check.problems
    }


def test_intact_run_has_no_problems(run):
    checks = list(verify_run(run))
    assert [check.problems for check in checks] == [()] * 5
    names = [MANIFEST, LEDGER, "main.h5", "step-00000000.h5", "step-00000010.h5"]
    assert [check.path.name for check in checks] == names
    assert [check.n_arrays for check in checks] == [0, 0, 5, 2, 2]


def test_temporary_files_of_a_living_writer_are_no_problem(run):
    (run / SNAPSHOTS / "step-00000020.h5.9.tmp").touch()
    assert _problems(run) == {}


def _flip(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_damaged_snapshot(run):
    ten = np.full((7, 4), 10, dtype="<f2").tobytes()
    _flip(snapshot_path(run, 10), ten, ten[:-1] + b"\0")
    assert _problems(run) == {"snapshots/step-00000010.h5": "array `main/model/hidden_states/0` is damaged"}


def test_truncated_snapshot(run):
    path = snapshot_path(run, 0)
    path.write_bytes(path.read_bytes()[:-100])
    problems = _problems(run)
    assert list(problems) == ["snapshots/step-00000000.h5"]
    assert "bytes, " in problems["snapshots/step-00000000.h5"]
    (run / LEDGER).unlink()
    assert "must be a complete dynprobe file" in _problems(run)["snapshots/step-00000000.h5"]


def test_damaged_probe_set(run, probe):
    ids = probe.inputs["input_ids"].tobytes()
    _flip(probe_path(run), ids, ids[:-8] + b"\7" + ids[-7:])
    problems = _problems(run)
    assert problems.pop("probes/main.h5") == "array `inputs/input_ids` is damaged"
    assert set(problems.values()) == {"was measured on a probe set that is not in this run"}


def test_probe_set_that_states_another_fingerprint(run, probe):
    with FileWriter(probe_path(run), {"kind": "probe-set", "fingerprint": "0"}) as file:
        file.write("inputs/input_ids", probe.inputs["input_ids"])
    assert "must have the fingerprint it states" in _problems(run)["probes/main.h5"]


def test_missing_probe_set(run):
    probe_path(run).unlink()
    assert "is missing" in _problems(run)["probes/main.h5"]


def test_second_probe_set_counts(run, probe):
    write_probe_set(probe_path(run, "task"), probe)
    assert _problems(run) == {}


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        ({"kind": "probe-set", "step": 10}, "must be a snapshot; got 'probe-set'"),
        ({"kind": "snapshot", "step": 11}, "holds step 11, not the one in its name"),
        ({"kind": "snapshot"}, "holds step None, not the one in its name"),
        (
            {"kind": "snapshot", "step": 10, "probe_fingerprint": ["x"]},
            "was measured on a probe set that is not in this run",
        ),
    ],
)
def test_snapshot_of_something_else(run, probe, meta, problem):
    with FileWriter(snapshot_path(run, 10), {"probe_fingerprint": probe.fingerprint, **meta}):
        pass
    assert _problems(run) == {"snapshots/step-00000010.h5": problem}


def test_swapped_snapshots(run):
    snapshot_path(run, 10).replace(snapshot_path(run, 20))
    assert _problems(run) == {
        "snapshots/step-00000010.h5": "is missing; it was finished, and the ledger has it",
        "snapshots/step-00000020.h5": "holds step 10, not the one in its name",
    }


def test_folder_and_link_instead_of_snapshots(run):
    snapshot_path(run, 20).mkdir()
    snapshot_path(run, 30).symlink_to(snapshot_path(run, 10))
    problems = _problems(run)
    assert "got a folder" in problems["snapshots/step-00000020.h5"]
    assert "got a symbolic link" in problems["snapshots/step-00000030.h5"]


def test_foreign_files(run):
    (run / SNAPSHOTS / "best.h5").touch()
    (run / PROBES / "list.csv").touch()
    word = "is no file of the run format"
    assert _problems(run) == {"snapshots/best.h5": word, "probes/list.csv": word}


def test_manifest(run):
    (run / MANIFEST).write_text('{"format": 1}')
    unsealed = "must end in its checksum `seal`; it is damaged, or was changed by another program"
    assert _problems(run) == {MANIFEST: f"does not describe the model {unsealed}"}
    (run / MANIFEST).write_bytes(seal({"format": 1}))
    assert _problems(run) == {MANIFEST: "does not describe the model"}
    (run / MANIFEST).write_text("{")
    assert "must hold a JSON object" in _problems(run)[MANIFEST]
    (run / MANIFEST).unlink()
    assert _problems(run) == {MANIFEST: "is missing; the run can still be read"}


def test_no_run(tmp_path):
    with pytest.raises(RunFormatError, match="must be a run directory"):
        list(verify_run(tmp_path))
