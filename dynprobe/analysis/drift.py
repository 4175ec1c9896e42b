"""How far a run has come from its start, snapshot by snapshot while it goes on: the few numbers that a dashboard shows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dynprobe.analysis.attention import Movement, movement_of
from dynprobe.analysis.attention_rows import LayerReader
from dynprobe.analysis.causality import is_causal
from dynprobe.analysis.directions import WIDEST_SVCCA, LeftOut, left_out
from dynprobe.analysis.isotropy import MIN_EXAMPLES
from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import dimension_std, isoscore
from dynprobe.metrics.from_sums import Whitening, variate_products, whiten
from dynprobe.metrics.grid import mean_correlation_of
from dynprobe.metrics.rows import Prepared
from dynprobe.metrics.sums import cross_sums, pooled, side_sums
from dynprobe.metrics.workers import in_parallel
from dynprobe.run import open_run

PREFIX = "dynprobe"
ATTENTION, SIMILARITY = "attention_js_divergence", "svcca_similarity"
_ISOTROPY: dict[str, Callable[[np.ndarray], float]] = {
    "isoscore": lambda vectors: float(isoscore(vectors)),
    "cls_std_mean": lambda vectors: float(np.mean(dimension_std(vectors))),
}
_VARIANCE = 0.99


@dataclass(frozen=True)
class _Value:
    """A number, or the reason why there is none that could be trusted."""

    metric: str
    place: str
    layer: int
    value: float = float("nan")
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{PREFIX}/{self.metric}/{self.place}layer_{self.layer}"


class Drift:
    """Drift of the snapshots of a run from its first one, as numbers with names; the run may still be going on.

    The numbers are those that :func:`~dynprobe.analysis.compare` gives for this run against its own start, with its defaults.
    Names are ``dynprobe/METRIC/layer_N``, and ``dynprobe/METRIC/mean`` for the mean over the captured blocks (layers 1
    and up, without the embeddings):

    * ``attention_js_divergence``: how far attention moved, in nats; 0 is unchanged, ln 2 the most.
    * ``svcca_similarity``: how much of the hidden states stayed; 1 is unchanged, 0 the least.
    * ``isoscore``: how evenly the vectors of [CLS] (or its stand-in) fill the space; from 0, one direction, to 1.
    * ``cls_std_mean``: mean standard deviation of their dimensions, in activations, 0 or more; 0 is collapse.

    In an encoder-decoder the stack comes before the layer, as in ``encoder_layer_2`` and ``decoder_mean``;
    ``decoder_cross_layer_2`` is attention from decoder to encoder. Where only the attention of [CLS] was captured, its names
    have ``cls_layer_2``.

    Parameters
    ----------
    run_dir
        A run directory. Its first snapshot is the start, also for a training that was resumed.

    Attributes
    ----------
    left_out
        Name to status and reason, of the numbers that the last call left out because they could not be trusted.

    Notes
    -----
    What `compare` shows as a word is left out: divergence below the resolution of the stored attention, SVCCA of fewer than
    ten tokens per direction or of more than 1024 features, isotropy of fewer than 30 examples, layers that do not vary. So a
    curve begins where there is something to see, and never with a 0 that only means "too small for float16". A mean is only
    given when every block has its number. SVCCA keeps as many directions as the start needs; these are computed once. Hidden
    states and attention of the start are read again for each snapshot, so that memory does not grow with them.

    Examples
    --------
    >>> Drift("runs/seed-1")(100)["dynprobe/svcca_similarity/layer_6"]  # doctest: +SKIP
    0.9412
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir)
        self._without_svcca: dict[tuple[str, int], LeftOut | None] = {}
        self._held: dict[tuple[str, int], Whitening] = {}
        self.left_out: dict[str, str] = {}

    def __call__(self, step: int) -> dict[str, float]:
        """The numbers of one snapshot; of the first one only its isotropy.

        Parameters
        ----------
        step
            A step that the run has a snapshot of.

        Returns
        -------
        dict
            Name to number, always finite; without what was not captured.

        Raises
        ------
        StepNotFoundError
            When there is no such snapshot.
        RunFormatError
            When a snapshot cannot be read.
        """
        run = open_run(self._path)
        pair = Pair("from_start", Moment(run, run.name, step), Moment(run, run.name, run.steps[0]))
        try:
            values = list(_isotropy_values(pair.a))
            if pair.a != pair.b:
                values = [*_attention_values(pair), *self._similarity_values(pair), *values]
        finally:
            pair.a.snapshot.close()
            pair.b.snapshot.close()
        self.left_out = {value.name: value.reason for value in values if value.reason}
        return {value.name: value.value for value in values if not value.reason} | _means(values)

    def _similarity_values(self, pair: Pair) -> Iterator[_Value]:
        for stack in pair.a.snapshot.stacks:
            if pair.a.snapshot.layers(stack):
                states = Representations((pair.a, pair.b), stack, specials=False)
                yield from in_parallel(partial(self._svcca, pair, states), pair.a.snapshot.layers(stack))

    def _svcca(self, pair: Pair, states: Representations, layer: int) -> _Value:
        """Mean canonical correlation of as many directions as the start needs."""
        where, n, place = _Value(SIMILARITY, _place(states.stack), layer), states.n_rows, (states.stack, layer)
        if place not in self._without_svcca:
            found = left_out(states, layer, variance=_VARIANCE, widest=WIDEST_SVCCA)
            self._without_svcca[place] = found.get(pair.b)
        if without := self._without_svcca[place]:
            return replace(where, reason=f"{without.status}: {without.reason}")
        try:
            later, start = (states.prepared(moment, layer) for moment in (pair.a, pair.b))
            held = self._held.get(place) or _directions(start, states)
            self._held[place] = held
            now = _directions(later, states, n_kept=held.n_kept)
        except ValueError as error:  # a layer that does not vary
            return replace(where, reason=f"undefined: {error}")
        cross = pooled(cross_sums(later, start, states.groups()))
        products = variate_products(later, start, cross.products, float(n), now, held)
        similarity = mean_correlation_of(products[: now.n_kept, : held.n_kept], solver="eigh")
        return replace(where, value=float(similarity.clamp(0.0, 1.0)))


