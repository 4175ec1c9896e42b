"""Isotropy: whether a cloud of vectors fills its space evenly or lies along a few directions.

All of these depend on the number of samples; :func:`dynprobe.metrics.isotropic_reference` says what even data give.
"""

import torch
from torch import Tensor

from dynprobe.metrics._arrays import (
    Array,
    centre,
    like,
    observations,
    power_of_two,
    resolution,
    symmetric_product,
    unit_columns,
)

_TILE = 64  # dimensions whose correlations with all others fit the cache


def explained_variance_ratio(x: Array, *, center: bool = True) -> Array:
    """Share of the variance along each principal direction, the largest first.

    A first share near 1 means that the vectors lie along one line; equal shares mean an isotropic cloud.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features).
    center
        Whether the mean is taken out. Without it the first share is mostly that of the mean direction.

    Returns
    -------
    Array
        Shape (..., min(n_samples, n_features)), descending, each in [0, 1], sum 1.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or vectors without any variance (all equal; all zero uncentred).

    Notes
    -----
    Squared singular values over their sum, as the eigenvalues of the smaller Gram matrix: exact to rounding of the first.
    Zhou, Lin and Ren (2021), "IsoBN", report the first three of [CLS].

    Examples
    --------
    >>> import numpy as np
    >>> explained_variance_ratio(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    array([0.5, 0.5])
    """
    data = observations("x", x)
    values = _variances(_centred(data, x) if center else _unit_largest(data))
    return like(values / values.sum(dim=-1, keepdim=True), x)


def participation_ratio(x: Array) -> Array:
    """Number of directions that share the variance, counted as (sum of λ)² / (sum of λ²).

    1 for vectors along one line, n_features for an isotropic cloud.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features).

    Returns
    -------
    Array
        Shape (...), in [1, min(n_samples - 1, n_features)].

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or samples that are all equal.

    Notes
    -----
    λ are the eigenvalues of the covariance; computed as trace² over squared Frobenius norm, without an eigendecomposition.
    Unchanged by translation, scaling and rotation.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(participation_ratio(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))), 12)
    2.0
    """
    return like(_participation(_centred(observations("x", x), x)), x)


def effective_rank(x: Array) -> Array:
    """Number of directions that share the variance, counted as exp of the entropy of the variance shares.

    1 for vectors along one line, n_features for an isotropic cloud; weighs small directions more than
    :func:`participation_ratio`.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features).

    Returns
    -------
    Array
        Shape (...), in [1, min(n_samples - 1, n_features)].

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or samples that are all equal.

    Notes
    -----
    exp(-Σ p ln p) over the shares p of :func:`explained_variance_ratio`. Roy and Vetterli (2007) take the entropy of singular
    values; here it is that of their squares, the variances.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(effective_rank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))), 12)
    2.0
    """
    data = _centred(observations("x", x), x)
    values = _variances(data)
    shares = values / values.sum(dim=-1, keepdim=True)
    highest = float(min(data.shape[-2] - 1, data.shape[-1]))
    return like((-torch.special.xlogy(shares, shares).sum(dim=-1)).exp().clamp(1.0, highest), x)


def isoscore(x: Array) -> Array:
    """IsoScore: 0 for vectors along one line, 1 for an isotropic cloud.

    Roughly the share of dimensions that are used evenly.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features), at least two features.

    Returns
    -------
    Array
        Shape (...), in [0, 1].

    Raises
    ------
    ValueError
        For fewer than two samples or features, non-finite entries, or samples that are all equal.

    Notes
    -----
    (participation ratio - 1) / (n_features - 1), which is equal to the published recipe of Rudman et al. (2022), "IsoScore:
    Measuring the Uniformity of Embedding Space Utilization". Unchanged by translation, scaling and rotation.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(isoscore(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))), 12)
    1.0
    """
    data = observations("x", x)
    if data.shape[-1] < 2:
        raise ValueError(f"`x` must have at least 2 features for an IsoScore; got {data.shape[-1]}")
    value = (_participation(_centred(data, x)) - 1) / (data.shape[-1] - 1)
    return like(value.clamp(0.0, 1.0), x)


def dimension_std(x: Array) -> Array:
    """Standard deviation of each dimension, in the unit of the vectors.

    0 for a dead dimension; a few values far above the rest are rogue dimensions.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features).

    Returns
    -------
    Array
        Shape (..., n_features), at least 0. Divided by n_samples (biased), as IsoBN does.

    Raises
    ------
    ValueError
        For fewer than two samples or non-finite entries.

    Examples
    --------
    >>> import numpy as np
    >>> dimension_std(np.array([[1.0, 5.0], [3.0, 5.0]]))
    array([1., 0.])
    """
    return like(unit_columns(observations("x", x))[2].squeeze(-2), x)


