"""A picture of kind "lines" on a Matplotlib figure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from dynprobe.report.glyphs import figure_text
from dynprobe.report.palette import colour, dash, marker
from dynprobe.report.picture import Ink, Picture
from dynprobe.report.wording import format_range

MOST_MARKERS = 40
MOST_TICKS = 14
_HATCH = "////"
_CHANCE = "#e9eaee"
REFERENCE: dict[str, Any] = {"color": "#5a606b", "linewidth": 1.3, "linestyle": (0, (1, 1.6))}
# A reference farther from the values than this share of their range would press them flat; it is said in words.
_REACH = 0.5


def draw_lines(picture: Picture, figure: Figure) -> None:
    """Draw each series with its interval; chance as a grey band, a reference dotted, what was not measured hatched."""
    axes = figure.add_subplot()
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    handles: list[Line2D | Patch] = []
    names: list[str] = []
    for rank, (series, ink) in enumerate(picture.inks.items()):
        rows = picture.data[picture.data["series"] == series]
        handles.append(_draw_series(axes, rows, ink, weight=1.0 - rank / len(picture.inks)))
        names.append(figure_text(series))
    _set_axis(axes, picture)
    marks = (_hatch_missing(axes, picture), _shade_chance(axes, picture.data), _mark_reference(axes, picture))
    for handle, name in marks:
        if handle is not None:
            handles.append(handle)
            names.append(name)
    _legend(figure, handles, names)


def _draw_series(axes: Axes, rows: pd.DataFrame, ink: Ink, *, weight: float) -> Line2D:
    """Draw later series thinner: where two runs agree, both stay visible."""
    x, value, low, high = (rows[name].to_numpy(dtype=float) for name in ("x", "value", "low", "high"))
    own = colour(ink.colour)
    interval = np.isfinite(low) & np.isfinite(high)
    few = np.isfinite(value).sum() <= MOST_MARKERS
    shape, face = (marker(ink) if few else ""), (own if ink.dash == 0 else "white")
    (line,) = axes.plot(
        x, value, color=own, linestyle=dash(ink), linewidth=1.1 + 1.4 * weight, marker=shape,
        markersize=3.2 + 3.0 * weight,
        markerfacecolor=face, markeredgecolor=own, zorder=3,
    )  # fmt: skip
    if interval.sum() > 1:
        axes.fill_between(x, low, high, where=interval, color=own, alpha=0.16 if ink.dash == 0 else 0.08, linewidth=0)
    if interval.any() and few:
        axes.vlines(x[interval], low[interval], high[interval], color=own, linewidth=1.0, alpha=0.55)
    return line


def _set_axis(axes: Axes, picture: Picture) -> None:
    x = np.unique(picture.data["x"].to_numpy(dtype=float))
    axes.set_xlabel(figure_text(picture.x_label))
    axes.set_ylabel(figure_text(picture.y_label))
    if picture.x_label == "layer" and len(x) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(x.tolist()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    pad = 0.5 if picture.x_label == "layer" else max(0.5, 0.03 * float(np.ptp(x)))
    axes.set_xlim(x.min() - pad, x.max() + pad)
    axes.margins(y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    numbers = picture.data[["value", "low", "high", "chance"]].to_numpy(dtype=float)
    known = numbers[np.isfinite(numbers)]
    if not known.size:
        axes.set_yticks([])
    elif known.max() == known.min():
        # Where all values are the same, Matplotlib would invent a scale out of rounding errors.
        middle = float(known.max())
        axes.set_ylim(middle - max(abs(middle), 1.0) * 0.1, middle + max(abs(middle), 1.0) * 0.1)


def _hatch_missing(axes: Axes, picture: Picture) -> tuple[Patch | None, str]:
    missing = picture.data[picture.data["value"].isna()]
    places = np.unique(picture.data["x"].to_numpy(dtype=float))
    half = 0.5 if picture.x_label == "layer" or len(places) < 2 else 0.5 * float(np.diff(places).min())
    for x in np.unique(missing["x"].to_numpy(dtype=float)):
        axes.axvspan(x - half, x + half, facecolor="none", edgecolor="#b4b8c0", hatch=_HATCH, linewidth=0, zorder=1)
    if missing.empty:
        return None, ""
    statuses = ", ".join(dict.fromkeys(map(str, missing["status"])))
    return Patch(facecolor="white", edgecolor="#b4b8c0", hatch=_HATCH), figure_text(f"not measured: {statuses}")


def _shade_chance(axes: Axes, data: pd.DataFrame) -> tuple[Patch | None, str]:
    """Grey from the bottom up to the chance level; a value inside says nothing."""
    known = data.dropna(subset=["chance"])
    if known.empty:
        return None, ""
    chance = known.groupby("x")["chance"].max()
    x, level = chance.index.to_numpy(dtype=float), chance.to_numpy(dtype=float)
    if len(x) > 1:
        # The band runs to both ends of the axis.
        x, level = np.r_[x[0] - 0.5, x, x[-1] + 0.5], np.r_[level[0], level, level[-1]]
    else:
        x, level = np.r_[x - 0.5, x + 0.5], np.r_[level, level]
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    bottom = min(bottom, float(level.min()) - 0.08 * (top - float(level.min())))
    axes.fill_between(x, bottom, level, color=_CHANCE, linewidth=0, zorder=0.5)
    axes.plot(x, level, color="#8a8f98", linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return Patch(facecolor=_CHANCE, edgecolor="#8a8f98", linestyle=(0, (2, 2))), "at or below chance"


def _mark_reference(axes: Axes, picture: Picture) -> tuple[Line2D | None, str]:
    """A dotted line at what ideal data give, where it is near the values; else its number and in which direction it lies."""
    known = picture.data.dropna(subset=["reference"]).groupby("x")["reference"].mean()
    if known.empty:
        return None, ""
    name = f"{picture.reference_kind}: {format_range(known)}"
    bottom, top = axes.get_ylim()
    span = top - bottom
    if known.max() > top + _REACH * span or known.min() < bottom - _REACH * span:
        name += " ↑" if known.max() > top else " ↓"
        return Line2D([], [], **REFERENCE), figure_text(name)
    sides = axes.get_xlim()
    x, level = (values.to_numpy(dtype=float) for values in (known.index, known))
    axes.plot(np.r_[sides[0], x, sides[1]], np.r_[level[0], level, level[-1]], zorder=2, **REFERENCE)
    axes.set_xlim(sides)
    axes.set_ylim(min(bottom, level.min() - 0.04 * span), max(top, level.max() + 0.04 * span))
    return Line2D([], [], **REFERENCE), figure_text(name)


def _legend(figure: Figure, handles: list[Line2D | Patch], names: list[str]) -> None:
    if len(handles) == 0:
        return
    longest = max(map(len, names))
    fitting = 3 if longest <= 19 else 2 if longest <= 34 else 1
    columns = 2 if len(handles) == 4 and fitting == 3 else min(len(handles), fitting)
    legend = figure.legend(
        handles=handles, labels=[f"entry {number}" for number in range(len(handles))],
        loc="outside upper left", ncols=columns, borderaxespad=0.2, handlelength=2.6, columnspacing=1.4,
    )  # fmt: skip
    # Set afterwards: Matplotlib leaves out labels that begin with "_", and a run may be called so.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
