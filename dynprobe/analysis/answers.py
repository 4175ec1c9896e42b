"""What a model says about the probe examples, example by example."""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from dynprobe.analysis.moments import Moment


@dataclass(frozen=True)
class Answers:
    """Outputs of one snapshot.

    Attributes
    ----------
    kind
        ``"classes"`` (one distribution per example), ``"token classes"`` (one per token), ``"numbers"`` (one number per
        example), ``"nll"`` (one negative log-likelihood per token) or ``"other"``.
    values
        As captured, float64.
    offsets
        (n_examples + 1,) first row of each example.
    reason
        Why nothing can be computed from ``"other"``.
    """

    kind: str
    values: np.ndarray
    offsets: np.ndarray
    reason: str = ""

    @property
    def log_probabilities(self) -> np.ndarray:
        """Log of the predicted distributions."""
        return log_softmax(self.values, axis=-1)

    def per_example(self, values: np.ndarray) -> np.ndarray:
        """Mean of some values, one per row, over each example that has rows."""
        counts = np.diff(self.offsets)
        filled = counts > 0
        totals = np.add.reduceat(values, self.offsets[:-1][filled]) if filled.any() else np.zeros(0)
        return totals / counts[filled]


def answers(moment: Moment) -> Answers | None:
    """Read the outputs of a snapshot; ``None`` when the model has no head."""
    outputs = moment.snapshot.outputs()
    if outputs is None:
        return None
    values = outputs.values.astype(np.float64)
    offsets = outputs.offsets if outputs.offsets is not None else np.arange(len(values) + 1)
    kind, reason = _kind(outputs.kind, values, moment)
    return Answers(kind, values[:, 0] if kind == "numbers" else values, offsets.astype(np.int64), reason)


def _kind(kind: str, values: np.ndarray, moment: Moment) -> tuple[str, str]:
    if kind == "nll":
        return "nll", ""
    model = moment.run.manifest.get("model", {})
    if kind == "token_logits":
        if "QuestionAnswering" in str(model.get("model_class", "")):
            return "other", "outputs of question answering are positions, not classes"
        return "token classes", ""
    labels = moment.run.probe_set.labels
    if labels is not None and labels.ndim > 1:
        return "other", "outputs with several labels per example are no single distribution"
    return ("numbers" if values.shape[-1] == 1 else "classes"), ""