def dimension_correlation(x: Array) -> Array:
    """Pearson correlation between dimensions.

    Off-diagonal values near 0 mean independent dimensions; blocks near ±1 are groups that say the same.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features).

    Returns
    -------
    Array
        Shape (..., n_features, n_features), symmetric, in [-1, 1], diagonal 1. A dimension that does not vary has
        correlation 0 with every other.

    Raises
    ------
    ValueError
        For fewer than two samples or non-finite entries.

    Notes
    -----
    Unchanged by shifting a dimension or scaling it by a positive factor.

    Examples
    --------
    >>> import numpy as np
    >>> dimension_correlation(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])).round(12)
    array([[1., 1.],
           [1., 1.]])
    """
    unit = unit_columns(observations("x", x))[0]
    correlation = (symmetric_product(unit) / unit.shape[-2]).clamp(-1.0, 1.0)
    eye = torch.eye(unit.shape[-1], dtype=torch.bool, device=unit.device)
    return like(torch.where(eye, torch.ones_like(correlation), correlation), x)


def mean_absolute_correlation(x: Array) -> Array:
    """Mean absolute Pearson correlation of two different dimensions.

    Near 0 for independent dimensions, 1 where all dimensions say the same; see :func:`dimension_correlation`.

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features), at least two features.

    Returns
    -------
    Array
        Shape (...), in [0, 1].

    Raises
    ------
    ValueError
        For fewer than two samples or features, or non-finite entries.

    Notes
    -----
    Tile by tile of the matrix of correlations, on and above its diagonal, which is never held.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(mean_absolute_correlation(np.array([[1.0, -2.0], [2.0, -4.0], [3.0, -6.0]]))), 12)
    1.0
    """
    unit = unit_columns(observations("x", x))[0]
    n, d = unit.shape[-2:]
    if d < 2:
        raise ValueError(f"`x` must have at least 2 features for a correlation; got {d}")
    total = torch.zeros_like(unit[..., 0, 0])
    for start in range(0, d, _TILE):
        tile = (unit[..., start : start + _TILE].mT @ unit[..., start:]).div_(n).abs_().clamp_max_(1.0)
        square = tile[..., : tile.shape[-2]]
        total += 2 * tile.sum(dim=(-2, -1)) - square.sum(dim=(-2, -1)) - square.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return like(total / (d * (d - 1)), x)


def mean_cosine(x: Array) -> Array:
    """Mean cosine between pairs of different vectors.

    Near 0 for vectors that point everywhere, near 1 for a narrow cone. Mostly a measure of the mean vector, not of isotropy
    (Rudman et al. 2022).

    Parameters
    ----------
    x
        Shape (..., n_samples, n_features); no vector may be zero.

    Returns
    -------
    Array
        Shape (...), in [-1, 1]; at least -1 / (n_samples - 1).

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or a zero vector.

    Notes
    -----
    From the squared length of the sum of unit vectors, in O(n_samples × n_features). Not centred. Ethayarajh (2019).

    Examples
    --------
    >>> import numpy as np
    >>> float(mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0]])))
    0.0
    """
    data = observations("x", x)
    largest = data.abs().amax(dim=-1, keepdim=True)
    if bool((largest == 0).any()):
        raise ValueError("`x` must hold no zero vector, whose direction is undefined; got at least one")
    unit = torch.nn.functional.normalize(data / largest, dim=-1, eps=0.0)
    n = data.shape[-2]
    value = ((unit.sum(dim=-2) ** 2).sum(dim=-1) - n) / (n * (n - 1))
    return like(value.clamp(-1.0 / (n - 1), 1.0), x)


def _centred(data: Tensor, x: Array) -> Tensor:
    return centre("x", data, spacing=resolution(x)).values


def _gram(data: Tensor) -> Tensor:
    """The smaller Gram matrix, of samples or of features; both have the same non-zero eigenvalues."""
    return symmetric_product(data.mT if data.shape[-1] > data.shape[-2] else data)


def _variances(data: Tensor) -> Tensor:
    """Squared singular values, descending."""
    return torch.linalg.eigvalsh(_gram(data)).flip(-1).clamp_min(0.0)


def _participation(centred: Tensor) -> Tensor:
    """(sum of λ)² / (sum of λ²), from trace and norm of the Gram matrix."""
    gram = _gram(centred)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    highest = float(min(centred.shape[-2] - 1, centred.shape[-1]))
    return (trace.square() / gram.square().sum(dim=(-2, -1))).clamp(1.0, highest)


def _unit_largest(data: Tensor) -> Tensor:
    largest = data.abs().amax(dim=(-2, -1), keepdim=True)
    if bool((largest == 0).any()):
        raise ValueError("`x` must not be all zero; got a cloud at the origin, for which the value is undefined")
    return data / power_of_two(largest)
