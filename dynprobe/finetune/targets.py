"""What a model predicts, as far as divergences must know: its logits, which of them count, and how two are compared."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dynprobe.finetune.divergences import squared_difference, symmetric_kl, symmetric_kl_of_labels

_IGNORED = -100
_NEXT_TOKEN = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())

Divergence = Callable[[Tensor, Tensor], Tensor]


def core_of(model: nn.Module) -> Any:
    """The transformers model itself, or the base of a PEFT model, as it knows its configuration and embeddings.

    Raises
    ------
    ValueError
        When there is none.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not hasattr(getattr(base, "config", None), "model_type"):
        raise ValueError(
            "the model must be a transformers model (with a `config`), or a PEFT model around one; "
            f"got {type(model).__module__}.{type(model).__name__}"
        )
    return base


def logits_of(outputs: Any) -> Tensor:
    """The logits among what a model returned.

    Raises
    ------
    ValueError
        When there are none, as with losses that are fused into the model.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            "the model's outputs must hold `logits`; got none. A fused loss (Liger) does not make them, and models that return "
            "tuples (`return_dict=False`) do not name them: switch these off"
        )
    return logits


def real_rows(model: nn.Module, inputs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """Which predictions count: those with a label that is not -100, else those at tokens that are not padding.

    Returns
    -------
    Tensor or None
        Boolean, shape of `logits` without its last axis; ``None`` where all count, as for whole-text predictions. For causal
        language models position i counts if token i + 1 does, as it is what position i predicts.

    Raises
    ------
    ValueError
        When labels or mask do not fit the logits.
    """
    if logits.ndim == 2:
        return None
    core = core_of(model)
    if (shifted := inputs.get("shift_labels")) is not None:
        return _fitting("shift_labels", shifted != _IGNORED, logits)
    labels, mask = inputs.get("labels"), inputs.get(_mask_name(core))
    if labels is not None and labels.shape == logits.shape[:-1]:
        real = labels != _IGNORED
    elif mask is not None:
        real = _fitting(_mask_name(core), mask.bool(), logits)
    else:
        return None
    if predicts_next_token(core):
        real = functional.pad(real[:, 1:], (0, 1), value=False)
    return real.to(logits.device)


def divergence_between(model: nn.Module, logits: Tensor, asked: str) -> Divergence:
    """The divergence that fits a model's predictions.

    Parameters
    ----------
    asked
        ``"auto"``: squared difference for regression (one label, or the configuration's problem type), yes/no KL for
        multi-label classification, else symmetric KL; or ``"kl"`` or ``"squared"``.
    """
    problem = getattr(core_of(model).config, "problem_type", None)
    if asked == "squared" or (asked == "auto" and (logits.shape[-1] == 1 or problem == "regression")):
        return squared_difference
    if problem == "multi_label_classification" and logits.ndim == 2:
        return symmetric_kl_of_labels
    return symmetric_kl


def require_divergence(model: nn.Module, asked: str) -> None:
    """Refuse, before training starts, a KL divergence of one label: it is 0 whatever the model says.

    Raises
    ------
    ValueError
        For one label with `asked` ``"kl"``, or in a task that calls itself single-label classification.
    """
    config = core_of(model).config
    one = getattr(config, "num_labels", None) == 1 and not predicts_tokens(core_of(model))
    problem = getattr(config, "problem_type", None)
    if one and (asked == "kl" or (asked == "auto" and problem == "single_label_classification")):
        raise ValueError(
            "the model must have at least two labels for a KL divergence, which is 0 with one; got num_labels=1. Classify with "
            "two labels, or compare by squared difference (`divergence='squared'`, or 'auto' with problem_type 'regression')"
        )


def predicts_next_token(core: Any) -> bool:
    """Whether position i of the logits predicts token i + 1: causal language models."""
    if getattr(core.config, "is_encoder_decoder", False):
        return False
    return getattr(core, "loss_type", None) == "ForCausalLM" or type(core).__name__ in _NEXT_TOKEN


def predicts_tokens(core: Any) -> bool:
    """Whether its classes are the vocabulary: language models, whose number of labels means nothing."""
    head = core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None
    return head is not None


def _mask_name(core: Any) -> str:
    return "decoder_attention_mask" if getattr(core.config, "is_encoder_decoder", False) else "attention_mask"


def _fitting(name: str, real: Tensor, logits: Tensor) -> Tensor:
    if real.shape != logits.shape[:-1]:
        raise ValueError(
            f"`{name}` must have one entry per prediction, shape {tuple(logits.shape[:-1])}; got {tuple(real.shape)}"
        )
    return real.to(torch.bool)
