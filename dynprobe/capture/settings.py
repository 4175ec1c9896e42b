"""What a user asks of a capture, and the words for it on the command line. Imports no torch, so that asking is quick."""

import re
from dataclasses import dataclass
from typing import Any

from dynprobe.capture.schedule import DEFAULT_SCHEDULE, Schedule
from dynprobe.errors import UsageError

DEFAULT_BUDGET = 2 * 10**9
ATTENTION_DTYPES = ("float16", "float32")
ATTENTION_ROWS = ("all", "cls")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class CaptureSettings:
    """What the user asked for.

    Attributes
    ----------
    hidden
        Tokens whose hidden states are kept: ``"sample"`` (max(8192, 10 d_model), less when the budget is small), ``"all"``,
        ``"pooled"`` (of no token: only the pooled vectors, which are always kept; also called ``"none"``), or a number.
    attention
        Examples whose attention is kept: ``"sample"`` (64, less when the budget is small), ``"all"``, ``"none"``, or a number.
    schedule
        When snapshots are taken; see :class:`~dynprobe.capture.schedule.Schedule`.
    budget
        Bytes for all snapshots of the run, or words such as ``"500MB"``. What was asked for by a number, or as
        ``"all"``, is kept even beyond it.
    weights
        Whether to record how far each trained weight tensor has moved from step 0 (needs a copy of them in memory).
    attention_dtype
        How attention probabilities are stored: ``"float16"`` (spacing 1e-3 of a value, which hides what moves less), or
        ``"float32"``, which takes twice the bytes.
    layers
        Layers whose hidden states, and blocks whose attention is kept: ``"all"``, or numbers such as ``"0,6,-1"``, where -1 is
        the last. Pooled vectors are kept of all.
    attention_rows
        ``"all"`` tokens as queries, or ``"cls"``: only [CLS], or what stands for it, such as the last token of a decoder.
    cross_attention
        Whether attention of a decoder to its encoder is kept as well.
    value_norms
        Whether to keep, of each token whose attention is kept, the norm of what each head carries on from it.
    """

    hidden: str | int = "sample"
    attention: str | int = "sample"
    schedule: str = DEFAULT_SCHEDULE
    budget: int = DEFAULT_BUDGET
    weights: bool = True
    attention_dtype: str = "float16"
    layers: str = "all"
    attention_rows: str = "all"
    cross_attention: bool = True
    value_norms: bool = False

    def __post_init__(self) -> None:
        Schedule.parse(self.schedule)
        if isinstance(self.budget, str):
            object.__setattr__(self, "budget", parse_bytes(self.budget))
        if self.hidden == "pooled":
            object.__setattr__(self, "hidden", "none")
        if self.budget < 1:
            raise UsageError(f"`budget` must be a positive number of bytes; got {self.budget}")
        if self.attention_dtype not in ATTENTION_DTYPES:
            raise UsageError(f"`attention_dtype` must be 'float16' or 'float32'; got {self.attention_dtype!r}")
        if self.attention_rows not in ATTENTION_ROWS:
            raise UsageError(f"`attention_rows` must be 'all' or 'cls'; got {self.attention_rows!r}")
        if self.attention == "none" and (self.value_norms or self.attention_rows == "cls"):
            wanted = "value norms" if self.value_norms else "attention of [CLS]"
            raise UsageError(f"`attention` must not be 'none' where {wanted} is wanted: it says of how many examples")
        parse_layers(self.layers)
        for name in ("hidden", "attention"):
            value = getattr(self, name)
            if value not in ("sample", "all", "none") and not (isinstance(value, int) and value >= 1):
                raise UsageError(f"`{name}` must be 'sample', 'all', 'none' or a positive number; got {value!r}")


def settings_from_words(
    *,
    schedule: str | None = None,
    budget: str | None = None,
    hidden: str | None = None,
    attention: str | None = None,
    **others: Any,
) -> CaptureSettings:
    """Settings from what was typed; `None` means the default.

    Raises
    ------
    UsageError
        For a word that means nothing, saying what is possible.
    """
    typed: dict[str, Any] = {
        "schedule": schedule,
        "budget": None if budget is None else parse_bytes(budget),
        "hidden": _number_or_word(hidden),
        "attention": _number_or_word(attention),
        **others,
    }
    return CaptureSettings(**{name: value for name, value in typed.items() if value is not None})


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Layers written as ``0,6,-1``; ``None`` for ``all``.

    Raises
    ------
    UsageError
        For anything else.

    Examples
    --------
    >>> parse_layers("0,6,-1")
    (0, 6, -1)
    """
    if text == "all":
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d{1,4}", part) for part in parts):
        raise UsageError(f"`layers` must be 'all' or numbers such as 0,6,-1 (-1 is the last); got {text!r}")
    return tuple(int(part) for part in parts)


def parse_bytes(text: str) -> int:
    """Number of bytes written as ``2GB``, ``500 MB``, ``1.5GiB`` or ``1000000``.

    Raises
    ------
    UsageError
        For anything else.

    Examples
    --------
    >>> parse_bytes("1.5GB")
    1500000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match.group(2).lower() not in _UNITS or float(match.group(1)) == 0:
        raise UsageError(f"a size must be a positive number with a unit, such as 500MB or 2GB; got {text!r}")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


def show_bytes(n_bytes: float) -> str:
    """A size in words, such as ``"1.5 GB"``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"


def _number_or_word(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text
