"""Divergences between distributions: Jensen–Shannon for attention, symmetric KL for what two models say."""

import math

import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, check_broadcast, like, power_of_two, to_float64

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
    check_broadcast("p", first.shape[:-1], "q", second.shape[:-1])
    second = second.to(first.device)
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
        Shape (...), at least 0; the leading axes broadcast.

    Raises
    ------
    ValueError
        For non-finite logits, fewer than two classes, different numbers of classes, or a value beyond the range of float64.

    Notes
    -----
    The sum itself, not the mean of the two directions. Unchanged when a constant is added to all logits of a row. With
    δ = ln p - ln q it is Σ q δ (exp δ - 1), whose terms are all non-negative; δ comes from the differences of the logits, so
    that two nearly equal models lose no digits. The trust-region term of R3F (Aghajanyan et al. 2021, section 3) is this
    divergence.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(symmetric_kl_divergence(np.log([0.75, 0.25]), np.log([0.5, 0.5]))), 6)
    0.274653
    """
    first, second = to_float64("p_logits", p_logits), to_float64("q_logits", q_logits)
    if first.ndim == 0 or second.ndim == 0 or first.shape[-1] < 2 or first.shape[-1] != second.shape[-1]:
        raise ValueError(
            "`p_logits` and `q_logits` must have the same number of classes, at least 2; "
            f"got shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    check_broadcast("p_logits", first.shape[:-1], "q_logits", second.shape[:-1])
    second = second.to(first.device)
    delta = _log_ratio(first, second)
    # p (1 - exp(-δ)) where δ > 0 and q (exp δ - 1) elsewhere are both p - q, and neither overflows.
    larger = torch.where(delta > 0, first.log_softmax(dim=-1), second.log_softmax(dim=-1)).exp()
    terms = -larger * delta.abs() * torch.expm1(-delta.abs())
    value = torch.where(larger > 0, terms, torch.zeros_like(terms)).sum(dim=-1)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            "`p_logits` and `q_logits` must differ by less than 1e300; got logits whose divergence overflows"
        )
    return like(value.clamp_min(0.0), p_logits, q_logits)


def _log_ratio(first: Tensor, second: Tensor) -> Tensor:
    """The logarithm of p / q from logits, without cancellation where the two are close."""
    shift = first.shape[-1] - 1  # any class serves as the origin of the differences
    difference = first - second
    difference = difference - difference[..., shift:]
    weights = second.softmax(dim=-1)
    near = difference.abs().amax(dim=-1, keepdim=True) < 1.0
    small = torch.where(near, difference, torch.zeros_like(difference))
    normaliser = torch.log1p((weights * torch.expm1(small)).sum(dim=-1, keepdim=True))
    return torch.where(near, small - normaliser, first.log_softmax(dim=-1) - second.log_softmax(dim=-1))


def _distributions(name: str, value: Array) -> Tensor:
    tensor = to_float64(name, value)
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"`{name}` must have at least one outcome on its last axis; got shape {tuple(tensor.shape)}")
    if bool((tensor < 0).any()):
        raise ValueError(f"`{name}` must hold probabilities, 0 or more; got {float(tensor.min()):.3g}")
    largest = tensor.amax(dim=-1, keepdim=True)
    if bool((largest == 0).any()):
        raise ValueError(f"`{name}` must hold distributions; got a row that sums to zero. Leave padded rows out")
    scaled = tensor / power_of_two(largest)  # the sum of huge entries would overflow
    return scaled / scaled.sum(dim=-1, keepdim=True)


def _phi(r: Tensor) -> Tensor:
    square = r * r
    series = torch.zeros_like(r)
    for coefficient in reversed(_SERIES):
        series = (series + coefficient) * square
    # xlog1py gives 0 at r = ±1, where the limit is 0; log1p is exact where 1 ± r is near 1.
    large = r.abs().clamp_min(_SERIES_BELOW)
    closed = 0.5 * ((1 + large) * torch.log1p(large) + torch.special.xlog1py(1 - large, -large))
    return torch.where(r.abs() < _SERIES_BELOW, series, closed)
