"""Writing one immutable HDF5 file: temporary name, streamed blocks, sha256 of each dataset, fsync, rename.

Datasets are contiguous and uncompressed. Chunked HDF5 can end the process with a segmentation fault when the disk is full;
contiguous datasets raise an ordinary ``OSError``.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from dynprobe.storage.layout import FORMAT_VERSION, META, META_DIGEST, TEMPORARY_SUFFIX


class FileWriter:
    """Streams arrays into one new file; the file appears under its name only when it is complete.

    A context manager: leaving it normally commits, leaving it by an exception removes the temporary file.

    Parameters
    ----------
    path
        Final name. Its folder must exist.
    meta
        JSON-able facts stored beside the arrays.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        self._meta = dict(meta)
        self._datasets: dict[str, h5py.Dataset] = {}
        self._filled: dict[str, int] = {}
        self._digests: dict[str, Any] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "FileWriter":
        # v110: readable by every HDF5 from 1.10 on. The chunk cache is switched off because nothing is chunked.
        self._file = h5py.File(self._temporary, "w", libver=("v110", "v110"), rdcc_nbytes=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def create(self, name: str, shape: tuple[int, ...], dtype: Any, **facts: Any) -> None:
        """Declare an array of known shape, to be filled row block by row block with :meth:`append`."""
        self._datasets[name] = self._file.create_dataset(name, shape=shape, dtype=np.dtype(dtype).newbyteorder("<"))
        self._filled[name] = 0
        self._digests[name] = hashlib.sha256()
        self._facts[name] = facts

    def append(self, name: str, block: np.ndarray) -> None:
        """Write the next rows of an array, in order."""
        dataset = self._datasets[name]
        start = self._filled[name]
        data = np.ascontiguousarray(block, dtype=dataset.dtype)
        if len(data):
            dataset[start : start + len(data)] = data
        self._digests[name].update(memoryview(data).cast("B") if data.size else b"")
        self._filled[name] = start + len(data)

    def write(self, name: str, array: np.ndarray, **facts: Any) -> None:
        """Write a whole array at once."""
        self.create(name, array.shape, array.dtype, **facts)
        self.append(name, array)

    def _commit(self) -> None:
        incomplete = [name for name, data in self._datasets.items() if self._filled[name] != data.shape[0]]
        if incomplete:
            raise RuntimeError(f"arrays must be filled before the file is closed; not complete: {incomplete[:5]}")
        self._write_meta()
        self._file.close()
        sync_file(self._temporary)
        os.replace(self._temporary, self._path)
        sync_folder(self._path.parent)

    def _write_meta(self) -> None:
        datasets = {
            name: {
                "sha256": self._digests[name].hexdigest(),
                "shape": list(data.shape),
                "dtype": data.dtype.str,
                **self._facts[name],
            }
            for name, data in self._datasets.items()
        }
        document = {"format": FORMAT_VERSION, **self._meta, "datasets": datasets}
        text = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        self._file.create_dataset(META, data=np.frombuffer(text, dtype=np.uint8))
        self._file.create_dataset(META_DIGEST, data=np.frombuffer(hashlib.sha256(text).digest(), dtype=np.uint8))


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file so that readers see the old or the new content, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, where the system allows it (POSIX)."""
    if os.name == "posix":
        sync_file(path)