def _directions(rows: Prepared, states: Representations, *, n_kept: int | None = None) -> Whitening:
    sums = pooled(side_sums(rows, states.groups()))
    return whiten(rows, float(sums.n), sums.total, sums.products, variance=_VARIANCE, n_kept=n_kept)


def _attention_values(pair: Pair) -> Iterator[_Value]:
    """One layer after another: a layer of many long examples takes some hundred megabytes."""
    snapshot = pair.a.snapshot
    for stack in snapshot.stacks:
        for kind in ("self", "cross") if snapshot.attention_layers(stack) else ("cls", "cross"):
            causal = kind == "self" and is_causal(pair.a, stack) and is_causal(pair.b, stack)
            for layer in snapshot.attention_layers(stack, kind):
                read = LayerReader(stack, kind, layer, specials=False)
                found = movement_of(read, pair, snapshot.n_heads(stack, kind), causal=causal)
                yield _divergence(found, _Value(ATTENTION, _place(stack, kind), layer))


def _divergence(movement: Movement, where: _Value) -> _Value:
    if not len(movement.values):
        return replace(where, reason="undefined: no example has a token left to look at")
    value, floor = float(movement.values.mean(axis=1).mean()), float(movement.floor.mean())
    if value < floor:
        return replace(where, reason=f"below-resolution: below {floor:.2g} nats, what the stored numbers resolve")
    return replace(where, value=value)


def _isotropy_values(moment: Moment) -> Iterator[_Value]:
    for stack in moment.snapshot.stacks:
        for kind in moment.snapshot.pooled_kinds(stack)[:1]:
            for layer in moment.snapshot.pooled_layers(kind, stack):
                vectors = moment.snapshot.pooled(kind, layer, stack).astype(np.float64)
                yield from (_isotropy(vectors, _Value(metric, _place(stack), layer)) for metric in _ISOTROPY)


def _isotropy(vectors: np.ndarray, where: _Value) -> _Value:
    n = len(vectors)
    if n < MIN_EXAMPLES:
        return replace(where, reason=f"insufficient-sample: {n} examples; at least {MIN_EXAMPLES} are needed")
    try:
        return replace(where, value=_ISOTROPY[where.metric](vectors))
    except ValueError as error:  # vectors that are all alike, such as those of [CLS] in the embeddings
        return replace(where, reason=f"undefined: {error}")


def _means(values: Sequence[_Value]) -> dict[str, float]:
    """Mean over the blocks where each of them has its number, by name."""
    blocks: dict[str, list[float]] = {}
    for value in values:
        if value.layer > 0:
            blocks.setdefault(f"{PREFIX}/{value.metric}/{value.place}mean", []).append(value.value)
    return {name: float(np.mean(own)) for name, own in blocks.items() if np.isfinite(own).all()}


def _place(stack: str, kind: str = "self") -> str:
    """How a name says which of several stacks is meant, and which attention."""
    return ("" if stack == "model" else f"{stack}_") + ("" if kind == "self" else f"{kind}_")
