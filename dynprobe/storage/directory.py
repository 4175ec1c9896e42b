"""The run directory as a whole: making it, claiming it for one writer, its manifest, its list of steps."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows has no such locks: there a run directory is not guarded against a second writer
    fcntl = None  # type: ignore[assignment]

from dynprobe.errors import RunFormatError, UsageError
from dynprobe.storage.layout import (
    FORMAT_VERSION,
    LOCK,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SCALARS_BYTES,
    PROBES,
    SCALARS,
    SNAPSHOTS,
    is_probe_name,
    is_temporary,
    probe_path,
    step_of,
)
from dynprobe.storage.reader import checked_document
from dynprobe.storage.writer import write_text_atomically

# Folders and files that a run directory may hold.
_OWN_FILES = (MANIFEST, SCALARS, LOCK)
_OWN_FOLDERS = (PROBES, SNAPSHOTS)

_MAX_LINE = 2**20


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run directory: a manifest or a probe set inside."""
    return (path / MANIFEST).is_file() or probe_path(path).is_file()


def require_run(path: Path) -> None:
    """Check that a path is a run directory.

    Raises
    ------
    RunFormatError
        Saying what the path is instead and how a run directory is made.
    """
    if is_run(path):
        return
    got = "nothing" if not path.exists() else "a file" if path.is_file() else "a folder without a manifest"
    raise RunFormatError(f"{path}: must be a run directory (written by `dynprobe capture` or a Recorder); got {got}")


def prepare(path: Path, *, force: bool, resume: bool) -> None:
    """Make the folders of a run directory; call it before :func:`claim`.

    Files that are not named as files of a run stay where they are, whatever the flags.

    Parameters
    ----------
    path
        The run directory; its parents are made too.
    force
        Remove the run that is there.
    resume
        Keep the run that is there.

    Raises
    ------
    UsageError
        When a run, or another folder with content, is there already and neither `force` nor `resume` was given; when
        another process writes to it; when one of its folders is a symbolic link.
    """
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise UsageError(f"{path}: the run directory must be a folder; got a file. Choose another path")
    for name in _OWN_FOLDERS:
        if (path / name).is_symlink():
            raise UsageError(f"{path / name}: must be a folder of the run itself; got a symbolic link. Remove the link")
    holds_run = is_run(path) or bool(list_steps(path))
    if holds_run and not force and not resume:
        raise UsageError(
            f"{path}: the run directory must be new; got one with {len(list_steps(path))} snapshot(s). "
            "Choose another path, or give --force to replace it"
        )
    if not holds_run and path.is_dir() and any(_foreign(path)):
        raise UsageError(f"{path}: the run directory must be new or empty; got a folder with other files in it")
    for name in _OWN_FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    with claim(path):
        if force:
            _remove_run(path)
        sweep(path)


def sweep(path: Path) -> None:
    """Remove temporary files that a killed writer left behind."""
    for folder in (path, *_real_folders(path)):
        for file in folder.iterdir():
            if is_temporary(file) and not _is_folder(file):
                file.unlink(missing_ok=True)


def claim(path: Path) -> TextIO:
    """Claim a run directory for writing, until the returned file is closed or the process ends.

    Where the file system or the operating system has no locks, nothing is claimed and nothing blocks.

    Returns
    -------
    file
        Close it to give the claim back.

    Raises
    ------
    UsageError
        When another living process writes to it.
    """
    stream = (path / LOCK).open("a+", encoding="utf-8")
    if fcntl is None:
        return stream
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UsageError(
            f"{path}: must have one writer; another process writes to it now. Choose another path"
        ) from None
    except OSError:
        pass  # a file system without locks, as some network file systems are
    return stream


def list_steps(path: Path) -> tuple[int, ...]:
    """Steps that have a complete snapshot file, ascending."""
    folder = path / SNAPSHOTS
    files = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(step for step in map(step_of, files) if step is not None))


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of a run directory; what JSON cannot hold, such as NaN or a path, becomes text."""
    document = {**manifest, "format": FORMAT_VERSION}
    plain = json.loads(json.dumps(document, default=str), parse_constant=str)
    write_text_atomically(path / MANIFEST, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run directory; an empty one when it is missing, since the files say what matters.

    Raises
    ------
    RunFormatError
        When it is a symbolic link, too large, no JSON object, or of a later format.
    """
    file = path / MANIFEST
    if not _is_ordinary(file, MAX_MANIFEST_BYTES):
        return {"format": FORMAT_VERSION}
    document = checked_document(file.read_bytes(), str(file))
    names = {dict: "object", list: "array"}
    for key, kind in (("model", dict), ("notes", list), ("versions", dict)):
        if not isinstance(document.get(key, kind()), kind):
            raise RunFormatError(f"{file}: `{key}` must be a JSON {names[kind]}; got {document[key]!r:.40}")
    return document


def append_scalars(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of logged numbers (loss, learning rate, metrics) to ``scalars.jsonl``.

    NaN and Infinity stand there as Python writes them: a loss that diverged is worth knowing.
    """
    line = json.dumps(dict(record), default=str).encode() + b"\n"
    with (path / SCALARS).open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # a killed writer left half a line: it must not swallow this one
                line = b"\n" + line
        stream.write(line)


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """All complete lines of ``scalars.jsonl``; half-written lines are left out.

    Raises
    ------
    RunFormatError
        When it is a symbolic link or too large.
    """
    return list(_scalar_lines(path / SCALARS))


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a run directory."""
    return shutil.disk_usage(path).free


def _scalar_lines(file: Path) -> Iterator[dict[str, Any]]:
    if not _is_ordinary(file, MAX_SCALARS_BYTES):
        return
    with file.open("rb") as stream:
        for line in iter(lambda: stream.readline(_MAX_LINE), b""):
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def _is_ordinary(file: Path, max_bytes: int) -> bool:
    """Whether a file is there; refuses it when it is a link (to a stranger's choice of file) or too large."""
    if file.is_symlink() or (file.is_file() and file.stat().st_size > max_bytes):
        raise RunFormatError(
            f"{file}: must be an ordinary file of at most {max_bytes} bytes; got a link or a larger file"
        )
    return file.is_file()


def _remove_run(path: Path) -> None:
    """Remove the files of a run and no others. The lock file stays: its owner may be waiting for it."""
    for name in (MANIFEST, SCALARS):
        (path / name).unlink(missing_ok=True)
    for file in (path / PROBES).iterdir():
        if is_probe_name(file) and not _is_folder(file):
            file.unlink()
    for file in (path / SNAPSHOTS).iterdir():
        if step_of(file) is not None and not _is_folder(file):
            file.unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _real_folders(path: Path) -> Iterator[Path]:
    """Folders of a run that are there and no symbolic links: following a link would leave the run."""
    return (path / name for name in _OWN_FOLDERS if (path / name).is_dir() and not (path / name).is_symlink())


def _foreign(path: Path) -> Iterator[str]:
    """Names in a folder that no run directory has."""
    return (file.name for file in path.iterdir() if file.name not in (*_OWN_FILES, *_OWN_FOLDERS))
