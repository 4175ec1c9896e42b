"""Picture → Matplotlib figure → bytes. No global state of pyplot is read or changed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dynprobe.report.draw_heatmap import draw_heatmap, heatmap_height
from dynprobe.report.draw_lines import draw_lines
from dynprobe.report.glyphs import FONT, figure_text
from dynprobe.report.picture import Picture

WIDTH = 5.6  # inches
LINES_HEIGHT = 3.7

STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 10.5,
    "text.parse_math": False,  # a run may be called "$x"
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#2b2f36",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": "#5a606b",
    "ytick.color": "#5a606b",
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "hatch.linewidth": 0.7,
    "hatch.color": "#8a8f98",
    "svg.fonttype": "path",  # glyphs travel as outlines: the same on a machine without the font
    "svg.hashsalt": "dynprobe",  # otherwise the ids, and so the bytes, differ from call to call
    "path.simplify": True,
}


def draw(picture: Picture, *, titled: bool = True) -> Figure:
    """Draw a picture, for a notebook or to be saved in any format that Matplotlib writes.

    Parameters
    ----------
    picture
        One of :func:`dynprobe.report.pictures`.
    titled
        Whether the title stands in the figure; a page prints it as text instead.

    Returns
    -------
    matplotlib.figure.Figure
        With a canvas of its own, so ``figure.savefig("layers.pdf")`` works. Missing values are hatched.
    """
    height = LINES_HEIGHT if picture.kind == "lines" else heatmap_height(picture)
    with style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        (draw_lines if picture.kind == "lines" else draw_heatmap)(picture, figure)
        if titled:
            _put_title(figure, picture)
    return figure


def _put_title(figure: Figure, picture: Picture) -> None:
    words: dict[str, Any] = {"fontsize": 11, "fontweight": "bold", "ha": "left"}
    if picture.kind == "lines":  # a title of the figure would lie on the legend, which stands outside the axes as well
        figure.axes[0].set_title(figure_text(picture.title), x=-0.115, pad=8, **words)
    else:
        figure.suptitle(figure_text(picture.title), x=0.02, **words)


def svg_bytes(picture: Picture) -> bytes:
    """Draw a picture without its title as SVG; the same picture always gives the same bytes."""
    figure, buffer = draw(picture, titled=False), io.BytesIO()
    with style():
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png_bytes(picture: Picture, *, dpi: int = 192) -> bytes:
    """Draw a picture with its title as PNG; 192 dots per inch is twice the resolution of a plain screen."""
    figure, buffer = draw(picture), io.BytesIO()
    with style():
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and ours on top, whatever the user has set; put back afterwards."""
    shipped: dict[Any, Any] = dict(mpl.rcParamsDefault.items())
    shipped.pop("backend", None)
    with mpl.rc_context():
        mpl.rcParams.update(shipped | STYLE)
        yield
