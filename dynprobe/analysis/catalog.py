"""What each value of an analysis is: label, unit, meaning and bounds."""

import math
from collections.abc import Iterable

from dynprobe.result import MetricInfo

METRICS: dict[str, MetricInfo] = {
    "attention_js_divergence": MetricInfo(
        "attention JS divergence",
        "nats",
        "How far a token's attention moved, averaged over tokens, heads and examples: 0 means that every token attends "
        "as before, ln 2 (0.693) that it attends to none of the tokens it attended to.",
        (0.0, math.log(2)),
    ),
    "svcca_similarity": MetricInfo(
        "SVCCA similarity",
        "1",
        "Mean canonical correlation of the strongest directions of a layer, as many as hold 99 % of its variance at the "
        "start: 1 means the same features up to a linear map of these directions, the chance level that nothing is shared. "
        "Intervals are for the expected value at the same number of tokens.",
        (0.0, 1.0),
    ),
    "linear_cka_similarity": MetricInfo(
        "linear CKA similarity (debiased)",
        "1",
        "Agreement of the similarities between tokens, dominated by the directions of largest variance: 1 means the "
        "same up to rotation and scale, about 0 that nothing is shared; the estimate may fall a little below 0.",
        (-1.0, 1.0),
    ),
    "isoscore": MetricInfo(
        "IsoScore",
        "1",
        "How evenly the variance of the vectors fills all directions: 1 means evenly, 0 that one direction holds all.",
        (0.0, 1.0),
    ),
    "effective_rank": MetricInfo(
        "effective rank",
        "directions",
        "Exponential of the entropy of the variance over directions: 1 means that one direction holds all variance.",
        (1.0, None),
    ),
    "participation_ratio": MetricInfo(
        "participation ratio",
        "directions",
        "Number of directions that would hold the variance if they shared it evenly; small directions count little.",
        (1.0, None),
    ),
    "ev1": MetricInfo(
        "variance in the first direction",
        "1",
        "Share of the variance that the strongest direction holds: near 1 means that the vectors lie on a line.",
        (0.0, 1.0),
    ),
    "mean_cosine": MetricInfo(
        "mean cosine",
        "1",
        "Mean cosine of the vectors of two different examples: near 1 means a narrow cone. A common offset alone can "
        "cause it, so it is no measure of isotropy by itself.",
        (-1.0, 1.0),
    ),
    "cls_std_mean": MetricInfo(
        "mean standard deviation of a dimension",
        "activation",
        "How far the vectors of the examples spread in a dimension, averaged over dimensions: 0 means collapse.",
        (0.0, None),
    ),
    "cls_correlation": MetricInfo(
        "mean absolute correlation of dimensions",
        "1",
        "Mean absolute Pearson correlation of two different dimensions: near 1 means that all dimensions say the same.",
        (0.0, 1.0),
    ),
    "probe_accuracy": MetricInfo(
        "linear probe accuracy",
        "accuracy",
        "Share of the probe examples whose label a linear classifier on the frozen vectors gets right, cross-validated: "
        "the chance level is the share of the commonest label. It measures how easily the label is read.",
        (0.0, 1.0),
    ),
    "knowledge_by_layer": MetricInfo(
        "layer-wise accuracy on other tasks",
        "accuracy",
        "Share of the test examples of a probe task whose label a linear classifier on the frozen vectors of a layer gets "
        "right, fitted on the task's own training examples: the chance level is the share of the commonest label. It "
        "measures how easily the label is read, not whether the model uses it.",
        (0.0, 1.0),
    ),
    "knowledge_accuracy": MetricInfo(
        "accuracy on other tasks",
        "accuracy",
        "The same at the last layer, and at the layer that reads held-out training examples best. A value at the chance "
        "level, or at that of the same architecture with random weights, means that nothing learned is read there.",
        (0.0, 1.0),
    ),
    "knowledge_change": MetricInfo(
        "change in accuracy on other tasks",
        "accuracy",
        "Accuracy of the probe minus that of the pretrained encoder (step 0) on the same test examples: below 0 means that "
        "training made the task harder to read.",
        (-1.0, 1.0),
    ),
    "knowledge_difference": MetricInfo(
        "difference in accuracy on other tasks",
        "accuracy",
        "Accuracy of the probe at the end of the first run minus that of the second, on the same test examples: 0 means "
        "that the task is read equally well.",
        (-1.0, 1.0),
    ),
    "knowledge_selectivity": MetricInfo(
        "selectivity on other tasks",
        "accuracy",
        "Accuracy of the probe minus that of a probe of labels drawn by lot for each word (a token of the example decides): "
        "near 0 means that knowing words alone would explain the accuracy.",
        (-1.0, 1.0),
    ),
    "prediction_flip_rate": MetricInfo(
        "prediction flips",
        "share",
        "Share of the probe examples (or their tokens) that are given another class: 0 means that every answer stayed.",
        (0.0, 1.0),
    ),
    "output_symmetric_kl": MetricInfo(
        "symmetric KL of outputs",
        "nats",
        "Distance of the predicted distributions, KL in both directions added, averaged over examples: 0 means the "
        "same probabilities.",
        (0.0, None),
    ),
    "output_mean_squared_change": MetricInfo(
        "mean squared change of outputs",
        "output squared",
        "How far the predicted numbers moved, squared and averaged over examples: 0 means the same predictions.",
        (0.0, None),
    ),
    "accuracy": MetricInfo(
        "accuracy on the probe examples",
        "accuracy",
        "Share of the probe examples that the model itself labels correctly; the chance level is the share of the "
        "commonest label.",
        (0.0, 1.0),
    ),
    "accuracy_difference": MetricInfo(
        "difference in accuracy",
        "accuracy",
        "Accuracy of the first run minus that of the second on the same examples: 0 means equally good.",
        (-1.0, 1.0),
    ),
    "mean_nll": MetricInfo(
        "negative log-likelihood",
        "nats per token",
        "Mean over the probe examples of the mean negative log-likelihood of their tokens: low means well predicted.",
        (0.0, None),
    ),
    "mean_nll_difference": MetricInfo(
        "difference in negative log-likelihood",
        "nats per token",
        "First minus second on the same examples: below 0 means that the first predicts the tokens better.",
    ),
    "spearman": MetricInfo(
        "Spearman correlation with the labels",
        "1",
        "Rank correlation of the predicted numbers with the labels: 1 means the same order, 0 no relation.",
        (-1.0, 1.0),
    ),
    "mean_squared_error": MetricInfo(
        "mean squared error",
        "label squared",
        "Mean squared distance of the predicted numbers from the labels: 0 means exact.",
        (0.0, None),
    ),
}

ATTENTION = ("attention_js_divergence",)
SIMILARITY = ("svcca_similarity", "linear_cka_similarity")
ISOTROPY = (
    "isoscore",
    "effective_rank",
    "participation_ratio",
    "ev1",
    "mean_cosine",
    "cls_std_mean",
    "cls_correlation",
)
PROBING = ("probe_accuracy",)
KNOWLEDGE = (
    "knowledge_by_layer",
    "knowledge_accuracy",
    "knowledge_change",
    "knowledge_difference",
    "knowledge_selectivity",
)
OUTPUTS = (
    "prediction_flip_rate",
    "output_symmetric_kl",
    "output_mean_squared_change",
    "accuracy",
    "accuracy_difference",
    "mean_nll",
    "mean_nll_difference",
    "spearman",
    "mean_squared_error",
)


def describe(names: Iterable[str]) -> dict[str, MetricInfo]:
    """The entries of :data:`METRICS` with the given names, in the order of the names.

    Examples
    --------
    >>> describe(["isoscore"])["isoscore"].bounds
    (0.0, 1.0)
    """
    return {name: METRICS[name] for name in names}
