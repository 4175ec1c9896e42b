"""How good the answers are: accuracy, likelihood, or correlation with the labels of the probe examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from dynprobe.analysis.answers import Answers, answers
from dynprobe.analysis.catalog import OUTPUTS, describe
from dynprobe.analysis.moments import Moment
from dynprobe.analysis.outputs import is_right, mean_row, share_row
from dynprobe.result import Result, tidy


def output_scores(moments: Sequence[Moment], *, level: float = 0.95, seed: int = 0) -> Result:
    """Score of the model itself on the probe examples, one value per snapshot.

    Classifiers: accuracy, with the share of the commonest label as chance level. Language models: negative log-likelihood.
    One output column: Spearman correlation with the labels, and mean squared error where the labels are real numbers.

    Parameters
    ----------
    moments
        Snapshots.
    level
        Confidence level: Wilson interval for accuracy, bootstrap over examples for means.
    seed
        Seed of the bootstrap.

    Returns
    -------
    Result
        Rows per snapshot. Status "not-captured" without labels or outputs, "undefined" where outputs and labels do not
        belong together or do not vary.

    Examples
    --------
    >>> output_scores(moments(run)).select(metric="accuracy")  # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = []
    for moment in moments:
        said = answers(moment)
        if said is not None:
            rows += [{**moment.columns(), **row} for row in _scores(said, moment, level=level, seed=seed)]
    return Result("Scores", tidy(rows), describe(OUTPUTS))


def _scores(said: Answers, moment: Moment, *, level: float, seed: int) -> list[dict[str, Any]]:
    labels = moment.run.probe_set.labels
    if said.kind == "nll":
        return [mean_row("mean_nll", said.per_example(said.values), level=level, seed=seed)]
    if said.kind == "numbers":
        return _number_scores(said.values, labels, level=level, seed=seed)
    if labels is None:
        return [{"metric": "accuracy", "status": "not-captured", "reason": "the probe set has no labels"}]
    right = is_right(said, labels)
    if right is None:
        reason = said.reason or "the labels of the probe set are no classes of these outputs"
        return [{"metric": "accuracy", "status": "undefined", "reason": reason}]
    chance = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    return [{**share_row("accuracy", right, level=level), "chance": chance}]


def _number_scores(values: np.ndarray, labels: np.ndarray | None, *, level: float, seed: int) -> list[dict[str, Any]]:
    if labels is None:
        return [{"metric": "spearman", "status": "not-captured", "reason": "the probe set has no labels"}]
    if labels.ndim != 1:
        return [{"metric": "spearman", "status": "undefined", "reason": "the labels have several numbers per example"}]
    n = len(values)
    if n < 2 or np.ptp(values) == 0 or np.ptp(labels) == 0:
        reason = "all predictions or all labels are the same"
        rows: list[dict[str, Any]] = [{"metric": "spearman", "n": n, "status": "undefined", "reason": reason}]
    else:
        rows = [{"metric": "spearman", "value": float(spearmanr(values, labels).statistic), "n": n}]
    if labels.dtype.kind == "f":
        rows.append(mean_row("mean_squared_error", (values - labels) ** 2, level=level, seed=seed))
    return rows
