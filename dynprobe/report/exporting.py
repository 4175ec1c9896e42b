"""The data behind a picture as CSV and as a small printable table; data URIs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dynprobe.report.picture import Picture
from dynprobe.report.readings import status_text
from dynprobe.report.wording import clean_text, format_interval, format_number, short_label

MOST_CELLS = 3000
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")


@dataclass(frozen=True)
class PrintedTable:
    """A table as text: the name of its first column, the other columns, and rows of cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def csv_text(data: pd.DataFrame) -> str:
    r"""The data of a picture as CSV, numbers in full; text that a spreadsheet would run as a formula is quoted.

    Examples
    --------
    >>> csv_text(pd.DataFrame({"run": ["=1+1", "b"], "value": [-0.5, None]}))
    "run,value\n'=1+1,-0.5\nb,\n"
    """
    safe = data.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [None if pd.isna(cell) else _inert(cell) for cell in safe[column]]
    return safe.to_csv(index=False, lineterminator="\n")


def data_uri(content: bytes, media_type: str) -> str:
    """Content as a ``data:`` address, so that a page needs no second file.

    Examples
    --------
    >>> data_uri(b"a", "text/csv")
    'data:text/csv;base64,YQ=='
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def printed_table(picture: Picture) -> PrintedTable | None:
    """The numbers of a picture laid out as one sees them: axis down, series or axis across.

    Returns
    -------
    PrintedTable or None
        None where the table would have more than ``MOST_CELLS`` cells; the CSV holds everything.
    """
    data = picture.data
    across = "series" if picture.kind == "lines" else "x"
    down = "x" if picture.kind == "lines" else "y"
    columns = list(dict.fromkeys(data[across])) if across == "series" else sorted(data[across].unique())
    places = sorted(data[down].unique())
    if len(columns) * len(places) > MOST_CELLS:
        return None
    texts = {
        (place, column): _cell_text(*cells)
        for place, column, *cells in data[[down, across, *_cell_columns(picture)]].itertuples(index=False)
    }
    corner = picture.x_label if picture.kind == "lines" else f"{picture.y_label} \\ {picture.x_label}"
    rows = [(str(place), *(texts.get((place, column), "") for column in columns)) for place in places]
    return PrintedTable(columns=(corner, *map(str, columns)), rows=tuple(rows))


def _cell_columns(picture: Picture) -> Sequence[str]:
    intervals = ("low", "high") if picture.kind == "lines" else ()
    return ("value", "status", "reason", *intervals)


def _cell_text(value: float, status: str, reason: object, *interval: float) -> str:
    if pd.isna(value):
        return short_label(status_text(status, reason), length=90)
    return format_interval(value, *interval) if interval else format_number(value)


def _inert(cell: object) -> str:
    text = clean_text(cell)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
