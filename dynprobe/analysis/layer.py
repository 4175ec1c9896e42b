"""One layer of several snapshots: what was read of each is kept as long as the next pairs need it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dynprobe.analysis.directions import LeftOut
from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.representations import Representations
from dynprobe.metrics.grid import Factored
from dynprobe.metrics.workers import in_parallel


@dataclass(frozen=True)
class Agreement:
    """How similar two snapshots of a layer are; NaN where a value is undefined or was not computed.

    Attributes
    ----------
    cka
        Debiased linear CKA.
    svcca
        Mean canonical correlation of the directions that are held over all snapshots.
    free_svcca
        The same of the directions that each snapshot's own variance asks for; only computed for all examples.
    """

    cka: float
    svcca: float = float("nan")
    free_svcca: float = float("nan")


@dataclass(frozen=True)
class Compared:
    """What is known of how similar two snapshots of a layer are.

    Attributes
    ----------
    value
        Of all examples.
    halves
        Of balanced halves of the examples; empty for fewer than four examples.
    chance
        With the rows of one side shifted by whole examples; ``None`` for a single example.
    """

    value: Agreement
    halves: tuple[Agreement, ...]
    chance: Agreement | None


@dataclass(frozen=True, kw_only=True)
class Side:
    """One snapshot of a layer.

    Attributes
    ----------
    left_out
        Why SVCCA of it is not computed; ``None`` where it is.
    n_kept, n_free
        Number of directions that SVCCA keeps, and that its own variance asks for; 0 where there are none.
    problem
        Why nothing can be said of it.
    """

    left_out: LeftOut | None = None
    n_kept: int = 0
    n_free: int = 0
    problem: str = ""


AnySide = TypeVar("AnySide", bound=Side)


class Layer(ABC, Generic[AnySide]):
    """One layer of one stack, on the tokens that all snapshots share; what can be done at once is.

    Parameters
    ----------
    states
        Hidden states of all snapshots.
    number
        Which layer.
    keep
        Snapshots that are never forgotten: those that many pairs need.
    left_out
        References of which SVCCA is not computed.
    """

    def __init__(
        self, states: Representations, number: int, *, keep: Collection[Moment], left_out: Mapping[Moment, LeftOut]
    ) -> None:
        self._states, self._number = states, number
        self._keep, self._left_out = keep, left_out
        self._groups = states.groups()
        self._sides: dict[Moment, AnySide] = {}

    def side(self, moment: Moment) -> AnySide:
        """One snapshot that was read before."""
        return self._sides[moment]

    def read(self, moments: Iterable[Moment]) -> None:
        """Read some snapshots unless they are remembered; others are forgotten, but for those to keep."""
        wanted = list(dict.fromkeys(moments))
        self._sides = {m: side for m, side in self._sides.items() if m in self._keep or m in wanted}
        for several in self._in_turn(wanted):
            missing = [moment for moment in dict.fromkeys(several) if moment not in self._sides]
            self._sides |= dict(zip(missing, in_parallel(self._side, missing), strict=True))

    def _in_turn(self, wanted: Sequence[Moment]) -> Iterable[Sequence[Moment]]:
        """What must be read before the rest, then the rest."""
        return [wanted]

    @abstractmethod
    def compare(self, pairs: Sequence[Pair]) -> list[Compared]:
        """How similar the two snapshots of each pair are, on all examples, on halves of them, and by chance."""

    def factored(self, moments: Iterable[Moment]) -> dict[Moment, Factored | None]:
        """What a layer by layer map needs of some snapshots; ``None`` where SVCCA is undefined or left out."""
        return dict.fromkeys(moments)

    @abstractmethod
    def _side(self, moment: Moment) -> AnySide:
        """Read one snapshot."""
