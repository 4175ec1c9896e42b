"""A panel that shows a matrix as a map of colours, beside the panels of :mod:`dynprobe.report.panels`."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dynprobe.report.glyphs import figure_text
from dynprobe.report.palette import colour_map
from dynprobe.report.panels import Panel


def matrix(values: np.ndarray, *, title: str, label: str, limits: tuple[float, float]) -> Panel:
    """A square matrix, nearly white at the low end of the scale and dark blue at the high one.

    Parameters
    ----------
    values
        Shape (n, n).
    title
        Words above it.
    label
        What the colours are, with the unit.
    limits
        Ends of the colour scale; give maps that are to be compared the same.

    Returns
    -------
    Panel
        For :func:`~dynprobe.report.panels.save_panels`.
    """

    def panel(axes: Axes) -> None:
        low, high = limits
        image = axes.imshow(
            values, cmap=colour_map(reverse=False), vmin=low, vmax=high, interpolation="nearest", aspect="equal"
        )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(figure_text(title), loc="left", fontsize=10.5, fontweight="bold")
        figure = axes.get_figure()
        if figure is None:
            return
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=24, shrink=0.9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.locator = MaxNLocator(nbins=5)
        bar.set_label(figure_text(label), fontsize=9)
        bar.update_ticks()

    return panel
