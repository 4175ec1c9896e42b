"""SVCCA and PWCCA as two published tools compute them, to reproduce their numbers: see CONVENTIONS.md beside this file."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, Centred, like, paired, symmetric_product
from dynprobe.metrics._options import SmallSample, check_choice, check_samples
from dynprobe.metrics.subspace import Subspace, check_share, factor

_EPSILON = (
    1e-10  # what google/svcca adds to the covariance, whose largest entry is 1, and below which it drops a feature
)
_LEADING = 0.98  # share of the sum of the correlations over which its "mean" is taken


def google_svcca(
    x: Array,
    y: Array,
    *,
    variance: float = 0.99,
    cut: Literal["variance", "singular-values"] = "variance",
    average: Literal["all", "leading"] = "all",
    small_sample: SmallSample = "refuse",
) -> Array:
    """SVCCA as computed with google/svcca: centre, SVD, cut, then its `get_cca_similarity` with epsilon 1e-10.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    variance
        Share kept of each, in (0, 1]. The tool leaves the cut to its user; its tutorial keeps the first 20 directions.
    cut
        What the share is of: the variances, as the paper says, or the singular values, as some users of the tool take it.
    average
        Over all correlations ("all", the mean of its `cca_coef1`), or over the leading ones that hold 98 % of their sum
        ("leading", its `mean`), which is never lower.
    small_sample
        See :func:`dynprobe.metrics.svcca_similarity`.

    Returns
    -------
    Array
        Shape (...), in [0, 1); 1 - 1e-10 at best, since epsilon is added to the variances.

    Raises
    ------
    ValueError
        As :func:`dynprobe.metrics.svcca_similarity`.

    Notes
    -----
    In the basis of the SVD the covariance is diagonal, with variances l as shares of the first: each entry of the correlation
    matrix is that of the definition times sqrt(l / (l + epsilon)) of both sides. Raghu et al. (2017); github.com/google/svcca.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(google_svcca(x, 3 * x)), 8)
    1.0
    """
    check_share(variance)
    check_choice("cut", cut, ("variance", "singular-values"))
    sides = dict(zip("xy", paired(x, y), strict=True))
    kept = {name: _google_directions(side, variance, cut) for name, side in sides.items()}
    n_samples = sides["x"].values.shape[-2]
    check_samples({name: n for name, (_, n) in kept.items()}, n_samples, small_sample, remedy="a smaller `variance`")
    (a, n_a), (b, n_b) = kept["x"], kept["y"]
    return like(_google_average(torch.linalg.svdvals(a.mT @ b), torch.minimum(n_a, n_b), average), x, y)


def google_cca(
    x: Array, y: Array, *, average: Literal["all", "leading"] = "all", small_sample: SmallSample = "refuse"
) -> Array:
    """CCA of whole representations as google/svcca's `get_cca_similarity` computes it with epsilon 1e-10.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    average
        See :func:`google_svcca`.
    small_sample
        See :func:`dynprobe.metrics.cca_similarity`.

    Returns
    -------
    Array
        Shape (...), in [0, 1).

    Raises
    ------
    ValueError
        As :func:`dynprobe.metrics.cca_similarity`, and for rank-deficient or ill-conditioned features, on which the tool
        reports "SVD did not converge".

    Notes
    -----
    Features with less than 1e-10 of the largest variance are left out, as the tool does. It takes the root of the eigenvalues
    of a computed inverse, of which rounding makes some negative where several directions have next to no variance: there it
    fails and this function refuses. Short of that its own values carry an error, by which the correlations may exceed 1 (seen:
    4e-4 at a condition number of 1e8); here they are computed from the covariance itself.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(google_cca(x, x @ np.array([[2.0, 1.0], [0.0, 1.0]]))), 8)
    1.0
    """
    sides = dict(zip("xy", paired(x, y), strict=True))
    _check_widths(sides, small_sample)
    (a, kept_a), (b, kept_b) = (_google_whitened(name, side) for name, side in sides.items())
    n_pairs = torch.minimum(kept_a.sum(dim=-1), kept_b.sum(dim=-1))
    return like(_google_average(torch.linalg.svdvals(a.mT @ b), n_pairs, average), x, y)


def google_pwcca(x: Array, y: Array, *, small_sample: SmallSample = "refuse") -> Array:
    """PWCCA as google/svcca's `compute_pwcca` computes it, which is not the weighting of the paper.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, `x` no wider than `y`.
    small_sample
        See :func:`dynprobe.metrics.pwcca_similarity`.

    Returns
    -------
    Array
        Shape (...), in [0, 1). Depends on the order and the mean of the features.

    Raises
    ------
    ValueError
        As :func:`google_cca`, for an `x` wider than `y`, on which the tool stops with an IndexError, and for features of no
        variance.

    Notes
    -----
    The directions of `x` are taken without the whitening, the mean of feature j is added to direction j, and the result is made
    orthonormal (QR) before the uncentred features are projected on it.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(google_pwcca(x, x @ np.array([[2.0, 1.0], [0.0, 1.0]]))), 8)
    1.0
    """
    sides = dict(zip("xy", paired(x, y), strict=True))
    first, second = sides["x"], sides["y"]
    if first.values.shape[-1] > second.values.shape[-1]:
        raise ValueError(
            f"`x` must not be wider than `y` for google's PWCCA, which stops there with an error; "
            f"got {first.values.shape[-1]} and {second.values.shape[-1]} features. Swap them or use the definition"
        )
    _check_widths(sides, small_sample)
    (a, kept_a), (b, kept_b) = (_google_whitened(name, side) for name, side in sides.items())
    for name, kept in (("x", kept_a), ("y", kept_b)):
        if not bool(kept.all()):
            raise ValueError(
                f"`{name}` must have no feature below 1e-10 of the largest variance for google's PWCCA; "
                f"got {int((~kept).sum())}. Leave them out or use the definition"
            )
    left, correlations, _ = torch.linalg.svd(a.mT @ b, full_matrices=False)
    basis = torch.linalg.qr(first.values @ left + first.mean / first.scale).Q
    weights = (basis.mT @ _uncentred(first)).abs().sum(dim=-1)
    return like(((weights * correlations).sum(dim=-1) / weights.sum(dim=-1)).clamp(0.0, 1.0), x, y)


def anatome_svcca(x: Array, y: Array, *, variance: float = 0.99, small_sample: SmallSample = "refuse") -> Array:
    """SVCCA as moskomule/anatome computes it (its distance is 1 minus this).

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    variance
        Its `accept_rate`, in (0, 1]: a share of the sum of the singular values, not of the variance.
    small_sample
        See :func:`dynprobe.metrics.svcca_similarity`.

    Returns
    -------
    Array
        Shape (...), in [0, 1]. Changes when a constant is added to the features.

    Raises
    ------
    ValueError
        As :func:`dynprobe.metrics.svcca_similarity`, and where the rule keeps no direction at all, such as for data far from
        the origin, or one without variance, on which the tool gives NaN.

    Notes
    -----
    SVD of the data as they are, not centred; the directions before the one at which the cumulated singular values reach the
    share, one fewer than reach it; then centring and CCA; mean over the smaller number of directions.
    github.com/moskomule/anatome, version 0.0.6.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(anatome_svcca(x, 3 * x)), 12)
    1.0
    """
    check_share(variance)
    sides = dict(zip("xy", paired(x, y), strict=True))
    kept = {name: _anatome_reduced(name, side, variance) for name, side in sides.items()}
    n_samples = sides["x"].values.shape[-2]
    check_samples({name: n for name, (_, n) in kept.items()}, n_samples, small_sample, remedy="a smaller `variance`")
    (a, n_a), (b, n_b) = (_basis(name, sides[name], *found)[::2] for name, found in kept.items())
    correlations = torch.linalg.svdvals(a.mT @ b).clamp(0.0, 1.0)
    return like((correlations.sum(dim=-1) / torch.minimum(n_a, n_b)).clamp(0.0, 1.0), x, y)


def anatome_pwcca(x: Array, y: Array, *, small_sample: SmallSample = "refuse") -> Array:
    """PWCCA as moskomule/anatome computes it (its distance is 1 minus this), which is not the weighting of the paper.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    small_sample
        See :func:`dynprobe.metrics.pwcca_similarity`.

    Returns
    -------
    Array
        Shape (...), in [0, 1].

    Raises
    ------
    ValueError
        As :func:`dynprobe.metrics.pwcca_similarity`, and for rank-deficient features, on which the tool gives NaN or a number
        made of rounding.

    Notes
    -----
    The coefficients of the canonical directions of `x` are made orthonormal (QR), not the variates; the weight of a direction
    is the sum over the samples of the absolute projections of the uncentred data. github.com/moskomule/anatome, version 0.0.6.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(anatome_pwcca(x, x @ np.array([[2.0, 1.0], [0.0, 1.0]]))), 12)
    1.0
    """
    sides = dict(zip("xy", paired(x, y), strict=True))
    _check_widths(sides, small_sample)
    first = sides["x"]
    widths = {name: torch.tensor(side.values.shape[-1], device=side.values.device) for name, side in sides.items()}
    (a, coefficients, _), (b, _, _) = (_basis(name, side, side.values, widths[name]) for name, side in sides.items())
    left, correlations, _ = torch.linalg.svd(a.mT @ b, full_matrices=False)
    axes = torch.linalg.qr(coefficients @ left).Q
    weights = (_uncentred(first) @ axes).abs().sum(dim=-2)
    value = (weights * correlations).sum(dim=-1) / weights.sum(dim=-1)
    return like(value.clamp(0.0, 1.0), x, y)


def _google_directions(side: Centred, variance: float, cut: str) -> tuple[Tensor, Tensor]:
    """The kept directions in sample space, each shortened by epsilon, (..., n_samples, k), and their number (...)."""
    found = _all_directions(side)
    values = torch.as_tensor(found.singular_values)
    shares = (values / values[..., :1]).square()
    counted = shares if cut == "variance" else shares.sqrt()
    reached = counted.cumsum(dim=-1) / counted.sum(dim=-1, keepdim=True)
    n_kept = torch.minimum((reached < variance).sum(dim=-1) + 1, torch.as_tensor(found.n_kept))
    kept = (torch.arange(shares.shape[-1], device=shares.device) < n_kept.unsqueeze(-1)) & (shares >= _EPSILON)
    shortened = torch.where(kept, (shares / (shares + _EPSILON)).sqrt(), torch.zeros_like(shares))
    return torch.as_tensor(found.variates) * shortened.unsqueeze(-2), kept.sum(dim=-1)


def _google_whitened(name: str, side: Centred) -> tuple[Tensor, Tensor]:
    """Data with unit covariance up to epsilon, (..., n_samples, n_features), and which features were used."""
    covariance = symmetric_product(side.values)
    largest = covariance.abs().amax(dim=(-2, -1), keepdim=True)
    covariance = covariance / largest
    kept = covariance.diagonal(dim1=-2, dim2=-1) >= _EPSILON
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    # What is left out has unit variance here, so that it spoils no condition number, and no data below.
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    covariance = torch.where(both, covariance, eye)
    _check_root(name, covariance + _EPSILON * eye)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * (values.clamp_min(0.0) + _EPSILON).rsqrt().unsqueeze(-2)) @ vectors.mT
    return (side.values / largest.sqrt() * kept.unsqueeze(-2)) @ root, kept


def _check_root(name: str, covariance: Tensor) -> None:
    """Refuse where an eigenvalue of the inverse, of which google/svcca takes the root, is below 0 by rounding."""
    inverse = torch.linalg.pinv(covariance, rtol=1e-15)
    if bool((torch.linalg.eigvalsh(inverse) <= 0).any()):
        spread = torch.linalg.cond(covariance).max()
        raise ValueError(
            f"`{name}` must be far from rank-deficient for google's CCA, which does not converge there; got variances that "
            f"span a factor of {float(spread):.1e}. Use the definition, or svcca_similarity"
        )


def _google_average(correlations: Tensor, n_pairs: Tensor, average: str) -> Tensor:
    """The mean over all correlations, or over the leading ones that hold 98 % of the sum."""
    check_choice("average", average, ("all", "leading"))
    total = correlations.sum(dim=-1, keepdim=True)
    if average == "leading":
        before = correlations.cumsum(dim=-1) - correlations
        leading = (before < _LEADING * total) & (total > 0)
        total = (correlations * leading).sum(dim=-1, keepdim=True)
        n_pairs = leading.sum(dim=-1).clamp_min(1)
    return (total.squeeze(-1) / n_pairs).clamp(0.0, 1.0)


def _anatome_reduced(name: str, side: Centred, variance: float) -> tuple[Tensor, Tensor]:
    """Data on the directions that are kept, centred after the cut, (..., n_samples, k), and their number (...)."""
    data = _uncentred(side)
    if data.shape[-2] > data.shape[-1]:
        q, r = torch.linalg.qr(data)
        left, values, _ = torch.linalg.svd(r, full_matrices=False)
        left = q @ left
    else:
        left, values, _ = torch.linalg.svd(data, full_matrices=False)
    reached = values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True)
    n_kept = (reached < variance).sum(dim=-1)
    if bool((n_kept == 0).any()):
        raise ValueError(
            f"`{name}` must spread over several directions for anatome's SVCCA, which keeps those before the share is "
            f"reached; got a first one that holds {float(reached[..., 0].max()):.4f} of {variance}, so that none is left. "
            f"Centre the data, or use the definition"
        )
    k = int(n_kept.max())
    mask = torch.arange(k, device=n_kept.device) < n_kept.unsqueeze(-1)
    reduced = left[..., :k] * (values[..., :k] * mask).unsqueeze(-2)
    return reduced - reduced.mean(dim=-2, keepdim=True), n_kept


def _basis(name: str, side: Centred, centred: Tensor, n_columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal basis of columns made of a side, the coefficients that make it of them, and the number of columns (...)."""
    q, r = torch.linalg.qr(centred)
    left, values, right = torch.linalg.svd(r, full_matrices=False)
    used = torch.arange(values.shape[-1], device=values.device) < n_columns.unsqueeze(-1)
    # What centring leaves of a direction that is all mean is rounding of the data as they were.
    before = torch.linalg.matrix_norm(_uncentred(side)).unsqueeze(-1)
    floor = max(centred.shape[-2:]) * torch.finfo(values.dtype).eps * before
    if bool(((values <= floor) & used).any()) or bool((n_columns > values.shape[-1]).any()):
        raise ValueError(
            f"`{name}` must have full rank for anatome's CCA, which divides by its singular values; got a direction without "
            f"variance. Use the definition"
        )
    inverse = torch.where(used, 1 / torch.where(used, values, torch.ones_like(values)), torch.zeros_like(values))
    return (q @ left) * used.unsqueeze(-2), right.mT * inverse.unsqueeze(-2), n_columns


def _uncentred(side: Centred) -> Tensor:
    """The data as given, in the unit of the centred values."""
    return side.values + side.mean / side.scale


def _all_directions(side: Centred) -> Subspace:
    """Every direction above the rounding of float64, with singular values free of the unit of the data."""
    plain = replace(side, rounding=torch.zeros_like(side.rounding), scale=torch.ones_like(side.scale))
    return factor(plain, 1.0, n_kept=side.values.shape[-1])


def _check_widths(sides: dict[str, Centred], small_sample: str) -> None:
    """Refuse as many features as samples."""
    widths = {name: torch.tensor(side.values.shape[-1]) for name, side in sides.items()}
    check_samples(widths, sides["x"].values.shape[-2], small_sample, remedy="svcca_similarity")
