"""Reading and writing need no locks: whatever HDF5 is told about them, and on file systems that have none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dynprobe.errors import RunFormatError
from dynprobe.storage.reader import FileReader
from dynprobe.storage.writer import FileWriter

SETTINGS = [None, "TRUE", "FALSE", "BEST_EFFORT"]

# A reader that stays open, and comes again, beside a writer that goes on.
BESIDE = """
import sys
from pathlib import Path
import numpy as np
from dynprobe.run import open_run
from dynprobe.storage.claim import claim
from dynprobe.storage.directory import append_scalars
from dynprobe.storage.layout import snapshot_path
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter

path = Path(sys.argv[1])
with claim(path):
    run = open_run(path)
    first = run[0]._file.read("main/outputs/logits")
    meta = {"kind": "snapshot", "step": 30, "probe_fingerprint": run.probe_set.fingerprint}
    with FileWriter(snapshot_path(path, 30), meta) as f:
        f.create("main/outputs/logits", (2, 2), "f4")
        assert open_run(path).steps == (0, 10)
        f.append("main/outputs/logits", np.full((2, 2), 3, "f4"))
        assert (open_run(path)[0].outputs().values == first).all()
    append_scalars(path, {"step": 30})
    again = open_run(path, verify=True)
    assert again.steps == (0, 10, 30) and again.scalars == [{"step": 30}]
    assert again[30].outputs().values.tolist() == [[3, 3], [3, 3]]
    assert not [check for check in verify_run(path) if check.problems or check.remarks]
print("read")
"""

# Takes every kind of lock away from a process, as a network file system does.
NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int fd, int how) { errno = ENOLCK; return -1; }
int fcntl(int fd, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    if (command == F_SETLK || command == F_SETLKW) { errno = ENOLCK; return -1; }
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, "fcntl");
    return real(fd, command, argument);
}
"""


def beside(run, setting, **more):
    environment = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}
    if setting is not None:
        environment["HDF5_USE_FILE_LOCKING"] = setting
    command = [sys.executable, "-c", BESIDE, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "read\n", done.stderr
    return sorted(file.name for file in run.glob(".writer*"))


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_reading_beside_writing(run, setting):
    assert beside(run, setting) == [".writer.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_reading_beside_writing_where_there_are_no_locks(run, tmp_path, setting):
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler to take locks away")
    (tmp_path / "none.c").write_text(NO_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "none.so", tmp_path / "none.c", "-ldl"], check=True)
    beside(run, setting, LD_PRELOAD=str(tmp_path / "none.so"))


@pytest.mark.parametrize("number", [37, 95, 38, 524])
def test_where_hdf5_insists_on_locks_that_are_not_there(tmp_path, monkeypatch, number):
    real = h5py.File.__init__

    def insists(self, name, *arguments, **options):
        if isinstance(name, Path):
            raise OSError(number, "unable to lock file")
        real(self, name, *arguments, **options)

    monkeypatch.setattr(h5py.File, "__init__", insists)
    with FileWriter(tmp_path / "x.h5", {"kind": "example"}) as file:
        file.write("a", np.arange(3))
    with FileReader(tmp_path / "x.h5", verify=True) as file:
        assert file.read("a").tolist() == [0, 1, 2]
    monkeypatch.undo()
    with FileReader(tmp_path / "x.h5", verify=True) as file:
        assert file.read("a").tolist() == [0, 1, 2]
    (tmp_path / "y.h5").write_bytes((tmp_path / "x.h5").read_bytes()[:-200])
    monkeypatch.setattr(h5py.File, "__init__", insists)
    with pytest.raises(RunFormatError, match="must be a complete dynprobe file"):
        FileReader(tmp_path / "y.h5")


def test_another_error_is_not_taken_for_missing_locks(tmp_path, monkeypatch, good):
    def refuses(self, *arguments, **options):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(h5py.File, "__init__", refuses)
    with pytest.raises(RunFormatError, match="Permission denied"):
        FileReader(good)
