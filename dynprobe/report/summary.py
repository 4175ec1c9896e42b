"""The summary: one row per measure, the runs side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from dynprobe.report.knowledge_summary import task_lines
from dynprobe.report.phrases import value_label
from dynprobe.report.readings import Readings, last_steps, status_text
from dynprobe.report.sections import low_means_change, metric_order, reference_kind, section_of
from dynprobe.report.wording import format_interval, format_number, format_range, short_label
from dynprobe.result import MetricInfo


@dataclass(frozen=True)
class SummaryRow:
    """A measure and its cell for each subject; an empty cell where it was not looked at."""

    measure: str
    cells: tuple[str, ...]


def summary_rows(
    readings: Readings, metrics: Mapping[str, MetricInfo], subjects: tuple[str, ...]
) -> tuple[SummaryRow, ...]:
    """One row per metric and comparison at the last step of each subject.

    A value per layer is summed up by the layer that changed most: the lowest similarity, the highest
    divergence. A value of one snapshot alone is shown for the last layer, at the first and the last step. Where there is
    a reference, such as what isotropic data of the same size give, it stands behind the name of the measure. Probes of other
    tasks have one row per task, with the verdict.

    Parameters
    ----------
    readings
        Prepared table.
    metrics
        What the metrics mean.
    subjects
        Labels of the columns: runs, then pairs of runs.
    """
    rows = readings.rows[readings.rows["head"].isna()]
    names = [name for name in rows["metric"].dropna().unique() if section_of(name) != "knowledge"]
    found = []
    for metric in sorted(names, key=metric_order):
        own = rows[rows["metric"].eq(metric).fillna(value=False).astype(bool)]
        for comparisons in (("within",), ("from_start", "between")):
            chosen = own[own["comparison"].fillna("within").isin(comparisons)]
            for variant, part in chosen.groupby("variant", sort=False):
                cells = tuple(_cell(part[part["subject"] == name], str(metric)) for name in subjects)
                found.append(SummaryRow(_measure(metrics[metric], part, metric, str(variant)), cells))
    found += [SummaryRow(measure, cells) for measure, cells in task_lines(readings, subjects)]
    return tuple(row for row in found if any(row.cells))


def _measure(info: MetricInfo, rows: pd.DataFrame, metric: str, variant: str) -> str:
    words = [value_label(info), variant]
    by_layer = rows["layer"].notna().any()
    within = rows["comparison"].fillna("within").eq("within").all()
    if by_layer and within:
        words.append("last layer")
    elif by_layer:
        words.append("lowest layer" if low_means_change(metric) else "highest layer")
    if not within:
        # The heads of the columns of pairs say already what is compared there.
        words.append("since the start" if (rows["comparison"] == "from_start").any() else "")
    return ", ".join(word for word in words if word) + _reference(rows, metric)


def _reference(rows: pd.DataFrame, metric: str) -> str:
    known = rows["reference"].dropna()
    return f"; {reference_kind(metric)}: {format_range(known)}" if len(known) else ""


def _cell(rows: pd.DataFrame, metric: str) -> str:
    if rows.empty:
        return ""
    within = rows["comparison"].fillna("within").eq("within").all()
    if within:
        deepest = rows[(rows["layer"] == rows["layer"].max()).fillna(value=True).astype(bool)]
        return _course(deepest)
    last = last_steps(rows)
    known = last.dropna(subset=["value"])
    if known.empty:
        return _unknown(last)
    position = known["value"].argmin() if low_means_change(metric) else known["value"].argmax()
    row = known.iloc[int(position)]
    where = "" if pd.isna(row["layer"]) else f", layer {row['layer']}"
    return format_interval(row["value"], row["low"], row["high"]) + where


def _course(rows: pd.DataFrame) -> str:
    """First → last of a value of one snapshot alone."""
    ordered = rows.sort_values("step", kind="stable")
    last = ordered.iloc[-1]
    if pd.isna(last["value"]):
        return _unknown(ordered.tail(1))
    text = format_interval(last["value"], last["low"], last["high"])
    first = ordered.iloc[0]
    if len(ordered) > 1 and not pd.isna(first["value"]):
        text = f"{format_number(first['value'])} → {text}"
    return text


def _unknown(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return short_label(status_text(str(row["status"]), row["reason"]), length=120)
