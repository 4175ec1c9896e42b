"""A disk that is full at any byte of a snapshot: an ordinary error, nothing left behind, everything before it intact."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dynprobe.storage.directory import prepare
from dynprobe.storage.folder import list_steps
from dynprobe.storage.layout import LEDGER, snapshot_path
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter

# Writes a snapshot of about 120 kB at one fill level after another, and says what became of it. A limit of the file size, or a
# file that leaves so many bytes of a small file system, stands for the full disk.
FILL = """
import json, os, resource, sys
from pathlib import Path
import numpy as np
from dynprobe.storage.directory import list_steps, write_status
from dynprobe.storage.layout import snapshot_path
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter

run, how, levels, seen = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), {}
meta = {"kind": "snapshot", "probe_fingerprint": json.loads((run / "fingerprint").read_text())}
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
filler = run.parent / "filler"

def leave(n_bytes):
    filler.unlink(missing_ok=True)
    free = os.statvfs(run).f_bavail * os.statvfs(run).f_frsize
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, free - n_bytes))

for step, level in enumerate(levels, start=100):
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (level, hard))
    else:
        leave(level)
    before = list_steps(run)
    try:
        with FileWriter(snapshot_path(run, step), {**meta, "step": step}) as file:
            for layer in range(6):
                file.write(f"main/model/hidden_states/{layer}", np.full((100, 100), step, dtype="f2"))
        said = "complete"
    except OSError as error:
        said = f"refused {error.errno}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    filler.unlink(missing_ok=True)
    there = set(list_steps(run)) - set(before)
    problems = [problem for check in verify_run(run) for problem in check.problems]
    left = [file.name for file in (run / "snapshots").iterdir() if file.name.endswith(".tmp")]
    if problems or left or there != ({step} if said == "complete" else set()):
        said = f"{said}, but {problems} {left} {there}"
    seen[level] = said
    for new in there:
        snapshot_path(run, new).rename(run / "kept")
        (run / "ledger.jsonl").write_bytes((run / "ledger before").read_bytes())
write_status(run, "fault", step=1, reason="disk full")
sys.stdout.write(json.dumps(seen))
"""


@pytest.fixture
def full(run, probe):
    """Run FILL on a run; gives what was said at each level. `prefix` is a command before it, such as one that mounts."""
    (run / "fingerprint").write_text(json.dumps(probe.fingerprint))
    shutil.copy(run / LEDGER, run / "ledger before")

    def call(how, levels, *, where=run, prefix=()):
        command = [*prefix, sys.executable, "-c", FILL, str(where), how, json.dumps(levels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
        return {int(level): said for level, said in json.loads(done.stdout).items()}

    return call


def size_of_one(folder):
    """Bytes of the snapshot that FILL writes, and of what is reserved for it at most."""
    with FileWriter(folder / "one.h5", {}) as file:
        for layer in range(6):
            file.write(f"main/model/hidden_states/{layer}", np.zeros((100, 100), dtype="f2"))
        reserved = file._reserved
    return (folder / "one.h5").stat().st_size, reserved + 2**15


def check(seen, needed, enough):
    assert {said.split(" ")[0].rstrip(",") for said in seen.values()} == {"refused", "complete"}, seen
    assert {level: said for level, said in seen.items() if "but" in said} == {}
    assert all(said.startswith("refused") for level, said in seen.items() if level < needed)
    assert all(said == "complete" for level, said in seen.items() if level >= enough)


@pytest.mark.slow
def test_a_full_disk_at_many_levels(run, full, tmp_path):
    needed, enough = size_of_one(tmp_path)
    levels = [int(level) for level in np.linspace(0, needed, 36)]
    levels += list(range(needed - 2**15, enough + 2**13, 2**12))
    assert len(set(levels)) >= 35 + 16
    seen = full("limit", levels)
    check(seen, needed, enough)
    assert list_steps(run) == (0, 10)
    assert json.loads((run / "manifest.json").read_text())["status"]["state"] == "fault"


SMALL_DISK = """
set -e
mkdir "$0"; mount -t tmpfs -o size=1m none "$0"; cp -r "$1" "$0/run"; shift
exec "$@"
"""


def test_a_small_file_system_that_is_really_full(run, full, tmp_path):
    disk = tmp_path / "disk"
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, str(disk), str(run)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    disk.rmdir()
    needed, enough = size_of_one(tmp_path)
    levels = [int(level) for level in np.linspace(0, needed, 12)] + [
        *range(needed - 2**13, needed + 2**14, 2**12),
        enough + 2**15,
    ]
    seen = full("disk", levels, where=disk / "run", prefix=prefix)
    check(seen, needed - 2**12, enough + 2**15)
    assert "refused 28" in seen.values(), "ENOSPC itself"


@pytest.mark.parametrize("place", ["posix_fallocate", "truncate", "fsync"])
@pytest.mark.parametrize("nth", [1, 2])
def test_no_space_at_each_call_that_can_say_so(run, probe, monkeypatch, place, nth):
    """Whatever call it is that fails: what is there afterwards is intact, with or without the new snapshot."""
    real, calls = getattr(os, place), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, place, full)
    meta = {"kind": "snapshot", "step": 20, "probe_fingerprint": probe.fingerprint}
    try:
        with FileWriter(snapshot_path(run, 20), meta) as file:
            file.write("main/outputs/logits", np.ones((2, 2), "f4"))
        assert (place, nth) == ("truncate", 2), "called once only"
    except OSError as error:
        assert error.errno == 28  # noqa: PT017
    monkeypatch.undo()
    assert [problem for found in verify_run(run) for problem in found.problems] == []
    assert [file for file in (run / "snapshots").iterdir() if file.name.endswith(".tmp")] == []
    prepare(run, force=False, resume=True)
    assert [found for found in verify_run(run) if found.problems or found.remarks] == []


def test_no_space_for_the_line_of_the_ledger(run, probe, monkeypatch):
    """The snapshot is complete and stays; its line comes when the run goes on."""
    before = (run / LEDGER).read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dynprobe.storage.ledger.append_line", full)
    meta = {"kind": "snapshot", "step": 20, "probe_fingerprint": probe.fingerprint}
    with pytest.raises(OSError, match="No space left"), FileWriter(snapshot_path(run, 20), meta) as file:
        file.write("main/outputs/logits", np.ones((2, 2), "f4"))
    monkeypatch.undo()
    assert (run / LEDGER).read_bytes() == before
    assert list_steps(run) == (0, 10, 20)
    assert [problem for found in verify_run(run) for problem in found.problems] == []
    prepare(run, force=False, resume=True)
    assert [found for found in verify_run(run) if found.problems or found.remarks] == []
