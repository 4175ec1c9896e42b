"""Similarities of two representations of the same samples: 1 = same, up to what each measure ignores."""

from dataclasses import replace

import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, like, paired
from dynprobe.metrics.subspace import check_share, factor, mean_correlation


def svcca_similarity(x: Array, y: Array, *, variance: float = 0.99) -> Array:
    """Mean canonical correlation between the principal subspaces of two representations (SVCCA).

    1 where one is a rotated, scaled or shifted copy of the other. Unrelated data do not give 0 but a level that grows with the
    number of kept directions over the number of samples; see :func:`dynprobe.metrics.cca_chance_level`.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    variance
        Share of the variance kept of each, in (0, 1].

    Returns
    -------
    Array
        Shape (...), in [0, 1]. The mean is over the smaller number of kept directions.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or samples that are all equal.

    Notes
    -----
    Unchanged by translation, isotropic scaling and orthogonal maps of either side; not by general linear maps. See
    :func:`dynprobe.metrics.principal_subspace` for ties, rank and numerics. Raghu et al. (2017), "SVCCA: Singular Vector
    Canonical Correlation Analysis", with the share taken of the squared singular values.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(svcca_similarity(x, 3 * x[:, ::-1] + 5)), 12)
    1.0
    """
    check_share(variance)
    a, b = (factor(side, variance) for side in paired(x, y))
    return like(mean_correlation(a, b), x, y)


def cca_similarity(x: Array, y: Array) -> Array:
    """Mean canonical correlation between two whole representations (CCA without a cut).

    1 where one is an invertible linear map of the other. Unrelated data reach
    :func:`dynprobe.metrics.cca_chance_level`; with n_samples - 1 <= n_features that is 1, and the value says nothing.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.

    Returns
    -------
    Array
        Shape (...), in [0, 1]. The mean is over the smaller of the two numerical ranks.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or samples that are all equal.

    Notes
    -----
    Unchanged by translation and by every invertible linear map of either side. QR and SVD; directions at the level of the
    rounding of the input are left out, see :func:`dynprobe.metrics.principal_subspace`. Hotelling (1936); Björck and Golub
    (1973).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(cca_similarity(x, x @ np.array([[2.0, 1.0], [0.0, 1.0]]))), 12)
    1.0
    """
    a, b = (factor(side, 1.0) for side in paired(x, y))
    return like(mean_correlation(a, b), x, y)


def pwcca_similarity(x: Array, y: Array) -> Array:
    """Canonical correlations averaged with the weight that each canonical direction has in `x` (PWCCA).

    Not symmetric: swap the arguments for the weights of `y`, and average both if one number is wanted.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.

    Returns
    -------
    Array
        Shape (...), in [0, 1].

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or samples that are all equal.

    Notes
    -----
    With canonical variates h_i of `x` (orthonormal in sample space) the weights are sum over j of |<h_i, x_j>|, x_j the centred
    features of `x`. QR and SVD, full numerical rank. With n_samples <= n_features every correlation is 1. Morcos, Raghu and
    Bengio (2018), "Insights on representational similarity", section 3.2; several published implementations differ from it.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(pwcca_similarity(x, x @ np.array([[2.0, 1.0], [0.0, 1.0]]))), 12)
    1.0
    """
    # Only ratios of weights matter: without the scale, singular values of huge or tiny data stay in range.
    a, b = (factor(replace(side, scale=torch.ones_like(side.scale)), 1.0) for side in paired(x, y))
    left, correlations, _ = torch.linalg.svd(a.variates.mT @ b.variates, full_matrices=False)
    # <h_i, x_j> in the basis of x's own variates: x = variates · diag(singular values) · loadings^T.
    features = torch.as_tensor(a.singular_values).unsqueeze(-1) * a.loadings.mT
    weights = (left.mT @ features).abs().sum(dim=-1)
    n_pairs = torch.minimum(torch.as_tensor(a.n_kept), torch.as_tensor(b.n_kept)).unsqueeze(-1)
    weights = weights * (torch.arange(weights.shape[-1], device=weights.device) < n_pairs)
    return like(((weights * correlations).sum(dim=-1) / weights.sum(dim=-1)).clamp(0.0, 1.0), x, y)


