"""What a model says about a batch, in the smallest form that answers questions later."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynprobe.capture.architecture import Architecture
from dynprobe.capture.measure import Measurement


@dataclass(frozen=True)
class Said:
    """Outputs of one batch.

    Attributes
    ----------
    kind
        ``"logits"`` (one row per example), ``"nll"`` or ``"token_logits"`` (rows of all examples one after another).
    values
        float32.
    lengths
        Number of rows of each example, or ``None`` for ``"logits"``.
    """

    kind: str
    values: np.ndarray
    lengths: np.ndarray | None = None


def what_it_says(measurement: Measurement, architecture: Architecture, vocabulary: int | None) -> Said | None:
    """Logits of each example or token; for language models the negative log-likelihood of each token.

    Parameters
    ----------
    measurement
        One batch.
    architecture
        The model's architecture.
    vocabulary
        Number of tokens that the model can predict, when it predicts tokens.

    Returns
    -------
    Said or None
        ``None`` for a model without a head. Of a causal model the likelihood of token t is given the tokens before it; of
        a masked language model it is that of the visible token itself.
    """
    raw, stack = measurement.raw, architecture.stacks[-1]
    if "start_logits" in raw and "end_logits" in raw:
        return _per_token(torch.stack([raw["start_logits"], raw["end_logits"]], dim=-1), measurement, stack.name)
    logits = raw.get("logits")
    if not isinstance(logits, Tensor):
        return None
    if logits.ndim == 2:
        return Said("logits", _float32(logits))
    if logits.ndim != 3:
        return None
    if vocabulary is not None and logits.shape[-1] >= vocabulary:
        return _negative_log_likelihood(logits, measurement, stack.name, causal=stack.causal)
    return _per_token(logits, measurement, stack.name)


def _negative_log_likelihood(logits: Tensor, measurement: Measurement, stack: str, *, causal: bool) -> Said:
    real = torch.as_tensor(measurement.batch.real[stack], device=logits.device)
    name = "decoder_input_ids" if stack == "decoder" else "input_ids"
    targets = measurement.batch.inputs[name]
    logits = logits[:, -targets.shape[1] :]
    if causal:  # position t predicts token t + 1; both must be real
        logits, targets, real = logits[:, :-1], targets[:, 1:], real[:, 1:] & real[:, :-1]
    values = [
        torch.nn.functional.cross_entropy(logits[i][real[i]].float(), targets[i][real[i]], reduction="none")
        for i in range(len(targets))
    ]
    return Said("nll", _float32(torch.cat(values)), np.array([len(value) for value in values], dtype=np.int64))


def _per_token(logits: Tensor, measurement: Measurement, stack: str) -> Said:
    real = measurement.batch.real[stack]
    kept = logits[:, -real.shape[1] :][torch.as_tensor(real, device=logits.device)]
    return Said("token_logits", _float32(kept), real.sum(axis=1).astype(np.int64))


def _float32(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().float().cpu().numpy())
