"""What a summary says of probes of other tasks: one line per task, with start, end and verdict of each run."""

from collections.abc import Iterator

import pandas as pd

from dynprobe.report.readings import Readings, status_text
from dynprobe.report.wording import format_interval, format_number, format_range, short_label

_METRICS = ("knowledge_accuracy", "knowledge_change", "knowledge_difference")
_POSITION = "last layer"


def task_lines(readings: Readings, subjects: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A measure and a cell for each subject, for each task at the last layer, of the largest share of its training examples.

    Parameters
    ----------
    readings
        Prepared table.
    subjects
        Labels of the columns: runs, then pairs of runs.

    Yields
    ------
    tuple
        Name of the measure with what an encoder with random weights gives, and the cells.
    """
    rows = readings.rows
    rows = rows[rows["metric"].isin(_METRICS) & rows["position"].fillna(_POSITION).eq(_POSITION)]
    # No name of a task holds a comma; larger shares of its training examples stand first.
    rows = rows.assign(task=rows["group"].fillna("").str.split(",").str[0])
    known = rows[rows["value"].notna()]
    rows = rows.assign(largest=rows["task"].map(known.drop_duplicates("task").set_index("task")["group"]))
    rows = rows[rows["group"].eq(rows["largest"]).fillna(value=False) | rows["largest"].isna() | rows["stack"].isna()]
    stacks = tuple(dict.fromkeys(known["stack"].dropna())) or ("model",)
    for task, own in rows.groupby("task", sort=False):
        for stack in stacks:
            here = own[own["stack"].fillna(stack) == stack]
            cells = tuple(_cell(here[here["subject"] == name]) for name in subjects)
            if any(cells):
                yield _measure(here, str(task), "" if stack == "model" else stack), cells


def verdict_of(row: pd.Series) -> str:
    """The verdict of a change, with its remarks and without the layers that it was seen at."""
    return short_label(str(row["reason"]).partition(" (")[0], length=200)


def _measure(rows: pd.DataFrame, task: str, stack: str) -> str:
    words = ", ".join(
        word for word in ("accuracy on other tasks", stack, _POSITION, short_label(task, length=60)) if word
    )
    random = rows["reference"].dropna()
    return words + (f"; random weights: {format_range(random)}" if len(random) else "")


def _cell(rows: pd.DataFrame) -> str:
    """Start → end and verdict of a run, or the difference of a pair of runs."""
    known = rows[rows["value"].notna()]
    if known.empty:
        if rows.empty:
            return ""
        return short_label(status_text(str(rows["status"].iloc[0]), rows["reason"].iloc[0]), length=200)
    accuracy = known[known["metric"] == "knowledge_accuracy"].sort_values("step", kind="stable")
    changes = known[known["metric"] == "knowledge_change"].sort_values("step", kind="stable")
    parts = []
    if len(accuracy) > 1:
        parts.append(" → ".join(format_number(accuracy["value"].iloc[end]) for end in (0, -1)))
    else:
        last = known.iloc[-1]
        parts.append(format_interval(last["value"], last["low"], last["high"]))
    if len(changes):
        parts.append("; ".join(part for part in verdict_of(changes.iloc[-1]).split("; ") if "detectable" not in part))
    return ", ".join(parts)
