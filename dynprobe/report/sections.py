"""The sections of a report, in order, and which metric stands in which."""

from typing import NamedTuple


class Section(NamedTuple):
    """A part of the report: its name in links, its title and one sentence on what to look for."""

    key: str
    title: str
    intro: str


SECTIONS = (
    Section(
        "outputs",
        "What the models say",
        "Loss and scores during training, and how far the answers on the probe inputs moved.",
    ),
    Section(
        "layers",
        "Which layers changed",
        "Attention and hidden states of each layer, against the start of training and run against run. "
        "In every heat map, darker means that the layer changed more.",
    ),
    Section(
        "layer-map",
        "Layer by layer map",
        "Every layer of one snapshot against every layer of another. A dark line along the diagonal means that "
        "layers kept their place; a dark block means that several layers hold much the same.",
    ),
    Section(
        "isotropy",
        "Isotropy of [CLS]",
        "How evenly the vectors of the probe examples fill the space, layer by layer, at the first and the last step. "
        "No sample of finite size looks perfectly even: a dotted line marks what isotropic data of the same size "
        "would give; an arrow beside its number says that it lies outside the picture.",
    ),
    Section(
        "probes",
        "What a linear probe can read",
        "How well a linear classifier on frozen hidden states answers a task, layer by layer.",
    ),
    Section(
        "knowledge",
        "Knowledge of other tasks",
        "Whether training destroyed what pretraining knew: how well a linear classifier on frozen vectors answers tasks that "
        "the model was not trained on. The dotted line marks the same architecture with random weights. A verdict is on the "
        "change since step 0 on the same test examples: retained where its whole interval lies within the margin. The best "
        "layer was chosen for each snapshot on held-out folds of the training examples; the test examples took no part in it.",
    ),
    Section(
        "heads",
        "Attention heads",
        "Each head by itself at the last step. Darker means that the head changed more.",
    ),
    Section("other", "Other measurements", "Everything else that the analysis measured."),
)

_METRIC_SECTIONS = {
    "accuracy": "outputs",
    "accuracy_difference": "outputs",
    "mean_nll": "outputs",
    "mean_nll_difference": "outputs",
    "spearman": "outputs",
    "mean_squared_error": "outputs",
    "prediction_flip_rate": "outputs",
    "output_symmetric_kl": "outputs",
    "output_mean_squared_change": "outputs",
    "attention_js_divergence": "layers",
    "svcca_similarity": "layers",
    "linear_cka_similarity": "layers",
    "isoscore": "isotropy",
    "effective_rank": "isotropy",
    "participation_ratio": "isotropy",
    "ev1": "isotropy",
    "mean_cosine": "isotropy",
    "cls_std_mean": "isotropy",
    "cls_correlation": "isotropy",
    "probe_accuracy": "probes",
    "knowledge_accuracy": "knowledge",
    "knowledge_change": "knowledge",
    "knowledge_difference": "knowledge",
    "knowledge_selectivity": "knowledge",
    "knowledge_by_layer": "knowledge",
}
_REFERENCES = {"isotropy": "isotropic", "knowledge": "random weights"}


def section_of(metric: str) -> str:
    """Name of the section that shows a metric; ``"other"`` for one that is not known here.

    Examples
    --------
    >>> section_of("svcca_similarity"), section_of("my_metric")
    ('layers', 'other')
    """
    return _METRIC_SECTIONS.get(metric, "other")


def reference_kind(metric: str) -> str:
    """What the column ``reference`` of a metric is the value of: data of the same size, or a model.

    Examples
    --------
    >>> reference_kind("isoscore"), reference_kind("my_metric")
    ('isotropic', 'reference')
    """
    return _REFERENCES.get(section_of(metric), "reference")


def metric_order(metric: str) -> tuple[int, str]:
    """Sort key that brings the metrics into the order of the report, unknown ones last by name."""
    known = list(_METRIC_SECTIONS)
    return (known.index(metric) if metric in known else len(known), metric)


def low_means_change(metric: str) -> bool:
    """True for similarities: there the low values are the ones where something changed.

    Examples
    --------
    >>> low_means_change("svcca_similarity"), low_means_change("attention_js_divergence")
    (True, False)
    """
    return metric.endswith("_similarity")
