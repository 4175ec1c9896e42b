"""Writing one immutable HDF5 file: temporary name, streamed blocks, sha256 of each dataset, fsync, rename.

HDF5 can end the process with a segmentation fault when the disk is full: it writes metadata, chunks and the last rows of
arrays late, where an error has nowhere to go. So datasets are contiguous, and the space for each is reserved from the operating
system before HDF5 hears of it; a full disk is then an ordinary ``OSError``.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from dynprobe.storage.hdf5 import Hdf5File
from dynprobe.storage.layout import (
    FORMAT_VERSION,
    MAX_DEPTH,
    MAX_META_BYTES,
    META,
    META_DIGEST,
    is_safe_name,
    temporary_path,
)
from dynprobe.storage.ledger import enter

# HDF5's own bookkeeping: more than it needs for a file, and for each array with the folders above it.
_BYTES_PER_FILE = 2**16
_BYTES_PER_ARRAY = 2**13
# Readable by every HDF5 from 1.10 on.
_HDF5: dict[str, Any] = {"libver": ("v110", "v110")}


class FileWriter:
    """Streams arrays into one new file; the file appears under its name only when it is complete.

    A context manager: leaving it normally commits, leaving it by an exception removes the temporary file.

    Parameters
    ----------
    path
        Final name. Its folder must exist.
    meta
        JSON-able facts stored beside the arrays; ``format`` and ``datasets`` are the writer's own.

    Raises
    ------
    OSError
        When the disk is full or the folder missing; nothing is left behind.
    RuntimeError
        At the end, when a declared array was not filled.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FileWriter(Path(folder) / "x.h5", {"kind": "example"}) as file:
    ...         file.write("numbers", np.arange(3))
    ...     [path.name for path in Path(folder).iterdir()]
    ['x.h5']
    """

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self._path = path
        self._temporary = temporary_path(path)
        self._meta = dict(meta)
        self._datasets: dict[str, h5py.Dataset] = {}
        self._filled: dict[str, int] = {}
        self._digests: dict[str, Any] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._reserved = 0

    def __enter__(self) -> "FileWriter":
        self._temporary.unlink(missing_ok=True)
        try:
            self._temporary.write_bytes(_empty_file())
            self._reserve(_BYTES_PER_FILE)
            self._file = Hdf5File(self._temporary, "r+", **_HDF5)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            with contextlib.suppress(OSError):  # a disk that is full makes closing fail too; the first error says why
                self._close()
            self._temporary.unlink(missing_ok=True)

    def create(self, name: str, shape: tuple[int, ...], dtype: Any, **facts: Any) -> None:
        """Declare an array of known shape, to be filled row block by row block with :meth:`append`.

        Parameters
        ----------
        name
            Name of the array; ``/`` makes folders, at most 8 deep.
        shape
            At least one axis.
        dtype
            Integers, or floating-point numbers of 16, 32 or 64 bits.
        facts
            JSON-able facts about the array.

        Raises
        ------
        ValueError
            When the run format has no such name, shape or type.
        """
        parts = name.split("/")
        if name in (META, META_DIGEST) or len(parts) > MAX_DEPTH or not all(map(is_safe_name, parts)):
            raise ValueError(
                f"`name` must be made of letters, digits and `_.-`, at most {MAX_DEPTH} deep; got {name!r}"
            )
        kind = np.dtype(dtype)
        if kind.kind not in "fiu" or kind.itemsize > 8:
            raise ValueError(f"array `{name}` must hold plain numbers of at most 8 bytes; got {kind}")
        if not shape:
            raise ValueError(f"array `{name}` must have at least one axis; got a scalar")
        self._reserve(math.prod(int(length) for length in shape) * kind.itemsize + _BYTES_PER_ARRAY)
        self._datasets[name] = self._file.root.create_dataset(name, shape=shape, dtype=kind.newbyteorder("<"))
        self._filled[name] = 0
        self._digests[name] = hashlib.sha256()
        self._facts[name] = facts

    def append(self, name: str, block: np.ndarray) -> None:
        """Write the next rows of an array, in order.

        Raises
        ------
        ValueError
            When the rows have another shape, do not fit behind the rows written so far, or hold another kind of number.
        """
        dataset = self._datasets[name]
        start = self._filled[name]
        if block.shape[1:] != dataset.shape[1:] or start + len(block) > dataset.shape[0]:
            raise ValueError(
                f"array `{name}` must get rows of shape {dataset.shape[1:]}, {dataset.shape[0] - start} more; "
                f"got {block.shape}"
            )
        if not np.can_cast(block.dtype, dataset.dtype, casting="same_kind"):
            raise ValueError(f"array `{name}` must get {dataset.dtype} numbers; got {block.dtype}")
        data = np.ascontiguousarray(block, dtype=dataset.dtype)
        if len(data):
            dataset[start : start + len(data)] = data
        self._digests[name].update(data.reshape(-1).view(np.uint8))
        self._filled[name] = start + len(data)

    def write(self, name: str, array: np.ndarray, **facts: Any) -> None:
        """Write a whole array at once."""
        self.create(name, array.shape, array.dtype, **facts)
        self.append(name, array)

    def _reserve(self, n_bytes: int) -> None:
        """Take space from the disk before HDF5 needs it; what is left over goes back when the file is closed."""
        self._reserved += n_bytes
        if not hasattr(os, "posix_fallocate"):
            return
        with self._temporary.open("r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, self._reserved)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
                    raise OSError(
                        error.errno, f"{error.strerror}: no space for {self._reserved} bytes", str(self._path)
                    ) from None

    def _commit(self) -> None:
        incomplete = [name for name, data in self._datasets.items() if self._filled[name] != data.shape[0]]
        if incomplete:
            raise RuntimeError(f"arrays must be filled before the file is closed; not complete: {incomplete[:5]}")
        self._write_meta()
        self._file.root.flush()
        size = self._file.root.id.get_filesize()
        extents = {
            name: (data.id.get_offset(), data.id.get_storage_size(), self._digests[name].hexdigest())
            for name, data in self._datasets.items()
            if data.size
        }
        self._close()
        os.truncate(self._temporary, size)  # give back what was reserved and not needed
        sync_file(self._temporary)
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)
        enter(self._path, size, extents)  # only now: a line of the ledger without its file would mean a loss

    def _close(self) -> None:
        try:
            self._file.close()
        except RuntimeError as error:  # h5py's word for HDF5's last blocks not fitting on the disk
            raise OSError(f"{self._temporary}: must be written completely; {error}. Is the disk full?") from error

    def _write_meta(self) -> None:
        datasets = {
            name: {
                **self._facts[name],
                "sha256": self._digests[name].hexdigest(),
                "shape": list(data.shape),
                "dtype": data.dtype.str,
            }
            for name, data in self._datasets.items()
        }
        document = {**self._meta, "format": FORMAT_VERSION, "datasets": datasets}
        text = json.dumps(document, allow_nan=False).encode()  # ASCII: texts may hold halves of surrogate pairs
        if len(text) > MAX_META_BYTES:
            raise ValueError(f"{self._path}: its description must have at most {MAX_META_BYTES} bytes; got {len(text)}")
        self._reserve(len(text) + 2 * _BYTES_PER_ARRAY)
        self._file.root.create_dataset(META, data=np.frombuffer(text, dtype=np.uint8))
        self._file.root.create_dataset(META_DIGEST, data=np.frombuffer(hashlib.sha256(text).digest(), dtype=np.uint8))


def _empty_file() -> bytes:
    """An HDF5 file without content, so that HDF5 only ever opens files whose space is reserved."""
    image = io.BytesIO()
    with h5py.File(image, "w", **_HDF5):
        pass
    return image.getvalue()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a small file so that readers see the old or the new content, never a part."""
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)  # one of that name may be a link to somewhere else
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    _sync(path, os.O_RDWR)  # Windows refuses to flush a file that is open for reading only


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, where the system allows it (POSIX)."""
    if os.name == "posix":
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
