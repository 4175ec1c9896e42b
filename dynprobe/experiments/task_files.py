"""The content of the user's own task files: what a result depends on beside the settings."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dynprobe.errors import UsageError
from dynprobe.tasks import packaged_tasks, shipped_tasks
from dynprobe.tasks.files import file_kind
from dynprobe.tasks.glue import PREFIX
from dynprobe.tasks.load import SPLIT_ALIASES


def digests_of(tasks: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The hash of the bytes of each task that is a file or folder of the user.

    Parameters
    ----------
    tasks
        Names as for :func:`~dynprobe.tasks.load_task`.

    Returns
    -------
    tuple of (str, str)
        Name and SHA-256 in hexadecimal digits, in the order of the names, each once. Tasks that are shipped, of a package or of
        GLUE are left out: their names alone say what they hold. So are those that are not there.

    Raises
    ------
    UsageError
        When a file cannot be read.
    """
    known = {*shipped_tasks(), *packaged_tasks()}
    own = sorted({name for name in tasks if name not in known and not name.startswith(PREFIX)})
    files = {name: _files(Path(name)) for name in own}
    return tuple((name, _digest(found)) for name, found in files.items() if found)


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder that hold its splits."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return [
        file
        for file in sorted(path.iterdir())
        if file.is_file() and file_kind(file.name) and file.name.split(".")[0].lower() in SPLIT_ALIASES
    ]


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                own = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(f"{file}: must be readable, as the file of a task; {error}") from error
        whole.update(f"{file.name}\0{own}\0".encode())
    return whole.hexdigest()
