"""How far attention moved: Jensen-Shannon divergence per layer and per head."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprobe.analysis.attention_rows import MIN_MASS, LayerReader
from dynprobe.analysis.catalog import ATTENTION, describe
from dynprobe.analysis.causality import is_causal
from dynprobe.analysis.matching import head_mismatch, layer_mismatch, shared_stacks
from dynprobe.analysis.moments import Pair, last_pairs
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.metrics import bootstrap_interval, js_divergence
from dynprobe.metrics.workers import in_parallel
from dynprobe.result import Result, tidy

METRIC = "attention_js_divergence"
N_RESAMPLES = 1000


def attention_js(
    pairs: Sequence[Pair],
    *,
    specials: bool = False,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Jensen-Shannon divergence of attention, in nats: 0 is unchanged, ln 2 means that nothing is attended as before.

    Per head: the mean over the examples of the mean over their queries. Per layer (``head`` missing): the mean over its
    heads. Only real tokens count. Values of early steps are small (1e-5); those of later layers late in training reach
    some hundredths.

    Parameters
    ----------
    pairs
        Snapshots to compare, such as from :func:`~dynprobe.analysis.moments.pairs_from_start`.
    specials
        ``False`` drops special tokens as queries and as keys, and each row is divided by what is left of it: much
        attention rests on special tokens without meaning anything. ``True`` looks at all real tokens.
    level
        Confidence level of the intervals (bootstrap over examples).
    seed
        Seed of the bootstrap.
    progress
        Called with (done, total, label) after each layer.

    Returns
    -------
    Result
        Rows of ``attention_js_divergence`` per stack, layer and head; cross-attention has ``position`` "cross", and where only
        the attention of [CLS] was captured it has "cls". ``n`` is the
        number of examples. Status "below-resolution" where rounding to the stored type can cause the value, "incompatible"
        where layers or heads cannot be matched one to one, "not-captured" where a snapshot has no attention. ``resolution``
        is the coarser spacing of the stored numbers of both snapshots.

    Notes
    -----
    Rows are divided by their sum in float64. After dropping special tokens, queries with less than 1e-6 left are skipped.
    In causal stacks, a query with one key to attend to (the first token, which attends to itself) is constant by construction
    and left out; virtual tokens of prefix tuning are keys before it, so that it stays. Where only one of two runs is causal,
    nothing is left out.

    References
    ----------
    Lin 1991, eq. 3.1; averaged as in Hao et al. 2020 (AACL), eq. 1.

    Examples
    --------
    >>> attention_js(pairs_from_start(run)).select(layer=6)  # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = []
    skipped: list[int] = []
    jobs = _jobs(pairs)
    causal = _causal(jobs)
    tick = Tick(progress, len(jobs), "attention")

    def of_layer(job: tuple[str, str, int, list[Pair]]) -> tuple[list[dict[str, Any]], int]:
        stack, kind, layer, matched = job
        found: list[dict[str, Any]] = []
        n_skipped = 0
        read = LayerReader(stack, kind, layer, specials=specials)
        for pair in matched:
            n_heads = pair.a.snapshot.n_heads(stack, kind)
            movement = movement_of(read, pair, n_heads, causal=kind == "self" and (pair, stack) in causal)
            n_skipped += movement.n_skipped
            where = {**pair.columns(), "stack": stack, "layer": layer, "position": _position(kind)}
            where["resolution"] = _resolution(pair, stack, kind, layer)
            found += _value_rows(movement, where, level=level, seed=seed)
        return found, n_skipped

    for found, n_skipped in in_parallel(of_layer, jobs):
        rows += found
        skipped.append(n_skipped)
        tick()
    rows += list(_missing(pairs))
    notes = _notes(specials=specials, n_skipped=sum(skipped), causal=bool(causal)) if jobs else ()
    if any(kind == "cls" for _, kind, _, _ in jobs):
        of_cls = "Only the attention of [CLS], or of what stands for it, was captured: as query it is always kept."
        notes += (of_cls,)
    return Result("Attention", tidy(rows), describe(ATTENTION), notes=notes)


def _jobs(pairs: Sequence[Pair]) -> list[tuple[str, str, int, list[Pair]]]:
    """What to read: (stack, kind, layer) and the pairs that have it and match one to one."""
    found: dict[tuple[str, str, int], list[Pair]] = {}
    for pair in pairs:
        for stack, kind in _kinds(pair):
            if _mismatch(pair, stack, kind) is None:
                layers = set(pair.a.snapshot.attention_layers(stack, kind))
                for layer in sorted(layers & set(pair.b.snapshot.attention_layers(stack, kind))):
                    found.setdefault((stack, kind, layer), []).append(pair)
    return [(*key, matched) for key, matched in found.items()]


def _causal(jobs: Iterable[tuple[str, str, int, list[Pair]]]) -> set[tuple[Pair, str]]:
    """Pairs and stacks of which both snapshots look backwards only."""
    asked = dict.fromkeys((pair, stack) for stack, kind, _, matched in jobs if kind == "self" for pair in matched)
    moments = dict.fromkeys((moment, stack) for pair, stack in asked for moment in (pair.a, pair.b))
    backwards = {(moment, stack) for moment, stack in moments if is_causal(moment, stack)}
    return {(pair, stack) for pair, stack in asked if {(pair.a, stack), (pair.b, stack)} <= backwards}


def _resolution(pair: Pair, stack: str, kind: str, layer: int) -> float:
    return max(m.snapshot.resolution(f"{kind}_attention", layer, stack) for m in (pair.a, pair.b))


def _kinds(pair: Pair) -> Iterable[tuple[str, str]]:
    for stack in shared_stacks(pair):
        yield stack, "cls" if _only_of_cls(pair, stack) else "self"
        if stack == "decoder":
            yield stack, "cross"


def _only_of_cls(pair: Pair, stack: str) -> bool:
    """Whether both snapshots hold self attention of [CLS] alone."""
    return all(
        m.snapshot.attention_layers(stack, "cls") and not m.snapshot.attention_layers(stack) for m in (pair.a, pair.b)
    )


def _position(kind: str) -> str | None:
    return None if kind == "self" else kind


def _mismatch(pair: Pair, stack: str, kind: str) -> str | None:
    """Why a pair cannot be compared block by block."""
    reason = layer_mismatch(pair, stack) or head_mismatch(pair, stack, kind)
    layers = [moment.snapshot.attention_layers(stack, kind) for moment in (pair.a, pair.b)]
    if reason or not all(layers):
        return reason
    shapes = [
        m.snapshot.attentions(own[0], stack, kind).lengths for m, own in zip((pair.a, pair.b), layers, strict=True)
    ]
    shared = min(len(shape) for shape in shapes)
    if not np.array_equal(shapes[0][:shared], shapes[1][:shared]):
        return f"{pair.a.name} and {pair.b.name} attend to different numbers of keys, such as those of prefix tuning"
    return None


def _missing(pairs: Sequence[Pair]) -> Iterable[dict[str, Any]]:
    """One row for each comparison that could not be made."""
    for pair in last_pairs(pairs):
        for stack, kind in _kinds(pair):
            where = {"metric": METRIC, **pair.columns(), "stack": stack, "position": _position(kind)}
            without = [m.name for m in (pair.a, pair.b) if not m.snapshot.attention_layers(stack, kind)]
            reason = _mismatch(pair, stack, kind)
            if without and kind == "self":
                names = " and ".join(dict.fromkeys(without))
                of_cls = any(m.snapshot.attention_layers(stack, "cls") for m in (pair.a, pair.b))
                reason = f"{names} was captured without attention" + (" but that of [CLS]" if of_cls else "")
                yield {**where, "status": "not-captured", "reason": reason}
            elif reason:
                yield {**where, "status": "incompatible", "reason": reason}


@dataclass(frozen=True)
class Movement:
    """How far one layer moved.

    Attributes
    ----------
    values
        (n_examples, n_heads) mean JS divergence of the queries, in nats.
    floor
        (n_heads,) what rounding to the stored type alone can cause.
    n_skipped
        Number of queries, counted once per head, that give almost nothing to the keys that are kept.
    """

    values: np.ndarray
    floor: np.ndarray
    n_skipped: int


def movement_of(read: LayerReader, pair: Pair, n_heads: int, *, causal: bool) -> Movement:
    """How far one block moved from one snapshot of a pair to the other, over the examples that both hold."""
    stored = [moment.snapshot.attention_examples(read.stack) for moment in (pair.a, pair.b)]
    examples = tuple(int(example) for example in np.intersect1d(stored[0], stored[1]))
    values = np.full((len(examples), n_heads), np.nan)
    floors = np.full((len(examples), n_heads), np.nan)
    n_skipped = 0
    for a, b in zip(read(pair.a, examples, causal=causal), read(pair.b, examples, causal=causal), strict=True):
        known = a.known & b.known
        n_skipped += int((~known).sum())
        divergence = np.asarray(js_divergence(a.probabilities, b.probabilities))
        owners = list(a.owners)
        values[owners] = _head_means(divergence, known, a.starts).reshape(len(owners), n_heads)
        floors[owners] = _head_means(np.maximum(a.floor, b.floor), known, a.starts).reshape(len(owners), n_heads)
    usable = np.isfinite(values).all(axis=1)
    return Movement(values[usable], floors[usable].mean(axis=0) if usable.any() else floors[:0].sum(axis=0), n_skipped)


def _head_means(values: np.ndarray, known: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Mean over the queries of each example and head; NaN where none is known."""
    count = np.add.reduceat(known.astype(np.float64), starts)
    total = np.add.reduceat(np.where(known, values, 0.0), starts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _value_rows(movement: Movement, where: Mapping[str, Any], *, level: float, seed: int) -> Iterable[dict[str, Any]]:
    """The row of the layer, then one row per head."""
    n = len(movement.values)
    if n == 0:
        reason = "no example has a token left to look at"
        yield {"metric": METRIC, **where, "n": 0, "status": "undefined", "reason": reason}
        return
    series = np.concatenate([movement.values.mean(axis=1)[:, None], movement.values], axis=1)
    floors = [float(movement.floor.mean()), *map(float, movement.floor)]
    low, high = bootstrap_interval(series, level=level, n_resamples=N_RESAMPLES, seed=seed)
    for index, floor in enumerate(floors):
        value = float(series[:, index].mean())
        row = {"metric": METRIC, **where, "value": value, "low": float(low[index]), "high": float(high[index]), "n": n}
        if index:
            row["head"] = index - 1
        if value < floor:
            row |= {"status": "below-resolution", "reason": f"below {floor:.2g} nats, what the stored numbers resolve"}
        yield row


def _notes(*, specials: bool, n_skipped: int, causal: bool) -> tuple[str, ...]:
    if specials:
        notes: tuple[str, ...] = ("Attention is compared over all real tokens, special tokens included.",)
    else:
        notes = (
            "Attention is compared without special tokens: they are dropped as queries and as keys, and each row is "
            "divided by what is left of it.",
        )
    if causal:
        notes += (
            "In causal attention a token with only itself to attend to, such as the first, is left out: its attention is "
            "the same in any model.",
        )
    if n_skipped:
        notes += (
            f"{n_skipped} attention rows with less than {MIN_MASS:g} of their mass on the compared keys were skipped.",
        )
    return notes
