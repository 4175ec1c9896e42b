"""Colours that stay apart under the common colour vision deficiencies, and in grey print."""

from functools import lru_cache

import numpy as np
import seaborn as sns
from matplotlib.colors import ListedColormap

from dynprobe.report.picture import Ink

# Of seaborn's "colorblind" palette: blue, vermilion, green, purple, sky, brown, pink, orange.
_ORDER = (0, 3, 2, 4, 9, 5, 6, 1)
_DASHES: tuple[tuple[float, ...], ...] = ((), (4.0, 2.0), (1.2, 1.8), (5.0, 1.6, 1.2, 1.6))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_CUTS = (0.0, 0.86)  # darker than this, black would hide the numbers of a neighbouring cell


def colour(number: int) -> str:
    """Hex colour of the run, or pair, with this number; after eight the colours begin again.

    Examples
    --------
    >>> colour(0) == colour(8) != colour(1)
    True
    """
    colours = sns.color_palette("colorblind").as_hex()
    return str(colours[_ORDER[number % len(_ORDER)]])


def dash(ink: Ink) -> tuple[int, tuple[float, ...]] | str:
    """Matplotlib line style of a series; solid for the first, also another once the colours repeat."""
    pattern = _DASHES[(ink.dash + ink.colour // len(_ORDER)) % len(_DASHES)]
    return (0, pattern) if pattern else "solid"


def marker(ink: Ink) -> str:
    """Marker of a series: one per colour, so that runs stay apart without colour."""
    return _MARKERS[ink.colour % len(_MARKERS)]


@lru_cache(maxsize=2)
def colour_map(*, reverse: bool) -> ListedColormap:
    """From nearly white to dark blue, evenly darker all the way; reversed where low means changed."""
    shades = np.asarray(sns.color_palette("mako_r", n_colors=256))
    low, high = (int(cut * 255) for cut in _CUTS)
    chosen = shades[np.linspace(low, high, 256).astype(int)]
    return ListedColormap(chosen[::-1] if reverse else chosen)
