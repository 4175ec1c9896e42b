"""A table as text, for a terminal and for the page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TerminalTable:
    """A table as clean text, without control characters.

    Attributes
    ----------
    title
        One line.
    columns
        Heads of the columns.
    rows
        Cells, one tuple per row, each as long as ``columns``.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
