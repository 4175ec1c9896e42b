"""Claims about paired trainings, judged together: what holds here, what does not, and what cannot be told."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynprobe.experiments.tables import interval, points
from dynprobe.metrics import holm, paired_difference

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be told"
SHARES = "%"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one quantity is larger, or smaller, than another one over the seeds.

    Attributes
    ----------
    text
        What is claimed, in words.
    values, others
        Seed to value; the claim is about `values` - `others` of the seeds that both have.
    direction
        1 when `values` are claimed to be larger, -1 when smaller.
    margin
        What is too small to matter, in their unit.
    resolution
        Step of the values, such as 1 / n_test for an accuracy, or 0 when there is none.
    unit
        ``"%"`` for shares, which are shown as percentages; else a word to stand after the numbers, or nothing.
    digits
        Digits after the point of other values than shares.
    """

    text: str
    values: Mapping[int, float]
    others: Mapping[int, float]
    direction: int
    margin: float = 0.0
    resolution: float = 0.0
    unit: str = ""
    digits: int = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the seeds say of a claim.

    Attributes
    ----------
    claim
        The claim.
    mean, other
        Mean over the seeds of both quantities.
    difference, low, high
        Mean difference, and its 95 % interval, not corrected; NaN and infinite for fewer than two seeds.
    p
        Two-sided, corrected by Holm for the claims that were judged together.
    n
        Number of pairs.
    verdict
        :data:`HOLDS`, :data:`FAILS` or :data:`OPEN`.
    """

    claim: Claim
    mean: float
    other: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    verdict: str


def judge(claims: Sequence[Claim], *, level: float = 0.95) -> list[Finding]:
    """Test claims together.

    Parameters
    ----------
    claims
        The claims.
    level
        Of the intervals; 1 - level is the chance that any of the claims is wrongly said to hold, or its opposite.

    Returns
    -------
    list of Finding
        In the order of the claims. A claim holds when the corrected p is below 1 - level and the difference goes its way; it
        does not hold when p is and the difference goes the other way, or when the whole interval lies within the margin; else
        nothing can be told.

    Examples
    --------
    >>> first = Claim(text="grows", values={0: 2.0, 1: 2.1, 2: 1.9}, others={0: 1.0, 1: 1.0, 2: 1.0}, direction=1)
    >>> [found.verdict for found in judge([first])]
    ['holds here']
    """
    measured = [_measure(claim, level) for claim in claims]
    corrected = holm([found.p for found in measured]) if measured else np.empty(0)
    return [_decide(found, float(p), level) for found, p in zip(measured, corrected, strict=True)]


def in_words(found: Finding, *, where: str = "") -> str:
    """A claim with its figures, for a list of findings.

    Parameters
    ----------
    found
        Of :func:`judge`.
    where
        What it was found in, such as the name of the model.

    Examples
    --------
    >>> values, others = {0: 0.5, 1: 0.52, 2: 0.51}, {0: 0.4, 1: 0.4, 2: 0.4}
    >>> claim = Claim(text="It grows", values=values, others=others, direction=1, unit="%")
    >>> in_words(judge([claim])[0], where="small")
    'It grows (**small**): 51.0 % against 40.0 %, +11.0 [+8.5, +13.5] points, p = 0.003, 3 seeds.'
    """
    return f"{found.claim.text}{f' (**{where}**)' if where else ''}: {figures_of(found)}."


def figures_of(found: Finding) -> str:
    """What was measured for a claim: both means, difference with interval, p and number of seeds."""
    claim = found.claim
    if claim.unit == SHARES:
        values = f"{points(found.mean)} % against {points(found.other)} %"
        gap = f"{interval(found.difference, found.low, found.high)} points"
    else:
        one, other = (f"{value:.{claim.digits}f}" for value in (found.mean, found.other))
        gap, low, high = (f"{value:+.{claim.digits}f}" for value in (found.difference, found.low, found.high))
        unit = f" {claim.unit}" if claim.unit else ""
        values, gap = f"{one} against {other}", f"{gap} [{low}, {high}]{unit}"
    return f"{values}, {gap}, {p_in_words(found.p)}, {found.n} seeds"


def p_in_words(p: float) -> str:
    """Such as "p = 0.012".

    Examples
    --------
    >>> p_in_words(0.0004), p_in_words(0.0123)
    ('p < 0.001', 'p = 0.012')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _measure(claim: Claim, level: float) -> Finding:
    seeds = [seed for seed in claim.values if seed in claim.others]
    pairs = np.array([(claim.values[seed], claim.others[seed]) for seed in seeds], dtype=float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    means = pairs.mean(axis=0) if len(pairs) else np.full(2, math.nan)
    gap, low, high, p = float(means[0] - means[1]), -math.inf, math.inf, 1.0
    if len(pairs) > 1:
        found = paired_difference(pairs[:, 0], pairs[:, 1], level=level, resolution=claim.resolution)
        low, high, p = found.low, found.high, found.p_two_sided
    return Finding(
        claim=claim, mean=float(means[0]), other=float(means[1]), difference=gap, low=low, high=high, p=p, n=len(pairs),
        verdict=OPEN,
    )  # fmt: skip


def _decide(found: Finding, p: float, level: float) -> Finding:
    claim, verdict = found.claim, OPEN
    if p < 1 - level:
        verdict = HOLDS if found.difference * claim.direction > 0 else FAILS
    elif -claim.margin <= found.low and found.high <= claim.margin:
        verdict = FAILS
    return replace(found, p=p, verdict=verdict)
