"""How much of the hidden states stayed: SVCCA and debiased linear CKA per layer."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.analysis.catalog import SIMILARITY, describe
from dynprobe.analysis.directions import WIDEST_SVCCA, LeftOut, left_out, too_few_tokens
from dynprobe.analysis.layer import Agreement, Compared, Layer
from dynprobe.analysis.layer_by_features import FeatureLayer
from dynprobe.analysis.layer_by_tokens import MOST_ROWS_PER_FEATURE, TokenLayer
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
    metrics: Sequence[str] | None = None,
    standardize: bool = False,
    kept_as: Moment | None = None,
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
        Which of the two to compute; by default both, but SVCCA only up to 1024 features, since that of wider layers takes
        minutes.
    standardize
        Whether every feature is divided by its standard deviation first.
    kept_as
        The snapshot that decides how many directions SVCCA keeps; by default the start of the first run.
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

        Status "insufficient-sample" for SVCCA of fewer than ten tokens per direction that the reference keeps, where its
        chance level is no longer small: nothing more is computed then than the eigenvalues that say so. Status
        "not-computed" for wide layers of which it was not asked for. Arrays ``svcca_layers:RUN@STEP|RUN@STEP`` hold layer by
        layer maps of the last pairs, with NaN for layers without SVCCA.

    Notes
    -----
    Hidden states are read block by block, layer after layer, so that memory does not grow with the number of tokens or
    snapshots. CKA alone of few tokens (up to four per feature) is computed from products of tokens, otherwise from products
    of features, from which SVCCA follows as well; the values are the same.

    References
    ----------
    Raghu et al. 2017 (NeurIPS); Kornblith et al. 2019 (ICML), with the unbiased HSIC of Song et al. 2012 (JMLR), eq. 5.

    Examples
    --------
    >>> hidden_state_similarity(pairs_from_start(run)).select(metric="svcca_similarity", layer=6)  # doctest: +SKIP
    """
    chosen = SIMILARITY if metrics is None else metrics
    rows: list[dict[str, Any]] = list(_missing(pairs, chosen))
    arrays: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for stack in dict.fromkeys(stack for pair in pairs for stack in shared_stacks(pair)):
        own = [pair for pair in pairs if _captured(pair.a, stack) and _captured(pair.b, stack)]
        if not own:
            continue
        first = [] if kept_as is None or not _captured(kept_as, stack) else [kept_as]
        in_hand = tuple(dict.fromkeys((*first, *moments_in(own))))
        states = Representations(in_hand, stack, specials=specials, standardize=standardize)
        notes += _notes(states, stack, specials=specials)
        if standardize:
            notes.append(f"Hidden states ({stack}): every feature was divided by its standard deviation.")
        if states.n_rows < 4:
            rows += [_too_few(pair, stack, metric, states.n_rows) for pair in last_pairs(own) for metric in chosen]
            continue
        found, factors = _stack_rows(
            own,
            states,
            variance=variance,
            level=level,
            metrics=chosen,
            widest=WIDEST_SVCCA if metrics is None else None,
            progress=progress,
        )
        rows += found
        if not standardize:
            notes += rogue_notes(_outermost(own), states)
        if SVCCA in chosen:
            arrays |= layer_maps(corner_pairs(own), stack, factors)
    table = tidy(rows)
    return Result("Hidden states", table, describe(chosen), arrays=arrays, notes=(*notes, *_bias_note(table)))


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
    widest: int | None,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], _Factors]:
    """Rows of all layers in the order of the pairs, and the kept directions of the snapshots that get a layer map."""
    matched = [pair for pair in pairs if layer_mismatch(pair, states.stack) is None]
    corners = moments_in(corner_pairs(pairs))
    layers = sorted({layer for moment in moments_in(pairs) for layer in moment.snapshot.layers(states.stack)})
    tick = Tick(progress, len(layers), f"hidden states ({states.stack})")

    def without_svcca(number: int) -> Mapping[Moment, LeftOut]:
        if SVCCA in metrics:
            return left_out(states, number, variance=variance, widest=widest)
        return dict.fromkeys(states.references(number), LeftOut("not-computed", "SVCCA was not asked for"))

    without = dict(zip(layers, in_parallel(without_svcca, layers), strict=True))

    def of_layer(number: int) -> tuple[dict[Pair, list[dict[str, Any]]], dict[Moment, Factored | None]]:
        layer = _open(states, number, keep=corners, variance=variance, without=without[number])
        here = [pair for pair in matched if number in _layers(pair, states.stack)]
        rows: dict[Pair, list[dict[str, Any]]] = {}
        for together in _by_step(here):
            for pair, found in zip(together, layer.compare(together), strict=True):
                measured = _measured(layer, pair, found, states, metrics, level)
                rows[pair] = _placed(measured, pair, states, number)
        captured = [moment for moment in corners if number in moment.snapshot.layers(states.stack)]
        return rows, layer.factored(captured)

    by_pair: dict[Pair, list[dict[str, Any]]] = {pair: [] for pair in matched}
    factors: _Factors = {moment: {} for moment in corners}
    for number, (rows, found) in zip(layers, in_parallel(of_layer, layers, workers=_n_workers(states)), strict=True):
        for pair, own in rows.items():
            by_pair[pair] += own
        for moment, factored in found.items():
            factors[moment][number] = factored
        tick()
    return [row for own in by_pair.values() for row in own], factors


