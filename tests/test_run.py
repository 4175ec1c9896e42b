"""Reading a run: views of what was captured, and clear words about what was not."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dynprobe.errors import RunFormatError, StepNotFoundError
from dynprobe.run import Run, Snapshot, open_run
from dynprobe.storage.writer import FileWriter


def test_a_run_and_its_snapshots(run_a: Path) -> None:
    run = open_run(str(run_a))
    assert run.steps == (0, 2, 6)
    assert (len(run), run.name, run.max_steps, run.stacks) == (3, "run-a", 6, ("model",))
    assert [snapshot.step for snapshot in run] == [0, 2, 6]
    assert repr(run) == f"Run({str(run_a)!r}, steps=[0, 2, 6])"
    assert [record["step"] for record in run.scalars] == [0, 2, 6]
    assert run.notes == ()
    assert run.probe_set.n_examples == 40
    assert run[0] is run[0], "a snapshot is opened once"
    with pytest.raises(TypeError):
        run[0].meta["step"] = 5  # type: ignore[index]


def test_what_a_snapshot_holds(run_a: Path) -> None:
    run = open_run(run_a)
    snapshot, probe = run[2], run.probe_set
    lengths = probe.real["model"].sum(axis=1)
    assert snapshot.stacks == ("model",)
    assert snapshot.layers() == (0, 1, 2)
    assert snapshot.attention_layers() == (1, 2)
    assert snapshot.attention_layers(kind="cross") == ()
    assert snapshot.pooled_kinds() == ("first", "mean")
    assert snapshot.pooled_layers("mean") == (0, 1, 2)
    assert snapshot.hidden_states(1).shape == (lengths.sum(), 32)
    assert snapshot.hidden_rows().shape == (lengths.sum(), 2)
    assert (snapshot.n_heads(), snapshot.n_heads("decoder")) == (4, 0)
    assert list(snapshot.attention_examples()) == list(range(40))
    assert snapshot.n_bytes > 0
    assert snapshot.resolution("hidden_states", 1) == np.finfo(np.float16).eps
    # One array read in two ways: the pooled first token is the row of that token.
    first = np.array([np.flatnonzero(mask)[0] for mask in probe.real["model"]])
    rows = {tuple(row): values for row, values in zip(snapshot.hidden_rows(), snapshot.hidden_states(1), strict=True)}
    assert all((snapshot.pooled("first", 1)[i] == rows[i, p]).all() for i, p in enumerate(first))


def test_attention_is_read_one_example_at_a_time(run_a: Path) -> None:
    run = open_run(run_a)
    ragged, lengths = run[0].attentions(2), run.probe_set.real["model"].sum(axis=1)
    assert len(ragged) == 40
    assert [block.shape for block in ragged] == [(4, n, n) for n in lengths]
    assert np.array_equal(ragged[-1], ragged[39])
    assert np.array_equal(ragged.lengths, np.stack([lengths, lengths], axis=1))
    for index in (40, -41):
        with pytest.raises(IndexError, match=rf"must lie in 0..39; got {index}"):
            ragged[index]


def test_a_closed_or_pickled_snapshot_opens_again(run_a: Path) -> None:
    snapshot = open_run(run_a)[0]
    expected = snapshot.hidden_states(0)
    with snapshot:
        assert np.array_equal(snapshot.hidden_states(0), expected)
    assert np.array_equal(snapshot.hidden_states(0), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(snapshot)).hidden_states(0), expected)
    snapshot.close()
    snapshot.close()


def test_what_is_not_there_is_said(run_a: Path, tmp_path: Path) -> None:
    run = open_run(run_a)
    with pytest.raises(StepNotFoundError, match=r"`step` must be one of \[0, 2, 6\]; got 5"):
        run[5]
    with pytest.raises(
        RunFormatError, match=r"`main/model/hidden_states/9` must have been captured; this snapshot holds \['main/"
    ):
        run[0].hidden_states(9)
    with pytest.raises(RunFormatError, match="must have been captured; this snapshot holds nothing of the kind"):
        run[0].attentions(1, kind="cross")
    with pytest.raises(RunFormatError, match="must have been captured"):
        run[0].resolution("cross_attention", 1)
    for path, got in ((tmp_path, "a folder without a manifest"), (tmp_path / "none", "nothing")):
        with pytest.raises(RunFormatError, match=f"must be a run directory .*; got {got}"):
            open_run(path)


def test_a_run_without_its_manifest_still_reads(make_run: Callable[..., Path]) -> None:
    path = make_run("lost", steps=(0, 3))
    (path / "manifest.json").unlink()
    run = open_run(path)
    assert run.steps == (0, 3)
    assert run.max_steps is None
    assert run[3].hidden_states(1).shape[1] == 32


def test_a_run_without_snapshots(make_run: Callable[..., Path]) -> None:
    path = make_run("empty", steps=(0,))
    for file in (path / "snapshots").iterdir():
        file.unlink()
    run = Run(path)
    assert (run.steps, run.stacks, len(run)) == ((), (), 0)


def test_a_run_that_is_being_written_shows_what_is_complete(make_run: Callable[..., Path]) -> None:
    path = make_run("growing", steps=(0,))
    run = open_run(path)
    assert run.steps == (0,)
    (path / "snapshots" / "step-00000004.h5.tmp").write_bytes(b"half")
    assert open_run(path).steps == (0,)


def write(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None, **facts: Any) -> Snapshot:
    with FileWriter(path, {"kind": "snapshot", "step": 0, **(meta or {})}) as file:
        for name, array in arrays.items():
            file.write(name, array, **(facts if "attention/" in name else {}))
    return Snapshot(path)


@pytest.mark.parametrize(
    ("lengths", "facts", "complaint"),
    [
        (np.array([[2, 2]], dtype=np.int32), {"n_heads": 1}, "must hold 4 values; got 6"),
        (np.array([[2, 2]], dtype=np.int32), {"n_heads": "many"}, "must state its heads and lengths"),
        (np.array([[2, 2]], dtype=np.int32), {}, "must state its heads and lengths"),
        (np.array([[2, 3, 1]], dtype=np.int32), {"n_heads": 1}, "must state its heads and lengths"),
        (np.array([[-2, -3]], dtype=np.int32), {"n_heads": 1}, "must state its heads and lengths"),
        (np.array([[2.0, 3.0]], dtype=np.float32), {"n_heads": 1}, "must state its heads and lengths"),
    ],
)
def test_attention_that_contradicts_itself(
    lengths: np.ndarray, facts: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    arrays = {"main/model/self_attention/1": np.zeros(6, np.float16), "main/model/index/attention_shape": lengths}
    snapshot = write(tmp_path / "s.h5", arrays, **facts)
    with pytest.raises(RunFormatError, match=complaint):
        snapshot.attentions(1)


@pytest.mark.parametrize("names", [b"[", b"5", b'["a", "b"]', b"[" * 100_000, b"\xff"])
def test_weights_that_contradict_themselves(names: bytes, tmp_path: Path) -> None:
    arrays = {
        "parameters/names": np.frombuffer(names, dtype=np.uint8),
        "parameters/distance": np.zeros(1),
        "parameters/norm": np.zeros(1),
    }
    with pytest.raises(RunFormatError, match="`parameters` must name each weight tensor once"):
        write(tmp_path / "s.h5", arrays).parameter_changes()


def test_a_file_that_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(RunFormatError, match="must be a snapshot; got 'probe-set'"):
        _ = write(tmp_path / "a.h5", {"x": np.zeros(1)}, {"kind": "probe-set"}).step
    with pytest.raises(RunFormatError, match="must be a snapshot"):
        _ = write(tmp_path / "b.h5", {"x": np.zeros(1)}, {"step": "five"}).step
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(RunFormatError, match=r"c\.h5"):
        _ = Snapshot(tmp_path / "c.h5").step


def test_a_manifest_of_a_later_format(make_run: Callable[..., Path]) -> None:
    path = make_run("later", steps=(0,))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(RunFormatError, match="99"):
        open_run(path)
