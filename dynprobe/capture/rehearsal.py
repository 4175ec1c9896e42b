"""What a capture would take, found out before it begins."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from dynprobe.capture.news import report
from dynprobe.capture.settings import show_bytes


@dataclass(frozen=True)
class Rehearsal:
    """What a snapshot takes, measured once and kept nowhere.

    Attributes
    ----------
    bytes_per_snapshot
        Expected size of a snapshot file.
    n_snapshots
        Number of planned snapshots, or ``None`` where the length of the training is unknown.
    free
        Bytes that are free on the disk of the run directory.
    seconds
        Time of one pass over the probe set, with all that is kept taken off the model, without the disk's part.
    n_examples, n_tokens
        Size of the probe set.
    notes
        What the budget made smaller.
    probe_tasks
        Name of each probe task to its number of examples.
    bytes_once
        What the first snapshot takes more.
    """

    bytes_per_snapshot: int
    n_snapshots: int | None
    free: int
    seconds: float
    n_examples: int
    n_tokens: int
    notes: tuple[str, ...] = ()
    probe_tasks: Mapping[str, int] = field(default_factory=dict)
    bytes_once: int = 0

    @property
    def total(self) -> int | None:
        """Bytes of the whole run, or ``None`` where the number of snapshots is unknown."""
        return None if self.n_snapshots is None else self.n_snapshots * self.bytes_per_snapshot + self.bytes_once

    def __str__(self) -> str:
        each = f"{show_bytes(self.bytes_per_snapshot)} and {self.seconds:.2g} s for each snapshot"
        if self.total is None or self.n_snapshots is None:
            whole = "the number of snapshots is not known, as the length of the training is not"
        else:
            seconds = self.n_snapshots * self.seconds
            whole = f"{self.n_snapshots} snapshots: {show_bytes(self.total)} and {seconds:.2g} s in all"
        tasks = ", ".join(f"{name} ({number} examples)" for name, number in self.probe_tasks.items())
        lines = [
            f"{self.n_examples} probe examples, {self.n_tokens} tokens",
            *([f"probe tasks: {tasks}"] if tasks else []),
            each,
            whole,
            f"{show_bytes(self.free)} free on the disk",
            *self.notes,
        ]
        return "\n".join(lines)


def leave(rehearsal: Rehearsal | None) -> NoReturn:
    """End a program that was only to be rehearsed, saying what was found out; `None` in processes that have nothing to say.

    By `SystemExit`, which goes through the walls that keep faults of capture away from the program.
    """
    if rehearsal is not None:
        lines = str(rehearsal).replace("\n", "\n  ")
        sys.stderr.write(f"dynprobe: a rehearsal, nothing is captured\n  {lines}\n")
        report({"event": "rehearsal"})
    raise SystemExit(0)
