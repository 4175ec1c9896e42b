"""Checking every byte of a run directory against the checksums stored when it was written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dynprobe.errors import DynprobeError, RunFormatError
from dynprobe.storage.directory import read_manifest, scalars_bytes
from dynprobe.storage.folder import require_run
from dynprobe.storage.layout import (
    LEDGER,
    MANIFEST,
    MAX_SCALARS_BYTES,
    MAX_SCALARS_LINE,
    PROBES,
    SCALARS,
    SNAPSHOTS,
    is_probe_name,
    is_temporary,
    probe_path,
    step_of,
)
from dynprobe.storage.ledger import Ledger, name_in_run, problems_of, read_ledger
from dynprobe.storage.probe_file import read_probe_set
from dynprobe.storage.reader import FileReader
from dynprobe.storage.sealed import has_seal, read_lines

_FOREIGN = "is no file of the run format"
_UNLISTED = "is not in the ledger: its writer was killed before it could enter it, or it was put there later"


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
    remarks
        What is no damage and worth knowing.
    """

    path: Path
    problems: tuple[str, ...]
    n_arrays: int = 0
    remarks: tuple[str, ...] = ()


def verify_run(path: Path) -> Iterator[FileCheck]:
    """Check manifest, ledger, scalars, probe sets and snapshots of a run, one file after another.

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
    ledger, ledger_problems = None, list[str]()
    try:
        ledger = read_ledger(path)
    except DynprobeError as error:
        ledger_problems.append(str(error))
    yield _check_manifest(path, ledger)
    if ledger is not None or ledger_problems:
        yield FileCheck(path / LEDGER, ledger.problems if ledger is not None else tuple(ledger_problems))
    if (path / SCALARS).is_symlink() or (path / SCALARS).exists():
        yield _check_scalars(path, ledger)
    yield from _check_arrays(path, ledger)


def require_intact_records(path: Path) -> None:
    """Check manifest, ledger and scalars of a run, and that no file is missing that the ledger has.

    Raises
    ------
    RunFormatError
        Naming the first problem.
    """
    ledger = read_ledger(path)
    checks = [_check_manifest(path, ledger), *_missing(path, ledger)]
    if ledger is not None:
        checks.append(FileCheck(path / LEDGER, ledger.problems))
    if (path / SCALARS).is_symlink() or (path / SCALARS).exists():
        checks.append(_check_scalars(path, ledger))
    for check in checks:
        for problem in check.problems:
            text = problem if problem.startswith(str(check.path)) else f"{check.path}: {problem}"
            raise RunFormatError(f"{text}. `dynprobe verify` lists all that is damaged")


def _check_arrays(path: Path, ledger: Ledger | None) -> Iterator[FileCheck]:
    fingerprints: dict[str, str | None] = {}
    for file in _files(path / PROBES):
        if not is_probe_name(file):
            yield FileCheck(file, (_FOREIGN,))
            continue
        check, fingerprint = _check_probe_set(file, ledger)
        fingerprints[file.stem] = fingerprint
        yield check
    missing = {check.path: check for check in _missing(path, ledger)}
    if not probe_path(path).exists():
        missing[probe_path(path)] = FileCheck(
            probe_path(path), ("is missing; the run cannot be analysed without its probe set",)
        )
    known = {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint is not None}
    for file in _files(path / SNAPSHOTS):
        step = step_of(file)
        yield FileCheck(file, (_FOREIGN,)) if step is None else _check_snapshot(file, step, known, ledger)
    yield from missing.values()


def _files(folder: Path) -> list[Path]:
    """Entries of a folder by name, without the files that a writer may be writing now."""
    return sorted(file for file in folder.iterdir() if not is_temporary(file)) if folder.is_dir() else []


def _missing(path: Path, ledger: Ledger | None) -> Iterator[FileCheck]:
    for name in ledger.entries if ledger is not None else ():
        if not (path / name).exists():
            yield FileCheck(path / name, ("is missing; it was finished, and the ledger has it",))


def _check_manifest(path: Path, ledger: Ledger | None) -> FileCheck:
    file = path / MANIFEST
    try:
        manifest = read_manifest(path)
    except (DynprobeError, OSError) as error:
        return FileCheck(file, (str(error),))
    if not file.is_file():
        return FileCheck(file, ("is missing; the run can still be read",))
    problems = [] if "model" in manifest else ["does not describe the model"]
    is_sealed = has_seal(file.read_bytes())
    if ledger is not None and not is_sealed:
        problems.append("must end in its checksum `seal`; it is damaged, or was changed by another program")
    if ledger is None and is_sealed:
        problems.append(f"was written with a ledger, and {LEDGER} is missing")
    status = manifest.get("status", {})
    if status.get("state") == "finished" and status.get("scalars_bytes") != _scalars_bytes(path):
        said = f"{status.get('scalars_bytes')!r:.20}"
        problems.append(f"says that {SCALARS} has {said} bytes; it has {_scalars_bytes(path)} of complete lines")
    return FileCheck(file, tuple(problems))


def _scalars_bytes(path: Path) -> int:
    try:
        return scalars_bytes(path)
    except RunFormatError:
        return 0  # said where the file itself is checked


def _check_scalars(path: Path, ledger: Ledger | None) -> FileCheck:
    file, problems, end = path / SCALARS, [], 0
    sealed_from = float("inf") if ledger is None or ledger.problems else ledger.scalars_from
    try:
        for line in read_lines(file, max_bytes=MAX_SCALARS_BYTES, max_line=MAX_SCALARS_LINE):
            if not line.is_intact and (line.is_sealed or line.start >= sealed_from):
                problems.append(f"line {line.number} is damaged")
            end = line.number
    except DynprobeError as error:
        return FileCheck(file, (str(error),))
    if ledger is not None and not end and ledger.scalars_from:
        problems.append(f"must begin with {ledger.scalars_from} bytes of an earlier version")
    return FileCheck(file, tuple(problems))


def _array_problems(file: Path, ledger: Ledger | None) -> tuple[list[str], tuple[str, ...], int]:
    """Problems and remarks about the bytes of a file, and the number of arrays that were checked."""
    name = name_in_run(file)
    entry = ledger.entries.get(name) if ledger is not None and name is not None else None
    if entry is not None and file.is_file() and not file.is_symlink():
        return problems_of(file, entry), (), len(entry.arrays)
    with FileReader(file) as reader:
        damaged = [f"array `{name}` is damaged" for name in reader.names if not reader.is_intact(name)]
        return damaged, () if ledger is None else (_UNLISTED,), len(reader.names)


def _check_probe_set(file: Path, ledger: Ledger | None) -> tuple[FileCheck, str | None]:
    try:
        problems, remarks, n_arrays = _array_problems(file, ledger)
        fingerprint = None if problems else read_probe_set(file).fingerprint
    except (DynprobeError, OSError) as error:
        return FileCheck(file, (str(error),)), None
    return FileCheck(file, tuple(problems), n_arrays, remarks), fingerprint


def _check_snapshot(file: Path, step: int, fingerprints: Mapping[str, str], ledger: Ledger | None) -> FileCheck:
    try:
        problems, remarks, n_arrays = _array_problems(file, ledger)
        if problems:
            return FileCheck(file, tuple(problems), n_arrays)
        with FileReader(file) as reader:
            meta = reader.meta
    except (DynprobeError, OSError) as error:
        return FileCheck(file, (str(error),))
    if meta.get("kind") != "snapshot":
        problems.append(f"must be a snapshot; got {meta.get('kind')!r:.40}")
    if meta.get("step") != step:
        problems.append(f"holds step {meta.get('step')!r:.40}, not the one in its name")
    if meta.get("probe_fingerprint") not in fingerprints.values():
        problems.append("was measured on a probe set that is not in this run")
    parts = meta.get("task_fingerprints", {})
    for part, fingerprint in parts.items() if isinstance(parts, dict) else ():
        if fingerprints.get(part) != fingerprint:
            problems.append(f"was measured on examples of the probe task {part!r:.80} that are not in this run")
    return FileCheck(file, tuple(problems), n_arrays, remarks)
