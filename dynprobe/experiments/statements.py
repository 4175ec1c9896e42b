"""Statements that a study makes, judged together: what holds here, what does not, and what cannot be told."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dynprobe.metrics import holm

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be told"
# In place of a list without entries.
NOTHING = "Nothing."

# Model to its statements.
ByModel = Mapping[str, Sequence["Statement"]]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What is claimed, with what was measured of it, before and after it is judged beside others.

    Attributes
    ----------
    text
        What is claimed, in words.
    shown, brief
        The figures, in words: all of them, and those that a summary has room for.
    p
        Chance of what was found, or of more, if the claim were void; corrected by Holm once it is judged. NaN where nothing
        could be tested.
    as_claimed
        Whether what was found goes the way of the claim.
    refuted
        Whether an interval rules the claim out, whatever p is.
    verdict
        :data:`HOLDS`, :data:`FAILS` or :data:`OPEN`.
    """

    text: str
    shown: str
    brief: str = ""
    p: float = math.nan
    as_claimed: bool = False
    refuted: bool = False
    verdict: str = OPEN


def judge(statements: Sequence[Statement], *, level: float = 0.95) -> list[Statement]:
    """Correct the p values of statements by Holm for their number, and decide.

    Parameters
    ----------
    statements
        What is judged together; those that could not be tested do not count.
    level
        1 - level is the chance that p says wrongly of any of them that it holds, or its opposite. What is refuted by an
        interval is so for each by itself.

    Returns
    -------
    list of Statement
        In the same order. One holds when the corrected p is below 1 - level and what was found goes its way; it does not hold
        when p is and what was found goes the other way, or otherwise when it is refuted; else nothing can be told.

    Examples
    --------
    >>> one = Statement(text="a", shown="", p=0.01, as_claimed=True)
    >>> [(found.p, found.verdict) for found in judge([one, replace(one, p=0.04, as_claimed=False)])]
    [(0.02, 'holds here'), (0.04, 'does not hold here')]
    """
    tested = [said.p for said in statements if math.isfinite(said.p)]
    corrected = iter(holm(tested) if tested else ())
    return [_decide(said, float(next(corrected)), level) if math.isfinite(said.p) else said for said in statements]


def listed(judged: ByModel, verdict: str) -> str:
    """The statements with one verdict as a list in Markdown, model by model.

    Parameters
    ----------
    judged
        Of :func:`judge`.
    verdict
        Which.
    """
    lines = [
        f"* **{model}**: {in_words(said)}."
        for model, found in judged.items()
        for said in found
        if said.verdict == verdict
    ]
    return "\n".join(lines) or NOTHING


def in_words(said: Statement) -> str:
    """A statement with its figures.

    Examples
    --------
    >>> in_words(Statement(text="It grows", shown="2 against 1", p=0.0123))
    'It grows: 2 against 1, p = 0.012'
    """
    return f"{said.text}: {said.shown}" + (f", {p_in_words(said.p)}" if math.isfinite(said.p) else "")


def headlines(judged: ByModel, texts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """What was claimed, what was measured with each model, and the verdicts, for a table of several studies.

    Parameters
    ----------
    judged
        Of :func:`judge`.
    texts
        The statements to show, in order; those that no model has are left out.

    Yields
    ------
    tuple of str
        Claim, figures, verdicts; several lines are parted by ``<br>``.
    """
    for text in texts:
        found = {model: said for model, own in judged.items() for said in own if said.text == text}
        if found:
            verdicts = {
                verdict: [m for m, said in found.items() if said.verdict == verdict] for verdict in (HOLDS, FAILS, OPEN)
            }
            yield (
                text,
                "<br>".join(f"{model}: {said.brief or said.shown}" for model, said in found.items()),
                "<br>".join(f"**{verdict}**: {', '.join(models)}" for verdict, models in verdicts.items() if models),
            )


def p_in_words(p: float) -> str:
    """Such as "p = 0.012".

    Examples
    --------
    >>> p_in_words(0.0004), p_in_words(0.0123)
    ('p < 0.001', 'p = 0.012')
    """
    return f"p {p_words(p)}" if p < 0.001 else f"p = {p_words(p)}"


def p_words(p: float) -> str:
    """A p value for a table.

    Examples
    --------
    >>> p_words(0.0321), p_words(0.0001)
    ('0.032', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _decide(said: Statement, p: float, level: float) -> Statement:
    verdict = FAILS if said.refuted else OPEN
    if p < 1 - level:
        verdict = HOLDS if said.as_claimed else FAILS
    return replace(said, p=p, verdict=verdict)
