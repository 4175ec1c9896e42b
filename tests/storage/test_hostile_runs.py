"""Run directories from strangers: paths that lead out, JSON bombs, arrays of the wrong shape, numbers that lead nowhere."""

import json
import os
import resource
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from dynprobe.errors import RunFormatError
from dynprobe.run import Snapshot, open_run
from dynprobe.storage.directory import read_manifest
from dynprobe.storage.layout import LEDGER, MANIFEST, SCALARS, probe_path, snapshot_path
from dynprobe.storage.probe_file import write_probe_set
from dynprobe.storage.verify import verify_run
from dynprobe.storage.writer import FileWriter


def unlisted(run):
    """A stranger's run has no ledger, or one that fits what the stranger wants."""
    (run / LEDGER).unlink()
    return run


@pytest.mark.parametrize("folder", ["snapshots", "probes"])
def test_a_folder_that_leads_out_of_the_run(run, tmp_path, folder):
    (run / folder).rename(tmp_path / "elsewhere")
    (run / folder).symlink_to(tmp_path / "elsewhere")
    for action in (open_run, lambda path: list(verify_run(path))):
        with pytest.raises(RunFormatError, match=rf"{folder}: must be a folder of the run itself; got a symbolic link"):
            action(run)


@pytest.mark.parametrize("name", ["snapshots/step-00000010.h5", "probes/main.h5"])
def test_a_file_that_leads_out_of_the_run(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere.h5")
    (run / name).symlink_to(tmp_path / "elsewhere.h5")
    opened = open_run(unlisted(run))
    with pytest.raises(RunFormatError, match="must be an ordinary file; got a symbolic link"):
        _ = opened.probe_set if name.startswith("probes") else opened[10].step


@pytest.mark.parametrize("name", [MANIFEST, SCALARS, LEDGER])
def test_pipes_devices_and_folders_never_hang(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    started = time.monotonic()
    assert open_run(run).steps == (0, 10)
    _ = open_run(run).scalars
    list(verify_run(run))
    (run / name).unlink()
    (run / name).mkdir()
    assert open_run(run).steps == (0, 10)
    list(verify_run(run))
    assert time.monotonic() - started < 5


PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "snapshots/../../x",
    "~/.ssh/id_rsa",
    "\\\\host\\share",
    "a\0b",
    "file:///etc/passwd",
]


watched: list[list[str]] = []
sys.addaudithook(lambda event, arguments: [names.append(str(arguments[0])) for names in watched if event == "open"])


@pytest.mark.parametrize("path", PATHS)
def test_no_path_in_a_manifest_is_followed(run, path):
    """Whatever it says about files, only the files of the run itself are opened."""
    document = {
        "format": 1,
        "model": {"name": path},
        "snapshots": [path],
        "probe": path,
        "run_dir": path,
        "command": [path],
    }
    (run / MANIFEST).write_text(json.dumps(document))
    opened: list[str] = []
    watched.append(opened)
    assert open_run(run).steps == (0, 10)
    assert open_run(run).probe_set.n_examples == 2
    assert open_run(run)[10].outputs() is not None
    assert open_run(run).scalars == []
    watched.clear()
    assert str(run / MANIFEST) in opened, "the watch works"
    assert [file for file in opened if not file.startswith(str(run))] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 2_000_000, "must hold a JSON object"),
        (b'{"a":' * 200_000, "must hold a JSON object"),
        (b'{"format": 1, "x": [' + b"[]," * 1_000_000 + b"[]]}", "more than 1000000 objects and arrays"),
        (b'{"format": 1, "x": [' + b"{}," * 1_000_000 + b"{}]}", "more than 1000000 objects and arrays"),
        (b'{"format": 1, "x": ' + b"9" * 1_000_000 + b"}", "must hold a JSON object; got Exceeds the limit"),
        (b'{"format": ' + b"9" * 4000 + b"}", "must have format 1 or earlier"),
        (b'{"format": 1, "x": 1e400}', "which is no finite number"),
        (b'{"format": 1, "x": -1e400}', "which is no finite number"),
        (b'{"format": 1, "x": NaN}', "which is no JSON number"),
        (b'{"format": 1, "status": "finished"}', "`status` must be a JSON object"),
        (b'{"format": 1, "training": [1]}', "`training` must be a JSON object"),
        (b" " * (16 * 2**20 + 1), "must be an ordinary file of at most 16777216 bytes"),
        (b'{"format": 1, "x": "' + b"\\ud800" * 5 + b"\xff" + b'"}', "must hold a JSON object"),
    ],
)
def test_manifests_that_are_bombs(run, text, message):
    (run / MANIFEST).write_bytes(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(RunFormatError, match=message) as caught:
        open_run(run)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_manifest_of_odd_numbers_does_no_harm(run):
    odd = {"max_steps": True, "created": ["x"], "notes": [1, None, {"a": 1}], "planned_steps": {}, "contents": "x"}
    (run / MANIFEST).write_text(json.dumps({"format": 1, **odd}))
    opened = open_run(run)
    assert opened.max_steps is None
    assert opened.notes == ("1", "None", "{'a': 1}")
    (run / MANIFEST).write_text(json.dumps({"format": 1, "max_steps": 10**4000}))
    assert read_manifest(run)["max_steps"] == 10**4000


F4, F2, I4 = np.ones((2, 2), "f4"), np.ones((7, 4), "f2"), np.zeros((7, 2), "i4")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"main/model/hidden_states/0": F2[0]},
            "`main/model/hidden_states/0` must hold floating-point numbers on 2 axis",
        ),
        ({"main/model/hidden_states/0": I4}, "must hold floating-point numbers on 2 axis.*; got int32 of shape"),
        ({"main/model/pooled/first/0": F2[None]}, "must hold floating-point numbers on 2 axis"),
        ({"own.train/model/pooled/first/0": F2[0]}, "must hold floating-point numbers on 2 axis"),
        ({"own.test/random-model/pooled/mean/3": I4}, "`own.test/random-model/pooled/mean/3` must hold floating-point"),
        ({"main/model/self_attention/1": F2}, "must hold floating-point numbers on 1 axis"),
        ({"main/model/value_norms/1": F2[0]}, "must hold floating-point numbers on 2 axis"),
        ({"main/model/index/hidden_rows": F2}, "must hold integers on 2 axis"),
        ({"main/model/index/attention_examples": I4}, "must hold integers on 1 axis"),
        ({"main/outputs/logits": F4[0]}, "must hold floating-point numbers on 2 axis"),
        ({"main/outputs/logits": I4}, "must hold floating-point numbers on 2 axis"),
        ({"main/outputs/nll": F4}, "must hold floating-point numbers on 1 axis"),
        ({"main/outputs/nll_offsets": F4[0]}, "must hold integers on 1 axis"),
        ({"parameters/names": F4[0]}, "must hold bytes on 1 axis"),
        ({"parameters/distance": I4[0]}, "must hold floating-point numbers on 1 axis"),
        (
            {"main/model/hidden_states/0": F2, "main/model/index/hidden_rows": I4[:3]},
            "must name example and position of each",
        ),
        (
            {"main/model/hidden_states/0": F2, "main/model/index/hidden_rows": I4[:, :1]},
            "must name example and position",
        ),
    ],
)
def test_arrays_of_the_wrong_kind_are_refused_when_a_snapshot_is_opened(run, arrays, message):
    with FileWriter(snapshot_path(run, 10), {"kind": "snapshot", "step": 10}) as file:
        for name, array in arrays.items():
            file.write(name, array)
    with pytest.raises(RunFormatError, match=message):
        _ = open_run(run)[10].step


