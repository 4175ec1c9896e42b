"""How far two passes through a model disagree, as a differentiable number: symmetric KL or squared difference."""

import torch
from torch import Tensor
from torch.nn import functional

KINDS = ("auto", "kl", "squared")
REDUCTIONS = ("mean", "sentence", "fairseq", "parlai", "sum")


def symmetric_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Symmetric Kullback–Leibler divergence KL(p‖q) + KL(q‖p) of softmax distributions, in nats, with gradient.

    0 where both give the same probabilities. Two passes of a BERT with dropout 0.1 are about 0.1 apart at the start of a
    fine-tuning, two without dropout and with noise 1e-5 about 1e-9.

    Parameters
    ----------
    p_logits, q_logits
        Shape (..., n_classes), n_classes at least 2.

    Returns
    -------
    Tensor
        Shape (...), float32 (float64 for float64), at least 0 up to rounding.

    Raises
    ------
    ValueError
        For fewer than two classes, where it would be 0 whatever the model says.

    Notes
    -----
    Computed as Σ (p - q)(ln p - ln q), whose terms are all non-negative; the sum of two one-sided divergences loses the
    digits that matter when p and q are close. Classes with logit -inf on both sides count as 0.
    Aghajanyan et al. (2021), section 3.

    Examples
    --------
    >>> round(float(symmetric_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))), 7)
    0.9242343
    """
    _require_classes(p_logits)
    log_p, log_q = _log_softmax(p_logits), _log_softmax(q_logits)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)


def symmetric_kl_of_labels(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Symmetric KL of independent yes/no labels, summed over the labels, in nats: for multi-label classification.

    Each label adds (σ(a) - σ(b))(a - b) for logits a and b.

    Examples
    --------
    >>> round(float(symmetric_kl_of_labels(torch.tensor([1.0]), torch.tensor([0.0]))), 6)
    0.231059
    """
    p, q = _wide(p_logits), _wide(q_logits)
    return ((p.sigmoid() - q.sigmoid()) * (p - q)).sum(dim=-1)


def squared_difference(p: Tensor, q: Tensor) -> Tensor:
    """Squared difference of two predictions, averaged over the last axis: for regression.

    Examples
    --------
    >>> float(squared_difference(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])))
    2.0
    """
    return (_wide(p) - _wide(q)).square().mean(dim=-1)


def detached_symmetric_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """As :func:`symmetric_kl`, but each side is compared with the other held fixed, as mt-dnn does it.

    The value is the same; the gradient lacks how each side moves as a target.
    """
    _require_classes(p_logits)
    log_p, log_q = _log_softmax(p_logits), _log_softmax(q_logits)
    fixed_p, fixed_q = log_p.detach(), log_q.detach()
    return (fixed_q.exp() * (fixed_q - log_p) + fixed_p.exp() * (fixed_p - log_q)).sum(dim=-1)


def mt_dnn_stable_kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    """What mt-dnn climbs and calls a stable KL: 2 Σ p (logit p - logit q), its second factor held fixed.

    No divergence: it can be negative, and is 22.1 where the KL is 5.47. Shape (...).

    Examples
    --------
    >>> round(float(mt_dnn_stable_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))), 4)  # KL(p‖q) is 0.4621
    1.8485
    """
    epsilon = 1e-6
    p, q = _log_softmax(logits).exp(), _log_softmax(target_logits).exp()
    log_odds_p = -(1 / (p + epsilon) - 1 + epsilon).detach().log()
    log_odds_q = -(1 / (q + epsilon) - 1 + epsilon).detach().log()
    return (p * (log_odds_p - log_odds_q) * 2).sum(dim=-1)


def reduced(values: Tensor, real: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """One number from the divergences of all examples or tokens.

    Parameters
    ----------
    values
        Shape (n_examples,) or (n_examples, n_tokens).
    real
        Which of them count, same shape; all by default.
    reduction
        ``"mean"``: mean over what counts. ``"sentence"``: sum over what counts, per example. As published code does it,
        padding included: ``"fairseq"``: sum over everything, per example; ``"parlai"``: sum over everything, per example or
        token that counts; ``"sum"``: plain sum (PyText), which grows with the batch.

    Returns
    -------
    Tensor
        Scalar; 0 where nothing counts.

    Examples
    --------
    >>> values, real = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> [float(reduced(values, real, reduction=name)) for name in ("mean", "sentence", "fairseq", "parlai", "sum")]
    [1.5, 3.0, 12.0, 6.0, 12.0]
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"`reduction` must be one of {list(REDUCTIONS)}; got {reduction!r}")
    n_real: int | Tensor = values.numel() if real is None else real.sum().clamp_min(1)
    if real is not None and reduction in ("mean", "sentence"):
        values = torch.where(real, values, torch.zeros_like(values))
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (n_real if reduction in ("mean", "parlai") else values.shape[0])


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _log_softmax(logits: Tensor) -> Tensor:
    logs = functional.log_softmax(_wide(logits), dim=-1)
    return logs.clamp_min(torch.finfo(logs.dtype).min)  # -inf less -inf is no number


def _require_classes(logits: Tensor) -> None:
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits must have at least two classes on the last axis; got shape {tuple(logits.shape)}, whose KL divergence "
            "is 0 whatever the model says. Use the squared difference (`divergence='squared'`)"
        )
