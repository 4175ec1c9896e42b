"""What capture says inside somebody else's program, to its user and to the command that waits; and names for its runs."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynprobe.capture.inject import STATUS


class RunNames:
    """Names for the runs of one process, which may train several models one after the other: run, run-2, run-3.

    Attributes
    ----------
    n_taken
        Number of trainings captured so far; a training that could not be captured takes no name.

    Examples
    --------
    >>> names = RunNames()
    >>> names.next_after("runs/a").as_posix()
    'runs/a'
    >>> names.n_taken += 1
    >>> names.next_after("runs/a").as_posix()
    'runs/a-2'
    """

    def __init__(self) -> None:
        self.n_taken = 0

    def next_after(self, first: str | Path) -> Path:
        """Directory of the next training, given that of the first."""
        first = Path(first)
        return first.with_name(f"{first.name}-{self.n_taken + 1}") if self.n_taken else first


# Shared by all that captures in this process, so that a Trainer and a loop never ask for the same directory.
run_names = RunNames()


def say(sentence: str, *, stacklevel: int) -> None:
    """Warn; where the program makes errors of warnings, log instead, as none of ours is worth its training."""
    try:
        warnings.warn(f"dynprobe: {sentence}", stacklevel=stacklevel)
    except UserWarning:
        logging.getLogger("dynprobe").warning(sentence)


def report(record: Mapping[str, Any]) -> None:
    """Append one line to the status file; a program whose news are lost is no reason to end it."""
    path = os.environ.get(STATUS)
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(record)) + "\n")
        except OSError as error:
            print(f"dynprobe: could not write {path}: {error}", file=sys.stderr)  # noqa: T201


def report_fault(reason: str, *, stacklevel: int) -> None:
    """Say, here and to the command that waits, why a training is not captured."""
    report({"event": "fault", "reason": reason})
    say(f"this training is not captured: {reason}", stacklevel=stacklevel + 1)
