"""One layer of several snapshots: sums of each side are kept as long as the next pairs need them."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import balanced_half_samples
from dynprobe.metrics.from_sums import Whitening, self_hsic, unbiased_hsic, variate_products, whiten
from dynprobe.metrics.grid import Factored, mean_correlation_of
from dynprobe.metrics.rows import Prepared
from dynprobe.metrics.sums import CrossSums, SideSums, cross_sums, pooled, side_sums

# Besides the ends: the snapshots of both runs at the step in hand.
_REMEMBERED = 2


@dataclass(frozen=True)
class Agreement:
    """How similar two snapshots of a layer are; NaN where a value is undefined.

    Attributes
    ----------
    svcca
        Mean canonical correlation of the directions that are held over all snapshots.
    free_svcca
        The same of the directions that each snapshot's own variance asks for; only computed for all examples.
    cka
        Debiased linear CKA.
    """

    svcca: float
    free_svcca: float
    cka: float


@dataclass(frozen=True)
class Side:
    """One snapshot of a layer.

    Attributes
    ----------
    rows
        Prepared hidden states.
    parts, sums
        Their sums, by group of examples and in all.
    whitening
        The kept directions; ``None`` where there are none.
    problem
        Why there are none.
    """

    rows: Prepared
    parts: SideSums
    sums: SideSums
    whitening: Whitening | None
    problem: str = ""

    @cached_property
    def self_similarity(self) -> Tensor:
        """Unbiased HSIC with itself, by which CKA divides."""
        return self_hsic(self.rows, self.sums)

    @property
    def factored(self) -> Factored | None:
        """What a layer by layer map needs of it; does not hold the rows."""
        return None if self.whitening is None else Factored(self.rows.released(), self.whitening)


class Layer:
    """One layer of one stack, on the tokens that all snapshots share.

    Parameters
    ----------
    states
        Hidden states of all snapshots.
    number
        Which layer.
    groups
        Rows at which groups of whole examples start, and the number of rows.
    ends
        Snapshots that are summed by group and never forgotten: those that get intervals.
    variance
        Share of the variance that decides how many directions the reference keeps.
    """

    def __init__(
        self,
        states: Representations,
        number: int,
        *,
        groups: Sequence[int],
        ends: Collection[Moment],
        variance: float,
    ) -> None:
        self._states, self._number, self._variance = states, number, variance
        self._groups, self._ends = groups, ends
        self._sides: OrderedDict[Moment, Side] = OrderedDict()
        self._crosses: dict[Pair, CrossSums] = {}

    def side(self, moment: Moment) -> Side:
        """One snapshot, read and summed unless it is still remembered."""
        found = self._sides.get(moment)
        if found is None:
            rows = self._states.prepared(moment, self._number)
            parts = side_sums(rows, self._groups if moment in self._ends else self._whole)
            found = self._with_whitening(moment, rows, parts)
        self._sides[moment] = found
        self._sides.move_to_end(moment)
        passing = [other for other in self._sides if other not in self._ends]
        for other in passing[:-_REMEMBERED]:
            del self._sides[other]
        return found

    def agreement(self, pair: Pair) -> Agreement:
        """How similar the two snapshots of a pair are."""
        a, b = self.side(pair.a), self.side(pair.b)
        cross = self._crosses.get(pair)
        if cross is None:
            cross = cross_sums(a.rows, b.rows, self._whole)
        return _agreement(a, b, pooled(cross), with_free=True)

    def chance(self, pair: Pair, shifts: Sequence[int]) -> Agreement:
        """How similar they are with the rows of one shifted by whole examples: the mean over some shifts."""
        a, b = self.side(pair.a), self.side(pair.b)
        rolled = (cross_sums(a.rows, b.rows.rolled(shift), self._whole) for shift in shifts)
        found = [_agreement(a, b, pooled(cross)) for cross in rolled]
        return Agreement(*np.mean([(one.svcca, one.free_svcca, one.cka) for one in found], axis=0))

    def on_halves(self, pairs: Sequence[Pair]) -> dict[Pair, list[Agreement]]:
        """How similar the snapshots of some pairs of ends are on balanced halves of the examples."""
        found: dict[Pair, list[Agreement]] = {pair: [] for pair in pairs}
        sides = {moment: self.side(moment) for pair in pairs for moment in (pair.a, pair.b)}
        self._crosses |= {pair: cross_sums(sides[pair.a].rows, sides[pair.b].rows, self._groups) for pair in pairs}
        for half in balanced_half_samples(len(self._groups) - 1):
            groups = np.flatnonzero(half).tolist()
            seen = {
                moment: self._with_whitening(moment, side.rows, side.parts, groups=groups)
                for moment, side in sides.items()
            }
            for pair in pairs:
                cross = pooled(self._crosses[pair], groups=groups)
                found[pair].append(_agreement(seen[pair.a], seen[pair.b], cross))
        return found

    @property
    def _whole(self) -> list[int]:
        return [0, self._states.n_rows]

    def _with_whitening(
        self, moment: Moment, rows: Prepared, parts: SideSums, *, groups: Sequence[int] | None = None
    ) -> Side:
        sums = pooled(parts, groups=groups)
        reference = self._states.reference(moment, self._number)
        held = None
        if reference != moment or groups is not None:
            kept = self.side(reference).whitening
            held = None if kept is None else kept.n_kept
        try:
            found = whiten(rows, float(sums.n), sums.total, sums.products, variance=self._variance, n_kept=held)
        except ValueError as error:  # a layer without variance, such as position embeddings alone
            return Side(rows, parts, sums, None, str(error))
        return Side(rows, parts, sums, found)


def _agreement(a: Side, b: Side, cross: CrossSums, *, with_free: bool = False) -> Agreement:
    svcca = free = float("nan")
    if a.whitening is not None and b.whitening is not None:
        x, y = a.whitening, b.whitening
        products = variate_products(a.rows, b.rows, cross.products, float(a.sums.n), x, y)
        svcca = _mean_correlation(products[: x.n_kept, : y.n_kept])
        if with_free:
            chosen_alike = (x.n_free, y.n_free) == (x.n_kept, y.n_kept)
            free = svcca if chosen_alike else _mean_correlation(products[: x.n_free, : y.n_free])
    return Agreement(svcca, free, _cka(a, b, cross))


def _mean_correlation(products: Tensor) -> float:
    return float(mean_correlation_of(products, solver="eigh").clamp(0.0, 1.0))


def _cka(a: Side, b: Side, cross: CrossSums) -> float:
    """Debiased CKA; NaN for fewer than four rows and where a side has no similarity structure beyond chance."""
    own = a.self_similarity * b.self_similarity
    if float(a.sums.n) < 4 or not (float(a.self_similarity) > 0 and float(b.self_similarity) > 0):
        return float("nan")
    return float((unbiased_hsic(a.rows, b.rows, a.sums, b.sums, cross) / own.sqrt()).clamp(-1.0, 1.0))
