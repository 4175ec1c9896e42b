"""SVCCA of many representations with many others: each is factored once, a pair costs one product of the kept directions.

Everything large is a matrix product over blocks of rows, so that representations may lie on disk: the first pass sums the
second moments of each, the second projects each block on the kept directions of all and sums their products.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics.subspace import GRAM_UP_TO, check_share, count_kept
from dynprobe.metrics.workers import in_parallel

SOLVERS = ("auto", "svd", "eigh", "polar")
BLOCK_ROWS = 2048
_GRAM_TILES = 4  # tiles per side; only those on and above the diagonal are computed
_POLAR_STEPS = 40
_POLAR_TOLERANCE = 1e-9

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Rows(Protocol):
    """Observations (n_samples, n_features) that give their rows when sliced: an array, a tensor, a memory map, a file."""

    @property
    def shape(self) -> Any:
        """Number of samples and of features."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Some of the rows, as an array or tensor."""


@dataclass(frozen=True)
class SvccaGrid:
    """SVCCA of every representation on one side with every one on the other.

    Attributes
    ----------
    similarity
        (n_x, n_y) mean canonical correlation, in [0, 1].
    mean_square
        (n_x, n_y) mean squared canonical correlation, in [0, 1]; needs no decomposition of a pair.
    n_kept_x, n_kept_y
        Number of directions kept of each.
    n_samples
        Number of rows.
    """

    similarity: np.ndarray
    mean_square: np.ndarray
    n_kept_x: tuple[int, ...]
    n_kept_y: tuple[int, ...]
    n_samples: int


@dataclass(frozen=True)
class _Side:
    """What is kept of one representation: rows are mapped to variates by (row - centre) @ whitening."""

    centre: Tensor
    whitening: Tensor


def svcca_grid(
    x: Sequence[Rows],
    y: Sequence[Rows] | None = None,
    *,
    variance: float = 0.99,
    solver: str = "auto",
    block_rows: int = BLOCK_ROWS,
    device: str | torch.device | None = None,
) -> SvccaGrid:
    """SVCCA of many representations of the same samples, such as all layers of two runs.

    Parameters
    ----------
    x, y
        Representations (n_samples, n_features) of the same samples row by row; widths may differ. Without `y`, `x` with itself.
        They are read block by block and may lie on disk.
    variance
        Share of the variance kept of each, in (0, 0.999].
    solver
        How the canonical correlations of a pair are summed: ``"svd"`` (singular values), ``"eigh"`` (eigenvalues of M Mᵀ),
        ``"polar"`` (matrix products only, for GPUs), or ``"auto"``: ``"eigh"`` on CPU, ``"polar"`` elsewhere.
    block_rows
        Rows read at a time.
    device
        Where to compute; by default where the first representation lies.

    Returns
    -------
    SvccaGrid
        The values of :func:`~dynprobe.metrics.svcca_similarity` for each pair: to about 3e-7 for float32 input, whose
        products are made in float32, and to 1e-10 for float64 input (with ``"polar"`` to 1e-6).

    Raises
    ------
    ValueError
        For no representation, different numbers of samples, fewer than two, non-finite entries, a representation that does
        not vary, an unknown solver, or a share above 0.999, where second moments are not exact enough.

    Notes
    -----
    Means, second moments and eigenvalues are accumulated in float64. The number of threads is the caller's afterwards. Memory
    grows with the number of kept directions, not with that of samples.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.5]])
    >>> svcca_grid([a, 2 * a + 1]).similarity.round(6)
    array([[1., 1.],
           [1., 1.]])
    """
    check_share(variance)
    if variance > GRAM_UP_TO:
        raise ValueError(f"`variance` must be at most {GRAM_UP_TO} for a grid; got {variance}. Use svcca_similarity")
    if solver not in SOLVERS:
        raise ValueError(f"`solver` must be one of {SOLVERS}; got {solver!r}")
    everything = [*x, *(y or ())]
    n = _check_shapes(everything)
    place = torch.device(device) if device is not None else _device_of(everything[0])
    solver = ("eigh" if place.type == "cpu" else "polar") if solver == "auto" else solver
    moments = [_second_moments(rows, n, block_rows, place) for rows in everything]
    sides = list(_each(lambda m: _factor(*m, variance=variance, n=n), moments, place))
    left, right = sides[: len(x)], sides[len(x) :] or sides
    right_rows = everything[len(x) :] or everything
    cross = _cross_products(everything[: len(x)], right_rows, left, right, n=n, block_rows=block_rows, place=place)
    return _summarise(cross, left, right, solver=solver, n=n, place=place)


