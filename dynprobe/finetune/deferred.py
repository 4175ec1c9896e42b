"""Gradients that are known already, as a term of a loss: its ``backward()`` hands them on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        scale = outer[0]
        gradients = (None if gradient is None else (gradient * scale).to(gradient.dtype) for gradient in ctx.gradients)
        return None, None, *gradients


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """A scalar with this value whose gradient with respect to `parameters` is `gradients`.

    What a method has back-propagated itself so composes with loss scaling, gradient accumulation and data parallelism, which
    all work on the one ``backward()`` of the loop.

    Examples
    --------
    >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> loss = with_gradients(torch.tensor(5.0), [weight], [torch.tensor([3.0, 4.0])])
    >>> (2 * loss).backward()
    >>> loss.item(), weight.grad.tolist()
    (5.0, [6.0, 8.0])
    """
    result: Tensor = _Deferred.apply(value.detach(), list(gradients), *parameters)
    return result
