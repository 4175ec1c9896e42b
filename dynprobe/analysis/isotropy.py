"""How evenly the vectors of the examples fill the space: isotropy of [CLS] or its stand-in, and of the mean vector."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import entr

from dynprobe.analysis.catalog import ISOTROPY, METRICS, describe
from dynprobe.analysis.moments import Moment, ends_of
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.metrics import (
    dimension_std,
    explained_variance_ratio,
    isoscore,
    isotropic_reference,
    jackknife_interval,
    mean_cosine,
    participation_ratio,
)
from dynprobe.metrics.isotropy import mean_absolute_correlation
from dynprobe.metrics.workers import in_parallel
from dynprobe.result import Result, tidy

N_GROUPS = 5
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
        tokens); ``n`` is the number of examples, ``reference`` what isotropic normal data of the same size would give
        (:func:`~dynprobe.metrics.isotropic_reference`; none for the standard deviation, which has a scale), ``resolution``
        the relative spacing of the stored numbers. The stand-in for [CLS] (the first kind) has an interval at the first and
        the last snapshot of each run (jackknife leaving out one of five groups of examples). Status "undefined" where
        the vectors are all alike, as [CLS] is in the embeddings; "insufficient-sample" for fewer than 30 examples.

    Notes
    -----
    With n examples in d dimensions at most n - 1 directions can hold variance, and n decides what even data look like: 500
    isotropic vectors of 384 dimensions have an IsoScore of 0.56. Compare values of the same n only. Snapshots of one probe set
    always have the same: pooled vectors are those of all its examples, in its order, whatever the budget.

    References
    ----------
    Zhou et al. 2021 (AAAI), section 2 (standard deviations, correlations, explained variance); Rudman et al. 2022 (ACL
    Findings) for IsoScore.

    Examples
    --------
    >>> isotropy(moments(run)).select(metric="isoscore", position="first")  # doctest: +SKIP
    """
    ends = ends_of(moments)
    tick = Tick(progress, len(moments), "isotropy")

    def of_moment(moment: Moment) -> list[dict[str, Any]]:
        rows = []
        for stack in moment.snapshot.stacks:
            for kind, layer in _pooled(moment, stack):
                stand_in = kind == moment.snapshot.pooled_kinds(stack)[0]
                interval = level if moment in ends and stand_in else None
                where = {**moment.columns(), "stack": stack, "position": kind, "layer": layer}
                where["resolution"] = moment.snapshot.resolution(f"pooled/{kind}", layer, stack)
                cloud = _Cloud(moment.snapshot.pooled(kind, layer, stack).astype(np.float64))
                rows += [{**where, **found} for found in _measures(cloud, metrics, level=interval)]
        return rows

    rows: list[dict[str, Any]] = []
    for found in in_parallel(of_moment, moments):
        rows += found
        tick()
    if not rows:
        reason = "no pooled vectors were captured"
        rows = [
            {**m.columns(), "metric": name, "status": "not-captured", "reason": reason}
            for m in ends
            for name in metrics
        ]
    return Result("Isotropy", tidy(rows), describe(metrics))


def _pooled(moment: Moment, stack: str) -> Iterator[tuple[str, int]]:
    for kind in moment.snapshot.pooled_kinds(stack):
        for layer in moment.snapshot.pooled_layers(kind, stack):
            yield kind, layer


class _Cloud:
    """Vectors of the examples; their spectrum is computed once for all measures that need it."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    @cached_property
    def shares(self) -> np.ndarray:
        """Share of the variance of each direction."""
        return np.asarray(explained_variance_ratio(self.vectors))

    def without_group(self, group: int) -> "_Cloud":
        """The cloud without every fifth example."""
        return _Cloud(self.vectors[np.arange(len(self.vectors)) % N_GROUPS != group])


def _measures(cloud: _Cloud, metrics: Sequence[str], *, level: float | None) -> Iterator[dict[str, Any]]:
    """One row of value, interval and status for each measure."""
    n = len(cloud.vectors)
    references = _references(*cloud.vectors.shape)
    few = {"status": "insufficient-sample", "reason": f"{n} examples; at least {MIN_EXAMPLES} are needed"}
    with_interval = level is not None and n >= MIN_EXAMPLES
    parts = [cloud.without_group(group) for group in range(N_GROUPS)] if with_interval else []
    for name in metrics:
        try:
            value = _ESTIMATES[name](cloud)
        except ValueError as error:
            yield {"metric": name, "n": n, "status": "undefined", "reason": str(error)}
            continue
        row: dict[str, Any] = {"metric": name, "n": n, "value": value, **(few if n < MIN_EXAMPLES else {})}
        row["reference"] = references.get(name, np.nan)
        if level is not None and parts:
            row |= _interval(name, parts, value, level=level)
        yield row


def _references(n_samples: int, n_features: int) -> dict[str, float]:
    """What isotropic data of this size give, by the name of the measure."""
    if min(n_samples, n_features) < 2:
        return {}
    even = isotropic_reference(n_samples, n_features)
    return {
        "isoscore": even.isoscore,
        "effective_rank": even.effective_rank,
        "participation_ratio": even.participation_ratio,
        "ev1": even.first_share,
        "mean_cosine": even.mean_cosine,
        "cls_correlation": even.mean_correlation,
    }


def _interval(name: str, parts: Sequence[_Cloud], value: float, *, level: float) -> dict[str, float]:
    try:
        leave_out = [_ESTIMATES[name](part) for part in parts]
    except ValueError:  # all that varies lies in one group
        return {}
    low, high = jackknife_interval(value, leave_out, level=level)
    least, most = (np.nan if bound is None else bound for bound in METRICS[name].bounds)
    return {"low": float(np.fmax(low, least)), "high": float(np.fmin(high, most))}


def _effective_rank(cloud: _Cloud) -> float:
    """As :func:`dynprobe.metrics.effective_rank`, from the spectrum in hand."""
    return float(np.exp(entr(cloud.shares).sum()))


def _correlation(cloud: _Cloud) -> float:
    """Mean absolute correlation of two different dimensions that vary."""
    varying = cloud.vectors[:, np.ptp(cloud.vectors, axis=0) > 0]
    d = varying.shape[1]
    if d < 2:
        raise ValueError(f"correlation needs two dimensions that vary; got {d}")
    return float(mean_absolute_correlation(varying))


_ESTIMATES: dict[str, Callable[[_Cloud], float]] = {
    "isoscore": lambda cloud: float(isoscore(cloud.vectors)),
    "effective_rank": _effective_rank,
    "participation_ratio": lambda cloud: float(participation_ratio(cloud.vectors)),
    "ev1": lambda cloud: float(cloud.shares[0]),
    "mean_cosine": lambda cloud: float(mean_cosine(cloud.vectors)),
    "cls_std_mean": lambda cloud: float(np.mean(dimension_std(cloud.vectors))),
    "cls_correlation": _correlation,
}
