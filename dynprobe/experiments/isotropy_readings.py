"""Isotropy of the vectors of a training as small tables: [CLS] of each layer, and the classifier's vector around its norm."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dynprobe.finetune import IsoBN
from dynprobe.metrics import dimension_correlation, dimension_std, explained_variance_ratio, isoscore
from dynprobe.metrics.clustering import correlation_order
from dynprobe.run import Run, Snapshot

# Of the standard deviations of the dimensions: every twentieth of the way from the smallest to the largest.
STD_QUANTILES = tuple(round(0.05 * place, 2) for place in range(21))
N_SHARES = 3
MAP_SIZE = 64
COLD_STEPS = 100
_DIGITS = 4


def read_isotropy(run: Run, *, batch_size: int, seed: int, keep_maps: bool = False) -> dict[str, Any]:
    """Isotropy of [CLS] and of the classifier's vector at each snapshot, and how IsoBN's statistics would start.

    Parameters
    ----------
    run
        A run directory of a classifier.
    batch_size
        Of the training, for the statistics of IsoBN.
    seed
        Of the batches that those are simulated with.
    keep_maps
        Whether to keep the correlations of at most 64 dimensions before the norm, at the first and the last snapshot.

    Returns
    -------
    dict
        ``steps``, step to what :func:`read_snapshot` gives; ``cold_start`` as :func:`cold_start` gives it for the vectors of
        the first snapshot, or ``None`` where there are none; with `keep_maps` also ``maps``, step to :func:`correlation_map`.
    """
    snapshots = [run[step] for step in run.steps]
    first = _finite(snapshots[0].pooler_output())
    found: dict[str, Any] = {
        "steps": {str(snapshot.step): read_snapshot(snapshot) for snapshot in snapshots},
        "cold_start": None if first is None else cold_start(first, batch_size=batch_size, seed=seed),
    }
    if keep_maps:
        ends = {snapshot.step: _finite(snapshot.pooler_output()) for snapshot in (snapshots[0], snapshots[-1])}
        found["maps"] = {str(step): correlation_map(x) for step, x in ends.items() if x is not None}
    return found


def read_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Isotropy of the vectors of one snapshot.

    Parameters
    ----------
    snapshot
        A snapshot.

    Returns
    -------
    dict
        ``layers``, layer to the :func:`isotropy_table` of [CLS] or what stands for it; ``pooler_output``, that of the vector
        before a normalisation of the classifier's input, and ``classifier_input``, after it (the same vectors where there is
        none); ``correlation_change`` of :func:`correlation_change` between the two. ``None`` where a vector is missing or a
        value undefined, as of vectors that are all equal.
    """
    stack = snapshot.stacks[-1]
    kind = snapshot.pooled_kinds(stack)[0]
    before, after = (_finite(x) for x in (snapshot.pooler_output(), snapshot.classifier_input()))
    return {
        "layers": {
            str(layer): _table_or_none(_finite(snapshot.pooled(kind, layer, stack)))
            for layer in snapshot.pooled_layers(kind, stack)
        },
        "pooler_output": _table_or_none(before),
        "classifier_input": _table_or_none(after),
        "correlation_change": None if before is None or after is None else correlation_change(before, after),
    }


