"""Where the label can be read: cross-validated accuracy of a linear probe on the pooled vectors of each layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynprobe.analysis.catalog import PROBING, describe
from dynprobe.analysis.moments import Moment, ends_of
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.metrics import fit_linear_probe, wilson_interval
from dynprobe.metrics.workers import in_parallel
from dynprobe.probe_set import ProbeSet
from dynprobe.result import Result, tidy

N_FOLDS = 5
TOLERANCE = 1e-5  # of the gradient; measured at the default penalty, a closer fit changes no prediction
PENALTY_PER_EXAMPLE = 0.1
METRIC = PROBING[0]


def probe_accuracy(
    moments: Sequence[Moment], *, level: float = 0.95, penalty: float | None = None, progress: Progress | None = None
) -> Result:
    """Cross-validated accuracy of a linear classifier that reads the probe set's labels from frozen pooled vectors.

    Chance level (column ``chance``) is the share of the commonest label. A high value means that the label is easily read
    by a linear map, not that the model uses it.

    Parameters
    ----------
    moments
        Snapshots.
    level
        Confidence level of the Wilson intervals. They take the examples as independent trials and so leave out that the
        five folds share training examples.
    penalty
        Strength of the L2 penalty, as in :func:`dynprobe.metrics.fit_linear_probe`; by default a tenth of the number of
        training examples, since a few hundred examples in a few hundred dimensions can otherwise be learned by heart.
    progress
        Called with (done, total, label) after each snapshot.

    Returns
    -------
    Result
        Rows per stack, layer and kind of pooled vector (the stand-in for [CLS] at every snapshot, the other kinds at the
        first and last of a run); ``n`` is the number of examples. Folds are stratified by label and
        chosen by content, so they are the same for every snapshot and run. Status "not-captured" without labels,
        "undefined" for labels that are no classes, "insufficient-sample" when a class has fewer examples than folds.

    Examples
    --------
    >>> probe_accuracy(moments(run)).select(position="first", layer=6)  # doctest: +SKIP
    """
    tick = Tick(progress, len(moments), "linear probes")
    rows: list[dict[str, Any]] = []
    ends = ends_of(moments)

    def of_moment(moment: Moment) -> list[dict[str, Any]]:
        return _moment_rows(moment, every_kind=moment in ends, level=level, penalty=penalty)

    for found in in_parallel(of_moment, moments):
        rows += found
        tick()
    return Result("Linear probes", tidy(rows), describe(PROBING))


def _refusal(probe: ProbeSet) -> dict[str, str]:
    """Status and reason why no probe can be fitted; empty when one can."""
    labels = probe.labels
    if labels is None:
        return {"status": "not-captured", "reason": "the probe set has no labels"}
    if labels.ndim != 1 or labels.dtype.kind == "f":
        return {"status": "undefined", "reason": "the labels are numbers, not classes"}
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        return {"status": "undefined", "reason": "all probe examples have the same label"}
    if counts.min() < N_FOLDS:
        reason = f"a class has {counts.min()} examples; at least {N_FOLDS} are needed, one for each fold"
        return {"status": "insufficient-sample", "reason": reason}
    return {}


def stratified_folds(labels: np.ndarray, ids: Sequence[str], groups: Sequence[str] | None = None) -> np.ndarray:
    """Fold of each example: the examples of a class, ordered by content, are dealt out in turn.

    Parameters
    ----------
    labels
        (n,) class of each example.
    ids
        Content hash of each example.
    groups
        Group of each example; a group stays in one fold, dealt out by its commonest class. By default each is its own.

    Examples
    --------
    >>> stratified_folds(np.array([0, 0, 1]), ["b", "a", "c"]).tolist()
    [1, 0, 2]
    >>> stratified_folds(np.array([0, 1, 0]), ["b", "a", "c"], ["x", "x", "y"]).tolist()
    [0, 0, 1]
    """
    members: dict[object, list[int]] = {}
    for i in range(len(ids)):
        members.setdefault(i if groups is None else groups[i], []).append(i)
    classes = np.unique(labels, return_inverse=True)[1]
    ordered = sorted(
        (int(np.bincount(classes[rows]).argmax()), -len(rows), min(ids[i] for i in rows), rows)
        for rows in members.values()
    )
    folds = np.empty(len(ids), dtype=np.int64)
    for turn, (*_, rows) in enumerate(ordered):
        folds[rows] = turn % N_FOLDS
    return folds


def _moment_rows(moment: Moment, *, every_kind: bool, level: float, penalty: float | None) -> list[dict[str, Any]]:
    probe = moment.run.probe_set
    refusal = _refusal(probe)
    if refusal:
        return [{"metric": METRIC, **moment.columns(), **refusal}]
    classes, labels = np.unique(np.asarray(probe.labels), return_inverse=True)
    folds = stratified_folds(labels, probe.example_ids)
    chance = float(np.bincount(labels).max() / len(labels))
    rows = []
    for stack in moment.snapshot.stacks:
        kinds = moment.snapshot.pooled_kinds(stack)
        for kind in kinds if every_kind else kinds[:1]:
            layers = moment.snapshot.pooled_layers(kind, stack)
            features = np.stack([moment.snapshot.pooled(kind, layer, stack) for layer in layers]).astype(np.float64)
            n_right = _n_right(features, labels, folds, n_classes=len(classes), penalty=penalty)
            for layer, right in zip(layers, n_right, strict=True):
                low, high = wilson_interval(int(right), len(labels), level=level)
                rows.append(
                    {
                        "metric": METRIC, **moment.columns(), "stack": stack, "position": kind, "layer": layer,
                        "value": float(right / len(labels)), "low": float(low), "high": float(high), "chance": chance,
                        "n": len(labels),
                    }
                )  # fmt: skip
    return rows


def _n_right(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, *, n_classes: int, penalty: float | None
) -> np.ndarray:
    """(n_layers,) number of examples that the probe of the other folds labels correctly."""
    right = np.zeros(len(features), dtype=np.int64)
    for fold in range(N_FOLDS):
        held_out = folds == fold
        strength = PENALTY_PER_EXAMPLE * int((~held_out).sum()) if penalty is None else penalty
        probe = fit_linear_probe(
            features[:, ~held_out], labels[~held_out], n_classes=n_classes, penalty=strength, tolerance=TOLERANCE
        )
        right += (np.asarray(probe.predict(features[:, held_out])) == labels[held_out]).sum(axis=-1)
    return right
