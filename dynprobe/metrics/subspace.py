"""The principal subspace of a representation: factored once, compared with many others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, observations, resolution, unit_scale

# Up to this share of the variance the smallest kept eigenvalue is far above what squaring loses; beyond, QR and SVD are used.
_GRAM_UP_TO = 0.999
# Directions whose variances differ by less than this many roundings of the input are one tie, kept or left as a whole.
_TIE_ROUNDINGS = 64


@dataclass(frozen=True)
class Subspace:
    """The directions of a representation that carry most of its variance, in sample space.

    Attributes
    ----------
    variates
        (..., n_samples, k) orthonormal columns, the most variance first. In a batch whose members keep different numbers of
        directions, k is the largest of them and the columns beyond a member's own number are zero.
    singular_values
        (..., k) of the centred data divided by its largest entry; zero beyond a member's own number.
    loadings
        (..., n_features, k) orthonormal principal axes; zero beyond a member's own number.
    n_kept
        (...) number of directions kept.
    """

    variates: Tensor
    singular_values: Tensor
    loadings: Tensor
    n_kept: Tensor

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.variates.shape[-2])


def principal_subspace(x: Array, *, variance: float = 0.99, n_kept: int | None = None) -> Subspace:
    """Factor a representation: centre it and keep the directions that carry a share of its variance.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features); rows are observations.
    variance
        Share of the variance to keep, in (0, 1]. The smallest number of directions that reaches it is kept, never more than
        the numerical rank; directions tied with the last kept one are kept as well.
    n_kept
        Keep exactly this many instead (at most the numerical rank).

    Returns
    -------
    Subspace
        Float64, on the device of `x`.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, samples that are all equal, or a share outside (0, 1].

    Notes
    -----
    Unchanged by orthogonal maps of the features, translation and scaling. Up to a share of 0.999 the eigenvectors of the Gram
    matrix (of features or of samples, whichever is smaller) are used: what is kept has then at least about
    0.001/n_features of the largest variance, so squaring costs no visible digit. Beyond, QR and an SVD.
    Raghu et al. (2017), "SVCCA", section 2.

    Examples
    --------
    >>> import numpy as np
    >>> principal_subspace(np.diag([3.0, 3.0, 0.0])).n_kept
    tensor(2)
    """
    if not 0.0 < variance <= 1.0:
        raise ValueError(f"`variance` must be a share in (0, 1]; got {variance}")
    if n_kept is not None and n_kept < 1:
        raise ValueError(f"`n_kept` must be at least 1; got {n_kept}")
    centred = unit_scale(observations("x", x))
    by_gram = n_kept is None and variance <= _GRAM_UP_TO
    variates, values, loadings = _factors_by_gram(centred) if by_gram else _factors_by_svd(centred)
    n_samples, n_features = centred.shape[-2:]
    floor = max(n_samples, n_features) * torch.finfo(centred.dtype).eps
    kept = _n_kept(values, variance, n_kept, floor=floor, tie=_TIE_ROUNDINGS * resolution(x))
    k = int(kept.max())
    mask = torch.arange(k, device=kept.device) < kept.unsqueeze(-1)
    return Subspace(
        variates=variates[..., :k] * mask.unsqueeze(-2),
        singular_values=values[..., :k] * mask,
        loadings=loadings[..., :k] * mask.unsqueeze(-2),
        n_kept=kept,
    )


def subspace_correlations(a: Subspace, b: Subspace) -> Tensor:
    """Canonical correlations between two subspaces of the same samples.

    Parameters
    ----------
    a, b
        Subspaces of the same samples; leading axes broadcast.

    Returns
    -------
    Tensor
        Shape (..., min(k_a, k_b)), descending, in [0, 1]; zero beyond a member's own number of directions.

    Raises
    ------
    ValueError
        For different numbers of samples.

    Notes
    -----
    The singular values of the product of two orthonormal bases (Björck and Golub 1973).
    """
    if a.n_samples != b.n_samples:
        raise ValueError(f"`a` and `b` must hold the same samples; got {a.n_samples} and {b.n_samples}")
    return torch.linalg.svdvals(a.variates.mT @ b.variates).clamp(0.0, 1.0)


def _factors_by_gram(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = x.shape[-1] > x.shape[-2]
    values, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    singular = values.flip(-1).clamp_min(0.0).sqrt()
    vectors = vectors.flip(-1)
    inverse = torch.where(singular > 0, 1 / torch.where(singular > 0, singular, torch.ones_like(singular)), 0.0)
    other = (x.mT if wide else x) @ vectors * inverse.unsqueeze(-2)
    return (vectors, singular, other) if wide else (other, singular, vectors)


def _factors_by_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if x.shape[-2] <= x.shape[-1]:
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        return left, values, right.mT
    q, r = torch.linalg.qr(x)
    left, values, right = torch.linalg.svd(r, full_matrices=False)
    return q @ left, values, right.mT


def _n_kept(values: Tensor, variance: float, n_kept: int | None, *, floor: float, tie: float) -> Tensor:
    """Number of directions kept, per member of the batch."""
    rank = (values > floor * values[..., :1]).sum(dim=-1)
    if n_kept is not None:
        return torch.minimum(rank, torch.full_like(rank, n_kept))
    squares = values**2
    share = squares.cumsum(dim=-1) / squares.sum(dim=-1, keepdim=True)
    enough = (share < variance - 4 * torch.finfo(values.dtype).eps).sum(dim=-1) + 1
    smallest = values.gather(-1, (torch.minimum(enough, rank) - 1).unsqueeze(-1))
    tied = (values >= smallest * (1 - tie)).sum(dim=-1)
    return torch.minimum(tied, rank)
