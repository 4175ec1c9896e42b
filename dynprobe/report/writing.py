"""Reports into files: complete or not at all, and never over an existing file by accident."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from dynprobe.errors import UsageError
from dynprobe.report.page import render_html
from dynprobe.report.wording import short_label
from dynprobe.result import Result


def write_report(result: Result, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write the HTML report of a result into one file that needs no other.

    Parameters
    ----------
    result
        What to report.
    path
        File to write; its folder must exist.
    force
        Whether an existing file may be replaced.

    Returns
    -------
    pathlib.Path
        The path written. A reader sees the old file or the whole new one, never a part.

    Raises
    ------
    UsageError
        When the file exists and ``force`` is not set, when the folder does not, or when it cannot be written.
    """
    return _write(Path(path), lambda: render_html(result).encode("utf-8"), force=force)


def write_json(result: Result, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write everything a result says as JSON (UTF-8); parameters and errors as in :func:`write_report`."""
    # A lone surrogate, which JSON can hold and UTF-8 cannot, is written as its JSON escape.
    return _write(Path(path), lambda: result.to_json().encode("utf-8", errors="backslashreplace"), force=force)


def _write(path: Path, content: Callable[[], bytes], *, force: bool) -> Path:
    """Check the target before the content is made: making it takes seconds."""
    check_target(path, force=force)
    data = content()
    temporary = path.with_name(f".dynprobe-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UsageError(
            f"`path` must be a file that can be written; got {_shown(path)}: {error.strerror}. Choose another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_target(path: Path, *, force: bool) -> None:
    """Check that a file can be written, before the work that fills it.

    Raises
    ------
    UsageError
        When it exists and `force` is not set, is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise UsageError(f"`path` must name a file; got the folder {_shown(path)}. Add a file name to it.")
    if not path.parent.is_dir():
        raise UsageError(
            f"`path` must be in a folder that exists; got {_shown(path)}. "
            f"Make the folder {_shown(path.parent)} first or choose another."
        )
    if path.exists() and not force:
        raise UsageError(f"{_shown(path)} exists: pass --force or choose another name.")


def _shown(path: Path) -> str:
    return short_label(path, length=300)
