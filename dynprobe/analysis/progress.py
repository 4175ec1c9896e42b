"""Telling a caller how far an analysis has come."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]


class Tick:
    """Counts finished pieces of work and reports each to a callable, if there is one.

    Parameters
    ----------
    progress
        Called with (done, total, label), or ``None``.
    total
        Number of pieces.
    label
        What is being done, such as ``"attention"``.

    Examples
    --------
    >>> tick = Tick(lambda done, total, label: print(done, total, label), 2, "attention")
    >>> tick()
    1 2 attention
    """

    def __init__(self, progress: Progress | None, total: int, label: str) -> None:
        self._progress, self._total, self._label, self._done = progress, total, label, 0

    def __call__(self) -> None:
        """Count one piece as done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, self._label)
