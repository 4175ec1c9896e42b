"""The run directory as a whole: making it, its manifest, its scalars, its list of steps."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynprobe.errors import RunFormatError, UsageError
from dynprobe.storage.claim import claim
from dynprobe.storage.folder import OWN_FOLDERS, is_run, list_steps
from dynprobe.storage.layout import (
    FORMAT_VERSION,
    LEDGER,
    LOCK,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SCALARS_BYTES,
    MAX_SCALARS_LINE,
    OWNER,
    PROBES,
    SCALARS,
    SNAPSHOTS,
    is_probe_name,
    is_temporary,
    step_of,
)
from dynprobe.storage.ledger import enter, has_ledger, name_in_run, read_ledger, start_ledger
from dynprobe.storage.reader import FileReader, checked_document
from dynprobe.storage.sealed import append_line, complete_bytes, has_broken_seal, is_ordinary, read_lines, seal
from dynprobe.storage.writer import write_atomically

# Folders and files that a run directory may hold.
_OWN_FILES = (MANIFEST, SCALARS, LEDGER, LOCK, OWNER)

# What the manifest may hold under the names that are used, where it has them.
_MANIFEST_TYPES: dict[str, tuple[type, str]] = {
    "model": (dict, "object"),
    "notes": (list, "array"),
    "versions": (dict, "object"),
    "training": (dict, "object"),
    "status": (dict, "object"),
}


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
    for name in (*OWN_FOLDERS, *_OWN_FILES):
        if (path / name).is_symlink():
            kind = "folder" if name in OWN_FOLDERS else "file"
            raise UsageError(f"{path / name}: must be a {kind} of the run itself; got a symbolic link. Remove the link")
    holds_run = is_run(path) or bool(list_steps(path))
    if holds_run and not force and not resume:
        raise UsageError(
            f"{path}: the run directory must be new; got one with {len(list_steps(path))} snapshot(s). "
            "Choose another path, or give --force to replace it"
        )
    if not holds_run and path.is_dir() and any(_foreign(path)):
        raise UsageError(f"{path}: the run directory must be new or empty; got a folder with other files in it")
    for name in OWN_FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    with claim(path):
        if force:
            _remove_run(path)
        sweep(path)
        _mend_ledger(path)


def sweep(path: Path) -> None:
    """Remove temporary files that a killed writer left behind."""
    for folder in (path, *_real_folders(path)):
        for file in folder.iterdir():
            if is_temporary(file) and not _is_folder(file):
                file.unlink(missing_ok=True)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of a run directory; what JSON cannot hold, such as NaN or a path, becomes text."""
    document = {**manifest, "format": FORMAT_VERSION}
    plain = json.loads(json.dumps(document, default=str), parse_constant=str)
    write_atomically(path / MANIFEST, seal(plain))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run directory; an empty one when it is missing, since the files say what matters.

    Raises
    ------
    RunFormatError
        When it is a symbolic link, too large, no JSON object, of a later format, or not as it was written.
    """
    file = path / MANIFEST
    if not is_ordinary(file, MAX_MANIFEST_BYTES):
        return {"format": FORMAT_VERSION}
    text = file.read_bytes()
    document = checked_document(text, str(file))
    if has_broken_seal(text):
        raise RunFormatError(
            f"{file}: must be as it was written, and its checksum `seal` does not fit; it is damaged. If it was changed on "
            "purpose, remove that key"
        )
    for key, (kind, name) in _MANIFEST_TYPES.items():
        if not isinstance(document.get(key, kind()), kind):
            raise RunFormatError(f"{file}: `{key}` must be a JSON {name}; got {document[key]!r:.40}")
    document.pop("seal", None)
    return document


def write_status(path: Path, state: str, *, step: int | None, reason: str | None = None) -> None:
    """Say in the manifest how its capture stands, leaving the rest of it as it is.

    Parameters
    ----------
    path
        The run directory.
    state
        ``"capturing"``, ``"finished"`` or ``"fault"``.
    step
        Step of the last snapshot that was begun, if any.
    reason
        Of a fault; it is added to the notes too.
    """
    before = read_manifest(path)
    notes = before.get("notes", [])
    if reason is not None:
        notes = list(dict.fromkeys([*notes, f"Capture was switched off by a fault: {reason}"]))
    status = {"state": state, "reason": reason, "step": step, "scalars_bytes": scalars_bytes(path)}
    write_manifest(path, {**before, "notes": notes, "status": status})


def append_scalars(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of logged numbers (loss, learning rate, metrics) to ``scalars.jsonl``.

    NaN and Infinity stand there as Python writes them: a loss that diverged is worth knowing.
    """
    append_line(path / SCALARS, record)


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """All complete lines of ``scalars.jsonl``; half-written lines are left out.

    Raises
    ------
    RunFormatError
        When it is a symbolic link or too large, or when a line is not as it was written.
    """
    ledger = read_ledger(path)
    sealed_from = None if ledger is None or ledger.problems else ledger.scalars_from
    records = []
    for line in read_lines(path / SCALARS, max_bytes=MAX_SCALARS_BYTES, max_line=MAX_SCALARS_LINE):
        must_be_sealed = line.is_sealed or (sealed_from is not None and line.start >= sealed_from)
        if must_be_sealed and not line.is_intact:
            raise RunFormatError(f"{path / SCALARS}: line {line.number} must be as it was written; it is damaged")
        if line.record is not None:
            records.append(line.record)
    return records


def scalars_bytes(path: Path) -> int:
    """Bytes of the complete lines of ``scalars.jsonl``, 0 when it is missing."""
    file = path / SCALARS
    return complete_bytes(file) if is_ordinary(file, MAX_SCALARS_BYTES) else 0


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a run directory, which may not be there yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _mend_ledger(path: Path) -> None:
    """Begin a ledger where there is none, and enter files that are not in it: of earlier versions, or of a killed writer."""
    if not has_ledger(path):
        start_ledger(path, scalars_from=scalars_bytes(path))
    ledger = read_ledger(path)
    if ledger is None or ledger.problems:
        return  # what it says is for `dynprobe verify` to show, not to be covered up
    for folder in _real_folders(path):
        for file in sorted(folder.iterdir()):
            name = name_in_run(file)
            if name is not None and name not in ledger.entries:
                with contextlib.suppress(RunFormatError), FileReader(file) as reader:
                    enter(file, reader.n_bytes, reader.extents())


def _remove_run(path: Path) -> None:
    """Remove the files of a run and no others. The lock file stays: its owner may be waiting for it."""
    for name in (LEDGER, MANIFEST, SCALARS):  # the ledger first: without it, what is left is a run as others are
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
    return (path / name for name in OWN_FOLDERS if (path / name).is_dir() and not (path / name).is_symlink())


def _foreign(path: Path) -> Iterator[str]:
    """Names in a folder that no run directory has."""
    return (file.name for file in path.iterdir() if file.name not in (*_OWN_FILES, *OWN_FOLDERS))
