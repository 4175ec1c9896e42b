"""What errors call things on the command line: options, and the names that may have been meant."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dynprobe.errors import DynprobeError, UsageError

if TYPE_CHECKING:
    from dynprobe.tasks import Task


def meant(name: str, known: Iterable[str]) -> str:
    """A question after the known name that is most like `name`; empty where none is like it.

    Examples
    --------
    >>> meant("supersens", ["hyp", "supersense"]), meant("x", ["hyp"])
    (". Is 'supersense' meant?", '')
    """
    near = difflib.get_close_matches(name, list(known), n=1) or [own for own in known if len(name) > 2 and name in own]
    return f". Is {near[0]!r} meant?" if near else ""


@contextmanager
def options_of(**options: str) -> Iterator[None]:
    """Errors name the arguments of Python functions; on the way through here these become options: `tasks="--task"`."""
    try:
        yield
    except DynprobeError as error:
        text = str(error)
        for argument, option in options.items():
            text = text.replace(f"`{argument}`", option)
        raise type(error)(text) from error


def require_known(names: Sequence[str], known: Sequence[str], option: str, *, what: str = "be one of") -> None:
    """Refuse names that are not known.

    Raises
    ------
    UsageError
        With all known names, and the one that may have been meant.
    """
    if unknown := [name for name in names if name not in known]:
        there = ", ".join(known) or "none"
        raise UsageError(f"{option} must {what} {there}; got {unknown[0]!r}{meant(unknown[0], known)}")


def load_asked_task(name: str, option: str) -> "Task":
    """The task that an option names.

    Raises
    ------
    TaskDataError
        As :func:`~dynprobe.tasks.load_task`, in the words of the command line.
    """
    from dynprobe.errors import TaskDataError
    from dynprobe.tasks import load_task, packaged_tasks, shipped_tasks

    try:
        with options_of(name_or_path=option):
            return load_task(name)
    except TaskDataError as error:
        near = "" if Path(name).exists() else meant(name, (*shipped_tasks(), *packaged_tasks()))
        raise TaskDataError(f"{error}{near}") from error
