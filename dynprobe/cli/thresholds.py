"""Limits that a comparison must keep, so that a script can act on them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dynprobe.errors import UsageError
from dynprobe.result import Result


@dataclass(frozen=True)
class Threshold:
    """A metric, a direction and a limit, such as ``prediction_flip_rate>0.1``."""

    metric: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """Read ``METRIC>VALUE`` or ``METRIC<VALUE``.

        Raises
        ------
        UsageError
            For anything else.
        """
        match = re.fullmatch(r"\s*([a-z_0-9]+)\s*([<>])\s*([-+0-9.eE]+)\s*", text)
        try:
            return cls(match.group(1), match.group(2), float(match.group(3)))  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            raise UsageError(
                f"--fail-on must be METRIC>VALUE or METRIC<VALUE, such as prediction_flip_rate>0.1; got {text!r}"
            ) from None


def exceeded(result: Result, thresholds: Sequence[Threshold]) -> list[str]:
    """One sentence for each threshold that the two runs, at the last step both have, do not keep.

    Per layer the worst layer counts, averaged over heads. A value that could not be measured there keeps no threshold.

    Raises
    ------
    UsageError
        For a metric that the result does not hold between the runs.
    """
    between = result.table[(result.table["comparison"] == "between") & result.table["head"].isna()]
    sentences = []
    for threshold in thresholds:
        rows = between[between["metric"] == threshold.metric]
        if rows.empty:
            known = sorted(between["metric"].unique())
            raise UsageError(
                f"--fail-on must name a metric measured between the runs: {known}; got {threshold.metric!r}"
            )
        last = rows[rows["step_a"] == rows["step_a"].max()]
        measured = last[last["status"] == "measured"]
        if measured.empty:
            reason = f"{last['status'].iloc[0]} at the last step"
            sentences.append(f"threshold cannot be checked: {threshold.metric} is {reason}")
            continue
        worst = measured.loc[measured["value"].idxmax() if threshold.sign == ">" else measured["value"].idxmin()]
        value = float(worst["value"])
        if value > threshold.limit if threshold.sign == ">" else value < threshold.limit:
            place = "" if pd.isna(worst["layer"]) else f" in layer {worst['layer']}"
            sentences.append(f"threshold exceeded: {threshold.metric} is {value:.4g}{place}, not {_side(threshold)}")
    return sentences


def _side(threshold: Threshold) -> str:
    return f"{'at most' if threshold.sign == '>' else 'at least'} {threshold.limit:g}"
