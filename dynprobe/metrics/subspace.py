"""The principal subspace of a representation: factored once, compared with many others."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynprobe.metrics._arrays import (
    Array,
    Centred,
    centre,
    check_broadcast,
    like,
    observations,
    resolution,
    symmetric_product,
)

# Up to this share of the variance the smallest kept eigenvalue is far above what squaring loses; beyond, QR and SVD are used.
GRAM_UP_TO = 0.999


@dataclass(frozen=True)
class Subspace:
    """The directions of a representation that carry most of its variance, in sample space.

    The arrays are of the kind of the data that was factored: NumPy arrays or tensors on its device.

    Attributes
    ----------
    variates
        (..., n_samples, k) orthonormal columns, the most variance first. In a batch whose members keep different numbers of
        directions, k is the largest of them and the columns beyond a member's own number are zero.
    singular_values
        (..., k) of the centred data; zero beyond a member's own number.
    loadings
        (..., n_features, k) orthonormal principal axes; zero beyond a member's own number.
    mean
        (..., n_features) what was taken out of each feature.
    n_kept
        (...) number of directions kept.
    """

    variates: Array
    singular_values: Array
    loadings: Array
    mean: Array
    n_kept: Array

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.variates.shape[-2])

    @property
    def n_features(self) -> int:
        """Number of columns of the data."""
        return int(self.loadings.shape[-2])

    def in_float32(self) -> "Subspace":
        """A copy with float32 variates: half the memory and about twice the speed, for an error of 1e-6 in a correlation."""
        variates = torch.as_tensor(self.variates).to(torch.float32)
        return replace(self, variates=like(variates, self.variates))


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
        Float64, of the kind and on the device of `x`.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, samples that are all equal, a share outside (0, 1], an `n_kept`
        below 1, or entries so large that a singular value overflows.

    Notes
    -----
    Unchanged by orthogonal maps of the features, translation and scaling. Up to a share of 0.999 the eigenvectors of the Gram
    matrix (of features or of samples, whichever is smaller) are used: what is kept has then at least about
    0.001/n_features of the largest variance, so squaring costs no visible digit. Beyond, QR and an SVD. Ties and rank are
    judged at the precision in which `x` was given: float32 data of rank 3 have rank 3, although rounding fills all directions.
    Raghu et al. (2017), "SVCCA", section 2.

    Examples
    --------
    >>> import numpy as np
    >>> int(principal_subspace(np.diag([3.0, 3.0, 0.0])).n_kept)
    2
    """
    check_share(variance)
    if n_kept is not None and n_kept < 1:
        raise ValueError(f"`n_kept` must be at least 1; got {n_kept}")
    found = factor(centre("x", observations("x", x), spacing=resolution(x)), variance, n_kept)
    if not bool(torch.isfinite(torch.as_tensor(found.singular_values)).all()):
        raise ValueError("`x` must be far below 1e308; got entries whose singular values overflow. Scale them down")
    return like_subspace(found, x)


def subspace_correlations(a: Subspace, b: Subspace) -> Array:
    """Canonical correlations between two subspaces of the same samples.

    Parameters
    ----------
    a, b
        Subspaces of the same samples; leading axes broadcast.

    Returns
    -------
    Array
        Shape (..., min(k_a, k_b)), descending, in [0, 1]; zero beyond a member's own number of directions.

    Raises
    ------
    ValueError
        For different numbers of samples.

    Notes
    -----
    The singular values of the product of two orthonormal bases (Björck and Golub 1973), in float64; the product itself is in
    the precision of the variates.

    Examples
    --------
    >>> import numpy as np
    >>> line = principal_subspace(np.array([[1.0], [-1.0], [0.0]]))
    >>> [round(float(value), 12) for value in subspace_correlations(line, line)]
    [1.0]
    """
    if a.n_samples != b.n_samples:
        raise ValueError(f"`a` and `b` must hold the same samples; got {a.n_samples} and {b.n_samples}")
    first = torch.as_tensor(a.variates)
    second = torch.as_tensor(b.variates).to(first.device)
    check_broadcast("a", first.shape[:-2], "b", second.shape[:-2])
    common = torch.promote_types(first.dtype, second.dtype)
    cross = (first.to(common).mT @ second.to(common)).to(torch.as_tensor(a.singular_values).dtype)
    return like(torch.linalg.svdvals(cross).clamp(0.0, 1.0), a.variates, b.variates)


