"""What a method costs beside standard training: floating point operations of matrix products, counted."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dynprobe.finetune.method import Method


def flops_per_batch(method: Method, model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Floating point operations in the matrix products of one batch, forward and backward.

    Parameters
    ----------
    method
        The method, after ``prepare(model)``; ``Method()`` for standard training.
    model
        The model in training mode; its gradients are added to.
    inputs
        One batch with labels.

    Returns
    -------
    int
        A multiplication and an addition are two operations. Element-wise work is not counted.

    Notes
    -----
    With standard training as 1: R3F 2 with the gradient through both passes and 4/3 through one, R-Drop 2, FreeLB its number of
    passes, SMART without teacher about 2.7 with one step (two passes forward and back, one forward, and one back to the noise
    alone). Measurements of the share of dropout are included when the batch is one of those where it is measured.
    """
    with FlopCounterMode(display=False) as counter:
        method.loss(model, inputs).loss.backward()
    return int(counter.get_total_flops())
