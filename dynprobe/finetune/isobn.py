"""IsoBN: rescale the vector before the classifier so that large groups of correlated dimensions dominate less."""

import torch
from torch import Tensor

from dynprobe.finetune.global_batch import batch_moments
from dynprobe.finetune.running import RunningNorm


class IsoBN(RunningNorm):
    """Isotropic batch normalisation of Zhou, Lin and Ren (2021): one factor per dimension, without parameters.

    A dimension with a large standard deviation, or one of many that say the same, is made smaller; the total variance stays
    as it is. The mean is not taken out, and the correlations between dimensions are exactly what they were.

    Parameters
    ----------
    n_features
        Width of the vectors, d.
    momentum
        Weight of the newest batch in the running statistics, in (0, 1]. The published code's 0.05.
    beta
        Strength: 0 changes nothing, 1 undoes the differences in size. The published code's 0.5.
    eps
        Added to what is divided by. The published code's 1e-3.
    sync
        Whether the statistics are those of the global batch when several processes train together. All of them must then run
        the module in training mode equally often.
    as_released
        The published code instead of the method: statistics that start at 0 and are never debiased (correlations come out
        20 times too large at first and are clipped), a running mean of standard deviations beside one of covariances,
        NaN before the first batch and for a dimension that does not vary, every process for itself.

    Raises
    ------
    ValueError
        For an option out of range.

    Notes
    -----
    With running covariance C, s = √diag C, R_ij = C_ij / (s_i s_j): γ_i = mean over j of R_ij²,
    θ_i = (γ_i s_i + ε)^(-β), a = √(Σ C_ii / (Σ C_ii θ_i² + ε)), out = x · a θ; section 4 of the paper, constants of its code.
    No gradient flows through the statistics. They are fp32 buffers, whatever type the model has, are updated before they are
    used, and each micro-batch counts as a batch. Before the first batch the module is the identity. A batch of one leaves the
    statistics alone, and so does one with NaN or infinity. A dimension that does not vary is uncorrelated with all others.

    Examples
    --------
    >>> norm = IsoBN(3, momentum=1.0)
    >>> _ = norm(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0], [4.0, 8.0, 1.0]]))
    >>> [round(value, 4) for value in norm.group_share().tolist()], [round(value, 4) for value in norm.scale().tolist()]
    ([0.7333, 0.7333, 0.4667], [1.1851, 0.8382, 2.2181])
    """

    covariance: Tensor
    std: Tensor

    def __init__(
        self,
        n_features: int,
        *,
        momentum: float = 0.05,
        beta: float = 0.5,
        eps: float = 1e-3,
        sync: bool = True,
        as_released: bool = False,
    ) -> None:
        super().__init__(n_features, momentum=momentum, sync=sync)
        if not 0 <= beta <= 1:
            raise ValueError(f"`beta` must lie in [0, 1]; got {beta}")
        if not eps > 0:
            raise ValueError(f"`eps` must be above 0; got {eps}")
        self.beta, self.eps, self.as_released = beta, eps, as_released
        self.register_buffer("covariance", torch.zeros(n_features, n_features))
        self.register_buffer("std", torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Rescale a batch of vectors.

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
            if self.training:
                self.update(x)
            wide = torch.promote_types(x.dtype, torch.float32)
            return (x.to(wide) * self.scale().to(wide)).to(x.dtype)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take a batch into the running statistics.

        Parameters
        ----------
        x
            Shape (n_examples, n_features).
        """
        batch = batch_moments(x, sync=self.sync and not self.as_released)
        std = batch.covariance.diagonal().sqrt()
        covariance = self.covariance + self.momentum * (batch.covariance - self.covariance)
        std = self.std + self.momentum * (std - self.std)
        usable = (batch.n >= 2) & covariance.isfinite().all()
        if self.as_released:
            usable = torch.ones_like(usable)
        self.covariance.copy_(torch.where(usable, covariance, self.covariance))
        self.std.copy_(torch.where(usable, std, self.std))
        self.n_updates += usable

    def group_share(self) -> Tensor:
        """Share of the dimensions that say the same as each one: γ, the mean squared correlation.

        Returns
        -------
        Tensor
            Shape (n_features,), in [1 / n_features, 1]; 1 / n_features for a dimension that is correlated with no other.
            NaN before the first batch, and `as_released` wherever any dimension does not vary.
        """
        covariance, std = self._statistics()
        correlation = covariance / std / std.unsqueeze(1)
        if not self.as_released:
            alive = std > 0
            correlation = torch.where(alive & alive.unsqueeze(1), correlation, 0.0).fill_diagonal_(1.0)
            correlation = torch.where(self.n_updates > 0, correlation, torch.nan)
        return correlation.clamp(-1.0, 1.0).square().mean(dim=1)

    def scale(self) -> Tensor:
        """The factor of each dimension, a θ.

        Returns
        -------
        Tensor
            Shape (n_features,), at least 0; all 1 before the first batch and when no dimension varies.
        """
        covariance, std = self._statistics()
        theta = (self.group_share() * std + self.eps).pow(-self.beta)
        variance = covariance.diagonal()
        total, rescaled = variance.sum(), (variance * theta.square()).sum()
        scale = (total / (rescaled + self.eps)).sqrt() * theta
        if self.as_released:
            return scale
        return torch.where((self.n_updates > 0) & (total > 0), scale, torch.ones_like(scale))

    def fold(self) -> tuple[Tensor, Tensor]:
        """What the module does in evaluation mode, as ``x * factor + offset``; the offset is 0."""
        scale = self.scale()
        return scale, torch.zeros_like(scale)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the module."""
        return f"{self.n_features}, momentum={self.momentum}, beta={self.beta}, as_released={self.as_released}"

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Covariance and standard deviation that the factors are made of."""
        if self.as_released:
            return self.covariance, self.std
        covariance = self.covariance / self._weight_given()
        return covariance, covariance.diagonal().sqrt()
