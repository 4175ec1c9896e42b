"""The writer: a file is complete or is not there."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynprobe.errors import RunFormatError
from dynprobe.storage.directory import sweep
from dynprobe.storage.layout import snapshot_path
from dynprobe.storage.reader import FileReader
from dynprobe.storage.writer import FileWriter, write_atomically


def _names(folder):
    return sorted(file.name for file in folder.iterdir())


NUMBERS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4, 0), (0,), (1,), (2, 3, 4)])
def test_arrays_come_back(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    with FileWriter(tmp_path / "x.h5", {}) as file:
        file.write("a", array, n_heads=3)
    with FileReader(tmp_path / "x.h5") as file:
        read = file.read("a")
        assert file.facts("a")["n_heads"] == 3
        assert file.is_intact("a")
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)), st.data())
def test_blocks_give_the_same_file_as_the_whole(tmp_path_factory, array, data):
    folder = tmp_path_factory.mktemp("blocks")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=4)))
    with FileWriter(folder / "whole.h5", {}) as file:
        file.write("a", array)
    with FileWriter(folder / "blocks.h5", {}) as file:
        file.create("a", array.shape, array.dtype)
        for start, stop in zip([0, *cuts], [*cuts, len(array)], strict=True):
            file.append("a", array[start:stop])
    with FileReader(folder / "whole.h5") as whole, FileReader(folder / "blocks.h5") as blocks:
        assert whole.facts("a") == blocks.facts("a")
        assert whole.read("a").tobytes() == blocks.read("a").tobytes() == array.tobytes()


def test_big_endian_and_strided_arrays_are_stored_little_endian(tmp_path):
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    with FileWriter(tmp_path / "x.h5", {}) as file:
        file.write("a", array)
    with FileReader(tmp_path / "x.h5") as file:
        assert file.facts("a")["dtype"] == "<i4"
        assert file.is_intact("a")
        np.testing.assert_array_equal(file.read("a"), array)


def test_files_follow_the_rules_of_the_format(good):
    with h5py.File(good, "r") as file:
        found = []
        file.visititems(lambda name, item: found.append((name, item)))
        assert {name for name, _ in found} == {"a", "a/b", "c", "meta", "meta_sha256"}
        assert all(len(item.attrs) == 0 for _, item in found)
        arrays = [item for _, item in found if isinstance(item, h5py.Dataset)]
        assert all(item.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS for item in arrays)


def test_writer_decides_format_and_checksums(tmp_path):
    with FileWriter(tmp_path / "x.h5", {"format": 99, "datasets": {}}) as file:
        file.write("a", np.ones(2), sha256="mine")
    with FileReader(tmp_path / "x.h5") as file:
        assert file.meta["format"] == 1
        assert file.is_intact("a")


def test_meta_keeps_half_of_a_surrogate_pair(tmp_path):
    with FileWriter(tmp_path / "x.h5", {"text": "a\ud800é"}):
        pass
    with FileReader(tmp_path / "x.h5") as file:
        assert file.meta["text"] == "a\ud800é"


def _write_and_fail(path):
    with FileWriter(path, {}) as file:
        file.write("a", np.ones(3))
        raise KeyError("mine")


def _fill(path, block):
    with FileWriter(path, {}) as file:
        file.create("a", (3, 2), "f4")
        file.append("a", block)


def test_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        _write_and_fail(tmp_path / "x.h5")
    assert _names(tmp_path) == []


def test_exception_leaves_the_earlier_file(good):
    before = good.read_bytes()
    with pytest.raises(KeyError, match="mine"):
        _write_and_fail(good)
    assert good.read_bytes() == before


def test_incomplete_array_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"must be filled before the file is closed; not complete: \['a'\]"):
        _fill(tmp_path / "x.h5", np.ones((2, 2), "f4"))
    assert _names(tmp_path) == []


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": np.ones(1)}, {"x": object()}])
def test_meta_that_is_no_json_is_refused(tmp_path, meta):
    with pytest.raises((ValueError, TypeError), match="JSON"), FileWriter(tmp_path / "x.h5", meta):
        pass
    assert _names(tmp_path) == []


def test_too_long_description_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dynprobe.storage.writer.MAX_META_BYTES", 100)
    limit = pytest.raises(ValueError, match="description must have at most 100 bytes")
    with limit, FileWriter(tmp_path / "x.h5", {"x": "y" * 100}):
        pass
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.ones((4, 2), "f4"), r"must get rows of shape \(2,\), 3 more; got \(4, 2\)"),
        (np.ones((3, 1), "f4"), r"must get rows of shape \(2,\), 3 more; got \(3, 1\)"),
        (np.ones(3, "f4"), "must get rows of shape"),
        (np.ones((3, 2), "c8"), "must get float32 numbers; got complex64"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, block, message):
    with pytest.raises(ValueError, match=message):
        _fill(tmp_path / "x.h5", block)


@pytest.mark.parametrize("name", ["meta", "meta_sha256", "", "/a", "a//b", "../a", "a b", "/".join("abcdefghi")])
def test_names_outside_the_format_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="`name` must be made of letters"), FileWriter(tmp_path / "x.h5", {}) as file:
        file.write(name, np.ones(1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(1.0), "must have at least one axis"),
        (np.array(["a"]), "must hold plain numbers"),
        (np.array([True]), "must hold plain numbers"),
        (np.array([1j]), "must hold plain numbers"),
        (np.ones(1, np.longdouble), "must hold plain numbers"),
    ],
)
def test_arrays_outside_the_format_are_refused(tmp_path, array, message):
    with pytest.raises(ValueError, match=message), FileWriter(tmp_path / "x.h5", {}) as file:
        file.write("a", array)


def test_missing_folder(tmp_path):
    with pytest.raises(OSError, match="No such file"), FileWriter(tmp_path / "no" / "x.h5", {}):
        pass


def test_stale_temporary_link_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep")
    (tmp_path / f"x.h5.{os.getpid()}.tmp").symlink_to(target)
    with FileWriter(tmp_path / "x.h5", {}):
        pass
    assert target.read_text() == "keep"
    assert _names(tmp_path) == ["precious", "x.h5"]


def test_text_is_replaced_whole(tmp_path, monkeypatch):
    file = tmp_path / "manifest.json"
    write_atomically(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_text() == "old"
    assert _names(tmp_path) == ["manifest.json"]


def test_stale_temporary_link_of_a_text_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep")
    (tmp_path / f"manifest.json.{os.getpid()}.tmp").symlink_to(target)
    write_atomically(tmp_path / "manifest.json", b"new")
    assert target.read_text() == "keep"
    assert _names(tmp_path) == ["manifest.json", "precious"]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from dynprobe.storage.writer import FileWriter
with FileWriter(Path(sys.argv[1]), {}) as file:
    file.create("a", (10**6, 64), "f4")
    block = np.ones((1000, 64), dtype="f4")
    for row in range(0, 10**6, 1000):
        file.append("a", block)
        print("row", flush=True)
"""


