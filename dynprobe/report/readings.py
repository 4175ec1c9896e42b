"""The table of a result, prepared for showing: who is compared with whom, when, and what may be printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.report.picture import Ink
from dynprobe.report.wording import mapping_of, run_labels, short_label
from dynprobe.result import Result

# How the vector of an example was pooled from its tokens; other positions stand for themselves.
_POSITIONS = {"first": "first token", "mean": "mean over tokens", "last": "last token", "cls": "[CLS] as query"}
NOT_FINITE = "the value is not a finite number"


@dataclass(frozen=True)
class Readings:
    """A prepared table and the labels and colours that go with it.

    Attributes
    ----------
    rows
        The table of the result with the columns ``subject`` (label of the run, or of the pair of runs),
        ``step`` (the later step of the comparison), ``variant`` (stack, position and group where they vary)
        added. ``value``, ``low``, ``high`` are missing unless ``status`` is "measured".
    labels
        Short label of each run name.
    inks
        Colour of each subject.
    """

    rows: pd.DataFrame
    labels: Mapping[str, str]
    inks: Mapping[str, Ink]

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels of the runs, in order of appearance."""
        return tuple(self.labels.values())

    @property
    def pairs(self) -> tuple[str, ...]:
        """Labels of the pairs of runs that are compared with each other."""
        return tuple(subject for subject in self.inks if subject not in set(self.labels.values()))


def read(result: Result) -> Readings:
    """Prepare the table of a result for showing.

    Parameters
    ----------
    result
        Any result, also an empty one.

    Returns
    -------
    Readings
        A value that is not measured, or not finite, has no number any more, only its status and reason.
    """
    labels = run_labels(_run_names(result))
    rows = _without_unmeasured_numbers(result.frame)
    rows["subject"] = [
        _subject(labels, *cells) for cells in rows[["comparison", "run_a", "run_b"]].itertuples(index=False)
    ]
    # Whichever way round an analysis writes "against the start", the later step is the one it speaks of.
    later = rows[["step_a", "step_b"]].max(axis="columns")
    rows["step"] = rows["step_a"].where(rows["comparison"].eq("between").fillna(value=False), later)
    rows["variant"] = _variants(rows)
    subjects = dict.fromkeys([*labels.values(), *rows["subject"]])
    inks = {subject: Ink(number) for number, subject in enumerate(subjects)}
    return Readings(rows=rows, labels=labels, inks=inks)


def last_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step of each subject; rows without a step stay."""
    last = rows.groupby("subject")["step"].transform("max")
    return rows[(rows["step"] == last).fillna(value=True).astype(bool)]


def status_text(status: str, reason: Any) -> str:
    """The status word with its reason, for a cell that has no number."""
    return status if reason is None or pd.isna(reason) or not str(reason) else f"{status}: {reason}"


def _run_names(result: Result) -> list[str]:
    columns = result.table[["run_a", "run_b"]].melt()["value"].dropna()
    facts = [*mapping_of(result.provenance.get("runs")), *mapping_of(result.provenance.get("scalars"))]
    return list(dict.fromkeys([*map(str, facts), *map(str, columns)]))


def _without_unmeasured_numbers(table: pd.DataFrame) -> pd.DataFrame:
    measured = table["status"].eq("measured").fillna(value=False).astype(bool)
    not_finite = measured & ~np.isfinite(table["value"].to_numpy(dtype=float))
    table.loc[not_finite, "status"] = "undefined"
    table.loc[not_finite & table["reason"].isna(), "reason"] = NOT_FINITE
    table.loc[~measured | not_finite, ["value", "low", "high"]] = np.nan
    for column in ("low", "high", "chance", "reference"):
        table[column] = table[column].where(np.isfinite(table[column].to_numpy(dtype=float)))
    return table


def _subject(labels: Mapping[str, str], comparison: Any, run_a: Any, run_b: Any) -> str:
    first = labels.get(str(run_a), "run") if not pd.isna(run_a) else "run"
    if pd.isna(comparison) or comparison != "between" or pd.isna(run_b):
        return first
    return f"{first} against {labels[str(run_b)]}"


def _variants(rows: pd.DataFrame) -> list[str]:
    several_stacks = rows["stack"].dropna().nunique() > 1
    columns = (["stack"] if several_stacks else []) + ["position", "group"]
    return [
        ", ".join(short_label(cell, length=24) for cell in cells if not pd.isna(cell) and cell)
        for cells in rows[columns].replace({"position": _POSITIONS}).itertuples(index=False, name=None)
    ]
