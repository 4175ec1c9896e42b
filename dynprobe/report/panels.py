"""Figures of an experiment over seeds, in the style of the reports: scores, paired differences, curves with their spread."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynprobe.report.drawing import style
from dynprobe.report.glyphs import figure_text
from dynprobe.report.palette import colour, dash, marker
from dynprobe.report.picture import Ink

Panel = Callable[[Axes], None]

_GREY, _BAND = "#8a8f98", "#e9eaee"
_ROW = 0.3  # inches for each line of a list of arms
_WIDTH = 5.6


def save_panels(path: Path, panels: Sequence[Panel], *, columns: int = 2, height: float = 3.2) -> Path:
    """Draw panels side by side and save them as PNG; the same panels always give the same bytes.

    Parameters
    ----------
    path
        File to write.
    panels
        What to draw, such as :func:`curves`; each is given axes of its own.
    columns
        Panels in a row.
    height
        Of a row, in inches.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    ValueError
        When there are no panels.
    """
    if not panels:
        raise ValueError(f"`panels` must hold at least one panel; got none to draw into {path.name}")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style():
        figure = Figure(figsize=(_WIDTH * columns * 0.86, height * rows), layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for number, panel in enumerate(panels):
            panel(figure.add_subplot(rows, columns, number + 1))
        figure.set_dpi(160)
        with path.open("wb") as file:
            canvas.print_png(file, metadata={"Software": None})
    return path


def list_height(n: int) -> float:
    """Height in inches of a panel that lists `n` arms, one to a line."""
    return 1.1 + _ROW * n


def scores(groups: Mapping[str, Sequence[float]], *, title: str, x_label: str, chance: float | None = None) -> Panel:
    """One line per group: a dot for each seed, a bar at the median; a dashed line where guessing ends.

    Parameters
    ----------
    groups
        Name to the score of each seed.
    title, x_label
        Words; the label with its unit.
    chance
        Score of the commonest class.
    """

    def panel(axes: Axes) -> None:
        for place, values in enumerate(groups.values()):
            offsets = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(values, place + offsets, "o", color=colour(0), alpha=0.55, markersize=4, markeredgewidth=0)
            axes.plot([float(np.median(values))] * 2, [place - 0.34, place + 0.34], color=colour(1), linewidth=2)
        axes.set_xlabel(figure_text(x_label))
        if chance is not None:
            axes.axvline(chance, color=_GREY, linewidth=1, linestyle=(0, (2, 2)))
        _name_rows(axes, list(groups))
        _title(axes, title)

    return panel


def differences(
    rows: Mapping[str, tuple[float, float, float]], *, title: str, x_label: str, margin: float | None = None
) -> Panel:
    """One line per comparison: a difference with its interval, beside 0 and the margin that does not matter.

    Parameters
    ----------
    rows
        Name to (difference, low, high).
    title, x_label
        Words; the label with its unit.
    margin
        Half the width of the grey band around 0.
    """

    def panel(axes: Axes) -> None:
        if margin is not None:
            axes.axvspan(-margin, margin, color=_BAND, linewidth=0, zorder=0)
        axes.axvline(0.0, color=_GREY, linewidth=1)
        for place, (value, low, high) in enumerate(rows.values()):
            axes.plot([low, high], [place, place], color=colour(0), linewidth=1.8, alpha=0.7)
            axes.plot([value], [place], "o", color=colour(0), markersize=5)
        axes.set_xlabel(figure_text(x_label))
        _name_rows(axes, list(rows))
        _title(axes, title)

    return panel


def curves(
    series: Mapping[str, tuple[Sequence[float], np.ndarray]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    chance: float | None = None,
    whole_x: bool = False,
) -> Panel:
    """A line at the mean over the seeds for each series, with a band from the lowest seed to the highest.

    Parameters
    ----------
    series
        Name to x (n,) and values (n_seeds, n); NaN where there is none.
    title, x_label, y_label
        Words; the labels with their units.
    chance
        A dashed line where guessing lies.
    whole_x
        Whether x counts layers, so that only whole numbers stand at the axis.
    """

    def panel(axes: Axes) -> None:
        axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
        axes.set_axisbelow(True)
        for number, (name, (x, values)) in enumerate(series.items()):
            table, ink = np.atleast_2d(np.asarray(values, dtype=float)), Ink(number)
            kept = np.isfinite(table).any(axis=0)
            at, table = np.asarray(x, dtype=float)[kept], table[:, kept]
            few = len(at) <= 16
            axes.plot(
                at, np.nanmean(table, axis=0), color=colour(number), linestyle=dash(ink), linewidth=1.8,
                marker=marker(ink) if few else "", markersize=4, label=figure_text(name),
            )  # fmt: skip
            if len(table) > 1:
                axes.fill_between(
                    at,
                    np.nanmin(table, axis=0),
                    np.nanmax(table, axis=0),
                    color=colour(number),
                    alpha=0.13,
                    linewidth=0,
                )
        if chance is not None:
            axes.axhline(chance, color=_GREY, linewidth=1, linestyle=(0, (2, 2)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=whole_x))
        axes.set_xlabel(figure_text(x_label))
        axes.set_ylabel(figure_text(y_label))
        if len(series) > 1:
            axes.legend(fontsize=8)
        _title(axes, title)

    return panel


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [figure_text(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # first on top
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def _title(axes: Axes, title: str) -> None:
    axes.set_title(figure_text(title), loc="left", fontsize=10.5, fontweight="bold")
