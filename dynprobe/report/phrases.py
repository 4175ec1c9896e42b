"""Titles, axis labels and keys that the builders of pictures share."""

import hashlib
import re

from dynprobe.report.wording import short_label
from dynprobe.result import MetricInfo

AGAINST = {
    "within": "",
    "from_start": "against the start",
    "consecutive": "against the snapshot before",
    "between": "run against run",
}


def value_label(info: MetricInfo) -> str:
    """Label of a metric with its unit, for an axis; a ratio has none."""
    label = short_label(info.label, length=48)
    if info.unit in ("", "1") or info.unit in info.label:
        return label
    return f"{label} ({short_label(info.unit, length=16)})"


def heading(info: MetricInfo, *parts: object) -> str:
    """Title of a picture: the metric and what is true of this picture alone."""
    return ", ".join(str(part) for part in (_capital(short_label(info.label, length=60)), *parts) if str(part))


def picture_key(*parts: object) -> str:
    """A name for links and files made of letters, digits and ``-``; different parts give different names.

    Examples
    --------
    >>> picture_key("a b", "../c") == picture_key("a b", "../c") != picture_key("a b", "/c")
    True
    """
    joined = "\x1f".join(map(str, parts)).encode("utf-8", errors="surrogatepass")
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(map(str, parts[:2]))).strip("-").lower()[:48]
    return f"{words or 'picture'}-{hashlib.sha256(joined).hexdigest()[:8]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
