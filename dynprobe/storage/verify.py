"""Checking every byte of a run directory against the checksums stored when it was written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dynprobe.errors import DynprobeError
from dynprobe.storage.directory import read_manifest, require_run
from dynprobe.storage.layout import MANIFEST, PROBES, SNAPSHOTS, is_probe_name, is_temporary, probe_path, step_of
from dynprobe.storage.probe_file import read_probe_set
from dynprobe.storage.reader import FileReader

_FOREIGN = "is no file of the run format"


@dataclass(frozen=True)
class FileCheck:
    """What verification found in one file.

    Attributes
    ----------
    path
        The file.
    problems
        One sentence per problem; empty when the file is intact.
    n_arrays
        Number of arrays whose checksum was recomputed.
    """

    path: Path
    problems: tuple[str, ...]
    n_arrays: int = 0


def verify_run(path: Path) -> Iterator[FileCheck]:
    """Check manifest, probe sets and snapshots of a run, one file after another.

    Parameters
    ----------
    path
        A run directory.

    Yields
    ------
    FileCheck
        One per file, intact or not, so that a caller can show progress.

    Raises
    ------
    RunFormatError
        When the path is no run directory at all.
    """
    require_run(path)
    yield _check_manifest(path)
    fingerprints: list[str | None] = []
    for file in _files(path / PROBES):
        if not is_probe_name(file):
            yield FileCheck(file, (_FOREIGN,))
            continue
        check, fingerprint = _check_probe_set(file)
        fingerprints.append(fingerprint)
        yield check
    if not probe_path(path).exists():
        yield FileCheck(probe_path(path), ("is missing; the run cannot be analysed without its probe set",))
    known = [fingerprint for fingerprint in fingerprints if fingerprint is not None]
    for file in _files(path / SNAPSHOTS):
        step = step_of(file)
        yield FileCheck(file, (_FOREIGN,)) if step is None else _check_snapshot(file, step, known)


def _files(folder: Path) -> list[Path]:
    """Entries of a folder by name, without the files that a writer may be writing now."""
    return sorted(file for file in folder.iterdir() if not is_temporary(file)) if folder.is_dir() else []


def _check_manifest(path: Path) -> FileCheck:
    file = path / MANIFEST
    try:
        manifest = read_manifest(path)
    except (DynprobeError, OSError) as error:
        return FileCheck(file, (str(error),))
    if not file.exists():
        return FileCheck(file, ("is missing; the run can still be read",))
    return FileCheck(file, () if "model" in manifest else ("does not describe the model",))


def _damaged(reader: FileReader) -> list[str]:
    return [f"array `{name}` is damaged" for name in reader.names if not reader.is_intact(name)]


def _check_probe_set(file: Path) -> tuple[FileCheck, str | None]:
    try:
        with FileReader(file) as reader:
            problems, n_arrays = _damaged(reader), len(reader.names)
        fingerprint = None if problems else read_probe_set(file).fingerprint
    except DynprobeError as error:
        return FileCheck(file, (str(error),)), None
    return FileCheck(file, tuple(problems), n_arrays), fingerprint


def _check_snapshot(file: Path, step: int, fingerprints: list[str]) -> FileCheck:
    try:
        with FileReader(file) as reader:
            problems, meta, n_arrays = _damaged(reader), reader.meta, len(reader.names)
    except DynprobeError as error:
        return FileCheck(file, (str(error),))
    if meta.get("kind") != "snapshot":
        problems.append(f"must be a snapshot; got {meta.get('kind')!r:.40}")
    if meta.get("step") != step:
        problems.append(f"holds step {meta.get('step')!r:.40}, not the one in its name")
    if meta.get("probe_fingerprint") not in fingerprints:
        problems.append("was measured on a probe set that is not in this run")
    return FileCheck(file, tuple(problems), n_arrays)