def _open(
    states: Representations,
    number: int,
    *,
    keep: Collection[Moment],
    variance: float,
    without: Mapping[Moment, LeftOut],
) -> Layer[Any]:
    """The layer, in the form that costs least for what is computed of it."""
    references = states.references(number)
    width = min(reference.snapshot.d_model(number, states.stack) for reference in references)
    if len(without) == len(references) and states.n_rows <= MOST_ROWS_PER_FEATURE * width:
        return TokenLayer(states, number, keep=keep, left_out=without)
    return FeatureLayer(states, number, keep=keep, variance=variance, left_out=without)


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
    layer: Layer[Any], pair: Pair, found: Compared, states: Representations, metrics: Sequence[str], level: float
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


def _cka_row(layer: Layer[Any], pair: Pair, found: Agreement) -> dict[str, Any]:
    if np.isfinite(found.cka):
        return {"value": found.cka}
    problem = layer.side(pair.a).problem or layer.side(pair.b).problem
    return {"status": "undefined", "reason": problem or "there is no similarity structure beyond chance"}


def _svcca_row(layer: Layer[Any], pair: Pair, found: Agreement, n_rows: int) -> dict[str, Any]:
    a, b = layer.side(pair.a), layer.side(pair.b)
    if problem := a.problem or b.problem:
        return {"status": "undefined", "reason": problem}
    if without := a.left_out or b.left_out:
        return {"n_kept": without.n_kept or None, "status": without.status, "reason": without.reason}
    n_kept = min(a.n_kept, b.n_kept)
    if few := too_few_tokens(n_rows, max(a.n_kept, b.n_kept)):  # where the reference itself has no directions
        return {"n_kept": n_kept, "status": "insufficient-sample", "reason": few}
    free = {"free_value": found.free_svcca, "free_n_kept": min(a.n_free, b.n_free)}
    return {"value": found.svcca, "n_kept": n_kept, **free}


def _uncertainty(
    row: Mapping[str, Any], found: Compared, name: str, level: float, *, bounds: tuple[float, float]
) -> dict[str, float]:
    """Chance level, interval and bias of a value, as far as they are known."""
    if "value" not in row:
        return {}
    known = {} if found.chance is None else {"chance": getattr(found.chance, name)}
    halves = [getattr(half, name) for half in found.halves]
    if not halves or not np.isfinite(halves).all():
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