def linear_cka_similarity(x: Array, y: Array, *, debiased: bool = False) -> Array:
    """Linear centred kernel alignment (CKA): how far two representations agree on which samples lie together.

    1 where one is a rotated, scaled or shifted copy of the other. The plain estimate is far above 0 for unrelated data with few
    samples; the debiased one is 0 on average there, and may be slightly negative.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    debiased
        Whether to use the unbiased estimator of the numerator and the denominators; needs four samples.

    Returns
    -------
    Array
        Shape (...), in [0, 1]; debiased in [-1, 1].

    Raises
    ------
    ValueError
        For samples that are all equal, and debiased for fewer than four samples or no measurable similarity structure.

    Notes
    -----
    Unchanged by translation, isotropic scaling and orthogonal maps; not by general linear maps. A few dimensions of large
    variance can decide it alone. Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited"; debiased:
    the estimator of Song et al. (2012), in feature space, so that no n_samples × n_samples matrix is made.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(linear_cka_similarity(x, 2 * x + 1)), 12)
    1.0
    """
    first, second = (side.values for side in paired(x, y))
    if not debiased:
        value = _hsic(first, second) / (_hsic(first, first).sqrt() * _hsic(second, second).sqrt())
        return like(value.clamp(0.0, 1.0), x, y)
    n = first.shape[-2]
    if n < 4:
        raise ValueError(f"debiased CKA needs at least 4 samples; got {n}")
    own_x, own_y = (_unbiased_hsic(side, side) for side in (first, second))
    for name, side, own in (("x", first, own_x), ("y", second, own_y)):
        # Where the estimator is zero, such as with one sample apart from all others, only rounding is left of it.
        rounding = n * torch.finfo(side.dtype).eps * side.square().sum(dim=(-2, -1)).square()
        if bool((own <= rounding).any()):
            raise ValueError(
                f"`{name}` must have similarity structure; got data whose debiased self-similarity is zero"
            )
    value = _unbiased_hsic(first, second) / (own_x.sqrt() * own_y.sqrt())
    return like(value.clamp(-1.0, 1.0), x, y)


def procrustes_similarity(x: Array, y: Array) -> Array:
    """How well one representation can be rotated onto the other: nuclear norm of the product of centred, unit-norm data.

    1 where one is a rotated, scaled or shifted copy of the other, 0 for orthogonal data. Several published distances are
    functions of it: 2 - 2n, sqrt(2 - 2n), arccos(n) and 1 - n.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.

    Returns
    -------
    Array
        Shape (...), in [0, 1].

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, or samples that are all equal.

    Notes
    -----
    Unchanged by translation, isotropic scaling and orthogonal maps. Schönemann (1966); Ding, Denain and Steinhardt (2021),
    "Grounding Representation Similarity with Statistical Testing".

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(procrustes_similarity(x, -x[:, ::-1])), 12)
    1.0
    """
    first, second = (side.values / torch.linalg.matrix_norm(side.values, keepdim=True) for side in paired(x, y))
    if first.shape[-2] < min(first.shape[-1], second.shape[-1]):  # rotated into as many features as there are samples
        first, second = (torch.linalg.qr(side.mT, mode="r").R.mT for side in (first, second))
    return like(torch.linalg.svdvals(first.mT @ second).sum(dim=-1).clamp(0.0, 1.0), x, y)


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frobenius norm of the cross product, by way of the smaller Gram matrices."""
    n_samples = x.shape[-2]
    if n_samples < max(x.shape[-1], y.shape[-1]):
        return ((x @ x.mT) * (y @ y.mT)).sum(dim=(-2, -1))
    return (x.mT @ y).square().sum(dim=(-2, -1))


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate, up to a factor that cancels, from centred data.

    With centred data the rows of the zero-diagonal Gram matrix sum to minus its former diagonal, which leaves three sums.
    """
    n = x.shape[-2]
    k, m = x.square().sum(dim=-1), y.square().sum(dim=-1)
    shared = (k * m).sum(dim=-1)
    return _hsic(x, y) - shared + k.sum(dim=-1) * m.sum(dim=-1) / ((n - 1) * (n - 2)) - 2 / (n - 2) * shared