def mean_correlation_of(cross: Tensor, *, solver: str) -> Tensor:
    """Mean singular value (...) of products (..., k_x, k_y) of orthonormal bases.

    Parameters
    ----------
    cross
        Products of two orthonormal bases.
    solver
        ``"svd"``, ``"eigh"`` or ``"polar"``; see :func:`svcca_grid`.
    """
    if cross.shape[-2] > cross.shape[-1]:
        cross = cross.mT
    if solver == "svd":
        return torch.linalg.svdvals(cross).mean(dim=-1)
    if solver == "eigh":
        wide = cross.double() if cross.device.type != "mps" else cross
        return torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0).sqrt().mean(dim=-1)
    return _nuclear_norm_by_products(cross) / cross.shape[-2]


def _nuclear_norm_by_products(cross: Tensor) -> Tensor:
    """Sum of singular values as <M, polar factor of M>, by Newton–Schulz; singular values at most 1 are needed, and given."""
    polar, before = cross, torch.full_like(cross[..., 0, 0], -1.0)
    norm = (cross * polar).sum(dim=(-2, -1))
    for _ in range(_POLAR_STEPS):
        gram = polar @ polar.mT
        polar = 1.5 * polar - 0.5 * (gram @ polar)
        before, norm = norm, (cross * polar).sum(dim=(-2, -1))
        if bool(((norm - before).abs() <= _POLAR_TOLERANCE * norm.abs()).all()):
            break
    return norm


def _check_shapes(everything: Sequence[Rows]) -> int:
    if not everything:
        raise ValueError("`x` must hold at least one representation; got none")
    shapes = [tuple(rows.shape) for rows in everything]
    if any(len(shape) != 2 or shape[1] < 1 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"representations must be (n_samples, n_features) of the same samples; got shapes {shapes[:4]}"
        )
    if shapes[0][0] < 2:
        raise ValueError(f"representations must have at least 2 samples; got {shapes[0][0]}")
    return int(shapes[0][0])


def _device_of(rows: Rows) -> torch.device:
    return rows.device if isinstance(rows, Tensor) else torch.device("cpu")


def _block(rows: Rows, start: int, stop: int, place: torch.device) -> Tensor:
    """Some rows in the precision of the products: float64 for float64 input, else float32."""
    part = rows[start:stop]
    tensor = part if isinstance(part, Tensor) else torch.from_numpy(np.ascontiguousarray(part))
    return tensor.to(place, torch.float64 if tensor.dtype == torch.float64 else torch.float32)


