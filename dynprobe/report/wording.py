"""Text that may come from anywhere, made safe to print; numbers with sensible digits."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

LABEL_LENGTH = 32
_KEPT_CONTROLS = frozenset("\n\t")
# Embeddings, overrides and isolates let one name rearrange the text around it.
_BIDI_CONTROLS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Cn"})


def clean_text(value: object) -> str:
    r"""Text without control characters, lone surrogates and bidirectional controls; each becomes U+FFFD.

    Parameters
    ----------
    value
        Anything; turned into text with ``str``.

    Returns
    -------
    str
        Text that HTML, UTF-8 and a terminal can hold. It is not escaped.

    Examples
    --------
    >>> clean_text("a\x00b\x1b[31m") == "a\ufffdb\ufffd[31m"
    True
    """
    return "".join("\ufffd" if _is_unsafe(char) else char for char in str(value))


def short_label(value: object, *, length: int = LABEL_LENGTH) -> str:
    """One clean line of at most ``length`` characters; the middle of a longer one becomes ``…``.

    Examples
    --------
    >>> short_label("a" * 20 + "z" * 20, length=7)
    'aaa…zzz'
    """
    # Far more than any label needs; keeps hostile megabytes from being walked through.
    text = " ".join(clean_text(str(value)[:4096] + str(value)[4096:][-length:]).split())
    if len(text) <= length:
        return text or "(unnamed)"
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def run_labels(names: Iterable[str]) -> dict[str, str]:
    """A short label for each run name, all different.

    Examples
    --------
    >>> run_labels(["seed 1", "seed 2"])
    {'seed 1': 'seed 1', 'seed 2': 'seed 2'}
    """
    labels: dict[str, str] = {}
    for name in names:
        label, number = short_label(name), 2
        while label in labels.values():
            suffix = f" ({number})"
            label, number = short_label(name, length=LABEL_LENGTH - len(suffix)) + suffix, number + 1
        labels[name] = label
    return labels


def format_number(value: float, *, digits: int = 3) -> str:
    """A number with ``digits`` significant digits; very small and very large ones with an exponent.

    Examples
    --------
    >>> format_number(0.123456), format_number(0.00001234), format_number(768.0), format_number(0.0)
    ('0.123', '1.23e-05', '768', '0')
    """
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "undefined"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}"


def format_interval(value: float, low: float, high: float) -> str:
    """A value with its interval where both ends are known.

    Examples
    --------
    >>> format_interval(0.5, 0.4, 0.6), format_interval(0.5, float("nan"), 0.6)
    ('0.500 [0.400, 0.600]', '0.500')
    """
    text = format_number(value)
    if math.isfinite(low) and math.isfinite(high):
        text += f" [{format_number(low)}, {format_number(high)}]"
    return text


def format_range(values: Iterable[float]) -> str:
    """The lowest and the highest of some numbers, or the one that all of them show.

    Examples
    --------
    >>> format_range([0.5, 0.2]), format_range([0.5, 0.5])
    ('0.200 to 0.500', '0.500')
    """
    known = list(values)
    low, high = format_number(min(known)), format_number(max(known))
    return low if low == high else f"{low} to {high}"


def plural(count: int, word: str) -> str:
    """A count with its word.

    Examples
    --------
    >>> plural(1, "layer"), plural(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def mapping_of(value: Any) -> Mapping[str, Any]:
    """The value itself where it is a mapping, else an empty one; provenance is free-form."""
    return value if isinstance(value, Mapping) else {}


def _is_unsafe(char: str) -> bool:
    if char in _KEPT_CONTROLS:
        return False
    return char in _BIDI_CONTROLS or unicodedata.category(char) in _UNSAFE_CATEGORIES
