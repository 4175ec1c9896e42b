"""Which trainings of an experiment are compared with each other once all are done."""

import hashlib
from dataclasses import dataclass
from itertools import combinations

from dynprobe.experiments.experiment import Cell, Experiment


@dataclass(frozen=True)
class Comparison:
    """Two trainings to compare layer by layer, or the snapshots of one.

    Attributes
    ----------
    kind
        A word of :class:`~dynprobe.experiments.experiment.Measure`'s ``pairs``.
    a, b
        The cells, of one model; the same one for ``start`` and ``end``.
    """

    kind: str
    a: Cell
    b: Cell

    @property
    def key(self) -> str:
        """Name of the comparison, with a hash of what decides the results of both cells."""
        digest = hashlib.sha256(f"{self.a.key} {self.b.key}".encode()).hexdigest()[:10]
        return f"{self.kind}.{self.a.model}.{self.a.arm}.{self.a.seed}.{self.b.arm}.{self.b.seed}.{digest}"

    @property
    def label(self) -> str:
        """For people."""
        if self.a == self.b:
            return f"{self.a.label} against its {self.kind}"
        return f"{self.a.label} against {self.b.arm} seed {self.b.seed}"


def comparisons_of(experiment: Experiment) -> tuple[Comparison, ...]:
    """All comparisons that an experiment asks for, kind by kind and model by model.

    Parameters
    ----------
    experiment
        The experiment.

    Returns
    -------
    tuple of Comparison
        Each two cells once, in the order of the file.
    """
    kinds = dict.fromkeys(kind for cell in experiment.cells for kind in cell.measure.pairs)
    return tuple(found for kind in kinds for found in _of_kind(kind, experiment))


def _of_kind(kind: str, experiment: Experiment) -> list[Comparison]:
    if kind in ("start", "end"):
        return [Comparison(kind, cell, cell) for cell in experiment.cells]
    return [Comparison(kind, a, b) for a, b in combinations(experiment.cells, 2) if _go_together(kind, a, b)]


def _go_together(kind: str, a: Cell, b: Cell) -> bool:
    same_arm, same_seed = a.arm == b.arm, a.seed == b.seed
    return a.model == b.model and (same_arm != same_seed) and (same_arm if kind == "seeds" else same_seed)
