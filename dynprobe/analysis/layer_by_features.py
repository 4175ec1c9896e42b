"""One layer of several snapshots by products of its features: SVCCA and CKA from sums over groups of tokens."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from dynprobe.analysis.directions import LeftOut, too_few_tokens
from dynprobe.analysis.layer import Agreement, Compared, Layer, Side
from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import balanced_half_samples
from dynprobe.metrics.from_sums import (
    Whitening,
    require_finite,
    self_hsic,
    unbiased_hsic,
    variate_products,
    whiten,
)
from dynprobe.metrics.grid import Factored, mean_correlation_of
from dynprobe.metrics.rows import Prepared
from dynprobe.metrics.sums import CrossSums, SideSums, cross_sums, pooled, side_sums
from dynprobe.metrics.workers import in_parallel


@dataclass(frozen=True, kw_only=True)
class FeatureSide(Side):
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
        The kept directions; ``None`` where there are none, or more than the tokens support.
    """

    rows: Prepared
    parts: SideSums
    sums: SideSums
    self_similarity: Tensor
    whitening: Whitening | None = None

    @property
    def factored(self) -> Factored | None:
        """What a layer by layer map needs of it; does not hold the rows."""
        return None if self.whitening is None else Factored(self.rows.released(), self.whitening)


class FeatureLayer(Layer[FeatureSide]):
    """One layer of one stack by products of its features.

    Parameters
    ----------
    states, number, keep, left_out
        As for :class:`~dynprobe.analysis.layer.Layer`.
    variance
        Share of the variance that decides how many directions the reference keeps.
    """

    def __init__(
        self,
        states: Representations,
        number: int,
        *,
        keep: Collection[Moment],
        variance: float,
        left_out: Mapping[Moment, LeftOut],
    ) -> None:
        super().__init__(states, number, keep=keep, left_out=left_out)
        self._variance = variance
        self._halves: dict[tuple[Moment, tuple[int, ...]], FeatureSide] = {}

    def compare(self, pairs: Sequence[Pair]) -> list[Compared]:
        """How similar the two snapshots of each pair are, on all examples, on halves of them, and by chance."""
        self.read(moment for pair in pairs for moment in (pair.a, pair.b))
        crosses = dict(zip(pairs, in_parallel(self._cross, pairs), strict=True))
        values = list(in_parallel(lambda pair: self._value(pair, crosses[pair]), pairs))
        halves = self._on_halves(crosses)
        chances = list(in_parallel(self._chance, pairs))
        return [Compared(*found) for found in zip(values, halves, chances, strict=True)]

    def factored(self, moments: Iterable[Moment]) -> dict[Moment, Factored | None]:
        """What a layer by layer map needs of some snapshots; ``None`` where SVCCA is undefined or left out."""
        wanted = list(moments)
        self.read(wanted)
        return {moment: self.side(moment).factored for moment in wanted}

    def _in_turn(self, wanted: Sequence[Moment]) -> Iterable[Sequence[Moment]]:
        """The references decide how many directions the others keep."""
        return [[self._states.reference(moment, self._number) for moment in wanted], wanted]

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

    def _half(self, moment: Moment, groups: tuple[int, ...]) -> FeatureSide:
        found = self._halves.get((moment, groups))
        if found is None:
            whole = self.side(moment)
            trusted = whole.whitening is not None and not too_few_tokens(self._states.n_rows, whole.n_kept)
            found = self._summed(moment, whole.rows, whole.parts, groups=groups, with_directions=trusted)
            if moment in self._keep:
                self._halves[moment, groups] = found
        return found

    def _chance(self, pair: Pair) -> Agreement | None:
        shift = self._states.shift()
        if shift == 0:
            return None
        a, b = self.side(pair.a), self.side(pair.b)
        whole = [0, self._states.n_rows]
        return _agreement(a, b, pooled(cross_sums(a.rows, b.rows.rolled(shift), whole)))

    def _side(self, moment: Moment) -> FeatureSide:
        without, problem = self._left_out.get(self._states.reference(moment, self._number)), ""
        try:
            rows = self._states.prepared(moment, self._number)
        except ValueError as error:  # NaN, which capture refuses but a file may hold
            rows, problem = self._states.empty(moment, self._number), str(error)
        found = self._summed(moment, rows, side_sums(rows, self._groups), with_directions=without is None)
        return replace(found, left_out=without, problem=problem or found.problem)

    def _summed(
        self,
        moment: Moment,
        rows: Prepared,
        parts: SideSums,
        *,
        groups: Sequence[int] | None = None,
        with_directions: bool,
    ) -> FeatureSide:
        """Sums of all groups or of some, and the directions if they are wanted."""
        sums = pooled(parts, groups=groups)
        less = replace(sums, products=sums.products.new_empty(0))  # a view would hold them all
        side = FeatureSide(rows=rows, parts=parts, sums=less, self_similarity=self_hsic(rows, sums))
        try:
            require_finite(sums.products)
            found = self._directions(moment, rows, sums) if with_directions else None
        except ValueError as error:  # a layer without variance, such as position embeddings alone
            return replace(side, problem=str(error))
        if found is None:
            return side
        return replace(side, whitening=found, n_kept=found.n_kept, n_free=found.n_free)

    def _directions(self, moment: Moment, rows: Prepared, sums: SideSums) -> Whitening:
        """As many directions as the reference keeps, or without one as the variance asks for."""
        reference = self._sides.get(self._states.reference(moment, self._number))
        held = None if reference is None or reference.whitening is None else reference.whitening.n_kept
        return whiten(rows, float(sums.n), sums.total, sums.products, variance=self._variance, n_kept=held)


def _agreement(a: FeatureSide, b: FeatureSide, cross: CrossSums, *, with_free: bool = False) -> Agreement:
    svcca = free = float("nan")
    if a.whitening is not None and b.whitening is not None:
        x, y = a.whitening, b.whitening
        products = variate_products(a.rows, b.rows, cross.products, float(a.sums.n), x, y)
        svcca = _mean_correlation(products[: x.n_kept, : y.n_kept])
        if with_free:
            chosen_alike = (x.n_free, y.n_free) == (x.n_kept, y.n_kept)
            free = svcca if chosen_alike else _mean_correlation(products[: x.n_free, : y.n_free])
    return Agreement(_cka(a, b, cross), svcca, free)


def _mean_correlation(products: Tensor) -> float:
    return float(mean_correlation_of(products, solver="eigh").clamp(0.0, 1.0))


def _cka(a: FeatureSide, b: FeatureSide, cross: CrossSums) -> float:
    """Debiased CKA; NaN where a side has no similarity structure beyond chance."""
    own = a.self_similarity * b.self_similarity
    return float((unbiased_hsic(a.rows, b.rows, a.sums, b.sums, cross) / own.sqrt()).clamp(-1.0, 1.0))