def isotropy_table(x: np.ndarray) -> dict[str, Any]:
    """Isotropy of a cloud of vectors in a few numbers.

    Parameters
    ----------
    x
        Shape (n, d).

    Returns
    -------
    dict
        ``n`` and ``d``; ``std``, quantiles of the standard deviations of the dimensions at :data:`STD_QUANTILES`, in the unit
        of the vectors; ``correlation``, mean absolute correlation of two different dimensions that vary; ``shares``, the
        explained variance of the first one, two and three directions, cumulated as published; ``shares_uncentred``, the same
        with the mean left in; ``isoscore``.

    Raises
    ------
    ValueError
        For fewer than two vectors or dimensions, entries that are not finite, or vectors that are all equal.

    Examples
    --------
    >>> table = isotropy_table(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> table["shares"], table["correlation"], table["isoscore"]
    ([0.5, 1.0], 0.0, 1.0)
    """
    wide = x.astype(np.float64)
    std = np.asarray(dimension_std(wide))
    return {
        "n": len(x),
        "d": x.shape[1],
        "std": [_short(value) for value in np.quantile(std, STD_QUANTILES)],
        "correlation": _short(_mean_correlation(wide[:, std > 0])),
        "shares": _cumulated(wide, center=True),
        "shares_uncentred": _cumulated(wide, center=False),
        "isoscore": _short(float(isoscore(wide))),
    }


def correlation_change(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """How far a normalisation moved the correlations of the dimensions, beside what storing the vectors alone can move.

    Parameters
    ----------
    before, after
        Shape (n, d), the vectors as stored before and after it.

    Returns
    -------
    dict
        ``largest``, the largest change of an absolute correlation; ``of_rounding``, the largest change as a share of the most
        that rounding of the stored numbers can do to that pair: at most 1 for what only rescales and shifts each dimension.

    Notes
    -----
    A rounded entry is off by at most h|x|, h half the relative spacing of its type (or half the smallest number, below the
    normal ones); products in fp32 add their own. The unit vector of a centred column with standard deviation σ and root mean
    square q then moves by at most 2hq/σ = 2r, and a correlation by at most 2r_i + 2r_j + 4 r_i r_j. Dimensions that do not vary
    are left out.
    """
    moved = {name: _rounding(x) for name, x in (("before", before), ("after", after))}
    alive = np.isfinite(moved["before"]) & np.isfinite(moved["after"])
    if alive.sum() < 2:
        return {"largest": 0.0, "of_rounding": 0.0}
    one, other = (np.abs(np.asarray(dimension_correlation(x[:, alive].astype(np.float64)))) for x in (before, after))
    bound = sum(2 * (r[:, None] + r) + 4 * r[:, None] * r for r in (values[alive] for values in moved.values()))
    pairs = np.triu_indices(len(one), k=1)
    change = np.abs(one - other)[pairs]
    return {"largest": _short(change.max()), "of_rounding": _short((change / np.asarray(bound)[pairs]).max())}


def correlation_map(x: np.ndarray) -> dict[str, list[int]]:
    """Absolute correlations of at most 64 dimensions in an order in which groups stand together.

    Parameters
    ----------
    x
        Shape (n, d).

    Returns
    -------
    dict
        ``dimensions``, which ones: of all that vary, clustered, evenly many from each part of the order; ``hundredths``, the
        absolute correlations above the diagonal, row after row, in whole hundredths.
    """
    alive = np.flatnonzero(np.asarray(dimension_std(x.astype(np.float64))) > 0)
    if len(alive) < 2:
        return {"dimensions": [], "hundredths": []}
    correlation = np.asarray(dimension_correlation(x[:, alive].astype(np.float64)))
    order = correlation_order(correlation)
    kept = order[np.linspace(0, len(order) - 1, min(MAP_SIZE, len(order))).round().astype(int)]
    values = np.abs(correlation[np.ix_(kept, kept)])[np.triu_indices(len(kept), k=1)]
    return {"dimensions": alive[kept].tolist(), "hundredths": (100 * values).round().astype(int).tolist()}


def map_matrix(kept: dict[str, list[int]]) -> np.ndarray:
    """The matrix of a :func:`correlation_map`, in [0, 1], diagonal 1."""
    n = len(kept["dimensions"])
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n, k=1)] = np.asarray(kept["hundredths"], dtype=np.float64) / 100
    return matrix + matrix.T + np.eye(n)