def _second_moments(rows: Rows, n: int, block_rows: int, place: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and centred second moments, in float64, and the spacing of the numbers as given.

    The mean of the first block is taken out of every block, so that little is left to correct at the end.
    """
    first = _block(rows, 0, min(block_rows, n), place)
    shift = first.double().mean(dim=0)
    total, moments = torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=torch.float64, device=place)
    largest = torch.zeros((), dtype=torch.float64, device=place)
    for start in range(0, n, block_rows):
        block = first if start == 0 else _block(rows, start, min(start + block_rows, n), place)
        largest = torch.maximum(largest, block.abs().amax().double())
        centred = block - shift.to(block.dtype)
        total += centred.sum(dim=0, dtype=torch.float64)
        _add_gram(moments, centred)
    if not bool(torch.isfinite(moments).all()):
        raise ValueError("representations must be finite; got NaN or Inf. Find the layer and step that made it")
    upper = moments.triu()
    rest = total / n
    centred_moments = upper + upper.triu(1).mT - n * torch.outer(rest, rest)
    rounding = largest * torch.finfo(first.dtype).eps
    return shift + rest, centred_moments, rounding


def _add_gram(moments: Tensor, centred: Tensor) -> None:
    """Add the second moments of a block, the tiles on and above the diagonal only."""
    d = centred.shape[1]
    edges = [d * tile // _GRAM_TILES for tile in range(_GRAM_TILES + 1)] if d >= 256 else [0, d]
    for start, stop in pairwise(edges):
        moments[start:stop, start:] += centred[:, start:stop].mT @ centred[:, start:]


def _factor(centre: Tensor, moments: Tensor, rounding: Tensor, *, variance: float, n: int) -> _Side:
    values, vectors = torch.linalg.eigh(moments)
    singular, vectors = values.flip(-1).clamp_min(0.0).sqrt(), vectors.flip(-1)
    if float(singular[0]) <= 4 * float(rounding):
        raise ValueError("representations must vary; got samples that are all equal, for which SVCCA is undefined")
    k = int(count_kept(singular, variance, rounding=rounding, shape=(n, len(singular))))
    return _Side(centre, vectors[:, :k] / singular[:k])


def _cross_products(
    x: Sequence[Rows],
    y: Sequence[Rows],
    left: Sequence[_Side],
    right: Sequence[_Side],
    *,
    n: int,
    block_rows: int,
    place: torch.device,
) -> Tensor:
    """Products of all variates of one side with all of the other, (sum of k_x, sum of k_y), block by block of rows."""
    same = y is x or [id(rows) for rows in x] == [id(rows) for rows in y]
    exact = all(_block(rows, 0, 1, place).dtype == torch.float64 for rows in (*x, *y))
    dtype = torch.float64 if exact else torch.float32
    k_x, k_y = (sum(side.whitening.shape[1] for side in sides) for sides in (left, right))
    cross = torch.zeros(k_x, k_y, dtype=dtype, device=place)
    for start in range(0, n, block_rows):
        stop = min(start + block_rows, n)
        a = _variates(x, left, start, stop, dtype, place)
        b = a if same else _variates(y, right, start, stop, dtype, place)
        cross.addmm_(a.mT, b)
    return cross


def _variates(
    everything: Sequence[Rows], sides: Sequence[_Side], start: int, stop: int, dtype: torch.dtype, place: torch.device
) -> Tensor:
    widths = [side.whitening.shape[1] for side in sides]
    found = torch.empty(stop - start, sum(widths), dtype=dtype, device=place)
    offset = 0
    for rows, side, width in zip(everything, sides, widths, strict=True):
        block = _block(rows, start, stop, place).to(dtype)
        part = found[:, offset : offset + width]
        torch.mm(block - side.centre.to(dtype), side.whitening.to(dtype), out=part)
        offset += width
    return found


def _summarise(
    cross: Tensor, left: Sequence[_Side], right: Sequence[_Side], *, solver: str, n: int, place: torch.device
) -> SvccaGrid:
    k_x, k_y = ([side.whitening.shape[1] for side in sides] for sides in (left, right))
    parts = [part for rows in cross.split(k_x, dim=0) for part in rows.split(k_y, dim=1)]
    means = list(_each(lambda part: mean_correlation_of(part, solver=solver), parts, place))
    squares = [part.square().sum(dtype=torch.float64) / min(part.shape) for part in parts]
    shape = (len(left), len(right))
    return SvccaGrid(
        similarity=np.array([float(value) for value in means]).clip(0.0, 1.0).reshape(shape),
        mean_square=np.array([float(value) for value in squares]).clip(0.0, 1.0).reshape(shape),
        n_kept_x=tuple(k_x),
        n_kept_y=tuple(k_y),
        n_samples=n,
    )


def _each(function: Callable[[Item], Answer], items: Sequence[Item], place: torch.device) -> Iterator[Answer]:
    """Small decompositions: on a CPU several at once, elsewhere one after the other."""
    return in_parallel(function, items) if place.type == "cpu" else map(function, items)
