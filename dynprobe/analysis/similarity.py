"""How much of the hidden states stayed: SVCCA and debiased linear CKA per layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dynprobe.analysis.catalog import SIMILARITY, describe
from dynprobe.analysis.cka_sides import leave_group_out, similarity
from dynprobe.analysis.layer_maps import corner_pairs, layer_maps
from dynprobe.analysis.matching import layer_mismatch, shared_stacks
from dynprobe.analysis.moments import Moment, Pair, last_pairs, moments_in
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import (
    jackknife_interval,
    subspace_correlations,
    svcca_chance_level,
    svcca_leave_group_out,
)
from dynprobe.metrics.workers import in_parallel
from dynprobe.result import Result, tidy

SVCCA, CKA = SIMILARITY
N_GROUPS = 5
# Tokens for each kept direction; below it canonical correlations of unrelated data are far from zero.
ROWS_PER_DIRECTION = 10
_CHANCE_SHIFTS = (1 / 2, 1 / 3)


def hidden_state_similarity(
    pairs: Sequence[Pair],
    *,
    specials: bool = False,
    variance: float = 0.99,
    level: float = 0.95,
    metrics: Sequence[str] = SIMILARITY,
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
    progress
        Called with (done, total, label) after each layer.

    Returns
    -------
    Result
        Rows per stack and layer; `n` is the number of tokens, `n_kept` the smaller number of directions that SVCCA keeps.
        The last pair of each comparison also has an interval (jackknife leaving out one of five groups of examples at a
        time) and a chance level (one side shifted cyclically by whole examples, which keeps everything but the pairing).
        Status "insufficient-sample" for SVCCA of fewer than ten tokens per kept direction; there its chance level is
        no longer small. Arrays ``svcca_layers:RUN@STEP|RUN@STEP`` hold layer by layer maps of the last pairs, with NaN for
        layers that were not captured.

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
        states = Representations(moments_in(own), stack, specials=specials, variance=variance)
        notes += _notes(states, stack, specials=specials)
        if states.n_rows < 4:
            rows += [_too_few(pair, stack, metric, states.n_rows) for pair in last_pairs(own) for metric in metrics]
            continue
        rows += _stack_rows(own, states, level=level, metrics=metrics, progress=progress)
        if SVCCA in metrics:
            arrays |= layer_maps(corner_pairs(own), states)
    return Result("Hidden states", tidy(rows), describe(metrics), arrays=arrays, notes=tuple(notes))


def _captured(moment: Moment, stack: str) -> bool:
    return bool(moment.snapshot.layers(stack))


def _stack_rows(
    pairs: Sequence[Pair],
    states: Representations,
    *,
    level: float,
    metrics: Sequence[str],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    matched = [pair for pair in pairs if layer_mismatch(pair, states.stack) is None]
    ends = list(last_pairs(pairs))
    keep = moments_in(corner_pairs(pairs))
    layers: list[int] = sorted({layer for pair in matched for layer in _layers(pair, states.stack)})
    tick = Tick(progress, len(layers), f"hidden states ({states.stack})")

    def of_layer(layer: int) -> list[dict[str, Any]]:
        rows = []
        for pair in matched:
            if layer in _layers(pair, states.stack):
                where = {**pair.columns(), "stack": states.stack, "layer": layer, "n": states.n_rows}
                with_interval = level if pair in ends else None
                if SVCCA in metrics:
                    rows.append({"metric": SVCCA, **where, **_svcca(states, pair, layer, level=with_interval)})
                if CKA in metrics:
                    rows.append({"metric": CKA, **where, **_cka(states, pair, layer, level=with_interval)})
        states.forget(layer, keep=keep)
        return rows

    rows: list[dict[str, Any]] = []
    for found in in_parallel(of_layer, layers):
        rows += found
        tick()
    return rows


def _layers(pair: Pair, stack: str) -> set[int]:
    return set(pair.a.snapshot.layers(stack)) & set(pair.b.snapshot.layers(stack))


def _svcca(states: Representations, pair: Pair, layer: int, *, level: float | None) -> dict[str, Any]:
    """Value of one layer; with interval and chance level when a confidence level is given."""
    try:
        a, b = states.subspace(pair.a, layer), states.subspace(pair.b, layer)
    except ValueError as error:  # a layer without variance, such as position embeddings alone
        return {"status": "undefined", "reason": str(error)}
    found: dict[str, Any] = {
        "value": float(subspace_correlations(a, b).mean()),
        "n_kept": int(min(a.n_kept, b.n_kept)),
        **_sample_status(states.n_rows, int(max(a.n_kept, b.n_kept))),
    }
    shifts = states.shifts(_CHANCE_SHIFTS)
    if level is not None and shifts:
        found["chance"] = float(svcca_chance_level(a, b, shifts=shifts).mean())
    n_groups = min(N_GROUPS, states.n_examples)
    if level is not None and n_groups > 1 and "status" not in found:
        x, y = states.states(pair.a, layer), states.states(pair.b, layer)
        leave_out = svcca_leave_group_out(x, y, states.groups(n_groups), variance=states.variance)
        found |= _interval(found["value"], leave_out, level, bounds=(0.0, 1.0))
    return found


def _sample_status(n_rows: int, n_kept: int) -> dict[str, str]:
    if n_rows >= ROWS_PER_DIRECTION * n_kept:
        return {}
    reason = (
        f"{n_rows} tokens for {n_kept} directions; unrelated data would look alike below {ROWS_PER_DIRECTION} tokens per "
        "direction"
    )
    return {"status": "insufficient-sample", "reason": reason}


def _cka(states: Representations, pair: Pair, layer: int, *, level: float | None) -> dict[str, Any]:
    """Value of one layer; with interval and chance level when a confidence level is given."""
    try:
        a, b = states.side(pair.a, layer), states.side(pair.b, layer)
        found: dict[str, Any] = {"value": similarity(a, b)}
    except ValueError as error:
        return {"status": "undefined", "reason": str(error)}
    n_groups = min(N_GROUPS, states.n_examples)
    if level is None or n_groups < 2:
        return found
    found["chance"] = float(np.mean([similarity(a, b.rolled(shift)) for shift in states.shifts(_CHANCE_SHIFTS)]))
    groups = states.groups(n_groups)
    if len(groups) - np.bincount(groups).max() < 4:
        return found
    leave_out = leave_group_out(a, b, torch.from_numpy(groups), n_groups)
    return found | _interval(found["value"], leave_out, level, bounds=(-1.0, 1.0))


def _interval(
    value: float, leave_out: Sequence[float] | np.ndarray, level: float, *, bounds: tuple[float, float]
) -> dict[str, float]:
    low, high = jackknife_interval(value, leave_out, level=level)
    return {"low": float(np.clip(low, *bounds)), "high": float(np.clip(high, *bounds))}


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


def _notes(states: Representations, stack: str, *, specials: bool) -> list[str]:
    what = "with special tokens" if specials else "without special tokens"
    notes = [
        f"Hidden states ({stack}) are compared over {states.n_rows} tokens of {states.n_examples} examples, {what}."
    ]
    if states.n_shared > states.n_rows:
        notes.append(
            f"Hidden states ({stack}): the tokens of the first examples are used, {states.n_rows} of {states.n_shared}; "
            "that is ten for each dimension, or 4096."
        )
    if states.n_unshared:
        notes.append(
            f"Hidden states ({stack}): {states.n_unshared} tokens that not all snapshots hold were left out of all."
        )
    return notes
