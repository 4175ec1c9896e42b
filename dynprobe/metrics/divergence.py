"""Divergences between distributions: Jensen–Shannon for attention, symmetric KL for what two models say."""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, check_broadcast, like, power_of_two, to_float64
from dynprobe.metrics.workers import in_parallel

# phi(r) / r^2 = sum over k >= 1 of r^(2k-2) / (2k (2k-1)); below this |r| eight terms are exact.
_SERIES_BELOW = 0.125
_SERIES = tuple(1.0 / (2 * k * (2 * k - 1)) for k in range(1, 9))
# The logarithm of the smallest 1 - |r| that is not 0 is above -37; below that is only that of 0, whose term is 0.
_LOWEST_LOGARITHM = -50.0
# Entries worked on at once: few enough for the caches of a processor, many enough for an accelerator.
_BLOCK = 1 << 16
_BLOCK_ELSEWHERE = 1 << 24


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
    evaluated as a series for small r; the textbook difference of entropies loses all digits there. Rows of float64 that differ
    by 1e-4 of each entry keep 12 digits, by 1e-6 ten. What limits it is how exactly the inputs are given (float16 attention:
    about 1e-7). Worked on in blocks of rows, so that no copy as large as the inputs is made. Lin (1991), "Divergence measures
    based on the Shannon entropy".

    Examples
    --------
    >>> import numpy as np
    >>> float(js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])))  # ln 2
    0.6931471805599453
    """
    first, second = _readable("p", p), _readable("q", q)
    n = first.shape[-1]
    if n != second.shape[-1]:
        raise ValueError(f"`p` and `q` must have the same number of outcomes; got {n} and {second.shape[-1]}")
    check_broadcast("p", first.shape[:-1], "q", second.shape[:-1])
    leading = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    first, second = first.expand(*leading, n), second.expand(*leading, n)
    result = torch.empty(
        leading, dtype=torch.float32 if first.device.type == "mps" else torch.float64, device=first.device
    )

    def of_block(block: tuple[slice, ...]) -> Tensor:
        return _js(_normalised("p", first[block].to(result)), _normalised("q", second[block].to(result)))

    blocks = list(_blocks(leading, (_BLOCK if result.device.type == "cpu" else _BLOCK_ELSEWHERE) // n))
    for block, value in zip(blocks, in_parallel(of_block, blocks), strict=True):
        result[block] = value
    return like(result.clamp_(0.0, math.log(2.0)), p, q)


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


def _readable(name: str, value: Array) -> Tensor:
    """`value` as a tensor, without a copy where torch can read its memory; its entries are not looked at."""
    if isinstance(value, Tensor) and value.is_floating_point():
        tensor = value.detach()
    elif isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64) and _plain(value):
        tensor = torch.from_numpy(value)
    else:
        tensor = to_float64(name, value)
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"`{name}` must have at least one outcome on its last axis; got shape {tuple(tensor.shape)}")
    return tensor


def _plain(array: np.ndarray) -> bool:
    """Whether torch can share the memory of an array."""
    strides = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return strides and array.dtype.isnative and array.flags.behaved


def _blocks(leading: tuple[int, ...], n_rows: int) -> Iterator[tuple[slice, ...]]:
    """Slices of the leading axes that together cover them, each of at most `n_rows` rows (at least one)."""
    steps: list[int] = []
    for size in reversed(leading):
        steps.insert(0, max(1, min(size, n_rows)))
        n_rows //= max(1, size)
    yield from product(
        *(
            [slice(start, start + step) for start in range(0, size, step)]
            for size, step in zip(leading, steps, strict=True)
        )
    )


def _normalised(name: str, rows: Tensor) -> Tensor:
    """Rows of sum 1; the checks read each entry twice and make nothing as large as the rows."""
    total = rows.sum(dim=-1, keepdim=True)
    low = torch.finfo(rows.dtype).tiny ** 0.5
    least, most = torch.aminmax(total)
    if float(rows.amin()) >= 0 and low < float(least) and float(most) < 1 / low:  # false for NaN too
        return rows / total
    return _normalised_unusual(name, rows)


def _normalised_unusual(name: str, rows: Tensor) -> Tensor:
    """Rows of sum 1 where entries are huge or tiny, or the complaint about what cannot be normalised."""
    to_float64(name, rows)  # complains about NaN and Inf
    if bool((rows < 0).any()):
        raise ValueError(f"`{name}` must hold probabilities, 0 or more; got {float(rows.min()):.3g}")
    largest = rows.amax(dim=-1, keepdim=True)
    if bool((largest == 0).any()):
        raise ValueError(f"`{name}` must hold distributions; got a row that sums to zero. Leave padded rows out")
    scaled = rows / power_of_two(largest)  # the sum of huge entries would overflow
    return scaled / scaled.sum(dim=-1, keepdim=True)


def _js(p: Tensor, q: Tensor) -> Tensor:
    """Sum of s/2 phi(r) over each row: by the series where every r of the block is small, else by logarithms."""
    difference, total = p - q, p + q
    ratio = difference / total.clamp_min_(torch.finfo(p.dtype).tiny)  # where both are 0 it is 0
    least, most = torch.aminmax(ratio)
    largest = max(-float(least), float(most))
    if largest < _SERIES_BELOW:
        terms = difference.mul_(ratio)
        return terms.mul_(_series(ratio.square_(), largest**2)).sum(dim=-1).mul_(0.5)
    terms = p.mul_(torch.log1p(ratio).clamp_min_(_LOWEST_LOGARITHM))
    terms += q.mul_(torch.log1p(ratio.neg_()).clamp_min_(_LOWEST_LOGARITHM))
    return terms.sum(dim=-1).mul_(0.5)


def _series(square: Tensor, largest: float) -> Tensor:
    """phi(r) / r^2 from r^2, with as many terms as its largest value needs."""
    exact = torch.finfo(square.dtype).eps / 4
    n_terms = next((k for k in range(1, len(_SERIES)) if largest**k < exact), len(_SERIES))
    value = square.new_full((), _SERIES[n_terms - 1])
    for coefficient in reversed(_SERIES[: n_terms - 1]):
        value = torch.addcmul(square.new_full((), coefficient), value, square)
    return value
