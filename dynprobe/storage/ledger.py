"""The ledger of a run: one sealed line for each finished HDF5 file, so that a lost, exchanged or changed file is found.

A line says where in the file each array lies and what its SHA-256 is, which the writer knows anyway, and the SHA-256 of all
other bytes. So every byte of a file can be checked before HDF5 opens it, and writing the line costs no second pass.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dynprobe.errors import RunFormatError
from dynprobe.storage.layout import LEDGER, MAX_LEDGER_BYTES, MAX_LEDGER_LINE, PROBES, SNAPSHOTS, is_probe_name, step_of
from dynprobe.storage.sealed import append_line, is_ordinary, read_lines

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 2**22


@dataclass(frozen=True)
class Entry:
    """What the ledger says about one file.

    Attributes
    ----------
    file
        Name in the run directory, such as ``snapshots/step-00000100.h5``.
    n_bytes
        Size of the file.
    rest
        SHA-256 of all bytes that belong to no array, in order.
    arrays
        Name of each array that has any values: first byte, number of bytes, SHA-256.
    """

    file: str
    n_bytes: int
    rest: str
    arrays: Mapping[str, tuple[int, int, str]]


@dataclass(frozen=True)
class Ledger:
    """All entries of a run.

    Attributes
    ----------
    entries
        By the name of the file; of a file that was written again, the last.
    scalars_from
        Bytes of ``scalars.jsonl`` that were there before lines had seals.
    problems
        One sentence per damaged line.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    scalars_from: int = 0
    problems: tuple[str, ...] = ()


def has_ledger(run: Path) -> bool:
    """Whether a run has a ledger; one that was captured before there were any has none."""
    return is_ordinary(run / LEDGER, MAX_LEDGER_BYTES)


def start_ledger(run: Path, *, scalars_from: int) -> None:
    """Begin the ledger of a run that has none."""
    append_line(run / LEDGER, {"format": 1, "scalars_from": scalars_from}, sync=True)


def enter(file: Path, n_bytes: int, arrays: Mapping[str, tuple[int, int, str]]) -> None:
    """Enter a finished file into the ledger of its run; does nothing outside a run that has a ledger.

    Parameters
    ----------
    file
        A probe set or a snapshot.
    n_bytes, arrays
        As in :class:`Entry`.

    Raises
    ------
    OSError
        When the disk is full. The file is complete and stays.
    """
    name = name_in_run(file)
    if name is None or not has_ledger(run_of(file)):
        return
    rest = _digest(file, _gaps(n_bytes, arrays))
    record = {"file": name, "bytes": n_bytes, "rest": rest, "arrays": {key: list(of) for key, of in arrays.items()}}
    append_line(run_of(file) / LEDGER, record, sync=True)


def read_ledger(run: Path) -> Ledger | None:
    """The ledger of a run, or ``None`` when it has none.

    Raises
    ------
    RunFormatError
        When it is a symbolic link or too large.
    """
    file = run / LEDGER
    if not is_ordinary(file, MAX_LEDGER_BYTES):
        return None
    facts = file.stat()
    return _parsed(file, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def entry_of(file: Path) -> Entry | None:
    """What the ledger of its run says about a file, or ``None`` when it says nothing."""
    name = name_in_run(file)
    ledger = read_ledger(run_of(file)) if name is not None else None
    return ledger.entries.get(name) if ledger is not None and name is not None else None


def name_in_run(file: Path) -> str | None:
    """Name of a file as the ledger has it, or ``None`` for one that is neither a probe set nor a snapshot of a run."""
    folder = file.parent.name
    is_own = (folder == SNAPSHOTS and step_of(file) is not None) or (folder == PROBES and is_probe_name(file))
    return f"{folder}/{file.name}" if is_own else None


def run_of(file: Path) -> Path:
    """Run directory of a probe set or snapshot."""
    return file.parent.parent


def require_frame(file: Path, entry: Entry) -> None:
    """Check size and structure of a file before HDF5 opens it; the values of its arrays are not read.

    Raises
    ------
    RunFormatError
        When the file is not the one that was written.
    """
    problem = _frame_problem(file, entry)
    if problem is not None:
        raise RunFormatError(
            f"{file}: must be the file that was written; it {problem}. `dynprobe verify` lists the files that are intact"
        )


def problems_of(file: Path, entry: Entry) -> list[str]:
    """Check every byte of a file against the ledger; one sentence per problem, none when it is what was written."""
    problem = _frame_problem(file, entry)
    if problem is not None:
        return [problem]
    return [
        f"array `{name}` is damaged"
        for name, (start, size, sha256) in entry.arrays.items()
        if _digest(file, [(start, size)]) != sha256
    ]


def _frame_problem(file: Path, entry: Entry) -> str | None:
    n_bytes = file.stat().st_size
    if n_bytes != entry.n_bytes:
        return f"has {n_bytes} bytes, {entry.n_bytes} were written"
    if _digest(file, _gaps(n_bytes, entry.arrays)) != entry.rest:
        return "has another description or structure than was written"
    return None


@lru_cache(maxsize=4)
def _parsed(file: Path, _inode: int, _size: int, _mtime: int) -> Ledger:
    entries: dict[str, Entry] = {}
    problems, scalars_from = [], None
    for line in read_lines(file, max_bytes=MAX_LEDGER_BYTES, max_line=MAX_LEDGER_LINE):
        record = line.record if line.is_intact and line.record is not None else {}
        entry = _entry(record) if line.number > 1 else None
        if line.number == 1 and type(record.get("scalars_from")) is int:
            scalars_from = int(record["scalars_from"])
        elif entry is not None:
            entries[entry.file] = entry
        else:
            problems.append(f"line {line.number} is damaged")
    if scalars_from is None and not problems:
        problems.append("must begin with `scalars_from`; got an empty file")
    return Ledger(entries, scalars_from or 0, tuple(problems))


def _entry(record: Mapping[str, Any]) -> Entry | None:
    """A line as an entry, or ``None`` when it is none."""
    name, n_bytes, rest, arrays = (record.get(key) for key in ("file", "bytes", "rest", "arrays"))
    if not (isinstance(name, str) and type(n_bytes) is int and isinstance(rest, str) and isinstance(arrays, dict)):
        return None
    if name_in_run(Path(name)) != name or not all(map(_is_extent, arrays.values())):
        return None
    found = {key: (of[0], of[1], of[2]) for key, of in arrays.items()}
    end = 0
    for start, size, _sha256 in sorted(found.values()):
        if start < end:
            return None
        end = start + size
    return Entry(name, n_bytes, rest, found) if end <= n_bytes else None


def _is_extent(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 3):
        return False
    start, size, sha256 = value
    is_range = type(start) is int and type(size) is int and start >= 0 and size > 0
    return is_range and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None


def _gaps(n_bytes: int, arrays: Mapping[str, tuple[int, int, str]]) -> Iterator[tuple[int, int]]:
    """What lies between the arrays: first byte and number of bytes."""
    end = 0
    for start, size, _sha256 in sorted(arrays.values()):
        yield end, start - end
        end = start + size
    yield end, n_bytes - end


def _digest(file: Path, ranges: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        for start, size in ranges:
            stream.seek(start)
            while size > 0:
                block = stream.read(min(size, _BLOCK))
                if not block:
                    break  # shorter than was said: another digest
                digest.update(block)
                size -= len(block)
    return digest.hexdigest()
