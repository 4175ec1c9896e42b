"""What probes of other tasks found, as tables: before, after, change and verdict; selectivity; differences between runs."""

from collections.abc import Iterator

import pandas as pd

from dynprobe.report.knowledge_summary import verdict_of
from dynprobe.report.readings import read
from dynprobe.report.table import TerminalTable
from dynprobe.report.wording import format_interval, format_number, short_label
from dynprobe.result import Result


def knowledge_tables(result: Result) -> tuple[TerminalTable, ...]:
    """One table per run: its tasks at the last and at the best layer; one of the differences between runs; and selectivity.

    Parameters
    ----------
    result
        A result of the probe suite.

    Returns
    -------
    tuple of TerminalTable
        Where there is a change, it has the interval, and the accuracies have none. A task that could not be probed has its
        status and reason. Empty where the result holds no rows of the suite.
    """
    readings = read(result)
    rows = readings.rows
    tables = [_of_run(rows, label) for label in readings.runs]
    between = rows[rows["metric"].eq("knowledge_difference").fillna(value=False)]
    for subject, own in between.groupby("subject", sort=False):
        cells = tuple((*_head(row), _number(row), _places(row)) for row in _each(own))
        tables.append(TerminalTable(f"{subject}, at the end", ("task", "probe", "difference", "where"), cells))
    tables += [_selectivity(rows[rows["subject"] == label], label) for label in readings.runs]
    return tuple(table for table in tables if table.rows)


def _of_run(rows: pd.DataFrame, label: str) -> TerminalTable:
    own = rows[rows["subject"] == label]
    accuracy = own[own["metric"].eq("knowledge_accuracy").fillna(value=False)]
    steps = sorted(accuracy[accuracy["value"].notna()]["step"].dropna().unique())
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    changes = own[own["metric"].eq("knowledge_change").fillna(value=False) & own["step"].isin(steps[-1:])]
    ends = ([f"step {first}"] if len(steps) > 1 else []) + ([f"step {last}"] if steps else [])
    columns = ["task", "probe", *ends, "chance", "random"] + (["change", "verdict"] if len(steps) > 1 else [])
    cells = []
    for key, part in accuracy.groupby(["stack", "group", "position"], sort=False, dropna=False):
        known = part[part["value"].notna()]
        if known.empty:
            row = part.iloc[0]
            words = short_label(f"{row['status']}: {row['reason']}", length=200)
            cells.append((*_head(row), words, *[""] * (len(columns) - 3)))
            continue
        by_step = known.set_index("step")
        row = by_step.loc[last]
        line = [*_head(row)]
        if len(steps) > 1:
            line += [format_number(by_step.loc[s]["value"]) if s in by_step.index else "" for s in (first, last)]
        else:
            line.append(_number(row))
        line += [format_number(row["chance"]), "" if pd.isna(row["reference"]) else format_number(row["reference"])]
        if len(steps) > 1:
            line += _change(changes, key)
        cells.append(tuple(line))
    return TerminalTable(f"{label}: accuracy of linear probes on other tasks", tuple(columns), tuple(cells))


def _change(changes: pd.DataFrame, key: tuple[object, ...]) -> list[str]:
    stack, group, position = key
    found = changes[(changes["stack"] == stack) & (changes["group"] == group) & (changes["position"] == position)]
    if found.empty:
        return ["", "no snapshot of step 0"]
    row = found.iloc[0]
    return [_number(row), verdict_of(row)]


def _selectivity(rows: pd.DataFrame, label: str) -> TerminalTable:
    """Accuracy minus that of labels drawn by lot for words, at the ends of a run."""
    own = rows[rows["metric"].eq("knowledge_selectivity").fillna(value=False) & rows["value"].notna()]
    steps = sorted(own["step"].dropna().unique())
    cells = []
    for _, part in own.groupby(["stack", "group", "position"], sort=False, dropna=False):
        by_step = {row["step"]: _number(row) for row in _each(part)}
        cells.append((*_head(part.iloc[0]), *(by_step.get(step, "") for step in steps)))
    columns = ("task", "probe", *(f"step {step}" for step in steps))
    title = f"{label}: selectivity, the accuracy above that on labels drawn by lot for words"
    return TerminalTable(title, columns, tuple(cells))


def _head(row: pd.Series) -> tuple[str, str]:
    """Task and place."""
    stack = "" if pd.isna(row["stack"]) or row["stack"] == "model" else f", {row['stack']}"
    return short_label(row["group"], length=60), "" if pd.isna(row["position"]) else f"{row['position']}{stack}"


def _places(row: pd.Series) -> str:
    return "" if pd.isna(row["reason"]) else short_label(row["reason"], length=200)


def _number(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return short_label(row["status"])
    return format_interval(row["value"], row["low"], row["high"])


def _each(rows: pd.DataFrame) -> Iterator[pd.Series]:
    return (rows.iloc[i] for i in range(len(rows)))
