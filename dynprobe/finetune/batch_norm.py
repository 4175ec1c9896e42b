"""Plain batch normalisation of the vector before the classifier: the baseline of IsoBN."""

import torch
from torch import Tensor, nn

from dynprobe.finetune.global_batch import sum_over_processes
from dynprobe.finetune.running import RunningNorm


class BatchNormBaseline(RunningNorm):
    """Batch normalisation of Ioffe and Szegedy (2015): each dimension to mean 0 and variance 1.

    Parameters
    ----------
    n_features
        Width of the vectors.
    momentum
        Weight of the newest batch in the running statistics, in (0, 1].
    eps
        Added to the variance.
    affine
        Whether each dimension gets a trained factor and offset. IsoBN has none.
    smallest_batch
        A training batch of fewer vectors, such as a short last one, is normalised by the running statistics and leaves them
        alone. At least 2.
    sync
        Whether the statistics are those of the global batch when several processes train together.

    Raises
    ------
    ValueError
        For an option out of range.

    Notes
    -----
    Differs from ``torch.nn.BatchNorm1d`` where that one is wrong for fine-tuning: the running statistics are debiased means
    instead of starting at mean 0 and variance 1, a batch of one is no error, statistics stay fp32, processes that train
    together share them on every device, with gradient. The running variance is divided by n - 1, that of a batch by n.
    Before the first batch the module only applies its trained factor and offset.

    Examples
    --------
    >>> norm = BatchNormBaseline(1, eps=1e-12)
    >>> norm(torch.tensor([[1.0], [3.0]])).tolist()
    [[-1.0], [1.0]]
    >>> norm(torch.tensor([[2.0]])).tolist()
    [[0.0]]
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        n_features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        smallest_batch: int = 2,
        sync: bool = True,
    ) -> None:
        super().__init__(n_features, momentum=momentum, sync=sync)
        if not eps > 0:
            raise ValueError(f"`eps` must be above 0; got {eps}")
        if smallest_batch < 2:
            raise ValueError(f"`smallest_batch` must be at least 2, the fewest that vary; got {smallest_batch}")
        self.eps, self.smallest_batch = eps, smallest_batch
        self.weight = nn.Parameter(torch.ones(n_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(n_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(n_features))
        self.register_buffer("running_var", torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch of vectors.

        Parameters
        ----------
        x
            Shape (n_examples, n_features).

        Returns
        -------
        Tensor
            Shape and type of `x`.

        Raises
        ------
        ValueError
            For another shape.
        """
        self._require_vectors(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean, factor = self._known_statistics()
            if self.training:
                mean, factor = self._batch_statistics(wide, mean, factor)
            normed = (wide - mean) * factor
            if self.weight is not None and self.bias is not None:
                normed = normed * self.weight + self.bias
            return normed.to(x.dtype)

    def fold(self) -> tuple[Tensor, Tensor]:
        """What the module does in evaluation mode, as ``x * factor + offset``."""
        mean, factor = self._known_statistics()
        if self.weight is None or self.bias is None:
            return factor, -mean * factor
        factor = factor * self.weight.detach().float()
        return factor, self.bias.detach().float() - mean * factor

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the module."""
        return f"{self.n_features}, momentum={self.momentum}, affine={self.weight is not None}"

    def _known_statistics(self) -> tuple[Tensor, Tensor]:
        """Debiased running mean, and what to multiply by; 0 and 1 before the first batch."""
        weight = self._weight_given()
        seen = self.n_updates > 0
        factor = (self.running_var / weight + self.eps).rsqrt()
        return torch.where(seen, self.running_mean / weight, 0.0), torch.where(seen, factor, 1.0)

    def _batch_statistics(self, x: Tensor, known_mean: Tensor, known_factor: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and factor of the global batch, which enters the running statistics; the known ones for too small a batch."""
        n = sum_over_processes(x.new_tensor([float(len(x))]), sync=self.sync)
        mean = sum_over_processes(x.sum(dim=0), sync=self.sync) / n
        var = sum_over_processes((x - mean).square().sum(dim=0), sync=self.sync) / n
        usable = (n >= self.smallest_batch) & (mean + var).detach().isfinite().all()
        with torch.no_grad():
            unbiased = var.float() * (n / (n - 1).clamp_min(1)).float()
            for running, batch in ((self.running_mean, mean.float()), (self.running_var, unbiased)):
                running.copy_(torch.where(usable, running + self.momentum * (batch - running), running))
            self.n_updates += usable.squeeze(0)
        return torch.where(usable, mean, known_mean), torch.where(usable, (var + self.eps).rsqrt(), known_factor)
