"""How evenly the vectors of the examples fill the space: isotropy of [CLS] or its stand-in, and of the mean vector."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dynprobe.analysis.catalog import ISOTROPY, METRICS, describe
from dynprobe.analysis.moments import Moment
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.metrics import (
    dimension_correlation,
    dimension_std,
    effective_rank,
    explained_variance_ratio,
    isoscore,
    jackknife_interval,
    mean_cosine,
    participation_ratio,
)
from dynprobe.result import Result, tidy

N_GROUPS = 10
# A spectrum of fewer vectors than this says more about the sample than about the model.
MIN_EXAMPLES = 30


def isotropy(
    moments: Sequence[Moment],
    *,
    level: float = 0.95,
    metrics: Sequence[str] = ISOTROPY,
    progress: Progress | None = None,
) -> Result:
    """Isotropy of the pooled vectors of the probe examples, per layer: IsoScore near 0 means that few directions matter.

    Parameters
    ----------
    moments
        Snapshots, such as from :func:`~dynprobe.analysis.moments.moments`.
    level
        Confidence level of the intervals.
    metrics
        Which measures to compute.
    progress
        Called with (done, total, label) after each snapshot.

    Returns
    -------
    Result
        Rows per stack, layer and kind of pooled vector (column ``position``: "first" or "last" real token, "mean" of the
        tokens); ``n`` is the number of examples. First and last snapshot of each run have an interval (jackknife leaving
        out one of ten groups of examples). Status "undefined" where the vectors are all alike, as [CLS] is in the
        embeddings; "insufficient-sample" for fewer than 30 examples.

    Notes
    -----
    With n examples in d dimensions at most n - 1 directions can hold variance; compare values of the same n only.

    References
    ----------
    Zhou et al. 2021 (AAAI), section 2 (standard deviations, correlations, explained variance); Rudman et al. 2022 (ACL
    Findings) for IsoScore.

    Examples
    --------
    >>> isotropy(moments(run)).select(metric="isoscore", position="first")  # doctest: +SKIP
    """
    ends = _ends(moments)
    tick = Tick(progress, len(moments), "isotropy")
    rows: list[dict[str, Any]] = []
    for moment in moments:
        interval = level if moment in ends else None
        for stack in moment.snapshot.stacks:
            for kind, layer in _pooled(moment, stack):
                where = {**moment.columns(), "stack": stack, "position": kind, "layer": layer}
                vectors = moment.snapshot.pooled(kind, layer, stack).astype(np.float64)
                rows += [{**where, **found} for found in _measures(vectors, metrics, level=interval)]
        tick()
    if not rows:
        reason = "no pooled vectors were captured"
        rows = [{**m.columns(), "metric": name, "status": "not-captured", "reason": reason} for m in ends for name in metrics]
    return Result("Isotropy", tidy(rows), describe(metrics))


def _ends(moments: Sequence[Moment]) -> set[Moment]:
    """First and last snapshot of each run."""
    last = {moment.name: moment for moment in moments}
    first = {moment.name: moment for moment in reversed(moments)}
    return {*first.values(), *last.values()}


def _pooled(moment: Moment, stack: str) -> Iterator[tuple[str, int]]:
    for kind in moment.snapshot.pooled_kinds(stack):
        for layer in moment.snapshot.pooled_layers(kind, stack):
            yield kind, layer


def _measures(vectors: np.ndarray, metrics: Sequence[str], *, level: float | None) -> Iterator[dict[str, Any]]:
    """One row of value, interval and status for each measure."""
    n = len(vectors)
    few = {"status": "insufficient-sample", "reason": f"{n} examples; at least {MIN_EXAMPLES} are needed"}
    for name in metrics:
        estimate = _ESTIMATES[name]
        try:
            value = estimate(vectors)
        except ValueError as error:
            yield {"metric": name, "n": n, "status": "undefined", "reason": str(error)}
            continue
        row: dict[str, Any] = {"metric": name, "n": n, "value": value, **(few if n < MIN_EXAMPLES else {})}
        if level is not None and n >= MIN_EXAMPLES:
            row |= _interval(estimate, vectors, value, level=level, bounds=METRICS[name].bounds)
        yield row


def _interval(
    estimate: Callable[[np.ndarray], float],
    vectors: np.ndarray,
    value: float,
    *,
    level: float,
    bounds: tuple[float | None, float | None],
) -> dict[str, float]:
    groups = np.arange(len(vectors)) % N_GROUPS
    try:
        leave_out = np.array([estimate(vectors[groups != group]) for group in range(N_GROUPS)])
    except ValueError:  # all that varies lies in one group
        return {}
    low, high = jackknife_interval(value, leave_out, level=level)
    least, most = (np.nan if bound is None else bound for bound in bounds)
    return {"low": float(np.fmax(low, least)), "high": float(np.fmin(high, most))}


def _first_share(vectors: np.ndarray) -> float:
    return float(explained_variance_ratio(vectors)[0])


def _std_mean(vectors: np.ndarray) -> float:
    return float(np.mean(dimension_std(vectors)))


def _correlation(vectors: np.ndarray) -> float:
    """Mean absolute correlation of two different dimensions that vary."""
    varying = vectors[:, np.ptp(vectors, axis=0) > 0]
    d = varying.shape[1]
    if d < 2:
        raise ValueError(f"correlation needs two dimensions that vary; got {d}")
    correlation = np.abs(dimension_correlation(varying))
    return float((correlation.sum() - np.trace(correlation)) / (d * (d - 1)))


_ESTIMATES: dict[str, Callable[[np.ndarray], float]] = {
    "isoscore": lambda vectors: float(isoscore(vectors)),
    "effective_rank": lambda vectors: float(effective_rank(vectors)),
    "participation_ratio": lambda vectors: float(participation_ratio(vectors)),
    "ev1": _first_share,
    "mean_cosine": lambda vectors: float(mean_cosine(vectors)),
    "cls_std_mean": _std_mean,
    "cls_correlation": _correlation,
}
