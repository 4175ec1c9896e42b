"""Similarities of two representations of the same samples: 1 = same, up to what each measure ignores."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dynprobe.metrics._arrays import (
    Array,
    Centred,
    like,
    paired,
    power_of_two,
    resolution,
    symmetric_product,
    to_float64,
    unit_columns,
)
from dynprobe.metrics._options import BASES, CONVENTIONS, Base, Convention, SmallSample, check_choice, check_samples
from dynprobe.metrics.conventions import anatome_pwcca, anatome_svcca, google_pwcca, google_svcca
from dynprobe.metrics.subspace import Subspace, check_share, factor, mean_correlation


def svcca_similarity(
    x: Array,
    y: Array,
    *,
    variance: float = 0.99,
    standardize: bool = False,
    conventions: Convention = "definition",
    small_sample: SmallSample = "refuse",
) -> Array:
    """Mean canonical correlation between the principal subspaces of two representations (SVCCA).

    1 where one is a rotated, scaled or shifted copy of the other. Unrelated data do not give 0 but a level that grows with the
    number of kept directions over the number of samples; see :func:`dynprobe.metrics.cca_chance_level`.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    variance
        Share of the variance kept of each, in (0, 1].
    standardize
        Whether every feature is first brought to mean 0 and standard deviation 1 (constant ones to 0), so that a few rogue
        dimensions do not fill the share. Rotations then change the value, scales of single features no longer do.
    conventions
        The definition above, or what a published tool computes, to reproduce its numbers: see CONVENTIONS.md and
        :mod:`dynprobe.metrics.conventions`.
    small_sample
        What to do when the kept directions of a side number n_samples - 1 or more, so that the value is 1 whatever the other
        side holds: "refuse" it, or "allow" it.

    Returns
    -------
    Array
        Shape (...), in [0, 1]. The mean is over the smaller number of kept directions.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, samples that are all equal, too few samples for the directions (see
        `small_sample`), or `standardize` together with the convention of a tool.

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
    check_choice("conventions", conventions, CONVENTIONS)
    if conventions != "definition":
        if standardize:
            raise ValueError(f"`standardize` must be left out with the convention of {conventions}; got True")
        published = google_svcca if conventions == "google" else anatome_svcca
        return published(x, y, variance=variance, small_sample=small_sample)
    a, b = (factor(side, variance) for side in _prepared(x, y, standardize))
    _check_samples(a, b, small_sample, remedy="a smaller `variance`")
    return like(mean_correlation(a, b), x, y)


def cca_similarity(x: Array, y: Array, *, small_sample: SmallSample = "refuse") -> Array:
    """Mean canonical correlation between two whole representations (CCA without a cut).

    1 where one is an invertible linear map of the other. Unrelated data reach :func:`dynprobe.metrics.cca_chance_level`.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    small_sample
        What to do when the numerical rank of a side is n_samples - 1 or more, so that the value is 1 whatever the other side
        holds: "refuse" it, or "allow" it.

    Returns
    -------
    Array
        Shape (...), in [0, 1]. The mean is over the smaller of the two numerical ranks.

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, samples that are all equal, or too few samples for the directions (see
        `small_sample`).

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
    a, b = (_whole(side) for side in paired(x, y))
    _check_samples(a, b, small_sample, remedy="svcca_similarity")
    return like(mean_correlation(a, b), x, y)


def pwcca_similarity(
    x: Array,
    y: Array,
    *,
    base: Base = "x",
    conventions: Convention = "definition",
    small_sample: SmallSample = "refuse",
) -> Array:
    """Canonical correlations averaged with the weight that each canonical direction has in one of the sides (PWCCA).

    Not symmetric in `x` and `y` unless `base` is "mean".

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    base
        Whose weights are used: those of "x", those of "y", or the "mean" of both values.
    conventions
        The definition above, or what a published tool computes, to reproduce its numbers (base "x" only): see CONVENTIONS.md
        and :mod:`dynprobe.metrics.conventions`.
    small_sample
        What to do when the numerical rank of a side is n_samples - 1 or more, so that the value is 1 whatever the other side
        holds: "refuse" it, or "allow" it.

    Returns
    -------
    Array
        Shape (...), in [0, 1].

    Raises
    ------
    ValueError
        For fewer than two samples, non-finite entries, samples that are all equal, too few samples for the directions (see
        `small_sample`), or another base together with the convention of a tool.

    Notes
    -----
    With canonical variates h_i of the base (orthonormal in sample space) the weights are sum over j of |<h_i, x_j>|, x_j the
    centred features of the base. QR and SVD, full numerical rank. Morcos, Raghu and Bengio (2018), "Insights on
    representational similarity", section 3.2; several published implementations differ from it.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> round(float(pwcca_similarity(x, x @ np.array([[2.0, 1.0], [0.0, 1.0]]))), 12)
    1.0
    """
    check_choice("base", base, BASES)
    check_choice("conventions", conventions, CONVENTIONS)
    if conventions != "definition":
        if base != "x":
            raise ValueError(f'`base` must be "x" with the convention of {conventions}; got {base!r}. Swap `x` and `y`')
        return (google_pwcca if conventions == "google" else anatome_pwcca)(x, y, small_sample=small_sample)
    a, b = (_whole(side) for side in paired(x, y))
    _check_samples(a, b, small_sample, remedy="svcca_similarity")
    left, correlations, right = torch.linalg.svd(a.variates.mT @ b.variates, full_matrices=False)
    n_pairs = torch.minimum(torch.as_tensor(a.n_kept), torch.as_tensor(b.n_kept)).unsqueeze(-1)
    used = torch.arange(correlations.shape[-1], device=correlations.device) < n_pairs
    values = []
    for name, side, directions in (("x", a, left.mT), ("y", b, right)):
        if base in (name, "mean"):
            weights = _weights(side, directions) * used
            values.append((weights * correlations).sum(dim=-1) / weights.sum(dim=-1))
    return like(torch.stack(values).mean(dim=0).clamp(0.0, 1.0), x, y)


def linear_cka_similarity(x: Array, y: Array, *, debiased: bool = False, standardize: bool = False) -> Array:
    """Linear centred kernel alignment (CKA): how far two representations agree on which samples lie together.

    1 where one is a rotated, scaled or shifted copy of the other. The plain estimate is far above 0 for unrelated data with few
    samples; the debiased one is 0 on average there, and may be slightly negative.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    debiased
        Whether to use the unbiased estimator of the numerator and the denominators; needs four samples.
    standardize
        Whether every feature is first brought to mean 0 and standard deviation 1 (constant ones to 0), so that it counts as
        much as any other. Rotations then change the value, scales of single features no longer do.

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
    first, second = (side.values for side in _prepared(x, y, standardize))
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


