"""How much of the hidden states stayed: SVCCA and debiased linear CKA per layer."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.analysis.catalog import SIMILARITY, describe
from dynprobe.analysis.layer import ROWS_PER_DIRECTION, Agreement, Compared, Layer
from dynprobe.analysis.layer_maps import corner_pairs, layer_maps
from dynprobe.analysis.matching import layer_mismatch, shared_stacks
from dynprobe.analysis.moments import Moment, Pair, ends_of, last_pairs, moments_in
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.analysis.representations import MAX_HELD_BYTES, N_GROUPS, Representations
from dynprobe.analysis.rogue import rogue_notes
from dynprobe.metrics import half_sample_bias, half_sample_interval
from dynprobe.metrics.grid import Factored
from dynprobe.metrics.workers import in_parallel
from dynprobe.result import Result, tidy

SVCCA, CKA = SIMILARITY
_WORKERS_BYTES = 3 * 2**28  # for what all layers in hand hold together
_N_SIDES, _N_PAIRS = 6, 3  # in hand: start, end and one more of each of two runs


_Factors = dict[Moment, dict[int, Factored | None]]


def hidden_state_similarity(
    pairs: Sequence[Pair],
    *,
    specials: bool = False,
    variance: float = 0.99,
    level: float = 0.95,
    metrics: Sequence[str] = SIMILARITY,
    standardize: bool = False,
    progress: Progress | None = None,
) -> Result:
    """SVCCA and debiased linear CKA of the hidden states of each layer: 1 is the same, the chance level is unrelated.

    Both are computed over the tokens that all snapshots have. SVCCA asks which directions are kept whatever their size;
    CKA is led by the directions of largest variance. Values of 0.95 and above are usual in low layers.

    Parameters
    ----------
    pairs
        Snapshots to compare.
    specials
        Whether special tokens take part.
    variance
        Share of the variance that SVCCA keeps.
    level
        Confidence level of the intervals.
    metrics
        Which of the two to compute.
    standardize
        Whether every feature is divided by its standard deviation first.
    progress
        Called with (done, total, label) after each layer.

    Returns
    -------
    Result
        Rows per stack and layer; `n` is the number of tokens. The number of directions `n_kept` is chosen on the start of the
        first run and held over steps, runs and halves, since a number chosen anew for each snapshot would change the value
        by itself; `free_value` and `free_n_kept` show what that gives. Every value also has

        * an interval over examples, from balanced halves of eight groups of examples: it covers the expected value at the
          same n in 93 to 97 % of simulations,
        * `bias`, how far that lies above the value of unlimited data, from the same halves,
        * a chance level, with one side shifted cyclically by whole examples, which keeps everything but the pairing.

        Status "insufficient-sample" for SVCCA of fewer than ten tokens per kept direction; there its chance level is
        no longer small. Arrays ``svcca_layers:RUN@STEP|RUN@STEP`` hold layer by layer maps of the last pairs, with NaN for
        layers that were not captured.

    Notes
    -----
    Hidden states are read block by block, layer after layer, so that memory does not grow with the number of tokens or
    snapshots.

    References
    ----------
    Raghu et al. 2017 (NeurIPS); Kornblith et al. 2019 (ICML), with the unbiased HSIC of Song et al. 2012 (JMLR), eq. 5.

    Examples
    --------
    >>> hidden_state_similarity(pairs_from_start(run)).select(metric="svcca_similarity", layer=6)  # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = list(_missing(pairs, metrics))
    arrays: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for stack in dict.fromkeys(stack for pair in pairs for stack in shared_stacks(pair)):
        own = [pair for pair in pairs if _captured(pair.a, stack) and _captured(pair.b, stack)]
        if not own:
            continue
        states = Representations(moments_in(own), stack, specials=specials, standardize=standardize)
        notes += _notes(states, stack, specials=specials)
        if standardize:
            notes.append(f"Hidden states ({stack}): every feature was divided by its standard deviation.")
        if states.n_rows < 4:
            rows += [_too_few(pair, stack, metric, states.n_rows) for pair in last_pairs(own) for metric in metrics]
            continue
        found, factors = _stack_rows(own, states, variance=variance, level=level, metrics=metrics, progress=progress)
        rows += found
        if not standardize:
            notes += rogue_notes(_outermost(own), states)
        if SVCCA in metrics:
            arrays |= layer_maps(corner_pairs(own), stack, factors)
    table = tidy(rows)
    return Result("Hidden states", table, describe(metrics), arrays=arrays, notes=(*notes, *_bias_note(table)))


