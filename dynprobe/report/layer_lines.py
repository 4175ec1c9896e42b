"""Lines over layers and over steps."""

from collections.abc import Iterator, Mapping

import pandas as pd

from dynprobe.report.describing import describe_lines
from dynprobe.report.phrases import AGAINST, heading, picture_key, value_label
from dynprobe.report.picture import LINE_COLUMNS, Ink, Picture
from dynprobe.report.readings import Readings, last_steps
from dynprobe.report.sections import reference_kind, section_of
from dynprobe.result import MetricInfo


def layer_pictures(rows: pd.DataFrame, metric: str, info: MetricInfo, readings: Readings) -> Iterator[Picture]:
    """One chart over layers per comparison and variant: all runs at their last step.

    A value of one snapshot alone is drawn at the first step too, dashed: the distance between the two lines is
    what training did. Values against the snapshot before are left to the heat map.
    """
    for comparison in ("within", "from_start", "between"):
        for variant, part in _parts(rows, comparison):
            shown = _first_and_last(part) if comparison == "within" else last_steps(part)
            data, inks = _series(shown, "layer", readings.inks)
            yield _line_picture(data, inks, metric, info, (comparison, variant), "layer")


def step_pictures(rows: pd.DataFrame, metric: str, info: MetricInfo, readings: Readings) -> Iterator[Picture]:
    """One chart over training steps per comparison and variant, for values that belong to no layer."""
    for comparison in AGAINST:
        for variant, part in _parts(rows, comparison):
            data, inks = _series(part, "step", readings.inks)
            if len(data):
                yield _line_picture(data, inks, metric, info, (comparison, variant), "step")


def line_data(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """The columns of a line chart, one row per point and series, in order of the axis."""
    data = rows.assign(x=rows[x])[list(LINE_COLUMNS)].dropna(subset=["x"])
    data = data.drop_duplicates(subset=["series", "x"], keep="last")
    return data.sort_values("x", kind="stable").reset_index(drop=True)


def _parts(rows: pd.DataFrame, comparison: str) -> Iterator[tuple[str, pd.DataFrame]]:
    chosen = rows[rows["comparison"].fillna("within") == comparison]
    for variant, part in chosen.groupby("variant", sort=False):
        yield str(variant), part


def _first_and_last(rows: pd.DataFrame) -> pd.DataFrame:
    steps = rows.groupby("subject")["step"]
    ends = (rows["step"] == steps.transform("min")) | (rows["step"] == steps.transform("max"))
    return rows[ends.fillna(value=True).astype(bool)]


def _series(rows: pd.DataFrame, x: str, colours: Mapping[str, Ink]) -> tuple[pd.DataFrame, dict[str, Ink]]:
    """Name the series: the subject, and its step where the axis is not the step."""
    if x == "step":
        named = rows.assign(series=rows["subject"])
        return line_data(named, x), {name: colours[name] for name in named["series"].unique()}
    parts, inks = [], {}
    for subject, own in rows.groupby("subject", sort=False):
        steps = sorted(own["step"].dropna().unique(), reverse=True)
        for dash, step in enumerate(steps or [pd.NA]):
            name = f"{subject}, step {step}" if steps else str(subject)
            chosen = own[own["step"] == step] if steps else own
            parts.append(line_data(chosen.assign(series=name), x))
            inks[name] = Ink(colours[str(subject)].colour, dash)
    return pd.concat(parts, ignore_index=True), inks


def _line_picture(
    data: pd.DataFrame,
    inks: Mapping[str, Ink],
    metric: str,
    info: MetricInfo,
    kind: tuple[str, str],
    x_name: str,
) -> Picture:
    comparison, variant = kind
    label = value_label(info)
    title = heading(info, AGAINST[comparison], variant, f"by {x_name}")
    return Picture(
        key=picture_key(metric, comparison, variant, x_name, "lines"),
        section=section_of(metric),
        group=metric,
        title=title,
        alt=describe_lines(data, x_name=x_name, value_label=label, reference_kind=reference_kind(metric)),
        kind="lines",
        data=data,
        x_label="layer" if x_name == "layer" else "training step",
        y_label=label,
        value_label=label,
        inks=inks,
        secondary=comparison == "consecutive",
        reference_kind=reference_kind(metric),
    )
