"""What all commands share on the terminal: where text goes, tables, progress bars."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_BORDER, _BETWEEN = 1, 3  # columns of a terminal that the frame of a table takes, in all and for each column


def plain(text: str) -> str:
    r"""Text of a stranger's run as the terminal may have it: control characters, which could move the cursor, are spelled out.

    Examples
    --------
    >>> print(plain("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def say(text: str) -> None:
    """Print a line to standard output; `text` is data, never markup."""
    out.print(escape(_lines(text)))


def complain(text: str) -> None:
    """Print a line to standard error."""
    err.print(escape(_lines(text)), style="red")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; every cell is data, never markup.

    Where the output is no terminal, the table is as wide as it must be. On a terminal that is too narrow, words fold and no
    number is ever cut: where not even the numbers fit side by side, each row becomes a paragraph.
    """
    title, columns, rows = plain(title), [plain(name) for name in columns], [[plain(c) for c in row] for row in rows]
    room = None if not out.is_terminal else out.width - _BORDER - _BETWEEN * len(columns)
    widths = _widths(columns, rows, room)
    if widths is None:
        out.print(escape(title), style="bold")
        for row in rows:
            lines = (f"  {name}: {cell}" for name, cell in zip(columns, row, strict=True) if cell)
            out.print(escape("\n".join(lines)), end="\n\n")
        return
    full = sum(widths) + _BORDER + _BETWEEN * len(columns)
    table = Table(title=escape(title), title_justify="left", header_style="bold", title_style="bold", width=full)
    for position, (column, width) in enumerate(zip(columns, widths, strict=True)):
        table.add_column(escape(column), justify="left" if position == 0 else "right", width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table, width=max(full, out.width))


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int | None) -> list[int] | None:
    """Widths of columns that fit into `room`, the widest made narrower first; `None` where a number would have to be cut.

    Whole words are kept where they can be; numbers are kept always.
    """
    cells = list(zip(columns, *rows, strict=True))
    natural = [max(map(cell_len, own)) for own in cells]
    if room is None or sum(natural) <= room:
        return natural
    words = [[word for cell in own for word in cell.split()] for own in cells]
    for kept in (words, [[word for word in own if any(map(str.isdigit, word))] for own in words]):
        least = [max(map(cell_len, own), default=1) for own in kept]
        for widest in range(max(natural), 0, -1):
            widths = [min(whole, max(low, widest)) for whole, low in zip(natural, least, strict=True)]
            if sum(widths) <= room:
                return widths
    return None


def _lines(text: str) -> str:
    """Plain text of several lines, as it was made by us."""
    return "\n".join(plain(line) for line in text.split("\n"))


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error, fed with (done, total, what is being done); silent where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def advance(done: int, total: int, label: str) -> None:
            progress.update(task, completed=done, total=total, description=escape(plain(label)))

        yield advance