def mean_correlation(a: Subspace, b: Subspace) -> Tensor:
    """Mean canonical correlation over the smaller number of directions, (...) in [0, 1]: SVCCA from factored data."""
    correlations = torch.as_tensor(subspace_correlations(a, b))
    smaller = torch.minimum(*(torch.as_tensor(side.n_kept).to(correlations.device) for side in (a, b)))
    return (correlations.sum(dim=-1) / smaller).clamp(0.0, 1.0)


def factor(x: Centred, variance: float, n_kept: int | None = None) -> Subspace:
    """The principal subspace of centred data, as tensors."""
    n_samples, n_features = x.values.shape[-2:]
    by_gram = n_kept is None and variance <= GRAM_UP_TO
    values, left, right = (*_eigenvectors(x.values), None) if by_gram else _singular_vectors(x.values)
    kept = count_kept(values, variance, rounding=x.rounding, shape=(n_samples, n_features), n_kept=n_kept)
    k = int(kept.max())
    values, left = values[..., :k], left[..., :k]
    right = _other_side(x.values, left, values) if right is None else right[..., :k]
    if by_gram and n_features <= n_samples:
        left, right = right, left
    if int(kept.min()) < k:  # zero what lies beyond a member's own number
        mask = torch.arange(k, device=kept.device) < kept.unsqueeze(-1)
        values, left, right = values * mask, left * mask.unsqueeze(-2), right * mask.unsqueeze(-2)
    return Subspace(left, values * x.scale.squeeze(-1), right, x.mean.squeeze(-2), kept)


def count_kept(
    values: Tensor, variance: float, *, rounding: Tensor, shape: tuple[int, int], n_kept: int | None = None
) -> Tensor:
    """Number of directions kept, per member of the batch, from descending singular values (..., k) of data of a shape.

    `rounding` (...) is the spacing e of the data as given, so that an entry is off by e / √12 as a root mean square. Such
    errors spread k equal singular values over at most 4 √k e / √12, add about 2 √(v (1 - v)) e / √12 over the root of the total
    to a share v of the variance, three times which is allowed, and fill empty directions up to e times the sum of the roots
    of both sizes.
    """
    n_samples, n_features = shape
    noise, eps = rounding.unsqueeze(-1), torch.finfo(values.dtype).eps
    squares = values.square()
    squaring = 4 * (n_features + n_samples**0.5) * eps  # error of an eigenvalue of the Gram matrix, of the largest
    floor = torch.maximum(max(shape) * eps * values[..., :1], 4 * noise * (n_samples**0.5 + n_features**0.5))
    rank = (values > floor).sum(dim=-1).clamp_min(1)
    if n_kept is not None:
        return rank.clamp_max(n_kept)
    if variance == 1.0:
        return rank
    total = squares.sum(dim=-1, keepdim=True)
    slack = squaring + 2 * noise * (variance * (1 - variance)) ** 0.5 / total.sqrt()
    enough = torch.minimum((squares.cumsum(dim=-1) / total < variance - slack).sum(dim=-1) + 1, rank)
    smallest = squares.gather(-1, (enough - 1).unsqueeze(-1))
    tie = squaring * squares[..., :1] + 2.5 * noise * min(shape) ** 0.5 * smallest.sqrt()
    return torch.minimum((squares >= smallest - tie).sum(dim=-1), rank)


def check_share(variance: float) -> None:
    """Complain about a share of the variance outside (0, 1]."""
    if not 0.0 < variance <= 1.0:
        raise ValueError(f"`variance` must be a share in (0, 1]; got {variance}")


def like_subspace(subspace: Subspace, x: Array) -> Subspace:
    """The subspace with arrays of the kind of `x`."""
    return Subspace(**{name: like(getattr(subspace, name), x) for name in Subspace.__dataclass_fields__})


def _eigenvectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, and the singular vectors of the shorter side, by the smaller Gram matrix."""
    values, vectors = torch.linalg.eigh(symmetric_product(x.mT if x.shape[-1] > x.shape[-2] else x))
    return values.flip(-1).clamp_min(0.0).sqrt(), vectors.flip(-1)


def _other_side(x: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
    """Singular vectors of the longer side; zero where the singular value is."""
    inverse = torch.where(values > 0, 1 / torch.where(values > 0, values, torch.ones_like(values)), 0.0)
    return ((x.mT if x.shape[-1] > x.shape[-2] else x) @ vectors).mul_(inverse.unsqueeze(-2))


def _singular_vectors(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if x.shape[-2] <= x.shape[-1]:
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        return values, left, right.mT
    q, r = torch.linalg.qr(x)
    left, values, right = torch.linalg.svd(r, full_matrices=False)
    return values, q @ left, right.mT
