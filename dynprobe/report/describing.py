"""Words for what a picture shows: alternative texts with numbers."""

import pandas as pd

from dynprobe.report.wording import format_number, format_range, plural


def describe_lines(data: pd.DataFrame, *, x_name: str, value_label: str, reference_kind: str = "reference") -> str:
    """Say for each series where it starts and ends and where its extremes are.

    Parameters
    ----------
    data
        Columns of :data:`dynprobe.report.picture.LINE_COLUMNS`.
    x_name
        What the horizontal axis counts: ``"layer"`` or ``"step"``.
    value_label
        What is measured, with its unit.
    reference_kind
        What the reference is the value of, such as ``"isotropic"`` data.

    Returns
    -------
    str
        A few sentences; what was not measured is named with its status.
    """
    sentences = [f"Line chart of {value_label} over {x_name}s."]
    for series, rows in data.groupby("series", sort=False):
        known = rows.dropna(subset=["value"])
        if known.empty:
            sentences.append(f"{series}: not measured ({_statuses(rows)}).")
            continue
        sentences.append(f"{series}: {_course(known, x_name)}{_unknown(rows, x_name)}.")
    chance = data["chance"].dropna()
    if len(chance):
        sentences.append(f"Chance level: {format_range(chance)}.")
    reference = data["reference"].dropna()
    if len(reference):
        what = "Isotropic data of the same size" if reference_kind == "isotropic" else reference_kind.capitalize()
        sentences.append(f"{what}: {format_range(reference)}.")
    return " ".join(sentences)


def describe_heatmap(data: pd.DataFrame, *, x_name: str, y_name: str, value_label: str) -> str:
    """Say how large a heat map is and where its extremes are; columns of ``HEATMAP_COLUMNS``."""
    size = f"{plural(data['y'].nunique(), y_name)} by {plural(data['x'].nunique(), x_name)}"
    sentences = [f"Heat map of {value_label}, {size}."]
    known = data.dropna(subset=["value"])
    if len(known):
        for word, position in (("Highest", known["value"].argmax()), ("lowest", known["value"].argmin())):
            row = known.iloc[int(position)]
            sentences.append(f"{word} {format_number(row['value'])} at {y_name} {row['y']}, {x_name} {row['x']};")
        sentences[-1] = sentences[-1].rstrip(";") + "."
    if len(known) < len(data):
        missing = data[data["value"].isna()]
        sentences.append(f"{plural(len(missing), 'cell')} not measured ({_statuses(missing)}).")
    return " ".join(sentences)


def _course(known: pd.DataFrame, x_name: str) -> str:
    first, last = known.iloc[0], known.iloc[-1]
    if len(known) == 1:
        return f"{format_number(first['value'])} at {x_name} {first['x']}"
    text = f"{format_number(first['value'])} at {x_name} {first['x']}"
    text += f", {format_number(last['value'])} at {x_name} {last['x']}"
    for word, position in (("highest", known["value"].argmax()), ("lowest", known["value"].argmin())):
        if 0 < position < len(known) - 1:
            row = known.iloc[int(position)]
            text += f", {word} {format_number(row['value'])} at {x_name} {row['x']}"
    return text


def _unknown(rows: pd.DataFrame, x_name: str) -> str:
    missing = rows[rows["value"].isna()]
    return f"; {plural(len(missing), x_name)} not measured ({_statuses(missing)})" if len(missing) else ""


def _statuses(rows: pd.DataFrame) -> str:
    return ", ".join(dict.fromkeys(map(str, rows["status"])))
