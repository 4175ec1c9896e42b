"""How far the model's answers moved: flipped predictions, symmetric KL, change of likelihood or of numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dynprobe.analysis.answers import Answers, answers
from dynprobe.analysis.catalog import OUTPUTS, describe
from dynprobe.analysis.moments import Pair, last_pairs, moments_in
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.metrics import bootstrap_interval, symmetric_kl_divergence, wilson_interval
from dynprobe.result import Result, tidy

N_RESAMPLES = 1000
FLIPS, KL, CHANGE = "prediction_flip_rate", "output_symmetric_kl", "output_mean_squared_change"
NLL_DIFFERENCE, ACCURACY_DIFFERENCE = "mean_nll_difference", "accuracy_difference"


def output_changes(
    pairs: Sequence[Pair],
    *,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """How far the outputs on the probe examples moved; 0 everywhere means the same answers.

    Classifiers: share of flipped predictions (the class of the highest logit) and symmetric KL of the predicted
    distributions in nats; run against run also the difference in accuracy on the same examples. Language models: difference
    in negative log-likelihood. One output column: mean squared change.

    Parameters
    ----------
    pairs
        Snapshots to compare. Of pairs with the comparison "consecutive" only the symmetric KL (or squared change) is given.
    level
        Confidence level: Wilson intervals for flips of examples, else a bootstrap over examples.
    seed
        Seed of the bootstrap.
    progress
        Called with (done, total, label) after each pair.

    Returns
    -------
    Result
        Rows per pair; ``n`` is the number of examples. Status "not-captured" where a model has no head, "incompatible" where
        the two say different kinds of things.

    Examples
    --------
    >>> output_changes(pairs_from_start(run)).select(metric="prediction_flip_rate")  # doctest: +SKIP
    """
    tick = Tick(progress, len(pairs), "outputs")
    rows: list[dict[str, Any]] = []
    ends = list(last_pairs(pairs))
    said = {moment: answers(moment) for moment in moments_in(pairs)}
    for pair in pairs:
        a, b = said[pair.a], said[pair.b]
        refusal = _refusal(pair, a, b)
        if refusal:
            rows += [{"metric": KL, **pair.columns(), **refusal}] if pair in ends else []
        elif a is not None and b is not None:
            rows += [{**pair.columns(), **row} for row in _changes(pair, a, b, level=level, seed=seed)]
        tick()
    return Result("Outputs", tidy(rows), describe(OUTPUTS))


def _refusal(pair: Pair, a: Answers | None, b: Answers | None) -> dict[str, str]:
    if a is None or b is None:
        names = " and ".join(dict.fromkeys(m.name for m, said in ((pair.a, a), (pair.b, b)) if said is None))
        return {"status": "not-captured", "reason": f"{names} has no outputs: its model has no head"}
    for said in (a, b):
        if said.kind == "other":
            return {"status": "undefined", "reason": said.reason}
    if a.kind != b.kind or a.values.shape != b.values.shape:
        shapes = " and ".join(f"{said.kind} of shape {said.values.shape}" for said in (a, b))
        return {"status": "incompatible", "reason": f"the outputs must be of one kind and shape; got {shapes}"}
    return {}


def _changes(pair: Pair, a: Answers, b: Answers, *, level: float, seed: int) -> Iterator[dict[str, Any]]:
    if a.kind == "nll":
        if pair.comparison != "consecutive":
            yield mean_row(NLL_DIFFERENCE, a.per_example(a.values) - b.per_example(b.values), level=level, seed=seed)
        return
    if a.kind == "numbers":
        yield mean_row(CHANGE, (a.values - b.values) ** 2, level=level, seed=seed)
        return
    moved = a.per_example(np.asarray(symmetric_kl_divergence(a.values, b.values)))
    yield mean_row(KL, moved, level=level, seed=seed)
    if pair.comparison == "consecutive":
        return
    flipped = (a.values.argmax(axis=-1) != b.values.argmax(axis=-1)).astype(np.float64)
    if a.kind == "classes":
        yield share_row(FLIPS, flipped, level=level)
    else:
        yield mean_row(FLIPS, a.per_example(flipped), level=level, seed=seed)
    right = [is_right(said, moment.run.probe_set.labels) for said, moment in ((a, pair.a), (b, pair.b))]
    same_labels = pair.a.run.probe_set.label_fingerprint == pair.b.run.probe_set.label_fingerprint
    if pair.comparison == "between" and same_labels and right[0] is not None and right[1] is not None:
        yield mean_row(ACCURACY_DIFFERENCE, right[0].astype(float) - right[1], level=level, seed=seed)


def is_right(said: Answers, labels: np.ndarray | None) -> np.ndarray | None:
    """Which examples get their label, or ``None`` where outputs and labels are no classes of the same kind."""
    usable = labels is not None and said.kind == "classes" and labels.ndim == 1 and labels.dtype.kind in "iu"
    if labels is None or not usable or labels.min() < 0 or labels.max() >= said.values.shape[-1]:
        return None
    return np.asarray(said.values.argmax(axis=-1) == labels)


def share_row(metric: str, hits: np.ndarray, *, level: float) -> dict[str, Any]:
    """Share of examples with its Wilson interval."""
    low, high = wilson_interval(int(hits.sum()), len(hits), level=level)
    return {"metric": metric, "value": float(hits.mean()), "low": float(low), "high": float(high), "n": len(hits)}


def mean_row(metric: str, values: np.ndarray, *, level: float, seed: int) -> dict[str, Any]:
    """Mean over examples with its bootstrap interval."""
    if not len(values):
        return {"metric": metric, "n": 0, "status": "undefined", "reason": "no example has an output"}
    low, high = bootstrap_interval(values, level=level, n_resamples=N_RESAMPLES, seed=seed)
    return {"metric": metric, "value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}
