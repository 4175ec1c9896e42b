"""SVCCA on balanced halves of the examples, for an interval: from sums over groups, without a second pass."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, Centred, OneKind, centre, like, paired, symmetric_product
from dynprobe.metrics.resampling import balanced_half_samples
from dynprobe.metrics.subspace import GRAM_UP_TO, check_share, count_kept, factor, mean_correlation

N_GROUPS = (4, 8, 16)


def svcca_half_samples(
    x: OneKind, y: OneKind, groups: Array, *, variance: float = 0.99, n_kept: tuple[int, int] | None = None
) -> OneKind:
    """SVCCA on balanced halves of the rows, from the Gram matrices of the groups: one pass over the data.

    Parameters
    ----------
    x, y
        Shape (..., n_samples, n_features); the same samples row by row.
    groups
        (n_samples,) group of each row: 4, 8 or 16 groups of about equal size. Rows of one example belong in one group.
    variance
        Share of the variance kept of each side, in (0, 1].
    n_kept
        Keep exactly so many directions of `x` and of `y` instead (at most the numerical rank). Intervals need it: with a
        number chosen anew on each half they are too short.

    Returns
    -------
    Array
        (..., n_groups - 1) SVCCA on each half of :func:`~dynprobe.metrics.balanced_half_samples`, whose columns are the groups
        in ascending order; each in [0, 1].

    Raises
    ------
    ValueError
        For another number of groups or a wrong number of rows, or when the rows of a half are all equal.

    Notes
    -----
    The moments of a half are sums of those of its groups, each about its own mean (Chan, Golub and LeVeque 1983), so nothing
    cancels; then small eigenproblems only. Memory: n_groups times the squared sum of the widths. Agrees with factoring the
    rows of the half to the accuracy of the Gram matrices; shares above 0.999 are refactored.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [4.0], [8.0], [9.0], [3.0], [2.0], [5.0]])
    >>> svcca_half_samples(x, -x, np.arange(8) // 2).round(12).tolist()
    [1.0, 1.0, 1.0]
    """
    check_share(variance)
    if n_kept is not None and not (isinstance(n_kept, tuple) and len(n_kept) == 2 and min(n_kept) >= 1):
        raise ValueError(f"`n_kept` must be two numbers of directions, each at least 1; got {n_kept!r}")
    first, second = paired(x, y)
    labels = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    names = np.unique(labels)
    if labels.shape != (first.values.shape[-2],) or len(names) not in N_GROUPS:
        raise ValueError(
            f"`groups` must give one of 4, 8 or 16 groups to each of {first.values.shape[-2]} rows; got shape "
            f"{labels.shape} with {len(names)} group(s)"
        )
    members = [torch.as_tensor(np.flatnonzero(labels == name), device=first.values.device) for name in names]
    halves = [np.flatnonzero(row).tolist() for row in balanced_half_samples(len(names))]
    wanted = n_kept or (None, None)
    if n_kept is None and variance > GRAM_UP_TO:
        return like(_refactored(first, second, members, halves, variance), x, y)
    leading = torch.broadcast_shapes(first.values.shape[:-2], second.values.shape[:-2])
    joint = torch.cat([side.values.expand(*leading, *side.values.shape[-2:]) for side in (first, second)], dim=-1)
    parts = [_moments(joint.index_select(-2, rows)) for rows in members]
    values = []
    for half in halves:
        gram, n_rows = _pooled_gram([parts[group] for group in half]), sum(len(members[group]) for group in half)
        values.append(_svcca_of_gram(gram, first, second, variance, wanted, n_rows=n_rows))
    return like(torch.stack(values, dim=-1), x, y)


def _refactored(
    first: Centred, second: Centred, members: list[Tensor], halves: list[list[int]], variance: float
) -> Tensor:
    values = []
    for half in halves:
        kept = torch.cat([members[group] for group in half])
        a, b = (factor(_kept_rows(name, side, kept), variance) for name, side in (("x", first), ("y", second)))
        values.append(mean_correlation(a, b))
    return torch.stack(values, dim=-1)


def _kept_rows(name: str, side: Centred, rows: Tensor) -> Centred:
    """Some rows centred anew, known as exactly as they were given."""
    found = centre(name, side.values.index_select(-2, rows), spacing=0.0)
    return replace(found, rounding=side.rounding / found.scale[..., 0, 0])


def _moments(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean (..., 1, d) and Gram matrix about the mean (..., d, d) of some rows."""
    mean = rows.mean(dim=-2, keepdim=True)
    centred = rows - mean
    return rows.shape[-2], mean, symmetric_product(centred)


def _pooled_gram(parts: list[tuple[int, Tensor, Tensor]]) -> Tensor:
    """Gram matrix about the common mean of several groups of rows."""
    counts = torch.tensor([count for count, _, _ in parts], dtype=parts[0][1].dtype, device=parts[0][1].device)
    means = torch.cat([mean for _, mean, _ in parts], dim=-2)
    weights = counts.unsqueeze(-1)
    between = (means - (weights * means).sum(dim=-2, keepdim=True) / counts.sum()) * weights.sqrt()
    return sum((gram for _, _, gram in parts), between.mT @ between)


def _svcca_of_gram(
    gram: Tensor, x: Centred, y: Centred, variance: float, wanted: tuple[int | None, int | None], *, n_rows: int
) -> Tensor:
    """SVCCA from the joint Gram matrix of two centred representations."""
    d_x = x.values.shape[-1]
    white_x, k_x = _whitening("x", gram[..., :d_x, :d_x], x.rounding, variance, wanted[0], n_rows=n_rows)
    white_y, k_y = _whitening("y", gram[..., d_x:, d_x:], y.rounding, variance, wanted[1], n_rows=n_rows)
    correlations = torch.linalg.svdvals(white_x.mT @ gram[..., :d_x, d_x:] @ white_y).clamp(0.0, 1.0)
    return (correlations.sum(dim=-1) / torch.minimum(k_x, k_y)).clamp(0.0, 1.0)


def _whitening(
    name: str, gram: Tensor, rounding: Tensor, variance: float, wanted: int | None, *, n_rows: int
) -> tuple[Tensor, Tensor]:
    """Map (..., d, k) onto orthonormal variates, zero beyond a member's own number of directions, and that number."""
    values, vectors = torch.linalg.eigh(gram)
    singular = values.flip(-1).clamp_min(0.0).sqrt()
    # the rows as a whole are of size 1; what is left must stand out from the rounding of their means
    if bool((singular[..., 0] <= 4 * torch.finfo(gram.dtype).eps * n_rows**0.5).any()):
        raise ValueError(f"`{name}` must vary in each half of the groups; got a half whose rows are all equal")
    known, shape = rounding.expand(singular.shape[:-1]), (n_rows, gram.shape[-1])
    kept = count_kept(singular, variance, rounding=known, shape=shape, n_kept=wanted)
    k = int(kept.max())
    mask = torch.arange(k, device=kept.device) < kept.unsqueeze(-1)
    scale = torch.where(mask, 1 / torch.where(mask, singular[..., :k], torch.ones_like(singular[..., :k])), 0.0)
    return vectors.flip(-1)[..., :k] * scale.unsqueeze(-2), kept