def test_killed_writer_leaves_no_file_under_the_final_name(tmp_path):
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / "mine.tmp").touch()
    final = snapshot_path(tmp_path, 5)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(final)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert _names(folder) == sorted(["mine.tmp", f"{final.name}.{process.pid}.tmp"])
    with pytest.raises(RunFormatError, match=r"\.tmp"):
        FileReader(folder / f"{final.name}.{process.pid}.tmp")
    sweep(tmp_path)
    assert _names(folder) == ["mine.tmp"]


FULL = """
import json, os, resource, sys
from pathlib import Path
import numpy as np
from dynprobe.storage.writer import FileWriter
folder, seen = Path(sys.argv[1]), {}
for limit in range(0, 200_000, 4001):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with FileWriter(folder / "x.h5", {"text": "y" * 9000}) as file:
            for layer in range(5):
                file.write(f"main/{layer}", np.ones((50, 20), dtype="f4"))
        seen[limit] = "complete"
    except OSError:
        seen[limit] = "refused"
    left = os.listdir(folder)
    if left != (["x.h5"] if seen[limit] == "complete" else []):
        seen[limit] = f"left {left}"
    for name in left:
        os.unlink(folder / name)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
sys.stdout.write(json.dumps(seen))
"""


def test_file_system_that_cannot_reserve_space(tmp_path, monkeypatch):
    def cannot(descriptor, start, length):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    _fill(tmp_path / "x.h5", np.ones((3, 2), "f4"))
    monkeypatch.delattr(os, "posix_fallocate")
    _fill(tmp_path / "y.h5", np.ones((3, 2), "f4"))
    with FileReader(tmp_path / "x.h5") as x, FileReader(tmp_path / "y.h5") as y:
        assert x.meta == y.meta


def test_full_disk_says_which_file_and_how_much(tmp_path, monkeypatch):
    def full(descriptor, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: no space for \d+ bytes: '.*x\.h5'"):
        _fill(tmp_path / "x.h5", np.ones((3, 2), "f4"))
    assert _names(tmp_path) == []


def test_space_that_was_not_needed_goes_back(good):
    assert good.stat().st_size < 10_000


def test_full_disk_is_an_ordinary_error_at_every_fill_level(tmp_path):
    """A limit of the file size stands for a full disk; 30 kB are needed, and the limits go to 200 kB."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert set(seen.values()) == {"refused", "complete"}
    needed = 5 * 50 * 20 * 4 + 9000
    assert all(result == "refused" for limit, result in seen.items() if int(limit) < needed)
    assert seen["196049"] == "complete"
