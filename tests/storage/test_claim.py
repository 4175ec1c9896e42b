"""One writer for a run directory: the second is refused, a dead one never blocks, with locks and without."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynprobe.errors import UsageError
from dynprobe.storage.claim import claim
from dynprobe.storage.directory import prepare
from dynprobe.storage.layout import LOCK, OWNER

HOLD = """
import errno, fcntl, sys, time
from pathlib import Path
if sys.argv[2] != "locks":
    def none(*arguments):
        raise OSError(int(sys.argv[2]), "No locks available")
    fcntl.flock = fcntl.lockf = none
from dynprobe.storage.claim import claim
held = claim(Path(sys.argv[1]))
print("claimed", flush=True)
time.sleep(60)
"""

# ENOLCK of network file systems, ENOTSUPP of the kernel, EOPNOTSUPP, ENOSYS.
WITHOUT_LOCKS = [37, 524, 95, 38]


@pytest.fixture(params=["locks", "37"])
def holder(request, run):
    """Another process that has claimed the run, with locks and without; the test sees the file system as it does."""
    monkeypatch = pytest.MonkeyPatch()
    if request.param != "locks":
        take_locks_away(monkeypatch)
    command = [sys.executable, "-c", HOLD, str(run), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"claimed\n"
        yield process
        process.kill()
    monkeypatch.undo()


def take_locks_away(monkeypatch, number=37):
    def none(*arguments):
        raise OSError(number, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    monkeypatch.setattr("fcntl.lockf", none)


def test_a_second_writer_is_refused_and_a_dead_one_never_blocks(run, holder):
    names = sorted(file.name for file in run.iterdir())
    with pytest.raises(UsageError, match="must have one writer; another process writes to it now"):
        claim(run)
    for flags in ({"force": True, "resume": False}, {"force": False, "resume": True}):
        with pytest.raises(UsageError, match="must have one writer"):
            prepare(run, **flags)
    assert sorted(file.name for file in run.iterdir()) == names, "nothing was touched"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    prepare(run, force=False, resume=True)
    claim(run).close()


@pytest.mark.parametrize("locks", [True, False])
def test_a_claim_ends_when_it_is_closed(run, monkeypatch, locks):
    if not locks:
        take_locks_away(monkeypatch)
    claim(run).close()
    with claim(run) as held:
        assert (run / OWNER).exists() != locks
        with pytest.raises(UsageError, match="must have one writer"):
            claim(run)
        held.close()
        claim(run).close()
    del held
    assert not (run / OWNER).exists()


@pytest.mark.parametrize("number", WITHOUT_LOCKS)
def test_every_way_to_have_no_locks(run, monkeypatch, number):
    take_locks_away(monkeypatch, number)
    with (
        claim(run),
        pytest.raises(UsageError, match=rf"number {os.getpid()} on host .*; when that process is dead, remove"),
    ):
        claim(run)


def test_without_hard_links_too(run, monkeypatch):
    take_locks_away(monkeypatch)

    def cannot(*arguments):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", cannot)
    with claim(run), pytest.raises(UsageError, match="must have one writer"):
        claim(run)


def test_system_without_fcntl(run, monkeypatch):
    monkeypatch.setattr("dynprobe.storage.claim.fcntl", None)
    with claim(run), pytest.raises(UsageError, match="must have one writer"):
        claim(run)


def facts(**changes):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "process": int(child.stdout), "started": "1", **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},  # the process is gone
        {"process": 1, "started": "0"},  # another process has its number now
        {"process": os.getpid(), "started": "0"},
        {"boot": "before the system was started again", "process": os.getpid()},
    ],
)
def test_a_file_of_a_dead_process_is_void(run, monkeypatch, changes):
    take_locks_away(monkeypatch)
    (run / OWNER).write_text(json.dumps(facts(**changes)))
    with claim(run):
        assert json.loads((run / OWNER).read_text())["process"] == os.getpid()
    assert sorted(run.glob(".writer*")) == [run / LOCK]


def test_a_file_of_another_host_is_believed(run, monkeypatch):
    """Nobody can ask there whether the process lives; what to do is said."""
    take_locks_away(monkeypatch)
    (run / OWNER).write_text(json.dumps(facts(host="elsewhere\x1b[2J")))
    with pytest.raises(UsageError, match=r"on host 'elsewhere\\x1b\[2J'.*remove .*\.writer\.json") as caught:
        claim(run)
    assert "\x1b" not in str(caught.value)
    (run / OWNER).unlink()
    claim(run).close()


def test_half_a_file_blocks_only_while_it_may_be_written(run, monkeypatch):
    take_locks_away(monkeypatch)
    for text in ("", '{"host": "a', "[]", "[" * 4000, '{"process": "me"}'):
        (run / OWNER).write_text(text)
        with pytest.raises(UsageError, match="must have one writer"):
            claim(run)
        old = time.time() - 60
        os.utime(run / OWNER, (old, old))
        claim(run).close()


def test_a_faster_process_keeps_what_it_took(run, monkeypatch):
    """Between our look at a void file and our taking it aside, another process has made its own claim."""
    take_locks_away(monkeypatch)
    from dynprobe.storage import claim as module

    void, theirs = facts(), {**facts(), "process": 1, "host": "elsewhere"}
    (run / OWNER).write_text(json.dumps(void))
    put_aside = module._put_aside

    def late(path, stale):
        (path / OWNER).write_text(json.dumps(theirs))
        put_aside(path, stale)

    monkeypatch.setattr(module, "_put_aside", late)
    with pytest.raises(UsageError, match="on host 'elsewhere'"):
        claim(run)
    assert json.loads((run / OWNER).read_text()) == theirs


@pytest.mark.parametrize("locks", [True, False])
def test_a_forked_worker_does_not_keep_the_claim_of_its_dead_parent(run, monkeypatch, locks):
    """As the workers of a DataLoader, which live on for a while when the training is killed."""
    if not locks:
        take_locks_away(monkeypatch)
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        held = claim(run)
        worker = os.fork()
        if worker == 0:
            os.write(writer, f"{os.getpid()} {held._owner is None}\n".encode())
            time.sleep(60)
        os.waitpid(worker, 0)
        os._exit(0)
    said = os.read(reader, 100).split()
    try:
        with pytest.raises(UsageError, match="must have one writer"):
            claim(run)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        claim(run).close()
    finally:
        os.kill(int(said[0]), signal.SIGKILL)
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("name", [LOCK, OWNER])
def test_links_are_never_followed(run, tmp_path, monkeypatch, name):
    precious = tmp_path / "precious"
    precious.write_text("keep")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    with pytest.raises(UsageError, match="must be a file of the run itself; got a symbolic link"):
        prepare(run, force=False, resume=True)
    take_locks_away(monkeypatch)
    with pytest.raises(UsageError):
        claim(run)
    assert precious.read_text() == "keep"


def test_a_pipe_instead_of_the_lock_does_not_hang(run):
    (run / LOCK).unlink()
    os.mkfifo(run / LOCK)
    with pytest.raises(UsageError, match="must be an ordinary file; got a device or pipe"):
        claim(run)
