"""One layer of several snapshots: sums of each side are kept as long as the next pairs need them."""

from collections.abc import Collection, Iterable, Sequence
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
from dynprobe.metrics.workers import in_parallel


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
    """One layer of one stack, on the tokens that all snapshots share; what can be done at once is.

    Parameters
    ----------
    states
        Hidden states of all snapshots.
    number
        Which layer.
    groups
        Rows at which groups of whole examples start, and the number of rows.
    ends
        Snapshots that are summed by group and never forgotten: those that get intervals, and the references.
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
        self._sides: dict[Moment, Side] = {}
        self._crosses: dict[Pair, CrossSums] = {}

    def side(self, moment: Moment) -> Side:
        """One snapshot that was read before."""
        return self._sides[moment]

    def read(self, moments: Iterable[Moment]) -> None:
        """Read and sum some snapshots unless they are remembered; others are forgotten, but for the ends."""
        wanted = list(dict.fromkeys(moments))
        self._sides = {m: side for m, side in self._sides.items() if m in self._ends or m in wanted}
        references = [self._states.reference(moment, self._number) for moment in wanted]
        for several in (references, wanted):  # the references decide how many directions the others keep
            missing = [moment for moment in dict.fromkeys(several) if moment not in self._sides]
            self._sides |= dict(zip(missing, in_parallel(self._side, missing), strict=True))

    def agreements(self, pairs: Sequence[Pair]) -> list[Agreement]:
        """How similar the two snapshots of each pair are."""
        self.read(moment for pair in pairs for moment in (pair.a, pair.b))

        def of_pair(pair: Pair) -> Agreement:
            cross = self._crosses.get(pair)
            found = self._cross(pair, self._whole) if cross is None else cross
            return _agreement(self.side(pair.a), self.side(pair.b), pooled(found), with_free=True)

        return list(in_parallel(of_pair, pairs))

    def chance(self, pairs: Sequence[Pair], shifts: Sequence[int]) -> list[Agreement]:
        """How similar they are with the rows of one shifted by whole examples: the mean over some shifts."""
        self.read(moment for pair in pairs for moment in (pair.a, pair.b))

        def of_pair(pair: Pair) -> Agreement:
            a, b = self.side(pair.a), self.side(pair.b)
            rolled = (cross_sums(a.rows, b.rows.rolled(shift), self._whole) for shift in shifts)
            found = [_agreement(a, b, pooled(cross)) for cross in rolled]
            return Agreement(*np.mean([(one.svcca, one.free_svcca, one.cka) for one in found], axis=0))

        return list(in_parallel(of_pair, pairs))

    def on_halves(self, pairs: Sequence[Pair]) -> list[list[Agreement]]:
        """How similar the snapshots of some pairs of ends are on balanced halves of the examples."""
        self.read(moment for pair in pairs for moment in (pair.a, pair.b))
        crosses = in_parallel(lambda pair: self._cross(pair, self._groups), pairs)
        self._crosses |= dict(zip(pairs, crosses, strict=True))
        ends = list(dict.fromkeys(moment for pair in pairs for moment in (pair.a, pair.b)))

        def of_half(half: np.ndarray) -> list[Agreement]:
            groups = np.flatnonzero(half).tolist()
            seen = {m: self._with_whitening(m, self.side(m).rows, self.side(m).parts, groups=groups) for m in ends}
            return [_agreement(seen[p.a], seen[p.b], pooled(self._crosses[p], groups=groups)) for p in pairs]

        halves = list(in_parallel(of_half, list(balanced_half_samples(len(self._groups) - 1))))
        return [list(own) for own in zip(*halves, strict=True)]

    @property
    def _whole(self) -> list[int]:
        return [0, self._states.n_rows]

    def _cross(self, pair: Pair, groups: Sequence[int]) -> CrossSums:
        return cross_sums(self.side(pair.a).rows, self.side(pair.b).rows, groups)

    def _side(self, moment: Moment) -> Side:
        rows = self._states.prepared(moment, self._number)
        return self._with_whitening(
            moment, rows, side_sums(rows, self._groups if moment in self._ends else self._whole)
        )

    def _with_whitening(
        self, moment: Moment, rows: Prepared, parts: SideSums, *, groups: Sequence[int] | None = None
    ) -> Side:
        sums = pooled(parts, groups=groups)
        reference = self._sides.get(self._states.reference(moment, self._number))
        held = None if reference is None or reference.whitening is None else reference.whitening.n_kept
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
