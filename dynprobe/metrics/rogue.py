"""Rogue dimensions: single features that carry much of the variance, or of the length, of all vectors."""

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from dynprobe.metrics._arrays import Array, centre, like, observations, resolution

_TIMES = 10  # the variance of each other feature that a rogue one has at least
_CHANCE = 1e-6  # that any feature of an isotropic Gaussian cloud is named


@dataclass(frozen=True)
class RogueDimensions:
    """Features that carry far more than their share; arrays of the kind of the data, the largest share first.

    Attributes
    ----------
    index
        (k,) which features, counted from 0; empty when none is rogue.
    variance_share
        (k,) of the sum of the variances of all features, in [0, 1].
    offset_share
        (k,) of the mean squared length of the vectors: the square of the feature's mean, in [0, 1].
    mean_share
        (k,) of the squared length of the mean vector, in [0, 1]; 0 when the mean vector is zero.
    cosine
        (k,) what the feature adds to the mean cosine between two different vectors; over all features the terms sum to
        :func:`dynprobe.metrics.mean_cosine`.
    share
        The share from which a feature counts as rogue.
    n_features
        Number of features of the data.
    """

    index: Array
    variance_share: Array
    offset_share: Array
    mean_share: Array
    cosine: Array
    share: float
    n_features: int


def rogue_dimensions(x: Array, *, share: float | None = None) -> RogueDimensions:
    """Name the features that alone decide distances, cosines and variances of a representation.

    None in isotropic data; one to five have been reported for most transformers. Linear CKA and Procrustes of such data are
    mostly those of these few features: see `standardize` of :func:`dynprobe.metrics.linear_cka_similarity`.

    Parameters
    ----------
    x
        Shape (n_samples, n_features); no vector may be zero.
    share
        The share, in (0, 1), above which a feature is rogue. By default 10 / (n_features + 9): what a feature holds that varies
        ten times as much as each of the others.

    Returns
    -------
    RogueDimensions
        Float64, of the kind and on the device of `x`.

    Raises
    ------
    ValueError
        For another number of axes, fewer than two samples or features, non-finite entries, samples that are all equal, a zero
        vector, or a share outside (0, 1).

    Notes
    -----
    A feature is named when its part of the variance is above `share`, or when its constant offset holds more than `share` of
    the mean squared length of the vectors. Chance must be ruled out as well: the part of the variance must be above what
    n_samples draws of an isotropic Gaussian, and the part of the mean vector above what a randomly turned vector, puts into any
    feature once in a million times; both are quantiles of beta distributions, of which the share of a coordinate follows one.
    Samples that depend on each other, such as tokens of one sentence, are fewer than they seem, which matters below some tens.
    Unchanged by scaling all features alike.

    Timkey and van Schijndel (2021), "All Bark and No Bite" (contributions to the mean cosine); Kovaleva et al. (2021), "BERT
    Busters" (a few features decide what a transformer computes).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 50))
    >>> rogue_dimensions(x).index.tolist()
    []
    >>> rogue_dimensions(x * np.where(np.arange(50) == 7, 20.0, 1.0)).index.tolist()
    [7]
    """
    data = observations("x", x)
    if data.ndim != 2 or data.shape[-1] < 2:
        raise ValueError(
            f"`x` must be (n_samples, n_features) with at least 2 features; got shape {tuple(data.shape)}. "
            f"Ask for one representation at a time"
        )
    n_samples, n_features = data.shape
    least = _TIMES / (n_features + _TIMES - 1) if share is None else share
    if not 0.0 < least < 1.0:
        raise ValueError(f"`share` must be in (0, 1); got {share}")
    lengths = _lengths(data)
    side = centre("x", data, spacing=resolution(x))
    variance, offset = side.values.square_().mean(dim=0), (side.mean / side.scale).square().squeeze(0)
    variance_share = variance / variance.sum()
    offset_share = offset / (variance.sum() + offset.sum())
    mean_share = offset / torch.where(offset.sum() > 0, offset.sum(), torch.ones_like(offset.sum()))
    varies = (variance_share > least) & (variance_share > _by_chance(n_samples - 1, n_features))
    shifted = (offset_share > least) & (mean_share > _by_chance(1, n_features))
    order = torch.argsort(torch.maximum(variance_share, offset_share), descending=True, stable=True)
    index = order[(varies | shifted)[order]]
    return RogueDimensions(
        index=like(index, x),
        variance_share=like(variance_share[index], x),
        offset_share=like(offset_share[index], x),
        mean_share=like(mean_share[index], x),
        cosine=like(_cosine_terms(data[:, index], lengths), x),
        share=least,
        n_features=n_features,
    )


def _by_chance(n_draws: int, n_features: int) -> float:
    """Share of the squares that one of n_features equal Gaussian features exceeds once in a million times.

    The share of one feature in n_draws independent draws is beta distributed: chi-squared variables over their sum.
    """
    rest, own = n_draws * (n_features - 1) / 2, n_draws / 2
    return float(1.0 - betaincinv(rest, own, _CHANCE / n_features))


def _lengths(data: Tensor) -> tuple[Tensor, Tensor]:
    """Largest magnitude of each vector, and its length over that; their product might overflow."""
    largest = torch.maximum(-data.amin(dim=-1, keepdim=True), data.amax(dim=-1, keepdim=True))
    if bool((largest == 0).any()):
        raise ValueError("`x` must hold no zero vector, whose direction is undefined; got at least one")
    return largest, torch.linalg.vector_norm(data / largest, dim=-1, keepdim=True)


def _cosine_terms(features: Tensor, lengths: tuple[Tensor, Tensor]) -> Tensor:
    """What each of some features adds to the mean cosine between two different vectors, (n_features,)."""
    largest, rest = lengths
    unit = features / largest / rest
    n_samples = features.shape[0]
    return (unit.sum(dim=0).square() - unit.square().sum(dim=0)) / (n_samples * (n_samples - 1))
