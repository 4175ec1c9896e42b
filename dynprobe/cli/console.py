"""What all commands share on the terminal: where text goes, tables, progress bars."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


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
    """Print a table; every cell is data, never markup."""
    table = Table(title=escape(plain(title)), title_justify="left", header_style="bold", title_style="bold")
    for position, column in enumerate(columns):
        table.add_column(escape(plain(column)), justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(escape(plain(cell)) for cell in row))
    out.print(table)


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
