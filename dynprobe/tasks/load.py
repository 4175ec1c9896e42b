"""From a name, a path or a data set in memory to a task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dynprobe.errors import TaskDataError
from dynprobe.tasks.columns import encode_labels, find_label, find_texts, label_values, text_rows
from dynprobe.tasks.files import KINDS, Table, file_kind, read_table
from dynprobe.tasks.glue import PREFIX, glue_splits, halved
from dynprobe.tasks.packaged import load_packaged, packaged_tasks
from dynprobe.tasks.shipped import DESCRIPTIONS, SOURCE, shipped_file
from dynprobe.tasks.task import SPLIT_NAMES, Split, Task, text_hash

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
UNLABELLED = -1


def load_task(
    name_or_path: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    split: str | None = None,
) -> Task:
    """Load a task by name, or from the user's own file or folder.

    Parameters
    ----------
    name_or_path
        A name of :func:`shipped_tasks`; one of :func:`packaged_tasks`, whose package must be installed; ``glue/rte`` and so
        on, through the `datasets` library, the validation split halved into validation and test; or a CSV, TSV, JSON Lines or
        Parquet file (``.gz`` allowed); or a folder with such files named train, validation (valid, val, dev) and test. A name
        wins over a file: write ``./wic`` for yours.
    text
        Column with the texts, or two columns for pairs; without it the usual names are tried.
    label
        Column with the labels; without it the usual names are tried. Texts and whole numbers are classes; numbers with
        a fractional part and more than ten distinct values make a regression. A split in which every label is -1 has
        no labels.
    split
        Column that says train, validation or test; without it a column `split` is used where there is one.
        Without any, rows are split 80/10/10 by the hash of their first text: equal first texts share a split, and
        adding rows moves no row.

    Returns
    -------
    Task

    Raises
    ------
    TaskDataError
        When the file cannot be read, a column is missing, a cell is empty, there is one class only, there are too few rows
        to split, or what a name needs is not installed.

    Examples
    --------
    >>> load_task("wic").label_names
    ('different', 'same')
    """
    if str(name_or_path) in DESCRIPTIONS:
        return _shipped(str(name_or_path))
    if str(name_or_path) in packaged_tasks():
        return load_packaged(str(name_or_path))
    if str(name_or_path).startswith(PREFIX):
        return _glue(str(name_or_path))
    path = Path(name_or_path)
    if path.is_dir():
        return _build(path.name, _folder_tables(path), text=text, label=label, source=str(path))
    if not path.exists():
        raise TaskDataError(
            f"`name_or_path` must be a shipped task ({', '.join(DESCRIPTIONS)}), one from a package "
            f"({', '.join(packaged_tasks())}), {PREFIX}NAME, a file or a folder; got `{name_or_path}`, which does not exist"
        )
    tables = _by_split_column(read_table(path), split)
    return _build(path.name.split(".")[0], tables, text=text, label=label, source=str(path))


def task_from_dataset(
    dataset: Any,
    *,
    name: str = "dataset",
    text: str | Sequence[str] | None = None,
    label: str | None = None,
) -> Task:
    """Make a task from a data set in memory.

    Parameters
    ----------
    dataset
        A ``Dataset`` or ``DatasetDict`` of the `datasets` library, or a mapping of split names to anything with
        `column_names` and columns that can be indexed by name. Splits with other names than train, validation, test
        and their usual variants are left out.
    name
        Name of the task.
    text, label
        As in :func:`load_task`. Class names that the data set knows (``ClassLabel``) are kept.

    Returns
    -------
    Task
        One split alone is split 80/10/10 as in :func:`load_task`.

    Raises
    ------
    TypeError
        When `dataset` is nothing of the kind.
    TaskDataError
        As :func:`load_task`.
    """
    if hasattr(dataset, "column_names") and not isinstance(dataset, Mapping):
        tables = _by_split_column(_dataset_table(dataset, name), None)
    elif isinstance(dataset, Mapping):
        tables = {
            SPLIT_ALIASES[str(key).lower()]: _dataset_table(part, f"{name}/{key}")
            for key, part in dataset.items()
            if str(key).lower() in SPLIT_ALIASES
        }
        if not tables:
            raise TaskDataError(
                f"`dataset` must have a split named train, validation or test; got {list(dataset)[:10]}"
            )
    else:
        raise TypeError(
            f"`dataset` must have `column_names` and columns, or map split names to such; got {type(dataset).__name__}"
        )
    return _build(name, tables, text=text, label=label, source=f"data set `{name}`")


def read_texts(path: str | Path, *, text: str | Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """Read texts without labels: a ``.txt`` file with one text per line, or the text columns of a table.

    Parameters
    ----------
    path
        Text file (blank lines are skipped), CSV, TSV, JSON Lines or Parquet; ``.gz`` allowed.
    text
        Column with the texts, or two columns for pairs; without it the usual names are tried.

    Returns
    -------
    list of tuple of str
        One tuple per row, in the order of the file.

    Raises
    ------
    TaskDataError
        When the file is missing, empty, not UTF-8 or has no text column, or a cell is empty.
    """
    table = read_table(Path(path))
    return text_rows(table, find_texts(table, text))


def _shipped(name: str) -> Task:
    table = replace(read_table(shipped_file(f"{name}.csv.gz")), where=name)
    task = _build(name, _by_split_column(table, "split"), text=None, label="label", source=SOURCE)
    return replace(task, description=DESCRIPTIONS[name])


def _glue(name: str) -> Task:
    task = task_from_dataset(glue_splits(name), name=name)
    return replace(task, splits=halved(task["train"], task["validation"]))


def _folder_tables(folder: Path) -> dict[str, Table]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = SPLIT_ALIASES.get(path.name.split(".")[0].lower())
        if split is None or file_kind(path.name) is None:
            continue
        if split in found:
            raise TaskDataError(
                f"`{folder}` must hold one file per split; got `{found[split].name}` and `{path.name}` for {split}"
            )
        found[split] = path
    if not found:
        raise TaskDataError(
            f"`{folder}` must hold files named train, validation or test ({', '.join(KINDS)}); found none"
        )
    return {split: read_table(found[split]) for split in SPLIT_NAMES if split in found}


def _dataset_table(part: Any, where: str) -> Table:
    names = getattr(part, "column_names", None)
    if names is None:
        raise TypeError(f"`dataset` must have `column_names` and columns; got {type(part).__name__} in `{where}`")
    columns = {str(name): list(part[name]) for name in names}
    if not columns or not next(iter(columns.values())):
        raise TaskDataError(f"`{where}` must hold at least one row; got none")
    features = getattr(part, "features", None) or {}
    class_names = {
        str(key): tuple(str(name) for name in feature.names)
        for key, feature in features.items()
        if getattr(feature, "names", None)
    }
    return Table(where=where, columns=columns, class_names=class_names)


def _by_split_column(table: Table, wanted: str | None) -> dict[str, Table]:
    """Cut a table by its split column; one table named train where there is none."""
    name = wanted or next((column for column in table.columns if column.lower() == "split"), None)
    if name is None:
        return {"train": table}
    if name not in table.columns:
        raise TaskDataError(f"`split` must name a column of `{table.where}`; got `{name}`, found {list(table.columns)}")
    rows: dict[str, list[int]] = {}
    for i, cell in enumerate(table.columns[name]):
        split = SPLIT_ALIASES.get(str(cell).strip().lower())
        if split is None:
            raise TaskDataError(
                f"column `{name}` of `{table.where}` must say train, validation or test; got {cell!r:.40} in row {i + 1}"
            )
        rows.setdefault(split, []).append(i)
    return {split: _rows_of(table, rows[split]) for split in SPLIT_NAMES if split in rows}


def _rows_of(table: Table, rows: Sequence[int]) -> Table:
    return replace(table, columns={key: [cells[i] for i in rows] for key, cells in table.columns.items()})


def _build(
    name: str, tables: Mapping[str, Table], *, text: str | Sequence[str] | None, label: str | None, source: str
) -> Task:
    names = find_texts(next(iter(tables.values())), text)
    column = find_label(next(iter(tables.values())), label)
    texts = {split: text_rows(table, [_same(table, n) for n in names]) for split, table in tables.items()}
    values = {split: label_values(table, _same(table, column)) for split, table in tables.items()}
    known = next(iter(tables.values())).class_names.get(column)
    labels, label_names = _encode_all(values, known)
    splits = {split: Split(texts=tuple(texts[split]), labels=labels[split]) for split in tables}
    if len(splits) == 1:
        splits = _hash_splits(next(iter(splits.values())), source)
    return Task(name=name, label_names=label_names, splits=splits, text_columns=names, source=source)


def _same(table: Table, name: str) -> str:
    if name not in table.columns:
        raise TaskDataError(
            f"`{table.where}` must have column `{name}` as the other splits; found {list(table.columns)}"
        )
    return name


def _encode_all(
    values: Mapping[str, list[Any]], known: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...] | None]:
    """Encode the labels of all splits with the same classes."""
    labelled = [split for split, found in values.items() if any(value != UNLABELLED for value in found)]
    if not labelled:
        raise TaskDataError("at least one split must have labels; every label is -1")
    if any(value == UNLABELLED for split in labelled for value in values[split]):
        if known is not None:
            raise TaskDataError("each row of a labelled split must have a label; got -1. Remove the rows without one")
        labelled = list(values)  # -1 is one of the classes, as in (-1, 1)
    everything = [value for split in labelled for value in values[split]]
    if len({isinstance(value, str) for value in everything}) > 1:
        everything = [str(value) for value in everything]
    encoded, names = encode_labels(everything)
    if known is not None and names is not None:
        encoded, names = np.array([known.index(value) for value in everything]), known
    ends = np.cumsum([len(values[split]) for split in labelled])[:-1]
    parts = dict(zip(labelled, np.split(encoded, ends), strict=True))
    return {split: parts.get(split) for split in values}, names


def _hash_splits(data: Split, source: str) -> dict[str, Split]:
    """Split 80/10/10 by the hash of the first text; rows that share it, as pairs of one premise do, stay together."""
    tenths = [int(text_hash(fields[0])[:12], 16) * 10 >> 48 for fields in data.texts]
    names = [SPLIT_NAMES[max(0, tenth - 7)] for tenth in tenths]
    missing = [name for name in SPLIT_NAMES if name not in names]
    if missing:
        raise TaskDataError(
            f"`{source}` has too few different texts ({len({t[0] for t in data.texts})}) to be split by hash: "
            f"none fell into {', '.join(missing)}. Add a column `split`, or give a folder with train, validation, test"
        )
    rows = {name: [i for i, found in enumerate(names) if found == name] for name in SPLIT_NAMES}
    return {
        name: Split(
            texts=tuple(data.texts[i] for i in found), labels=None if data.labels is None else data.labels[found]
        )
        for name, found in rows.items()
    }
