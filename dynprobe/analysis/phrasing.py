"""Numbers as findings say them."""

import math
from collections.abc import Sequence

import pandas as pd


def number(value: float) -> str:
    """A number with three significant digits.

    Examples
    --------
    >>> number(0.98765), number(0.0000123), number(0.0), number(137.2)
    ('0.988', '1.23e-05', '0', '137')
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def with_interval(row: pd.Series) -> str:
    """Value and interval of a row, such as ``0.912 [0.880, 0.940]``."""
    text = number(row["value"])
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return text
    return f"{text} [{number(row['low'])}, {number(row['high'])}]"


def both(first: pd.Series, last: pd.Series) -> str:
    """Two values, before and after."""
    return f"{with_interval(first)} → {with_interval(last)}"


def percent(value: float) -> str:
    """A share in percent.

    Examples
    --------
    >>> percent(0.95), percent(0.125)
    ('95 %', '12.5 %')
    """
    return f"{100 * value:.3g} %"


def share(row: pd.Series) -> str:
    """A share of examples as a count, such as ``12 of 512 probe examples (2.34 % [1.3 %, 4.1 %])``."""
    interval = f"{percent(row['value'])} [{percent(row['low'])}, {percent(row['high'])}]"
    return f"{round(row['value'] * row['n'])} of {row['n']} probe examples ({interval})"


def layer_of(layers: Sequence[int]) -> str:
    """Numbers of layers in words.

    Examples
    --------
    >>> layer_of([6]), layer_of([4, 5, 6]), layer_of([1, 3])
    ('layer 6', 'layers 4 to 6', 'layers 1, 3')
    """
    numbers = sorted(int(layer) for layer in layers)
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"layers {numbers[0]} to {numbers[-1]}"
    return f"layers {', '.join(map(str, numbers))}"
