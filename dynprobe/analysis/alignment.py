"""Which step of one run is compared with which step of another, and which layers and rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Snapshots whose share of training differs by more are not called the same moment of training.
FRACTION_TOLERANCE = 0.05


@dataclass(frozen=True)
class Alignment:
    """Steps of two runs that belong together.

    Attributes
    ----------
    pairs
        Step of the first and of the second run, in order of training.
    by
        ``"step"``, ``"fraction"`` of training, or ``"ends"`` where only first and last could be paired.
    notes
        What a reader must know about it; empty when all steps are the same.
    """

    pairs: tuple[tuple[int, int], ...]
    by: str
    notes: tuple[str, ...] = ()


def align_steps(
    steps_a: Sequence[int], steps_b: Sequence[int], *, max_steps: tuple[int | None, int | None] = (None, None)
) -> Alignment:
    """Pair the steps of two runs: first with first, last with last, and between them those that both runs have.

    Where the runs share no step between first and last, steps are paired by their share of training instead, each with
    the nearest of the other run when that is the nearest in turn and at most 5 % of training away.

    Parameters
    ----------
    steps_a, steps_b
        Steps with a snapshot, ascending, at least one each.
    max_steps
        Planned length of each training, or ``None``: then its last step counts as its end.

    Raises
    ------
    ValueError
        When a run has no step.

    Examples
    --------
    >>> align_steps([0, 10, 50], [0, 10, 50]).pairs
    ((0, 0), (10, 10), (50, 50))
    >>> found = align_steps([0, 50, 100], [0, 100, 200])
    >>> found.pairs, found.by
    (((0, 0), (100, 100), (100, 200)), 'step')
    >>> align_steps([0, 5, 10], [0, 51, 99]).pairs
    ((0, 0), (5, 51), (10, 99))
    """
    if not steps_a or not steps_b:
        raise ValueError(f"`steps` must hold at least one step of each run; got {list(steps_a)} and {list(steps_b)}")
    first, last = (steps_a[0], steps_b[0]), (steps_a[-1], steps_b[-1])
    common = sorted(set(steps_a) & set(steps_b))
    inner = [(step, step) for step in common if (step, step) not in (first, last)]
    by = "step"
    if not inner and first != last and (len(steps_a) > 2 or len(steps_b) > 2):
        inner = _by_fraction(steps_a, steps_b, max_steps)
        by = "fraction" if inner else "ends"
    pairs = tuple(dict.fromkeys((first, *inner, last)))
    return Alignment(pairs, by, _notes(pairs, by, steps_a, steps_b))


def _by_fraction(
    steps_a: Sequence[int], steps_b: Sequence[int], max_steps: tuple[int | None, int | None]
) -> list[tuple[int, int]]:
    inner_a, inner_b = np.array(steps_a[1:-1]), np.array(steps_b[1:-1])
    if not inner_a.size or not inner_b.size:
        return []
    ends = [max(planned or 0, steps[-1]) for planned, steps in zip(max_steps, (steps_a, steps_b), strict=True)]
    apart = np.abs(inner_a[:, None] / ends[0] - inner_b[None, :] / ends[1])
    nearest_b, nearest_a = apart.argmin(axis=1), apart.argmin(axis=0)
    return [
        (int(inner_a[i]), int(inner_b[j]))
        for i, j in enumerate(nearest_b)
        if nearest_a[j] == i and apart[i, j] <= FRACTION_TOLERANCE
    ]


def _notes(
    pairs: Sequence[tuple[int, int]], by: str, steps_a: Sequence[int], steps_b: Sequence[int]
) -> tuple[str, ...]:
    notes = []
    if by == "fraction":
        listed = ", ".join(f"{a} with {b}" for a, b in pairs)
        notes.append(
            "The runs share no step between the first and the last snapshot, so steps were aligned on the fraction of "
            f"training: {listed}."
        )
    elif by == "ends":
        notes.append(
            "The runs share no step between the first and the last snapshot and none lies at the same fraction of "
            "training, so only the first and the last were compared."
        )
    if pairs[0][0] != pairs[0][1]:
        notes.append(f"The first snapshots were taken at different steps: {pairs[0][0]} and {pairs[0][1]}.")
    if by == "step" and pairs[-1][0] != pairs[-1][1]:
        notes.append(
            f"The runs ended at different steps; the last snapshots ({pairs[-1][0]} and {pairs[-1][1]}) were compared "
            "with each other."
        )
    for steps, which in ((steps_a, "first"), (steps_b, "second")):
        if len(steps) == 1:
            notes.append(f"The {which} run has one snapshot only, so it cannot be compared with its own start.")
    return tuple(notes)
