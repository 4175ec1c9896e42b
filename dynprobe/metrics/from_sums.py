"""SVCCA and CKA of two representations from sums over their rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprobe.metrics.rows import Prepared
from dynprobe.metrics.subspace import count_kept
from dynprobe.metrics.sums import CrossSums, SideSums, gram, joined_products


@dataclass(frozen=True)
class Whitening:
    """The directions of one representation, and how many of them are kept.

    Attributes
    ----------
    mean
        (n_features,) of the rows about their shift.
    axes
        (n_features, k) maps centred rows onto orthonormal variates, the most variance first; k is the larger of both numbers.
    n_kept
        How many are kept.
    n_free
        How many the share of the variance alone would keep.
    """

    mean: Tensor
    axes: Tensor
    n_kept: int
    n_free: int

    def kept(self) -> Tensor:
        """(n_features, n_kept) axes that are kept."""
        return self.axes[:, : self.n_kept]


def whiten(
    x: Prepared,
    n: float,
    total: Tensor,
    products: Tensor,
    *,
    variance: float,
    n_kept: int | None = None,
    name: str = "representations",
) -> Whitening:
    """The directions that hold a share of the variance, or a given number of directions.

    Parameters
    ----------
    x
        Prepared rows; says how exactly they are known.
    n, total, products
        Their number, (width,) sum and (width, width) sum of products.
    variance
        Share of the variance in (0, 0.999].
    n_kept
        Keep so many instead, as far as the rank allows.
    name
        What messages call the rows.

    Raises
    ------
    ValueError
        For sums that are not finite, or rows that are all equal.
    """
    require_finite(products, name=name)
    mean, centred = _centred_products(x, n, total, products)
    values, vectors = torch.linalg.eigh(centred)
    singular, vectors = values.flip(-1).clamp_min(0.0).sqrt(), vectors.flip(-1)
    rounding, shape = _rounding(x, n, products, singular, name=name), (int(n), x.n_features)
    free = int(count_kept(singular, variance, rounding=rounding, shape=shape))
    kept = free if n_kept is None else int(count_kept(singular, 1.0, rounding=rounding, shape=shape, n_kept=n_kept))
    most = max(kept, free)
    return Whitening(mean, vectors[:, :most] / singular[:most], kept, free)


def count_directions(x: Prepared, *, variance: float) -> int:
    """How many directions hold a share of the variance: what :func:`whiten` keeps, from eigenvalues alone.

    Parameters
    ----------
    x
        Prepared rows.
    variance
        Share of the variance in (0, 0.999].

    Raises
    ------
    ValueError
        As :func:`whiten`.
    """
    n, (total, products) = float(x.n_samples), gram(x)
    require_finite(products)
    values = torch.linalg.eigvalsh(_centred_products(x, n, total, products)[1])
    singular = values.flip(-1).clamp_min(0.0).sqrt()
    rounding = _rounding(x, n, products, singular)
    return int(count_kept(singular, variance, rounding=rounding, shape=(x.n_samples, x.n_features)))


def require_finite(products: Tensor, *, name: str = "representations") -> None:
    """Complain about sums of rows that were not finite."""
    if not bool(torch.isfinite(products).all()):
        raise ValueError(
            f"`{name}` must be finite, and not grow by more than 1e15 from its first rows on; got NaN, Inf or squares that "
            "overflow. Find the layer and step that made it"
        )


def _centred_products(x: Prepared, n: float, total: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the shifted rows, and products of the features about it."""
    mean = x.joined(total) / n
    return mean, joined_products(x, x, products) - n * torch.outer(mean, mean)


def _rounding(x: Prepared, n: float, products: Tensor, singular: Tensor, *, name: str = "representations") -> Tensor:
    """Spacing of the numbers as they were given, far below the largest singular value unless rows are all equal."""
    size = (products.diagonal().sum() / n + x.offset) / x.n_features
    rounding = x.spacing * size.sqrt()
    if float(singular[0]) <= 4 * float(rounding):
        raise ValueError(f"`{name}` must vary; got samples that are all equal, for which SVCCA is undefined")
    return rounding


def variate_products(a: Prepared, b: Prepared, products: Tensor, n: float, x: Whitening, y: Whitening) -> Tensor:
    """(k_x, k_y) products of the orthonormal variates of two representations, from Σ a bᵀ over prepared rows."""
    centred = joined_products(a, b, products) - n * torch.outer(x.mean, y.mean)
    return x.axes.mT @ centred @ y.axes


def unbiased_hsic(a: Prepared, b: Prepared, x: SideSums, y: SideSums, cross: CrossSums) -> Tensor:
    """Unbiased Hilbert–Schmidt independence criterion of linear kernels, up to a factor that cancels in CKA.

    With centred rows a', b' it needs Σ a' b'ᵀ, Σ |a'|², Σ |b'|² and Σ |a'|² |b'|²; each follows from the sums about the shift.
    Song et al. 2012 (JMLR), equation 5.
    """
    return torch.stack(_hsic_terms(a, b, x, y, cross)).sum()


def self_hsic(a: Prepared, x: SideSums) -> Tensor:
    """Unbiased criterion of one representation with itself; NaN where nothing is left of it but rounding.

    That is so for fewer than four rows, and where the estimator is zero, such as with one row apart from all others.
    """
    terms = torch.stack(_hsic_terms(a, a, x, x, CrossSums(x.products, x.fourths, x.weighted, x.weighted)))
    rounding = 4 * x.n.sqrt() * torch.finfo(a.dtype).eps * terms.abs().sum()
    seen = (x.n >= 4) & (terms.sum() > rounding)
    return torch.where(seen, terms.sum(), torch.nan)


def _hsic_terms(a: Prepared, b: Prepared, x: SideSums, y: SideSums, cross: CrossSums) -> tuple[Tensor, Tensor, Tensor]:
    n = x.n
    mean_a, mean_b = a.joined(x.total) / n, b.joined(y.total) / n
    shifted = joined_products(a, b, cross.products)
    product = shifted - n * torch.outer(mean_a, mean_b)
    far_a, far_b = mean_a @ mean_a, mean_b @ mean_b
    lengths_a, lengths_b = x.squares - n * far_a, y.squares - n * far_b
    shared = (
        cross.squares
        - 2 * (mean_b @ b.joined(cross.weighted_b) + mean_a @ a.joined(cross.weighted_a))
        + 4 * (mean_a @ shifted @ mean_b)
        + far_b * x.squares
        + far_a * y.squares
        - 3 * n * far_a * far_b
    )
    return product.square().sum(), -shared * (1 + 2 / (n - 2)), lengths_a * lengths_b / ((n - 1) * (n - 2))