def _outermost(pairs: Sequence[Pair]) -> list[Moment]:
    """First and last snapshot of each run, in order."""
    in_order = sorted(moments_in(pairs), key=lambda moment: (moment.name, moment.step))
    ends = ends_of(in_order)
    return [moment for moment in in_order if moment in ends]


def _captured(moment: Moment, stack: str) -> bool:
    return bool(moment.snapshot.layers(stack))


def _stack_rows(
    pairs: Sequence[Pair],
    states: Representations,
    *,
    variance: float,
    level: float,
    metrics: Sequence[str],
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], _Factors]:
    """Rows of all layers in the order of the pairs, and the kept directions of the snapshots that get a layer map."""
    matched = [pair for pair in pairs if layer_mismatch(pair, states.stack) is None]
    corners = moments_in(corner_pairs(pairs))
    layers = sorted({layer for moment in moments_in(pairs) for layer in moment.snapshot.layers(states.stack)})
    tick = Tick(progress, len(layers), f"hidden states ({states.stack})")

    def of_layer(number: int) -> tuple[dict[Pair, list[dict[str, Any]]], dict[Moment, Factored | None]]:
        layer = Layer(states, number, keep=corners, variance=variance)
        here = [pair for pair in matched if number in _layers(pair, states.stack)]
        rows: dict[Pair, list[dict[str, Any]]] = {}
        for together in _by_step(here):
            for pair, found in zip(together, layer.compare(together), strict=True):
                measured = _measured(layer, pair, found, states, metrics, level)
                rows[pair] = _placed(measured, pair, states, number)
        captured = [moment for moment in corners if number in moment.snapshot.layers(states.stack)]
        layer.read(captured)
        return rows, {moment: layer.side(moment).factored for moment in captured}

    by_pair: dict[Pair, list[dict[str, Any]]] = {pair: [] for pair in matched}
    factors: _Factors = {moment: {} for moment in corners}
    for number, (rows, found) in zip(layers, in_parallel(of_layer, layers, workers=_n_workers(states)), strict=True):
        for pair, own in rows.items():
            by_pair[pair] += own
        for moment, factored in found.items():
            factors[moment][number] = factored
        tick()
    return [row for own in by_pair.values() for row in own], factors


