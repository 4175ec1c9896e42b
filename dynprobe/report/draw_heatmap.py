"""A picture of kind "heatmap" on a Matplotlib figure."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from dynprobe.report.glyphs import figure_text
from dynprobe.report.palette import colour_map
from dynprobe.report.picture import Picture
from dynprobe.report.wording import format_number

MOST_TICKS = 14
MOST_PRINTED = (8, 14)  # columns and rows up to which a cell has room for its number
_HATCH = "////"


def heatmap_height(picture: Picture) -> float:
    """Height in inches that leaves each row legible, between 3 and 7."""
    rows = picture.data["y"].nunique()
    return float(np.clip(1.1 + 0.235 * rows, 2.2 if rows < 4 else 3.2, 7.0))


def draw_heatmap(picture: Picture, figure: Figure) -> None:
    """Draw the cells, the first row at the bottom; hatched where nothing was measured, white where no row is."""
    axes = figure.add_subplot()
    columns = sorted(picture.data["x"].unique())
    rows = sorted(picture.data["y"].unique())
    grid = _grid(picture.data, columns, rows)
    low, high = _limits(picture, grid)
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        cmap=colour_map(reverse=picture.darker_is_lower),
        norm=Normalize(low, high),
        origin="lower",
        aspect="auto",
        interpolation="none",
    )
    _hatch_missing(axes, picture.data, columns, rows)
    if len(columns) <= MOST_PRINTED[0] and len(rows) <= MOST_PRINTED[1]:
        _print_numbers(axes, image, grid)
    for axis, places in ((axes.xaxis, columns), (axes.yaxis, rows)):
        shown = _ticks(len(places))
        axis.set_ticks(shown, [str(places[place]) for place in shown])
    axes.set_xlabel(figure_text(picture.x_label))
    axes.set_ylabel(figure_text(picture.y_label))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _separate_cells(axes, len(columns), len(rows))
    if np.isfinite(grid).any():
        _colour_bar(figure, image, picture)
    _legend(figure, picture.data)


def _grid(data: pd.DataFrame, columns: list[int], rows: list[int]) -> np.ndarray:
    across = {place: number for number, place in enumerate(columns)}
    up = {place: number for number, place in enumerate(rows)}
    grid = np.full((len(rows), len(columns)), np.nan)
    for x, y, value in data[["x", "y", "value"]].itertuples(index=False, name=None):
        grid[up[y], across[x]] = value
    return grid


def _limits(picture: Picture, grid: np.ndarray) -> tuple[float, float]:
    finite = grid[np.isfinite(grid)]
    if picture.limits is not None:
        low, high = picture.limits
    elif finite.size:
        low, high = float(finite.min()), float(finite.max())
    else:
        low, high = 0.0, 1.0
    # A scale needs two ends; a grid of one value gets the pale one.
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-6)


def _ticks(count: int) -> list[int]:
    step = max(1, -(-count // MOST_TICKS))
    return list(range(0, count, step))


def _separate_cells(axes: Axes, columns: int, rows: int) -> None:
    width = 0.8 if columns <= 30 else 0.2
    axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=width)
    axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=width)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(-0.5, rows - 0.5)


def _print_numbers(axes: Axes, image: AxesImage, grid: np.ndarray) -> None:
    size = np.nanmax(np.abs(grid), initial=0.0)
    decimals = 2 - int(np.floor(np.log10(size))) if size > 0 else 0
    for (row, column), value in np.ndenumerate(grid):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = image.to_rgba(np.asarray(value))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        text = axes.text(
            column, row, _cell_number(float(value), decimals), ha="center", va="center", fontsize=7.8,
            color="#1d2733" if light else "white",
        )  # fmt: skip
        text.set_in_layout(False)  # always inside the axes; measuring each takes long


def _cell_number(value: float, decimals: int) -> str:
    """All cells with the same decimals, so that they compare at a glance; else two significant digits."""
    return f"{value:.{max(decimals, 0)}f}" if -3 < decimals <= 3 else format_number(value, digits=2)


def _hatch_missing(axes: Axes, data: pd.DataFrame, columns: list[int], rows: list[int]) -> None:
    for x, y in data.loc[data["value"].isna(), ["x", "y"]].itertuples(index=False, name=None):
        corner = (columns.index(x) - 0.5, rows.index(y) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="#f4f5f7", edgecolor="#a9aeb7", hatch=_HATCH, linewidth=0))


def _colour_bar(figure: Figure, image: AxesImage, picture: Picture) -> None:
    bar = figure.colorbar(image, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.locator = MaxNLocator(nbins=5)
    bar.set_label(figure_text(picture.value_label), fontsize=9.5)
    bar.update_ticks()
    if picture.darker_is_lower:
        bar.ax.invert_yaxis()


def _legend(figure: Figure, data: pd.DataFrame) -> None:
    missing = data[data["value"].isna()]
    if len(missing):
        statuses = ", ".join(dict.fromkeys(map(str, missing["status"])))
        patch = Patch(facecolor="#f4f5f7", edgecolor="#a9aeb7", hatch=_HATCH)
        figure.legend(handles=[patch], labels=[figure_text(f"not measured: {statuses}")], loc="outside upper left")