def test_a_model_that_is_no_object(run):
    with FileWriter(snapshot_path(run, 10), {"kind": "snapshot", "step": 10, "model": ["x"]}):
        pass
    with pytest.raises(RunFormatError, match=r"`model` must be a JSON object; got \['x'\]"):
        _ = open_run(run)[10].step


def snapshot(run, arrays, **facts):
    with FileWriter(snapshot_path(run, 10), {"kind": "snapshot", "step": 10}) as file:
        for name, array in arrays.items():
            file.write(name, array, **(facts if "attention/" in name else {}))
    return open_run(run)[10]


def test_vectors_of_a_probe_task_that_the_run_has_not(run):
    found = snapshot(run, {"own.train/model/pooled/first/0": F2, "own.test/model/pooled/first/0": F2[:2]})
    with pytest.raises(RunFormatError, match=r"one vector for each of the 0 examples of own\.train\.h5; got 7"):
        found.pooled("first", 0, probe="own.train")
    os.mkfifo(probe_path(run, "own.test"))
    with pytest.raises(RunFormatError, match=r"each of the 0 examples of own\.test\.h5; got 2"):
        found.pooled("first", 0, probe="own.test")


@pytest.mark.parametrize(
    "labels", [None, np.array([0.5, 1.5]), np.array([-1, 0]), np.array([0, 2]), np.array([[0], [1]])]
)
def test_a_probe_task_without_classes(run, probe, labels):
    for split in ("train", "test"):
        write_probe_set(probe_path(run, f"own.{split}"), replace(probe, labels=labels))
    opened = open_run(run)
    assert opened.probe_tasks == ("own",)
    with pytest.raises(RunFormatError, match=r"own\.test\.h5: the examples of a probe task must each have the index"):
        opened.probe_task("own", "test")


