"""What a run directory holds by the names of its files alone: quick to ask, as nothing is opened and HDF5 is not loaded."""

from pathlib import Path

from dynprobe.errors import RunFormatError, UsageError
from dynprobe.storage.layout import (
    MANIFEST,
    PROBES,
    SNAPSHOTS,
    TASK_SPLITS,
    is_task_name,
    probe_path,
    step_of,
    task_part,
    task_part_of,
)

OWN_FOLDERS = (PROBES, SNAPSHOTS)


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run directory: a manifest or a probe set inside."""
    return (path / MANIFEST).is_file() or probe_path(path).is_file()


def require_run(path: Path) -> None:
    """Check that a path is a run directory whose folders are its own.

    Raises
    ------
    RunFormatError
        Saying what the path is instead and how a run directory is made.
    """
    for name in OWN_FOLDERS:
        if (path / name).is_symlink():
            raise RunFormatError(f"{path / name}: must be a folder of the run itself; got a symbolic link out of it")
    if is_run(path):
        return
    got = "nothing" if not path.exists() else "a file" if path.is_file() else "a folder without a manifest"
    raise RunFormatError(f"{path}: must be a run directory (written by `dynprobe capture` or a Recorder); got {got}")


def list_steps(path: Path) -> tuple[int, ...]:
    """Steps that have a complete snapshot file, ascending."""
    folder = path / SNAPSHOTS
    files = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(step for step in map(step_of, files) if step is not None))


def list_probe_tasks(path: Path) -> tuple[str, ...]:
    """Names of the probe tasks that have the files of both their splits, in alphabetical order."""
    folder = path / PROBES
    files = [file.stem for file in folder.iterdir() if file.suffix == ".h5"] if folder.is_dir() else []
    names = {part[0] for part in map(task_part_of, files) if part is not None}
    return tuple(sorted(name for name in names if all(task_part(name, split) in files for split in TASK_SPLITS)))


def require_task_name(name: str) -> None:
    """Check that a probe task may have a name: files and arrays of a run are called by it.

    Raises
    ------
    UsageError
        When it may not.
    """
    if not is_task_name(name):
        raise UsageError(
            f"a probe task must be named by letters, digits, `_` and `-`, at most 58 of them and no `-` first; got {name!r}. "
            "Rename it, or its file"
        )
