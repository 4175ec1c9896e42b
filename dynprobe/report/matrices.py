"""Arrays of a result that are matrices: layer by layer maps, and any other small matrix."""

import itertools
import re
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from dynprobe.report.describing import describe_heatmap
from dynprobe.report.phrases import picture_key
from dynprobe.report.picture import Picture
from dynprobe.report.readings import NOT_FINITE, Readings
from dynprobe.report.wording import short_label

LARGEST_SIDE = 200
_LAYER_MAPS = {"svcca_layers": "SVCCA similarity", "linear_cka_layers": "linear CKA similarity"}
_SNAPSHOT = re.compile(r"(?P<run>.*)@(?P<step>\d+)", flags=re.DOTALL)


def matrix_pictures(arrays: Mapping[str, np.ndarray], readings: Readings) -> Iterator[Picture]:
    """A heat map for each array of two axes with at most ``LARGEST_SIDE`` rows and columns.

    Arrays named ``svcca_layers:<run>@<step>|<run>@<step>`` are layer by layer maps; others are drawn as they
    are, under their own name.
    """
    for name, array in arrays.items():
        drawable = array.ndim == 2 and array.size and max(array.shape) <= LARGEST_SIDE
        if not drawable or array.dtype.kind not in "fiub":
            continue
        prefix, _, rest = name.partition(":")
        sides = _sides(rest, readings.labels)
        if prefix in _LAYER_MAPS and sides:
            yield _matrix_picture(array, name, _LAYER_MAPS[prefix], sides)
        else:
            yield _matrix_picture(array, name, "", None)


def _sides(text: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Both snapshots of a name. A run name may hold ``|`` and ``@``, so known names decide."""
    bars = [position for position, char in enumerate(itertools.islice(text, 20_000)) if char == "|"][:64]
    candidates = []
    for bar in bars:
        left, right = _SNAPSHOT.fullmatch(text[:bar]), _SNAPSHOT.fullmatch(text[bar + 1 :])
        if left and right:
            known = sum(side["run"] in labels for side in (left, right))
            words = [f"{labels.get(s['run'], short_label(s['run']))}, step {s['step']}" for s in (left, right)]
            candidates.append((known, (words[0], words[1])))
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


def _matrix_picture(array: np.ndarray, name: str, measure: str, sides: tuple[str, str] | None) -> Picture:
    data = _matrix_data(array)
    label = measure or "value"
    x_name, y_name = ("layer", "layer") if sides else ("column", "row")
    alt = describe_heatmap(data, x_name=x_name, y_name=y_name, value_label=label)
    if sides:
        alt += f" Down: layers of {sides[0]}; across: layers of {sides[1]}."
    known = data["value"].dropna()
    return Picture(
        key=picture_key(name.partition(":")[0], name, "matrix"),
        section="layer-map" if sides else "other",
        group=measure if sides else "arrays",
        title=f"{sides[0]} against {sides[1]}" if sides else short_label(name, length=60),
        alt=alt,
        kind="heatmap",
        data=data,
        x_label=f"layer of {sides[1]}" if sides else "column",
        y_label=f"layer of {sides[0]}" if sides else "row",
        value_label=label,
        limits=(min(0.0, float(known.min())), max(1.0, float(known.max()))) if sides and len(known) else None,
    )


def _matrix_data(array: np.ndarray) -> pd.DataFrame:
    y, x = np.indices(array.shape)
    value = array.astype(float).ravel()
    finite = np.isfinite(value)
    return pd.DataFrame(
        {
            "x": x.ravel(),
            "y": y.ravel(),
            "value": np.where(finite, value, np.nan),
            "status": np.where(finite, "measured", "undefined"),
            "reason": pd.Series([None if known else NOT_FINITE for known in finite], dtype="string"),
        }
    )