def procrustes_similarity(x: Array, y: Array, *, standardize: bool = False) -> Array:
    """How well one representation can be rotated onto the other: nuclear norm of the product of centred, unit-norm data.

    1 where one is a rotated, scaled or shifted copy of the other, 0 for orthogonal data. Several published distances are
    functions of it: 2 - 2n, sqrt(2 - 2n), arccos(n) and 1 - n.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row, the widths may differ.
    standardize
        Whether every feature is first brought to mean 0 and standard deviation 1 (constant ones to 0), so that it counts as
        much as any other. Rotations then change the value, scales of single features no longer do.

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
    sides = [side.values for side in _prepared(x, y, standardize)]
    first, second = (side / torch.linalg.matrix_norm(side, keepdim=True) for side in sides)
    if first.shape[-2] < min(first.shape[-1], second.shape[-1]):  # rotated into as many features as there are samples
        first, second = (torch.linalg.qr(side.mT, mode="r").R.mT for side in (first, second))
    return like(torch.linalg.svdvals(first.mT @ second).sum(dim=-1).clamp(0.0, 1.0), x, y)


def _prepared(x: Any, y: Any, standardize: bool) -> tuple[Centred, Centred]:  # noqa: FBT001
    """Both sides checked and centred, and with every feature of standard deviation 1 if that is wanted."""
    a, b = paired(x, y)
    if not standardize:
        return a, b
    return _standardized(x, a), _standardized(y, b)


def _standardized(given: Any, side: Centred) -> Centred:
    """Every feature with mean 0 and standard deviation 1, or all zero when it is constant."""
    unit, mean, std = unit_columns(to_float64("x", given).to(side.values.device))
    # A unit of the standardised feature is one standard deviation: so much coarser are the numbers as they were given.
    offset = torch.where(std > 0, mean / torch.where(std > 0, std, torch.ones_like(std)), torch.zeros_like(std))
    size = ((std > 0) * (1 + offset.square())).mean(dim=(-2, -1)).sqrt()
    scale = power_of_two(unit.abs().amax(dim=(-2, -1), keepdim=True))
    rounding = resolution(given) * size / scale.squeeze(-1).squeeze(-1)
    return Centred(unit / scale, torch.zeros_like(mean), scale, rounding)


def _whole(side: Centred) -> Subspace:
    """All directions above the rounding of the input, up to the numerical rank, with singular values free of its unit.

    Without the unit, singular values of huge or tiny data stay in range; only their ratios are used.
    """
    return factor(replace(side, scale=torch.ones_like(side.scale)), 1.0, n_kept=side.values.shape[-1])


def _check_samples(a: Subspace, b: Subspace, small_sample: str, *, remedy: str) -> None:
    kept = {name: torch.as_tensor(side.n_kept) for name, side in (("x", a), ("y", b))}
    check_samples(kept, a.n_samples, small_sample, remedy=remedy)


def _weights(side: Subspace, directions: Tensor) -> Tensor:
    """Weight of each canonical direction (rows, in the basis of the variates) in the features of its own side."""
    # <h_i, x_j> in the basis of x's own variates: x = variates · diag(singular values) · loadings^T.
    features = torch.as_tensor(side.singular_values).unsqueeze(-1) * torch.as_tensor(side.loadings).mT
    return (directions @ features).abs().sum(dim=-1)


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frobenius norm of the cross product, by way of the smaller Gram matrices."""
    n_samples = x.shape[-2]
    if n_samples < max(x.shape[-1], y.shape[-1]):
        gram = symmetric_product(x.mT)
        return (gram * (gram if y is x else symmetric_product(y.mT))).sum(dim=(-2, -1))
    return (symmetric_product(x) if y is x else x.mT @ y).square().sum(dim=(-2, -1))


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate, up to a factor that cancels, from centred data.

    With centred data the rows of the zero-diagonal Gram matrix sum to minus its former diagonal, which leaves three sums.
    """
    n = x.shape[-2]
    k, m = x.square().sum(dim=-1), y.square().sum(dim=-1)
    shared = (k * m).sum(dim=-1)
    return _hsic(x, y) - shared + k.sum(dim=-1) * m.sum(dim=-1) / ((n - 1) * (n - 2)) - 2 / (n - 2) * shared
