"""One layer of several snapshots: sums of each side are kept as long as the next pairs need them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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

# Tokens for each kept direction; below it canonical correlations of unrelated data are far from zero.
ROWS_PER_DIRECTION = 10


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
    parts
        Their sums by group of examples.
    sums
        The sums of all groups, or of half of them, without the products that only the two next need.
    self_similarity
        Unbiased HSIC with itself, by which CKA divides; NaN where it is nothing but rounding.
    whitening
        The kept directions; ``None`` where there are none.
    problem
        Why there are none.
    """

    rows: Prepared
    parts: SideSums
    sums: SideSums
    self_similarity: Tensor
    whitening: Whitening | None
    problem: str = ""

    @property
    def factored(self) -> Factored | None:
        """What a layer by layer map needs of it; does not hold the rows."""
        return None if self.whitening is None else Factored(self.rows.released(), self.whitening)


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


class Layer:
    """One layer of one stack, on the tokens that all snapshots share; what can be done at once is.

    Parameters
    ----------
    states
        Hidden states of all snapshots.
    number
        Which layer.
    keep
        Snapshots that are never forgotten: those that many pairs need.
    variance
        Share of the variance that decides how many directions the reference keeps.
    """

    def __init__(self, states: Representations, number: int, *, keep: Collection[Moment], variance: float) -> None:
        self._states, self._number, self._variance = states, number, variance
        self._keep = keep
        self._groups = states.groups()
        self._sides: dict[Moment, Side] = {}
        self._halves: dict[tuple[Moment, tuple[int, ...]], Side] = {}

    def side(self, moment: Moment) -> Side:
        """One snapshot that was read before."""
        return self._sides[moment]

    def read(self, moments: Iterable[Moment]) -> None:
        """Read and sum some snapshots unless they are remembered; others are forgotten, but for those to keep."""
        wanted = list(dict.fromkeys(moments))
        self._sides = {m: side for m, side in self._sides.items() if m in self._keep or m in wanted}
        references = [self._states.reference(moment, self._number) for moment in wanted]
        for several in (references, wanted):  # the references decide how many directions the others keep
            missing = [moment for moment in dict.fromkeys(several) if moment not in self._sides]
            self._sides |= dict(zip(missing, in_parallel(self._side, missing), strict=True))

    def compare(self, pairs: Sequence[Pair]) -> list[Compared]:
        """How similar the two snapshots of each pair are, on all examples, on halves of them, and by chance."""
        self.read(moment for pair in pairs for moment in (pair.a, pair.b))
        crosses = dict(zip(pairs, in_parallel(self._cross, pairs), strict=True))
        values = list(in_parallel(lambda pair: self._value(pair, crosses[pair]), pairs))
        halves = self._on_halves(crosses)
        chances = list(in_parallel(self._chance, pairs))
        return [Compared(*found) for found in zip(values, halves, chances, strict=True)]

    def _cross(self, pair: Pair) -> CrossSums:
        return cross_sums(self.side(pair.a).rows, self.side(pair.b).rows, self._groups)

    def _value(self, pair: Pair, cross: CrossSums) -> Agreement:
        return _agreement(self.side(pair.a), self.side(pair.b), pooled(cross), with_free=True)

    def _on_halves(self, crosses: Mapping[Pair, CrossSums]) -> list[tuple[Agreement, ...]]:
        n_groups = len(self._groups) - 1
        if n_groups == 1:
            return [() for _ in crosses]
        moments = list(dict.fromkeys(moment for pair in crosses for moment in (pair.a, pair.b)))

        def of_half(groups: tuple[int, ...]) -> list[Agreement]:
            seen = {moment: self._half(moment, groups) for moment in moments}
            return [_agreement(seen[p.a], seen[p.b], pooled(cross, groups=groups)) for p, cross in crosses.items()]

        halves = [tuple(np.flatnonzero(half).tolist()) for half in balanced_half_samples(n_groups)]
        return list(zip(*in_parallel(of_half, halves), strict=True))

    def _half(self, moment: Moment, groups: tuple[int, ...]) -> Side:
        found = self._halves.get((moment, groups))
        if found is None:
            whole = self.side(moment)
            found = self._with_whitening(
                moment, whole.rows, whole.parts, groups=groups, trusted=self._is_trusted(whole)
            )
            if moment in self._keep:
                self._halves[moment, groups] = found
        return found

    def _is_trusted(self, side: Side) -> bool:
        """Whether SVCCA with it gets an interval; decompositions for one that nobody is shown would take most of the time."""
        return side.whitening is not None and self._states.n_rows >= ROWS_PER_DIRECTION * side.whitening.n_kept

    def _chance(self, pair: Pair) -> Agreement | None:
        shift = self._states.shift()
        if shift == 0:
            return None
        a, b = self.side(pair.a), self.side(pair.b)
        whole = [0, self._states.n_rows]
        return _agreement(a, b, pooled(cross_sums(a.rows, b.rows.rolled(shift), whole)))

    def _side(self, moment: Moment) -> Side:
        try:
            rows = self._states.prepared(moment, self._number)
        except ValueError as error:  # NaN, which capture refuses but a file may hold
            nothing = self._states.empty(moment, self._number)
            return replace(self._with_whitening(moment, nothing, side_sums(nothing, self._groups)), problem=str(error))
        return self._with_whitening(moment, rows, side_sums(rows, self._groups))

    def _with_whitening(
        self,
        moment: Moment,
        rows: Prepared,
        parts: SideSums,
        *,
        groups: Sequence[int] | None = None,
        trusted: bool = True,
    ) -> Side:
        sums = pooled(parts, groups=groups)
        reference = self._sides.get(self._states.reference(moment, self._number))
        held = None if reference is None or reference.whitening is None else reference.whitening.n_kept
        own = self_hsic(rows, sums)
        less = replace(sums, products=sums.products.new_empty(0))  # a view would hold them all
        if not trusted:
            return Side(rows, parts, less, own, None)
        try:
            found = whiten(rows, float(sums.n), sums.total, sums.products, variance=self._variance, n_kept=held)
        except ValueError as error:  # a layer without variance, such as position embeddings alone
            return Side(rows, parts, less, own, None, str(error))
        return Side(rows, parts, less, own, found)


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
    """Debiased CKA; NaN where a side has no similarity structure beyond chance."""
    own = a.self_similarity * b.self_similarity
    return float((unbiased_hsic(a.rows, b.rows, a.sums, b.sums, cross) / own.sqrt()).clamp(-1.0, 1.0))
