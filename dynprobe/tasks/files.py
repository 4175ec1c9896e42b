"""Read a file of unknown quality into columns. Nothing that the file says is trusted."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from dynprobe.errors import TaskDataError

# More than any labelled data set for fine-tuning needs; a compressed file could otherwise fill the memory.
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what to call the source in a message.

    `class_names` maps a column to the names of its classes, where a data set in memory knows them.
    """

    where: str
    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))


def read_table(path: Path | Traversable) -> Table:
    """Read a CSV, TSV, JSON Lines, Parquet or text file; `.gz` is unpacked.

    Raises
    ------
    TaskDataError
        When the file is missing, empty, too large, damaged, not UTF-8, or of an unknown kind.
    """
    kind = file_kind(path.name)
    if kind is None:
        raise TaskDataError(f"`{path}` must end in one of {', '.join(KINDS)} (.gz allowed); convert the file first")
    data = _read_bytes(path)
    if not data.strip():
        raise TaskDataError(f"`{path}` must hold data; the file is empty")
    columns = _READERS[kind](data, str(path))
    if not columns or not next(iter(columns.values())):
        raise TaskDataError(f"`{path}` must hold at least one row; got none")
    return Table(where=str(path), columns=columns, class_names={})


def file_kind(name: str) -> str | None:
    """Ending that says how a file is read, or ``None`` when unknown."""
    lower = name.lower().removesuffix(".gz")
    return next((kind for kind in KINDS if lower.endswith(kind)), None)


def _read_bytes(path: Path | Traversable) -> bytes:
    if not path.is_file():
        raise TaskDataError(f"`{path}` must be a file; there is none")
    try:
        with path.open("rb") as raw:
            if path.name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    data = unpacked.read(MAX_BYTES + 1)
            else:
                data = raw.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskDataError(f"`{path}` must be readable; got: {error}") from error
    if len(data) > MAX_BYTES:
        raise TaskDataError(f"`{path}` must hold at most {MAX_BYTES} bytes (unpacked); take a part of it")
    return data


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TaskDataError(
            f"`{where}` must be UTF-8; got byte 0x{data[error.start]:02x} in line {line}. Save the file as UTF-8"
        ) from error


def _delimited(data: bytes, where: str, *, delimiter: str) -> dict[str, list[Any]]:
    reader = csv.reader(io.StringIO(_decode(data, where), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    header: list[str] = []
    try:
        for row in reader:
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                _check_header(header, where)
            elif len(row) != len(header):
                raise TaskDataError(
                    f"`{where}` must have {len(header)} cells in each row, as in its header; "
                    f"got {len(row)} in row {len(rows) + 1}, which ends in line {reader.line_num}"
                )
            else:
                rows.append(row)
    except csv.Error as error:
        raise TaskDataError(f"`{where}` must be a well-formed table; line {reader.line_num}: {error}") from error
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _check_header(header: list[str], where: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TaskDataError(f"`{where}` must name each column once; got {twice[:5]} more than once")


def _json_lines(data: bytes, where: str) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    # `splitlines` would also split at U+2028, which JSON allows inside a string.
    for number, line in enumerate(_decode(data, where).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskDataError(f"`{where}` must hold one JSON object per line; line {number}: {error}") from error
        if not isinstance(row, dict):
            raise TaskDataError(
                f"`{where}` must hold one JSON object per line; got {type(row).__name__} in line {number}"
            )
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _text_lines(data: bytes, where: str) -> dict[str, list[Any]]:
    lines = (line.removesuffix("\r") for line in _decode(data, where).split("\n"))
    return {"text": [line for line in lines if line.strip()]}


def _parquet(data: bytes, where: str) -> dict[str, list[Any]]:
    # The only use of pyarrow, which is optional.
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise TaskDataError(
            f"`{where}` needs pyarrow to be read; install it with `pip install dynprobe[parquet]`"
        ) from error
    try:
        return pq.read_table(io.BytesIO(data)).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TaskDataError(f"`{where}` must be a Parquet file; pyarrow says: {error}") from error


_READERS: dict[str, Callable[[bytes, str], dict[str, list[Any]]]] = {
    ".csv": lambda data, where: _delimited(data, where, delimiter=","),
    ".tsv": lambda data, where: _delimited(data, where, delimiter="\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".txt": _text_lines,
}
KINDS = tuple(_READERS)
