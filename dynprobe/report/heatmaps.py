"""Heat maps: layers by steps, and heads by layers at the last step."""

from collections.abc import Iterator

import pandas as pd

from dynprobe.report.describing import describe_heatmap
from dynprobe.report.phrases import AGAINST, heading, picture_key, value_label
from dynprobe.report.picture import HEATMAP_COLUMNS, Picture
from dynprobe.report.readings import last_steps
from dynprobe.report.sections import low_means_change, section_of
from dynprobe.result import MetricInfo


def layer_step_pictures(rows: pd.DataFrame, metric: str, info: MetricInfo) -> Iterator[Picture]:
    """One map of layers by steps for each run or pair that was measured at two steps or more.

    All maps of one comparison share one colour scale, so that they may be compared by eye. A value of one
    snapshot alone has no map: its lines show the first and the last step.
    """
    for comparison in ("from_start", "between", "consecutive"):
        chosen = rows[rows["comparison"].eq(comparison).fillna(value=False).astype(bool)]
        limits = shared_limits(chosen["value"], metric)
        for subject, variant, own in _split(chosen):
            if own["step"].nunique() > 1:
                data = heatmap_data(own, x="step", y="layer")
                words = _words(subject, comparison, variant)
                yield _map_picture(data, metric, info, words, ("step", "layer"), limits)


def head_pictures(rows: pd.DataFrame, metric: str, info: MetricInfo) -> Iterator[Picture]:
    """One map of heads by layers at the last step for each run, pair and comparison."""
    for comparison in AGAINST:
        chosen = last_steps(rows[rows["comparison"].fillna("within") == comparison])
        limits = shared_limits(chosen["value"], metric)
        for subject, variant, own in _split(chosen):
            data = heatmap_data(own, x="head", y="layer")
            step = own["step"].max()
            when = "" if pd.isna(step) else f"step {step}"
            words = (*_words(subject, comparison, variant), when)
            yield _map_picture(data, metric, info, words, ("head", "layer"), limits)


def heatmap_data(rows: pd.DataFrame, *, x: str, y: str) -> pd.DataFrame:
    """The columns of a heat map, one row per cell, in order of ``y`` and ``x``."""
    data = rows.assign(x=rows[x], y=rows[y]).dropna(subset=["x", "y"])
    data = data.drop_duplicates(subset=["x", "y"], keep="last")
    return data.sort_values(["y", "x"], kind="stable")[list(HEATMAP_COLUMNS)].reset_index(drop=True)


def shared_limits(values: pd.Series, metric: str) -> tuple[float, float] | None:
    """Ends of a colour scale: a similarity ends at 1, everything that is never negative begins at 0."""
    known = values.dropna()
    if known.empty:
        return None
    low, high = float(known.min()), float(known.max())
    if low_means_change(metric):
        return (low, max(1.0, high))
    return (min(0.0, low), high)


def _split(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for (subject, variant), own in rows.groupby(["subject", "variant"], sort=False):
        yield str(subject), str(variant), own


def _words(subject: str, comparison: str, variant: str) -> tuple[str, ...]:
    """What the title says beyond the metric; "run against run" is in the subject already."""
    against = "" if comparison == "between" else AGAINST[comparison]
    return (subject, against, variant)


def _map_picture(
    data: pd.DataFrame,
    metric: str,
    info: MetricInfo,
    words: tuple[str, ...],
    axes: tuple[str, str],
    limits: tuple[float, float] | None,
) -> Picture:
    label = value_label(info)
    x_name, y_name = axes
    heads = x_name == "head"
    return Picture(
        key=picture_key(metric, *words, x_name, "map"),
        section="heads" if heads else section_of(metric),
        group=metric,
        title=heading(info, *words),
        alt=describe_heatmap(data, x_name=x_name, y_name=y_name, value_label=label),
        kind="heatmap",
        data=data,
        x_label="head" if heads else "training step",
        y_label=y_name,
        value_label=label,
        limits=limits,
        darker_is_lower=low_means_change(metric),
        secondary=AGAINST["consecutive"] in words,
    )
