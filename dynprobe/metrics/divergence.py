"""Divergences between distributions: Jensen–Shannon for attention, symmetric KL for what two models say."""

import math

import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, like, to_float64

# phi(r) = 1/2 [(1+r) ln(1+r) + (1-r) ln(1-r)] = sum over k >= 1 of r^2k / (2k (2k-1)); below this |r| eight terms are exact.
_SERIES_BELOW = 0.125
_SERIES = tuple(1.0 / (2 * k * (2 * k - 1)) for k in range(1, 9))


def js_divergence(p: Array, q: Array) -> Array:
    """Jensen–Shannon divergence between distributions on the last axis, in nats.

    0 where the distributions are equal, ln 2 = 0.693 where they share no support. Between a checkpoint and one early in
    fine-tuning, attention typically differs by 1e-6 to 1e-2.

    Parameters
    ----------
    p, q
        Shape (..., n). Non-negative; each row is normalised to sum 1 in float64.

    Returns
    -------
    Array
        Shape (...), in [0, ln 2]; the leading axes broadcast.

    Raises
    ------
    ValueError
        For negative or non-finite entries, rows that sum to zero, or different lengths.

    Notes
    -----
    Symmetric; unchanged by a common permutation of the last axis. Its square root is a metric. Computed without
    cancellation: with s = p + q and r = (p - q) / s it is the sum of s/2 phi(r), where phi(r) = r^2/2 + r^4/12 + ... is
    evaluated as a series for small r; the textbook difference of entropies loses all digits there. What limits it is how
    exactly the inputs are given (float16 attention: about 1e-7). Lin (1991), "Divergence measures based on the Shannon
    entropy".

    Examples
    --------
    >>> import numpy as np
    >>> float(js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])))  # ln 2
    0.6931471805599453
    """
    first, second = _distributions("p", p), _distributions("q", q)
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"`p` and `q` must have the same number of outcomes; got {first.shape[-1]} and {second.shape[-1]}"
        )
    total, difference = first + second, first - second
    ratio = torch.where(
        total > 0, difference / torch.where(total > 0, total, torch.ones_like(total)), torch.zeros_like(total)
    )
    return like((0.5 * total * _phi(ratio)).sum(dim=-1).clamp(0.0, math.log(2.0)), p, q)


def symmetric_kl_divergence(p_logits: Array, q_logits: Array) -> Array:
    """Symmetric Kullback–Leibler divergence KL(p‖q) + KL(q‖p) between softmax distributions, in nats.

    0 where two models give the same probabilities; 0.01 is a barely visible change, above 1 the models disagree.

    Parameters
    ----------
    p_logits, q_logits
        Shape (..., n_classes): unnormalised log-probabilities.

    Returns
    -------
    Array
        Shape (...), at least 0.

    Raises
    ------
    ValueError
        For non-finite logits, fewer than two classes, or different numbers of classes.

    Notes
    -----
    Unchanged when a constant is added to all logits of a row. Computed as the sum of (p - q)(log p - log q), whose terms
    are all non-negative. The trust-region term of R3F (Aghajanyan et al. 2021, eq. 4) is this divergence.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(symmetric_kl_divergence(np.log([0.75, 0.25]), np.log([0.5, 0.5]))), 6)
    0.274653
    """
    first, second = to_float64("p_logits", p_logits), to_float64("q_logits", q_logits)
    if first.ndim == 0 or first.shape[-1] < 2 or first.shape[-1] != second.shape[-1]:
        raise ValueError(
            "`p_logits` and `q_logits` must have the same number of classes, at least 2; "
            f"got shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    terms = (log_p.exp() - log_q.exp()) * (log_p - log_q)
    return like(terms.sum(dim=-1).clamp_min(0.0), p_logits, q_logits)


def _distributions(name: str, value: Array) -> Tensor:
    tensor = to_float64(name, value)
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"`{name}` must have at least one outcome on its last axis; got shape {tuple(tensor.shape)}")
    if bool((tensor < 0).any()):
        raise ValueError(f"`{name}` must hold probabilities, 0 or more; got {float(tensor.min()):.3g}")
    sums = tensor.sum(dim=-1, keepdim=True)
    if bool((sums <= 0).any()):
        raise ValueError(f"`{name}` must hold distributions; got a row that sums to zero. Leave padded rows out")
    return tensor / sums


def _phi(r: Tensor) -> Tensor:
    square = r * r
    series = torch.zeros_like(r)
    for coefficient in reversed(_SERIES):
        series = (series + coefficient) * square
    # xlogy gives 0 at r = ±1, where the limit is 0; log1p is exact where 1 ± r is near 1.
    large = r.abs().clamp_min(_SERIES_BELOW)
    closed = 0.5 * ((1 + large) * torch.log1p(large) + torch.special.xlog1py(1 - large, -large))
    return torch.where(r.abs() < _SERIES_BELOW, series, closed)
