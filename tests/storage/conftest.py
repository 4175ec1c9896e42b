"""Small run directories and raw HDF5 files for the tests of the storage room."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from dynprobe.probe_set import ProbeSet
from dynprobe.storage.directory import prepare, write_manifest
from dynprobe.storage.layout import probe_path, snapshot_path
from dynprobe.storage.probe_file import write_probe_set
from dynprobe.storage.writer import FileWriter


@pytest.fixture
def probe():
    ids = np.array([[2, 7, 3, 0], [2, 8, 9, 3]])
    return ProbeSet(
        inputs={"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)},
        real={"model": ids > 0},
        special={"model": (ids == 2) | (ids == 3)},
        labels=np.array([1, 0]),
        label_names=("no", "yes"),
        texts=(("seven",), ("eight nine \ud800",)),
        batch_size=2,
        tokenizer={"class": "None"},
        origin="hand",
    )


@pytest.fixture
def run(tmp_path, probe):
    """A complete run with two snapshots."""
    path = tmp_path / "run"
    prepare(path, force=False, resume=False)
    write_manifest(path, {"model": {"name": "tiny"}})
    write_probe_set(probe_path(path), probe)
    for step in (0, 10):
        meta = {"kind": "snapshot", "step": step, "probe_fingerprint": probe.fingerprint}
        with FileWriter(snapshot_path(path, step), meta) as file:
            file.write("main/model/hidden_states/0", np.full((7, 4), step, dtype=np.float16))
            file.write("main/outputs/logits", np.ones((2, 2), dtype=np.float32))
    return path


def _seal(file: h5py.File, document=None, **changes):
    """Add a description that fits the arrays of a raw file, so that nothing but the array in question is wrong."""
    datasets = {}

    def describe(name, item):
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            datasets[name] = {"sha256": "0" * 64, "shape": list(item.shape), "dtype": item.dtype.str}

    if document is None:
        file.visititems(describe)
        document = {"format": 1, "datasets": datasets, **changes}
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    file["meta"] = np.frombuffer(text, dtype=np.uint8)
    file["meta_sha256"] = np.frombuffer(hashlib.sha256(text).digest(), dtype=np.uint8)


@pytest.fixture
def seal():
    return _seal


@pytest.fixture
def good(tmp_path) -> Path:
    """An intact file."""
    path = tmp_path / "good.h5"
    with FileWriter(path, {"kind": "example"}) as file:
        file.write("a/b", np.arange(12, dtype=np.float32).reshape(3, 4))
        file.write("c", np.arange(5, dtype=np.int32))
    return path
