"""Charts of probes of other tasks: accuracy by layer at the ends of each run, and at the last and the best layer by step."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from dynprobe.report.describing import describe_lines
from dynprobe.report.layer_lines import layer_pictures, line_data
from dynprobe.report.phrases import heading, picture_key, value_label
from dynprobe.report.picture import Ink, Picture
from dynprobe.report.readings import Readings
from dynprobe.report.sections import reference_kind, section_of
from dynprobe.result import MetricInfo

_DASHES = {"last layer": 0, "best layer": 1}


def knowledge_pictures(rows: pd.DataFrame, metric: str, info: MetricInfo, readings: Readings) -> Iterator[Picture]:
    """One chart over layers and one over steps for each task; changes and differences are left to the summary.

    Other kinds of pooled vectors than the first, and smaller shares of the training examples, may be folded away.

    Parameters
    ----------
    rows
        Rows of one metric of the probe suite.
    metric, info
        Its name and meaning.
    readings
        Labels and colours of the runs.
    """
    if metric == "knowledge_by_layer":
        main = rows.drop_duplicates("stack")["position"]
        for _, own in rows.groupby(["stack", "group", "position"], sort=False):
            secondary = own["position"].iloc[0] not in set(main) or _is_part(own)
            for picture in layer_pictures(own, metric, info, readings):
                yield replace(picture, secondary=secondary)
    elif metric == "knowledge_accuracy":
        for _, own in rows.groupby(["stack", "group"], sort=False):
            if own["step"].nunique() > 1:
                yield _by_step(own, metric, info, readings)


def _is_part(rows: pd.DataFrame) -> bool:
    """Whether probes were fitted on a part of the training examples: the name of a task holds no comma."""
    return "," in str(rows["group"].iloc[0])


def _by_step(rows: pd.DataFrame, metric: str, info: MetricInfo, readings: Readings) -> Picture:
    # One line for the encoder with random weights: the higher of its last and its best layer.
    higher = rows.groupby("step")["reference"].transform("max")
    parts, inks = [], {}
    for (subject, position), own in rows.assign(reference=higher).groupby(["subject", "position"], sort=False):
        series = f"{subject}, {position}"
        parts.append(line_data(own.assign(series=series), "step"))
        inks[series] = Ink(readings.inks[str(subject)].colour, _DASHES.get(str(position), 2))
    data, label, task = pd.concat(parts, ignore_index=True), value_label(info), rows["group"].iloc[0]
    stack = "" if rows["stack"].iloc[0] == "model" else rows["stack"].iloc[0]
    return Picture(
        key=picture_key(metric, task, stack, "step", "lines"),
        section=section_of(metric),
        group=metric,
        title=heading(info, stack, task, "by step"),
        alt=describe_lines(data, x_name="step", value_label=label, reference_kind=reference_kind(metric)),
        kind="lines",
        data=data,
        x_label="training step",
        y_label=label,
        value_label=label,
        inks=inks,
        secondary=_is_part(rows),
        reference_kind=reference_kind(metric),
    )