def test_a_probe_task_that_leads_out_of_the_run(run, tmp_path, probe):
    write_probe_set(tmp_path / "elsewhere.h5", probe)
    for split in ("train", "test"):
        probe_path(run, f"own.{split}").symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(RunFormatError, match="must be an ordinary file; got a symbolic link"):
        open_run(run).probe_task("own", "train")


def test_names_that_are_no_probe_task(run, probe):
    for name in ("own", "own.train", "a.b.train", "a.b.test", ".train", "-a.train", "-a.test", "own.dev"):
        write_probe_set(probe_path(run, name), probe) if name[0] not in ".-" else probe_path(run, name).touch()
    assert open_run(run).probe_tasks == ()


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[0, 0], [2, 0]], "i4"),
        np.array([[0, 4]], "i4"),
        np.array([[-1, 0]], "i4"),
        np.array([[0, -(2**63)]], "i8"),
        np.array([[0, 2**64 - 1]], "u8"),
    ],
)
def test_tokens_outside_the_probe_set(run, rows):
    with pytest.raises(RunFormatError, match="examples and positions must lie inside the probe set"):
        snapshot(run, {"main/model/index/hidden_rows": rows}).hidden_rows()
    assert snapshot(run, {"main/model/index/hidden_rows": rows[:0]}).hidden_rows().shape == (0, 2)
    inside = np.array([[1, 3], [0, 0]], "i4")
    assert snapshot(run, {"main/model/index/hidden_rows": inside}).hidden_rows().tolist() == inside.tolist()


def test_attention_of_examples_outside_the_probe_set(run):
    name = "main/model/index/attention_examples"
    with pytest.raises(RunFormatError, match=r"must lie inside the probe set, \(2, 4\); got \[2\]"):
        snapshot(run, {name: np.array([0, 2], "i4")}).attention_examples()
    assert snapshot(run, {name: np.array([1], "i4")}).attention_examples().tolist() == [1]
    probe_path(run).unlink()
    assert Snapshot(snapshot_path(run, 10)).attention_examples().tolist() == [1], "without a probe set nothing is known"


@pytest.mark.parametrize("lengths", [[[2**32, 2**32]], [[2**31, 2**33], [1, 4]], [[4, 0], [0, 9]]])
def test_lengths_whose_product_overflows(run, lengths):
    arrays = {
        "main/model/self_attention/1": np.ones(4, "f2"),
        "main/model/index/attention_shape": np.array(lengths, "i8"),
    }
    with pytest.raises(RunFormatError, match=r"must hold \d+ values; got 4"):
        snapshot(run, arrays, n_heads=1).attentions(1)


@pytest.mark.parametrize("heads", [10**30, True, 1.0, -1])
def test_heads_that_are_no_number_of_heads(run, heads):
    arrays = {
        "main/model/self_attention/1": np.ones(4, "f2"),
        "main/model/index/attention_shape": np.array([[2, 2]], "i4"),
    }
    with pytest.raises(RunFormatError, match=r"must (state its heads and lengths|hold 40{30} values)"):
        snapshot(run, arrays, n_heads=heads).attentions(1)


@pytest.mark.parametrize("offsets", [[0, 5, 3, 7], [1, 7], [0, 6], [0, 99], [-1, 7], []])
def test_offsets_that_lead_nowhere(run, offsets):
    arrays = {"main/outputs/nll": np.ones(7, "f4"), "main/outputs/nll_offsets": np.array(offsets, "i8")}
    with pytest.raises(RunFormatError, match="offsets must ascend from 0 to the number of rows, 7"):
        snapshot(run, arrays).outputs()


def test_layers_with_two_names_for_a_number(run):
    arrays = {f"main/model/hidden_states/{name}": F2 for name in ("1", "01", "001", "9" * 60, "two")}
    assert snapshot(run, arrays).layers() == (1,)


def test_a_hostile_snapshot_is_refused_whichever_way_it_is_asked_for(run):
    import h5py

    with h5py.File(snapshot_path(unlisted(run), 10), "w") as file:
        file["x"] = h5py.ExternalLink("/etc/passwd", "/")
    for action in (lambda: open_run(run)[10].step, lambda: open_run(run)[10].hidden_states(0)):
        with pytest.raises(RunFormatError, match="must be a hard link; got ExternalLink"):
            action()
    assert any("must be a hard link" in problem for check in verify_run(run) for problem in check.problems)
