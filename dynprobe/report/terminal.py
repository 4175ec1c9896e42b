"""Tables for a terminal, as plain data; the command line renders them."""

import pandas as pd

from dynprobe.report.knowledge_tables import knowledge_tables
from dynprobe.report.phrases import AGAINST, value_label
from dynprobe.report.readings import Readings, last_steps, read
from dynprobe.report.sections import metric_order
from dynprobe.report.summary import summary_rows
from dynprobe.report.table import TerminalTable
from dynprobe.report.wording import format_number, short_label
from dynprobe.result import Result

# Isotropy and tasks have more measures than a terminal has room for; these stand in the page, the JSON and the summary.
_ONLY_IN_THE_PAGE = (
    "participation_ratio",
    "ev1",
    "mean_cosine",
    "cls_std_mean",
    "cls_correlation",
    "knowledge_by_layer",
)


def terminal_tables(result: Result) -> tuple[TerminalTable, ...]:
    """A summary, then one table per run or pair: layers down, metrics across, at the last step; then those of other tasks.

    Parameters
    ----------
    result
        Any result.

    Returns
    -------
    tuple of TerminalTable
        Empty where the result has no rows. Of isotropy only IsoScore and effective rank have a column. A value that was not
        measured is its status word.
    """
    readings = read(result)
    present = set(readings.rows["subject"])
    subjects = tuple(name for name in (*readings.runs, *readings.pairs) if name in present)
    rows = tuple((row.measure, *row.cells) for row in summary_rows(readings, result.metrics, subjects))
    summary = TerminalTable("Summary", ("measure", *subjects), rows)
    tables = [summary] if rows else []
    for comparison in ("from_start", "between", "within"):
        tables += _layer_tables(readings, result, comparison)
    return (*tables, *knowledge_tables(result))


def _layer_tables(readings: Readings, result: Result, comparison: str) -> list[TerminalTable]:
    rows = readings.rows
    plain = rows["layer"].notna() & rows["head"].isna() & rows["layer_b"].isna()
    plain &= ~rows["metric"].isin(_ONLY_IN_THE_PAGE)
    chosen = rows[plain & (rows["comparison"].fillna("within") == comparison)]
    tables = []
    for subject, own in chosen.groupby("subject", sort=False):
        last = last_steps(own)
        names = {
            (metric, variant): value_label(result.metrics[metric]) + (f", {variant}" if variant else "")
            for metric, variant in sorted(
                set(last[["metric", "variant"]].itertuples(index=False, name=None)),
                key=lambda key: (metric_order(key[0]), key[1]),
            )
        }
        cells = {
            (layer, metric, variant): _cell(value, str(status))
            for layer, metric, variant, value, status in zip(
                *(last[name] for name in ("layer", "metric", "variant", "value", "status")), strict=True
            )
        }
        layers = sorted(last["layer"].unique())
        step = own["step"].max()
        when = "" if pd.isna(step) else f"at step {step}"
        against = "" if comparison == "between" else AGAINST[comparison]
        title = ", ".join(word for word in (str(subject), against, when) if word)
        table_rows = tuple((str(layer), *(cells.get((layer, *key), "") for key in names)) for layer in layers)
        tables.append(TerminalTable(title, ("layer", *names.values()), table_rows))
    return tables


def _cell(value: float, status: str) -> str:
    return short_label(status) if pd.isna(value) else format_number(value)