def _n_workers(states: Representations) -> int:
    """As many layers at once as have room in memory; with a single one its own steps share the threads."""
    width = min(states.d_model, states.n_rows)
    sums = 8 * (_N_SIDES + _N_PAIRS) * max(N_GROUPS) * width**2
    rows = _N_SIDES * min(MAX_HELD_BYTES, 4 * states.n_rows * width)
    return max(1, _WORKERS_BYTES // (sums + rows))


def _by_step(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs of different comparisons in step with each other, so that few snapshots are in hand at a time."""
    series: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in pairs:
        series.setdefault((pair.comparison, pair.a.name, pair.b.name), []).append(pair)
    return [[pair for pair in together if pair is not None] for together in zip_longest(*series.values())]


def _layers(pair: Pair, stack: str) -> set[int]:
    return set(pair.a.snapshot.layers(stack)) & set(pair.b.snapshot.layers(stack))


def _measured(
    layer: Layer, pair: Pair, found: Compared, states: Representations, metrics: Sequence[str], level: float
) -> dict[str, dict[str, Any]]:
    """Value, status, interval, bias and chance level of each metric."""
    rows: dict[str, dict[str, Any]] = {}
    if SVCCA in metrics:
        own = _svcca_row(layer, pair, found.value, states.n_rows)
        rows[SVCCA] = own | _uncertainty(own, found, "svcca", level, bounds=(0.0, 1.0))
    if CKA in metrics:
        own = _cka_row(layer, pair, found.value)
        rows[CKA] = own | _uncertainty(own, found, "cka", level, bounds=(-1.0, 1.0))
    return rows


def _cka_row(layer: Layer, pair: Pair, found: Agreement) -> dict[str, Any]:
    if np.isfinite(found.cka):
        return {"value": found.cka}
    problem = layer.side(pair.a).problem or layer.side(pair.b).problem
    return {"status": "undefined", "reason": problem or "there is no similarity structure beyond chance"}


def _svcca_row(layer: Layer, pair: Pair, found: Agreement, n_rows: int) -> dict[str, Any]:
    a, b = layer.side(pair.a), layer.side(pair.b)
    if a.whitening is None or b.whitening is None:
        return {"status": "undefined", "reason": a.problem or b.problem}
    return {
        "value": found.svcca,
        "n_kept": min(a.whitening.n_kept, b.whitening.n_kept),
        "free_value": found.free_svcca,
        "free_n_kept": min(a.whitening.n_free, b.whitening.n_free),
        **_sample_status(n_rows, max(a.whitening.n_kept, b.whitening.n_kept)),
    }


def _uncertainty(
    row: Mapping[str, Any], found: Compared, name: str, level: float, *, bounds: tuple[float, float]
) -> dict[str, float]:
    """Chance level, interval and bias of a value, as far as they are known."""
    if "value" not in row:
        return {}
    known = {} if found.chance is None else {"chance": getattr(found.chance, name)}
    halves = [getattr(half, name) for half in found.halves]
    if not halves or not np.isfinite(halves).all() or "status" in row:
        return known
    low, high = half_sample_interval(row["value"], halves, level=level)
    ends = {"low": float(np.clip(low, *bounds)), "high": float(np.clip(high, *bounds))}
    return known | ends | {"bias": half_sample_bias(row["value"], halves)}


def _placed(
    rows: Mapping[str, dict[str, Any]], pair: Pair, states: Representations, layer: int
) -> list[dict[str, Any]]:
    """Rows with the columns that say what they are values of."""
    spacing = max(moment.snapshot.resolution("hidden_states", layer, states.stack) for moment in (pair.a, pair.b))
    where = {**pair.columns(), "stack": states.stack, "layer": layer, "n": states.n_rows, "resolution": spacing}
    return [{"metric": metric, **where, **row} for metric, row in rows.items()]


def _sample_status(n_rows: int, n_kept: int) -> dict[str, str]:
    if n_rows >= ROWS_PER_DIRECTION * n_kept:
        return {}
    reason = (
        f"{n_rows} tokens for {n_kept} directions; unrelated data would look alike below {ROWS_PER_DIRECTION} tokens per "
        "direction"
    )
    return {"status": "insufficient-sample", "reason": reason}


def _missing(pairs: Sequence[Pair], metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    """One row for each comparison that could not be made."""
    for pair in last_pairs(pairs):
        for stack in shared_stacks(pair):
            without = dict.fromkeys(m.name for m in (pair.a, pair.b) if not _captured(m, stack))
            reason = layer_mismatch(pair, stack)
            for metric in metrics:
                where: Mapping[str, Any] = {"metric": metric, **pair.columns(), "stack": stack}
                if without:
                    names = " and ".join(without)
                    yield {**where, "status": "not-captured", "reason": f"{names} was captured without hidden states"}
                elif reason:
                    yield {**where, "status": "incompatible", "reason": reason}


def _too_few(pair: Pair, stack: str, metric: str, n_rows: int) -> dict[str, Any]:
    reason = f"the snapshots share {n_rows} tokens; at least 4 are needed"
    return {
        "metric": metric, **pair.columns(), "stack": stack, "n": n_rows, "status": "insufficient-sample", "reason": reason
    }  # fmt: skip


def _bias_note(table: pd.DataFrame) -> Iterable[str]:
    """How far SVCCA lies above what unlimited data would give, where that can be seen."""
    rows = table[(table["metric"] == SVCCA) & table["bias"].notna()]
    if len(rows) and rows["bias"].max() >= 0.005:
        worst = rows.sort_values("bias").iloc[-1]
        other = "its start" if worst["comparison"] == "from_start" else worst["run_b"]
        yield (
            f"SVCCA of {worst['n']} tokens lies above that of unlimited data: by about {worst['bias']:.3f} in layer "
            f"{worst['layer']} of {worst['run_a']} against {other}, less elsewhere (column `bias`). Compare values of equally "
            "many tokens only."
        )


def _notes(states: Representations, stack: str, *, specials: bool) -> list[str]:
    what = "with special tokens" if specials else "without special tokens"
    notes = [
        f"Hidden states ({stack}) are compared over {states.n_rows} tokens of {states.n_examples} examples, {what}."
    ]
    if states.n_unshared:
        notes.append(
            f"Hidden states ({stack}): {states.n_unshared} tokens that not all snapshots hold were left out of all."
        )
    return notes
