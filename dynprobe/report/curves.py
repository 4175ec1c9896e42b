"""Curves from the trainer's own log: loss and scores over steps."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from dynprobe.report.describing import describe_lines
from dynprobe.report.layer_lines import line_data
from dynprobe.report.phrases import picture_key
from dynprobe.report.picture import Ink, Picture
from dynprobe.report.readings import Readings
from dynprobe.report.wording import mapping_of, short_label

LOSS_KEYS = ("loss", "eval_loss")
_TIMINGS = ("_runtime", "_per_second", "_time")


def log_pictures(scalars: Any, readings: Readings) -> Iterator[Picture]:
    """A chart of the losses and one of each evaluation score that the trainers logged.

    Parameters
    ----------
    scalars
        Run name → list of log entries, each with ``step`` and numbers; entries of another form are passed over.
    readings
        Labels and colours of the runs.
    """
    entries = {
        readings.labels[str(run)]: [entry for entry in log if isinstance(entry, Mapping)]
        for run, log in mapping_of(scalars).items()
        if isinstance(log, (list, tuple)) and str(run) in readings.labels
    }
    names = dict.fromkeys(key for log in entries.values() for entry in log for key in entry)
    scores = [name for name in names if _is_score(name)]
    for keys, title in ((LOSS_KEYS, "Loss"), *(((name,), _score_title(name)) for name in scores)):
        picture = _log_picture(entries, keys, title, readings)
        if picture is not None:
            yield picture


def _is_score(name: object) -> bool:
    text = str(name)
    return text.startswith("eval_") and text not in LOSS_KEYS and not text.endswith(_TIMINGS)


def _score_title(name: str) -> str:
    return short_label(f"Evaluation {name.removeprefix('eval_').replace('_', ' ')}", length=60)


def _log_picture(
    entries: Mapping[str, list[Mapping[str, Any]]], keys: tuple[str, ...], title: str, readings: Readings
) -> Picture | None:
    parts, inks = [], {}
    for run, log in entries.items():
        for dash, key in enumerate(keys):
            points = [point for point in (_point(entry, key) for entry in log) if point is not None]
            if points:
                series = f"{run}, {'training' if key == 'loss' else 'evaluation'}" if len(keys) > 1 else run
                parts.append(_points_data(points, series))
                inks[series] = Ink(readings.inks[run].colour, dash)
    if not parts:
        return None
    data = pd.concat(parts, ignore_index=True)
    label = title.lower() if len(keys) > 1 else title.removeprefix("Evaluation ")
    return Picture(
        key=picture_key("log", *keys),
        section="outputs",
        group="trainer log",
        title=f"{title} during training",
        alt=describe_lines(data, x_name="step", value_label=label),
        kind="lines",
        data=data,
        x_label="training step",
        y_label=label,
        value_label=label,
        inks=inks,
    )


def _points_data(points: list[tuple[float, float]], series: str) -> pd.DataFrame:
    table = pd.DataFrame(points, columns=["step", "value"]).assign(
        series=series, low=math.nan, high=math.nan, chance=math.nan, reference=math.nan, status="measured", reason=None
    )
    table["step"] = table["step"].astype("Int64")
    table["reason"] = table["reason"].astype("string")
    return line_data(table, "step")


def _point(entry: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    step, value = entry.get("step"), entry.get(key)
    if not isinstance(step, int) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return (step, float(value)) if math.isfinite(value) and abs(step) < 2**53 else None