def cold_start(x: np.ndarray, *, batch_size: int, seed: int, n_steps: int = COLD_STEPS) -> dict[str, Any]:
    """What IsoBN's running statistics say of vectors that do not change, batch by batch: as defined and as released.

    Parameters
    ----------
    x
        Shape (n, d), vectors of an encoder before training.
    batch_size
        Vectors in a batch, at most n of them.
    seed
        Of their order; each is seen once before any is seen again.
    n_steps
        Number of batches.

    Returns
    -------
    dict
        Lists over the batches from 1: ``saturated`` and ``saturated_released``, share of the correlations of two different
        dimensions with size 1 or more, which are clipped there; ``group_share`` and ``group_share_released``, the mean of γ;
        ``factor_change``, the root mean square of (released − defined) factor over that of the defined one.
    """
    data = torch.from_numpy(x.astype(np.float32))
    right, released = (IsoBN(x.shape[1], as_released=cold) for cold in (False, True))
    curves: dict[str, list[float]] = {"factor_change": []}
    for batch in _batches(data, min(batch_size, len(x)), seed=seed, n_steps=n_steps):
        for norm, name in ((right, ""), (released, "_released")):
            norm.update(batch)
            curves.setdefault(f"saturated{name}", []).append(_saturated(norm))
            curves.setdefault(f"group_share{name}", []).append(_short(float(norm.group_share().nanmean())))
        wanted, given = right.scale(), released.scale()
        change = (given - wanted).square().nanmean().sqrt() / wanted.square().mean().sqrt()
        curves["factor_change"].append(_short(float(change)))
    return {"momentum": right.momentum, "batch_size": min(batch_size, len(x)), **curves}


def _batches(data: torch.Tensor, size: int, *, seed: int, n_steps: int) -> Iterator[torch.Tensor]:
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(n_steps):
        if len(order) < size:
            order = rng.permutation(len(data))
        yield data[order[:size]]
        order = order[size:]


def _saturated(norm: IsoBN) -> float:
    """Share of the off-diagonal correlations, as the module forms them, that reach 1; of dimensions that vary."""
    std = norm.std if norm.as_released else norm.covariance.diagonal().sqrt()
    alive = std > 0
    correlation = (norm.covariance / std / std.unsqueeze(1))[alive][:, alive].abs()
    n = len(correlation)
    return _short(float((correlation.triu(1) >= 1).sum()) / (n * (n - 1) / 2)) if n > 1 else 0.0


def _table_or_none(x: np.ndarray | None) -> dict[str, Any] | None:
    """Vectors that are all equal, such as [CLS] in the embeddings, have no isotropy."""
    if x is None or x.shape[1] < 2 or np.ptp(x.astype(np.float64), axis=0).max(initial=0.0) == 0:
        return None
    return isotropy_table(x)


def _finite(x: np.ndarray | None) -> np.ndarray | None:
    return x if x is not None and len(x) > 1 and np.isfinite(x).all() else None


def _mean_correlation(x: np.ndarray) -> float:
    if x.shape[1] < 2:
        return 0.0
    correlation = np.abs(np.asarray(dimension_correlation(x)))
    return float(correlation[np.triu_indices(len(correlation), k=1)].mean())


def _cumulated(x: np.ndarray, *, center: bool) -> list[float]:
    shares = np.asarray(explained_variance_ratio(x, center=center))
    return [_short(value) for value in np.cumsum(shares)[:N_SHARES]]


def _rounding(x: np.ndarray) -> np.ndarray:
    """How far rounding can move each dimension relative to its spread; NaN for one that does not vary."""
    kind, wide = np.finfo(x.dtype), x.astype(np.float64)
    step = float(kind.eps) / 2 + float(np.finfo(np.float32).eps)
    moved = step * np.sqrt((wide**2).mean(axis=0)) + float(kind.smallest_subnormal) / 2
    std = wide.std(axis=0)
    return np.divide(moved, std, out=np.full_like(std, np.nan), where=np.ptp(wide, axis=0) > 0)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
