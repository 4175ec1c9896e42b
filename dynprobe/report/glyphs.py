"""Text inside figures: only what the shipped font can draw."""

from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
from matplotlib.ft2font import FT2Font

from dynprobe.report.wording import short_label

FONT = "DejaVu Sans"  # comes with Matplotlib itself, so figures look the same everywhere
LONGEST = 72


def figure_text(text: object) -> str:
    r"""Text with U+FFFD for every character that the font has no glyph for, in one line of at most 72.

    Examples
    --------
    >>> figure_text("seed 1 漢") == "seed 1 \ufffd"
    True
    """
    known = _codepoints()
    clean = short_label(text, length=LONGEST)
    return "".join(char if ord(char) in known else "\ufffd" for char in clean)


@lru_cache(maxsize=1)
def _codepoints() -> frozenset[int]:
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(FT2Font(str(path)).get_charmap())
