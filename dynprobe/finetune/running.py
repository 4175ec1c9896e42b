"""What IsoBN and batch normalisation share: running statistics of one vector per example."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """A normalisation by running statistics, which are fp32 buffers whatever type the model has.

    Parameters
    ----------
    n_features
        Width of the vectors.
    momentum
        Weight of the newest batch, in (0, 1].
    sync
        Whether the batches of all processes that train together count as one.

    Raises
    ------
    ValueError
        For an option out of range.
    """

    n_updates: Tensor

    def __init__(self, n_features: int, *, momentum: float, sync: bool) -> None:
        super().__init__()
        if n_features < 1:
            raise ValueError(f"`n_features` must be at least 1; got {n_features}")
        if not 0 < momentum <= 1:
            raise ValueError(f"`momentum` must lie in (0, 1], the weight of the newest batch; got {momentum}")
        self.n_features, self.momentum, self.sync = n_features, momentum, sync
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    def fold(self) -> tuple[Tensor, Tensor]:
        """What the module does in evaluation mode, as ``x * factor + offset``.

        Returns
        -------
        tuple of Tensor
            Factor and offset, each of shape (n_features,), fp32.
        """
        raise NotImplementedError

    def _require_vectors(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.n_features:
            raise ValueError(
                f"`x` must hold one vector of {self.n_features} numbers per example, shape (n_examples, "
                f"{self.n_features}); got {tuple(x.shape)}. The statistics are those of one vector per example, such as "
                f"the pooled [CLS]"
            )

    def _weight_given(self) -> Tensor:
        """Sum of the weights in a running mean that started at 0: what to divide it by; 0 before the first batch."""
        if self.momentum == 1:
            return (self.n_updates > 0).float()
        rate = torch.log1p(torch.tensor(-self.momentum, dtype=torch.float32, device=self.n_updates.device))
        return -torch.expm1(self.n_updates * rate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Move to another device, but leave floating buffers in fp32."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = self._buffers[name]
            if now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device)
        return self
