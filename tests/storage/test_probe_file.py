"""A probe set as a file: everything comes back, and what does not fit its fingerprint is refused."""

import numpy as np
import pytest

from dynprobe.errors import RunFormatError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage import probe_file
from dynprobe.storage.probe_file import read_probe_set, write_probe_set
from dynprobe.storage.writer import FileWriter


def test_everything_comes_back(tmp_path, probe):
    write_probe_set(tmp_path / "main.h5", probe)
    back = read_probe_set(tmp_path / "main.h5")
    assert back.fingerprint == probe.fingerprint
    assert back.label_fingerprint == probe.label_fingerprint
    assert back.example_ids == probe.example_ids
    for name in ("label_names", "texts", "batch_size", "tokenizer", "origin"):
        assert getattr(back, name) == getattr(probe, name)
    assert back.real["model"].dtype == bool
    assert back.labels.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [bool, "u1", "i4", "i8", "f2", "f4", "f8"])
def test_inputs_of_every_type_come_back(tmp_path, dtype):
    values = np.array([[0, 1], [1, 1]]).astype(dtype)
    probe = ProbeSet(inputs={"pixel_values": values}, real={}, special={}, labels=np.array([0.5, -1.0]))
    write_probe_set(tmp_path / "main.h5", probe)
    back = read_probe_set(tmp_path / "main.h5")
    assert back.inputs["pixel_values"].dtype == values.dtype
    assert back.labels.dtype == np.float64
    assert back.texts is None
    assert back.label_names is None
    assert back.fingerprint == probe.fingerprint


def _write(path, probe, *, arrays=None, **changes):
    """A probe file with other arrays or other facts than the probe set has, but right checksums."""
    meta = {"kind": "probe-set", "fingerprint": probe.fingerprint, "label_fingerprint": None, "batch_size": 2}
    arrays = {
        **{f"inputs/{name}": array for name, array in probe.inputs.items()},
        **{f"{kind}/model": getattr(probe, kind)["model"].astype(np.uint8) for kind in ("real", "special")},
        **(arrays or {}),
    }
    with FileWriter(path, {**meta, **changes}) as file:
        for name, array in arrays.items():
            file.write(name, array, boolean=name.startswith(("real", "special")))
    return path


def test_hand_made_file_is_read(tmp_path, probe):
    assert read_probe_set(_write(tmp_path / "x.h5", probe)).n_examples == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "snapshot"}, "must be a probe set; got 'snapshot'"),
        ({"fingerprint": "0" * 64}, "inputs must have the fingerprint"),
        ({"fingerprint": None}, "inputs must have the fingerprint"),
        ({"arrays": {"inputs/input_ids": np.full((2, 4), 5)}}, "inputs must have the fingerprint"),
        ({"arrays": {"real/model": np.ones((2, 4), "u1")}}, "inputs must have the fingerprint"),
        ({"label_fingerprint": "0" * 64}, "labels must have the fingerprint"),
        ({"arrays": {"labels": np.array([0, 1])}}, "labels must have the fingerprint"),
        ({"arrays": {"labels": np.array([0, 1, 1])}}, "must hold a consistent probe set; `labels` must have 2 entries"),
        ({"arrays": {"inputs/x": np.ones(3)}}, "must hold a consistent probe set; input `x` must have"),
        ({"batch_size": None}, "must hold a consistent probe set"),
        ({"batch_size": 0}, "must hold a consistent probe set; `batch_size` must be at least 1"),
        ({"batch_size": "many"}, "must hold a consistent probe set"),
        ({"texts": 3}, "must hold a consistent probe set"),
        ({"texts": ["a"]}, "must hold a consistent probe set; `texts` must have 2 entries"),
        ({"label_names": 3}, "must hold a consistent probe set"),
        ({"tokenizer": "x"}, "must hold a consistent probe set"),
    ],
)
def test_file_that_does_not_fit_is_refused(tmp_path, probe, changes, message):
    path = _write(tmp_path / "x.h5", probe, **changes)
    with pytest.raises(RunFormatError, match=message):
        read_probe_set(path)


def test_file_without_inputs_is_refused(tmp_path):
    with FileWriter(tmp_path / "x.h5", {"kind": "probe-set"}):
        pass
    with pytest.raises(RunFormatError, match="must hold a consistent probe set; a probe set must hold at least one"):
        read_probe_set(tmp_path / "x.h5")


def test_huge_batch_size_is_refused(tmp_path, probe, monkeypatch):
    """1e999 is JSON, and infinite once it is read."""
    path = _write(tmp_path / "x.h5", probe)
    open_file = probe_file.FileReader

    def with_infinity(path, **options):
        file = open_file(path, **options)
        file.meta["batch_size"] = float("inf")
        return file

    monkeypatch.setattr(probe_file, "FileReader", with_infinity)
    with pytest.raises(RunFormatError, match="must hold a consistent probe set"):
        read_probe_set(path)
