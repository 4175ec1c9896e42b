"""JSON that carries a checksum of its own bytes: one document, or a log of lines in which each line also covers the one before.

A seal finds what a disk, a copy or a hand has changed by accident. It is no signature: who wants to can make a new one.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynprobe.errors import RunFormatError

SEAL = "seal"
MAX_JSON_OBJECTS = 1_000_000

_END = re.compile(rb'"seal": "([0-9a-f]{64})"\s*\}\s*\Z')
_END_AND_MORE = re.compile(rb'"seal": "[0-9a-f]{64}"\}.', re.DOTALL)
_NEW_FILE = 0o666  # less what the umask takes


@dataclass(frozen=True)
class Line:
    """One line of a log.

    Attributes
    ----------
    number
        Counted from 1.
    start
        Where it begins in the file, in bytes.
    record
        The JSON object without its seal; ``None`` when the line holds no JSON object.
    is_sealed
        Whether it ends in a seal.
    is_intact
        Whether that seal fits the line and the seal of the line before.
    """

    number: int
    start: int
    record: dict[str, Any] | None
    is_sealed: bool
    is_intact: bool


def seal(document: Mapping[str, Any]) -> bytes:
    r"""A JSON object as text in which the last key, ``seal``, is the SHA-256 of all bytes before that key.

    Examples
    --------
    >>> has_broken_seal(seal({"step": 1})), has_broken_seal(seal({"step": 1}).replace(b"1", b"2", 1))
    (False, True)
    """
    plain = {key: value for key, value in document.items() if key != SEAL}
    head = json.dumps(plain, indent=1, allow_nan=False).removesuffix("}").removesuffix("\n")
    return _sealed(head, ",\n " if plain else "\n ", "", "\n}\n")


def has_seal(text: bytes) -> bool:
    """Whether a JSON document ends in a seal."""
    return _END.search(text) is not None


def has_broken_seal(text: bytes) -> bool:
    """Whether a JSON document ends in a seal that does not fit its bytes."""
    match = _END.search(text)
    return match is not None and match[0] != _sealed_end(text[: match.start()], b"", b"\n}\n")


def load_json(text: bytes, *, allow_constants: bool = False) -> Any:
    """Parse JSON from a stranger: no NaN and no infinite number (unless they are allowed), no bomb of empty objects.

    Raises
    ------
    ValueError
        Saying what is wrong, also for JSON that is nested too deeply.
    """
    if text.count(b"[") + text.count(b"{") > MAX_JSON_OBJECTS:
        raise ValueError(f"more than {MAX_JSON_OBJECTS} objects and arrays")
    try:
        if allow_constants:
            return json.loads(text)
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("objects inside objects without end") from None


def append_line(file: Path, record: Mapping[str, Any], *, sync: bool = False) -> None:
    """Add one sealed line to a log; half a line that a killed writer left is removed first.

    Parameters
    ----------
    file
        The log; made when it is missing, never followed when it is a symbolic link.
    record
        What to write. NaN and Infinity stand there as Python writes them; what JSON cannot hold becomes text.
    sync
        Whether to wait until the line is on the disk.

    Raises
    ------
    OSError
        When the disk is full or the file is a link; the log is then as it was.
    """
    descriptor = open_own(file)
    with os.fdopen(descriptor, "r+b", buffering=0) as stream:
        size, before = _end_of_log(stream)
        plain = {key: value for key, value in record.items() if key != SEAL}
        head = json.dumps(plain, default=str).removesuffix("}")
        line = _sealed(head, ", " if plain else "", before, "}\n")
        try:
            stream.truncate(size)
            stream.seek(size)
            n_written = stream.write(line)
            if n_written != len(line):
                raise OSError(f"{file}: only {n_written} of {len(line)} bytes could be written. Is the disk full?")
            if sync:
                os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(size)
            raise


def complete_bytes(file: Path) -> int:
    """Bytes of the complete lines of a log."""
    with file.open("rb") as stream:
        return _end_of_log(stream)[0]


def open_own(file: Path) -> int:
    """Descriptor of a file of the run for reading and writing; made when missing.

    Raises
    ------
    OSError
        When it is a symbolic link, which could lead to any file of the user, or no ordinary file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(file, flags | getattr(os, "O_BINARY", 0), _NEW_FILE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{file}: must be an ordinary file; got a device or pipe")
    return descriptor


def read_lines(file: Path, *, max_bytes: int, max_line: int) -> Iterator[Line]:
    """Lines of a log, without the unfinished last one that a living writer is writing or a killed one left.

    Raises
    ------
    RunFormatError
        When the file is a symbolic link or too large.
    """
    if not is_ordinary(file, max_bytes):
        return
    before, start = b"", 0
    with file.open("rb") as stream:
        for number, text in enumerate(iter(lambda: stream.readline(max_line), b""), start=1):
            is_unfinished = not text.endswith(b"\n")
            if is_unfinished and len(text) < max_line and not _END_AND_MORE.search(text):
                return
            match = _END.search(text)
            is_intact = (
                match is not None and not is_unfinished and match[0] == _sealed_end(text[: match.start()], before)
            )
            yield Line(number, start, _record(text), match is not None, is_intact)
            before, start = match[1] if match else b"", start + len(text)


def is_ordinary(file: Path, max_bytes: int) -> bool:
    """Whether a file is there.

    Raises
    ------
    RunFormatError
        When it is a link, which leads to a stranger's choice of file, or too large.
    """
    if file.is_symlink() or (file.is_file() and file.stat().st_size > max_bytes):
        raise RunFormatError(
            f"{file}: must be an ordinary file of at most {max_bytes} bytes; got a link or a larger file"
        )
    return file.is_file()


def _record(text: bytes) -> dict[str, Any] | None:
    try:
        record = load_json(text, allow_constants=True)
    except ValueError:
        return None
    return {key: value for key, value in record.items() if key != SEAL} if isinstance(record, dict) else None


def _sealed(head: str, comma: str, before: str | bytes, end: str) -> bytes:
    start = (head + comma).encode()
    return start + _sealed_end(start, before if isinstance(before, bytes) else before.encode(), end.encode())


def _sealed_end(start: bytes, before: bytes, end: bytes = b"}\n") -> bytes:
    return b'"seal": "' + hashlib.sha256(before + start).hexdigest().encode() + b'"' + end


def _end_of_log(stream: Any, n_bytes: int = 4096) -> tuple[int, bytes]:
    """Where the complete lines end, and the seal of the last of them."""
    size = stream.seek(0, os.SEEK_END)
    while True:
        start = max(0, size - n_bytes)
        stream.seek(start)
        tail = stream.read(size - start)
        end = tail.rfind(b"\n") + 1
        if end >= min(size, 128) or start == 0:  # a seal is shorter than 128 bytes
            match = _END.search(tail[:end])
            return start + end, match[1] if match else b""
        n_bytes *= 16


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word}, which is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40}, which is no finite number")
    return number
