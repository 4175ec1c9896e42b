"""Mean and covariance of the global batch: over all processes that train together."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class Moments(NamedTuple):
    """First and second moments of a batch of vectors, fp32.

    Attributes
    ----------
    n
        Number of vectors, shape ().
    mean
        Shape (n_features,).
    covariance
        Divided by n, shape (n_features, n_features).
    """

    n: Tensor
    mean: Tensor
    covariance: Tensor


def several_processes() -> bool:
    """Whether this process trains together with others.

    Returns
    -------
    bool
        True when ``torch.distributed`` is initialised with more than one process.
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def batch_moments(x: Tensor, *, sync: bool) -> Moments:
    """Mean and covariance of a batch, without gradient.

    Parameters
    ----------
    x
        Shape (n_examples, n_features), any floating type; computed in fp32.
    sync
        Whether the batches of all processes count as one; then all must call this together.

    Returns
    -------
    Moments
        The same on all processes.

    Notes
    -----
    Two passes over values shifted by their largest: a feature that does not vary has a variance of exactly 0, and a large
    mean costs no digits.
    """
    x = x.detach().float()
    shift = x.amax(dim=0) if len(x) else x.new_full(x.shape[1:], -torch.inf)
    reduce = sync and several_processes()
    if reduce:
        dist.all_reduce(shift, op=dist.ReduceOp.MAX)
    sums = torch.cat([(x - shift).sum(dim=0), x.new_tensor([float(len(x))])])
    if reduce:
        dist.all_reduce(sums)
    n = sums[-1]
    offset = sums[:-1] / n
    centred = x - shift - offset
    products = centred.mT @ centred
    if reduce:
        dist.all_reduce(products)
    return Moments(n, shift + offset, products / n)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; its derivative is the same sum of the derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(x: Tensor, *, sync: bool) -> Tensor:
    """Sum of a tensor over all processes that train together, with gradient.

    Parameters
    ----------
    x
        Any shape.
    sync
        Whether to sum at all.

    Returns
    -------
    Tensor
        `x` itself when there is one process.
    """
    if not (sync and several_processes()):
        return x
    total: Tensor = _SumOverProcesses.apply(x)
    return total
