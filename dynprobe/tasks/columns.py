"""Which columns hold texts and labels, and what is in their cells."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynprobe.errors import TaskDataError
from dynprobe.tasks.files import Table

# Tried in this order, pairs first: a file with `question` and `sentence` is a task on pairs.
TEXT_COLUMNS = (
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text",),
    ("sentence",),
    ("content",),
    ("review",),
    ("document",),
)
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "score")
# Numbers with a fractional part and more distinct values than this are targets of a regression, not classes.
MAX_FRACTIONAL_CLASSES = 10
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def find_texts(table: Table, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the text columns: those wanted, or the first known combination that is there.

    Raises
    ------
    TaskDataError
        When a wanted column is missing, or none is known; the message lists the columns found.
    """
    if wanted is not None:
        names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if not 1 <= len(names) <= 2:
            raise TaskDataError(f"`text` must name one or two columns; got {len(names)}")
        return tuple(_exact(table, name, "text") for name in names)
    by_lower = {name.lower(): name for name in table.columns}
    for names in TEXT_COLUMNS:
        if all(name in by_lower for name in names):
            return tuple(by_lower[name] for name in names)
    raise TaskDataError(
        f"`{table.where}` must have a text column; found {_listing(table)}. "
        'Name yours with text="..." or text=("...", "...") in Python, or call it "text" in the file'
    )


def find_label(table: Table, wanted: str | None) -> str:
    """Name of the label column: the one wanted, or the first known one that is there.

    Raises
    ------
    TaskDataError
        As :func:`find_texts`.
    """
    if wanted is not None:
        return _exact(table, wanted, "label")
    by_lower = {name.lower(): name for name in table.columns}
    for name in LABEL_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise TaskDataError(
        f'`{table.where}` must have a label column; found {_listing(table)}. Name yours with label="..." in Python, '
        'or call it "label" in the file'
    )


def text_rows(table: Table, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Texts of each row.

    Raises
    ------
    TaskDataError
        When a cell is empty, no text, or cannot be written as UTF-8; rows are counted from 1.
    """
    for name in names:
        for row, cell in enumerate(table.columns[name], start=1):
            _check_text(cell, f"row {row}, column `{name}` of `{table.where}`")
    return list(zip(*(table.columns[name] for name in names), strict=True))


def label_values(table: Table, name: str) -> list[Any]:
    """Labels of each row as str, int or float; numbers in text files become numbers.

    Raises
    ------
    TaskDataError
        When a cell is empty, NaN or infinite, or no single value.
    """
    cells = table.columns[name]
    for row, cell in enumerate(cells, start=1):
        where = f"row {row}, column `{name}` of `{table.where}`"
        if cell is None or cell == "" or (isinstance(cell, float | np.floating) and not math.isfinite(cell)):
            raise TaskDataError(f"label must be a class or a finite number; got {cell!r} in {where}. Remove the row")
        if not isinstance(cell, str | int | float | np.integer | np.floating | np.bool_):
            raise TaskDataError(f"label must be a class or a number; got {type(cell).__name__} in {where}")
        if isinstance(cell, int) and abs(cell) >= 2**63:
            raise TaskDataError(f"label must fit into 64 bits; got a number of {cell.bit_length()} bits in {where}")
    values = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    known = table.class_names.get(name)
    if known is not None:
        return [_class_name(value, known, name, table.where) for value in values]
    if all(isinstance(value, str) for value in values):
        return _as_numbers(values, name, table.where)
    if any(isinstance(value, str | bool) for value in values):
        return [str(value) for value in values]
    return values


def encode_labels(values: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Class indices and class names, or targets and ``None`` for regression.

    Numbers with a fractional part and more than ten distinct values are regression targets. Other numbers are classes
    in numerical order, texts are classes in alphabetical order.

    Examples
    --------
    >>> encode_labels(["no", "yes", "no"])
    (array([0, 1, 0]), ('no', 'yes'))
    >>> encode_labels([2, 10, 2])
    (array([0, 1, 0]), ('2', '10'))
    """
    distinct = sorted(set(values))
    numeric = not any(isinstance(value, str) for value in distinct)
    if numeric and len(distinct) > MAX_FRACTIONAL_CLASSES and any(value != int(value) for value in distinct):
        return np.array(values, dtype=np.float64), None
    index = {value: i for i, value in enumerate(distinct)}
    names = tuple(str(int(v)) if numeric and v == int(v) else str(v) for v in distinct)
    return np.array([index[value] for value in values], dtype=np.int64), names


def _as_numbers(values: list[str], name: str, where: str) -> list[Any]:
    if all(_WHOLE.fullmatch(value) for value in values):
        return [int(value) for value in values]  # as float, large numbers would fall together
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return values
    for row, number in enumerate(numbers, start=1):
        if not math.isfinite(number):
            raise TaskDataError(
                f"label must be a class or a finite number; got {values[row - 1]!r} in row {row}, column `{name}` "
                f"of `{where}`. Remove the row"
            )
    return numbers


def _class_name(value: Any, known: tuple[str, ...], name: str, where: str) -> str | int:
    if value == -1:
        return -1
    if not isinstance(value, int) or not 0 <= value < len(known):
        raise TaskDataError(f"label of column `{name}` of `{where}` must be from 0 to {len(known) - 1}; got {value!r}")
    return known[value]


def _check_text(cell: Any, where: str) -> None:
    if not isinstance(cell, str):
        raise TaskDataError(f"text must be a string; got {cell!r:.40} in {where}. Remove the row or fill the cell")
    if not cell.strip():
        raise TaskDataError(f"text must not be empty; got {cell!r:.40} in {where}. Remove the row or fill the cell")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise TaskDataError(f"text must be valid Unicode; got a lone surrogate in {where}. Repair the text") from error


def _exact(table: Table, name: str, argument: str) -> str:
    if name not in table.columns:
        raise TaskDataError(
            f"`{argument}` must name a column of `{table.where}`; got `{name}`, found {_listing(table)}"
        )
    return name


def _listing(table: Table) -> str:
    names = [repr(name[:40]) for name in list(table.columns)[:20]]
    return ("columns " + ", ".join(names)) if names else "no column"
