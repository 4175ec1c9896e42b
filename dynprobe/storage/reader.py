"""Reading a file that may come from a stranger: only what the run format allows is opened.

HDF5 can link to other files, declare terabytes, run filters and hold cycles. Our own files hold hard links, plain
contiguous numbers and one JSON document, so everything else is refused before a value is read. This stops HDF5's features,
not memory-safety bugs inside the HDF5 library.
"""

import hashlib
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from dynprobe.errors import RunFormatError
from dynprobe.storage.hdf5 import Hdf5File
from dynprobe.storage.layout import (
    FORMAT_VERSION,
    MAX_DEPTH,
    MAX_META_BYTES,
    MAX_OBJECTS,
    META,
    META_DIGEST,
    is_safe_name,
)
from dynprobe.storage.ledger import entry_of, require_frame
from dynprobe.storage.sealed import load_json

# What a damaged file makes h5py raise; all of them mean that the file is not readable.
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
_NUMBERS = ("<f2", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileReader:
    """Validated, read-only view of one file of a run.

    Parameters
    ----------
    path
        An HDF5 file written by :class:`dynprobe.storage.writer.FileWriter`.
    verify
        Whether to check each array against its checksum when it is first read. What surrounds the arrays is always checked
        before HDF5 opens the file, where the run has a ledger.

    Raises
    ------
    RunFormatError
        When the file cannot be opened, is not the one that was written, was written by a later format, or holds anything the
        format does not allow.
    """

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        self.path = path
        self._unchecked: set[str] = set()
        _require_hdf5_file(path)  # before HDF5 opens it: opening a named pipe would wait for ever
        entry = entry_of(path)
        if entry is not None:
            require_frame(path, entry)
        self._file: Hdf5File = self._guard(lambda: Hdf5File(path, "r"))
        try:
            self._datasets = dict(self._guard(lambda: list(_allowed_datasets(self._file.root, path))))
            self.meta = self._read_meta()
            self._check_against_meta()
            if entry is not None and self.extents() != entry.arrays:
                raise RunFormatError(
                    f"{path}: its arrays must lie where the ledger says; the ledger is not of this file"
                )
        except BaseException:
            self._file.close()
            raise
        self._unchecked = set(self.names) if verify else set()

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; later reads fail."""
        self._file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all arrays, sorted."""
        return tuple(sorted(set(self._datasets) - {META, META_DIGEST}))

    def __contains__(self, name: object) -> bool:
        return name in self._datasets and name not in (META, META_DIGEST)

    def facts(self, name: str) -> Mapping[str, Any]:
        """What the file says about one array: shape, dtype, sha256 and what its writer added."""
        return self.meta["datasets"][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array, without reading it."""
        return tuple(self._datasets[name].shape)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """One array, or some of its rows, as stored.

        Raises
        ------
        RunFormatError
            When it cannot be read, or no longer has its checksum and that was to be verified.
        """
        if name in self._unchecked:
            self._unchecked.discard(name)
            if not self.is_intact(name):
                self._unchecked.add(name)
                raise RunFormatError(f"{self.path}: array `{name}` must have the sha256 that was stored; it is damaged")
        dataset = self._datasets[name]
        return self._guard(lambda: dataset[rows])

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def extents(self) -> dict[str, tuple[int, int, str]]:
        """First byte, number of bytes and stated sha256 of each array that has any values."""
        return {
            name: (data.id.get_offset(), data.id.get_storage_size(), self.facts(name)["sha256"])
            for name, data in self._datasets.items()
            if data.size and name in self
        }

    def is_intact(self, name: str) -> bool:
        """Whether an array still has the sha256 that was stored when it was written."""
        digest = hashlib.sha256()
        for block in self._blocks(name):
            digest.update(np.ascontiguousarray(block).tobytes())
        return digest.hexdigest() == self.facts(name)["sha256"]

    def _blocks(self, name: str, n_bytes: int = 2**24) -> Iterator[np.ndarray]:
        dataset = self._datasets[name]
        per_row = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64)))
        rows = max(1, n_bytes // per_row)
        for start in range(0, dataset.shape[0], rows):
            yield self.read(name, slice(start, start + rows))

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RunFormatError:
            raise
        except _H5PY_ERRORS as error:
            raise RunFormatError(
                f"{self.path}: must be a complete dynprobe file; got {type(error).__name__}: {error}. "
                "Run `dynprobe verify` on the run to see which files are intact"
            ) from error

    def _read_meta(self) -> dict[str, Any]:
        for name, limit in ((META, MAX_META_BYTES), (META_DIGEST, 32)):
            dataset = self._datasets.get(name)
            if dataset is None or dataset.dtype != np.uint8 or dataset.ndim != 1 or dataset.size > limit:
                raise RunFormatError(f"{self.path}: must hold `{name}`, at most {limit} bytes; got {dataset}")
        text = self.read(META).tobytes()
        if hashlib.sha256(text).digest() != self.read(META_DIGEST).tobytes():
            raise RunFormatError(f"{self.path}: its description must match its checksum; the file is damaged")
        return checked_document(text, str(self.path))

    def _check_against_meta(self) -> None:
        declared = self.meta.get("datasets")
        if not isinstance(declared, dict) or set(declared) != set(self.names):
            raise RunFormatError(f"{self.path}: must hold exactly the arrays that it describes")
        for name, facts in declared.items():
            data = self._datasets[name]
            got = {"shape": list(data.shape), "dtype": data.dtype.str}
            if not isinstance(facts, dict) or any(facts.get(key) != value for key, value in got.items()):
                raise RunFormatError(f"{self.path}: array `{name}` must be as described; got {got}")
            if not (isinstance(facts.get("sha256"), str) and _SHA256.fullmatch(facts["sha256"])):
                raise RunFormatError(f"{self.path}: array `{name}` must have a sha256 of 64 hexadecimal digits")


def checked_document(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object with a format version that this version reads.

    Raises
    ------
    RunFormatError
        For anything but a JSON object (NaN and Infinity are no JSON), and for a format later than :data:`FORMAT_VERSION`.
    """
    try:
        document = load_json(text)
    except ValueError as error:
        raise RunFormatError(f"{where}: must hold a JSON object; got {error}") from error
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise RunFormatError(f"{where}: must be a JSON object with an integer `format`; got {version!r:.40}")
    if version > FORMAT_VERSION:
        raise RunFormatError(
            f"{where}: must have format {FORMAT_VERSION} or earlier; got {version!r:.40}. Update dynprobe to read this run"
        )
    return document


def _require_hdf5_file(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as error:
        raise RunFormatError(f"{path}: must be a file; got {error}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
        raise RunFormatError(
            f"{path}: must be an ordinary file; got {kinds.get(stat.S_IFMT(mode), 'a device or pipe')}"
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_SIGNATURE))
    except OSError as error:
        raise RunFormatError(f"{path}: must be a file that can be read; got {error}") from error
    if start != _SIGNATURE:  # HDF5 would go on and look for it at every power of two
        raise RunFormatError(f"{path}: must be a complete dynprobe file, which begins as HDF5 files do; got {start!r}")


def _allowed_datasets(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset of a file whose every object is allowed; refuses the file otherwise."""
    size = path.stat().st_size
    pending = [("", file["/"], 0)]
    _refuse_attributes(file["/"], "/", path)
    seen = {h5py.h5o.get_info(file["/"].id).addr}
    extents: list[tuple[int, int]] = []
    n_objects = 0
    while pending:
        prefix, group, depth = pending.pop()
        n_objects += len(group)
        if n_objects > MAX_OBJECTS or (len(group) and depth >= MAX_DEPTH):
            raise RunFormatError(f"{path}: must hold at most {MAX_OBJECTS} objects, {MAX_DEPTH} deep; got more")
        for name in group:
            where = f"{prefix}{name}"
            if not (isinstance(name, str) and is_safe_name(name)):  # h5py gives bytes for what is no UTF-8
                raise RunFormatError(f"{path}: names must be made of letters, digits and `_.-`; got {where!r:.100}")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise RunFormatError(f"{path}: `{where}` must be a hard link; got {type(link).__name__}")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise RunFormatError(
                    f"{path}: `{where}` must be the only name of its object; got a second link or a cycle"
                )
            seen.add(address)
            _refuse_attributes(item, where, path)
            if isinstance(item, h5py.Group):
                pending.append((f"{where}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                extents.append(_checked_extent(item, where, path, size))
                yield where, item
            else:
                raise RunFormatError(f"{path}: `{where}` must be a group or an array; got {type(item).__name__}")
    extents.sort()
    if any(start < before + n_bytes for (before, n_bytes), (start, _) in pairwise(extents)):
        raise RunFormatError(f"{path}: its arrays must lie beside each other; got one that begins inside another")


def _refuse_attributes(item: h5py.HLObject, where: str, path: Path) -> None:
    n_attributes = h5py.h5a.get_num_attrs(item.id)
    if n_attributes:
        raise RunFormatError(f"{path}: `{where}` must have no attributes; got {n_attributes}")


def _checked_extent(data: h5py.Dataset, where: str, path: Path, file_size: int) -> tuple[int, int]:
    """First byte and number of bytes of an array that is allowed."""
    plist = data.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count() or plist.get_nfilters():
        raise RunFormatError(f"{path}: `{where}` must be a contiguous array inside this file; got another storage")
    kind = data.id.get_type().get_class()
    if (
        kind not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT)
        or data.dtype.str not in _NUMBERS
        or h5py.h5t.py_create(data.dtype) != data.id.get_type()  # e.g. 12-bit integers, which h5py shows as 16-bit
    ):
        raise RunFormatError(f"{path}: `{where}` must hold plain little-endian numbers; got another type")
    if data.shape is None or data.ndim == 0:
        raise RunFormatError(f"{path}: `{where}` must be an array with at least one axis; got a scalar")
    n_bytes = data.dtype.itemsize
    for length in data.shape:  # Python integers: the product of hostile lengths must not overflow
        n_bytes *= int(length)
    offset = data.id.get_offset() if n_bytes else 0
    if n_bytes and (offset is None or data.id.get_storage_size() != n_bytes or offset + n_bytes > file_size):
        raise RunFormatError(
            f"{path}: `{where}` must lie inside the file; it declares {n_bytes} bytes that are not there"
        )
    return offset, n_bytes
