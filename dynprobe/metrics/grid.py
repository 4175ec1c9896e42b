"""SVCCA of many representations with many others: each is factored once, a pair costs one product of the kept directions.

Everything large is a matrix product over blocks of rows, so that representations may lie on disk: the first pass sums the
second moments of each, the second projects each block on the kept directions of all and sums their products.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics.from_sums import Whitening, whiten
from dynprobe.metrics.grid_by_svd import bases_by_svd, mean_correlations
from dynprobe.metrics.rows import BLOCK_ROWS, Prepared, Rows, blocks, prepare
from dynprobe.metrics.subspace import GRAM_UP_TO, check_share
from dynprobe.metrics.sums import gram
from dynprobe.metrics.workers import in_parallel

SOLVERS = ("auto", "svd", "eigh", "polar")
_POLAR_STEPS = 40
_POLAR_TOLERANCE = 1e-9

Item = TypeVar("Item")
Answer = TypeVar("Answer")


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
class Factored:
    """One representation with its kept directions, ready to be compared with many others.

    Attributes
    ----------
    rows
        Prepared rows, read again for every comparison.
    whitening
        Its kept directions.
    """

    rows: Prepared
    whitening: Whitening

    @property
    def n_kept(self) -> int:
        """Number of directions kept."""
        return self.whitening.n_kept

    def variates(self, start: int, stop: int, out: Tensor) -> None:
        """Write the (stop - start, n_kept) orthonormal variates of some rows."""
        axes = self.whitening.kept()
        torch.mm(self.rows.block(start, stop).to(out.dtype), self.rows.spread(axes).to(out.dtype), out=out)
        out -= (self.whitening.mean @ axes).to(out.dtype)


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
        How the work is done. ``"eigh"``: each representation by its second moments, pairs by eigenvalues of M Mᵀ; the fastest
        measured on a CPU. ``"polar"``: pairs by matrix products only (Newton–Schulz), for GPUs, where small decompositions are
        slow. ``"svd"``: batched decompositions of the stacked representations, which must fit into memory; slow, and
        independent of the other two. ``"auto"``: ``"eigh"`` on a CPU, ``"polar"`` elsewhere.
    block_rows
        Rows read at a time.
    device
        Where to compute; by default where the first representation lies.

    Returns
    -------
    SvccaGrid
        The values of :func:`~dynprobe.metrics.svcca_similarity` for each pair: to 1e-7 for float32 input, whose
        products are made in float32, and to 1e-10 for float64 input; with ``"polar"`` and, for float32, with ``"svd"`` to
        1e-6.

    Raises
    ------
    ValueError
        For no representation, different numbers of samples, fewer than two, or too few for the directions that one keeps;
        non-finite entries, a representation that does not vary, an unknown solver, a device that is not there, or a share
        above 0.999, where second moments are not exact enough.

    Notes
    -----
    Means, second moments and eigenvalues are accumulated in float64; the strongest directions are kept apart from the rest in
    the products, so that rogue dimensions cost the small directions no digit. The number of threads is the caller's
    afterwards. Memory: one matrix of the squared width for each representation, and the products of the kept directions; it
    does not grow with the number of samples.

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
    if type(block_rows) is not int or block_rows < 1:
        raise ValueError(f"`block_rows` must be a number of rows, at least 1; got {block_rows!r}")
    place = _available(device)
    first = list(x)
    everything = first if y is None else [*first, *y]
    names = [f"x[{i}]" if i < len(first) else f"y[{i - len(first)}]" for i in range(len(everything))]
    n_samples = _check_rows(everything, names)
    if not first or (y is not None and len(everything) == len(first)):
        raise ValueError(f"`{'y' if first else 'x'}` must hold at least one representation; got none")
    if solver == "svd":
        bases = bases_by_svd(everything, names, variance=variance, device=place)
        _check_samples([basis.shape[1] for basis in bases], names, n_samples)
        left_bases, right_bases = bases[: len(first)], bases[len(first) :] or bases
        return _grid(
            *mean_correlations(left_bases, right_bases),
            [basis.shape[1] for basis in left_bases],
            [basis.shape[1] for basis in right_bases],
            n_samples,
        )
    factored = _factor_all(everything, names, variance=variance, block_rows=block_rows, device=place)
    _check_samples([side.n_kept for side in factored], names, n_samples)
    left, right = factored[: len(first)], factored[len(first) :] or factored
    return grid_of(left, right, solver=solver, block_rows=block_rows)


def grid_of(
    left: Sequence[Factored], right: Sequence[Factored], *, solver: str = "auto", block_rows: int = BLOCK_ROWS
) -> SvccaGrid:
    """Compare every factored representation on one side with every one on the other.

    Parameters
    ----------
    left, right
        Factored representations of the same samples.
    solver
        ``"eigh"``, ``"polar"`` or ``"auto"``; see :func:`svcca_grid`.
    block_rows
        Rows read at a time.
    """
    place = left[0].rows.shift.device
    chosen = ("eigh" if place.type == "cpu" else "polar") if solver == "auto" else solver
    k_x, k_y = ([side.n_kept for side in sides] for sides in (left, right))
    cross = _cross_products(left, right, block_rows=block_rows)
    parts = [part for rows in cross.split(k_x, dim=0) for part in rows.split(k_y, dim=1)]
    means = torch.stack(list(_each(lambda part: mean_correlation_of(part, solver=chosen), parts, place)))
    squares = torch.stack([part.square().sum(dtype=torch.float64) / min(part.shape) for part in parts])
    shape = (len(left), len(right))
    return _grid(means.reshape(shape), squares.reshape(shape), k_x, k_y, left[0].rows.n_samples)


def _grid(means: Tensor, squares: Tensor, k_x: Sequence[int], k_y: Sequence[int], n_samples: int) -> SvccaGrid:
    similarity, mean_square = (values.double().cpu().numpy().clip(0.0, 1.0) for values in (means, squares))
    return SvccaGrid(similarity, mean_square, tuple(k_x), tuple(k_y), n_samples)


def _factor_all(
    everything: Sequence[Rows],
    names: Sequence[str],
    *,
    variance: float,
    block_rows: int,
    device: torch.device | None,
) -> list[Factored]:
    """Read each representation once and find its kept directions."""
    prepared = [
        prepare(rows, block_rows=block_rows, device=device, name=name)
        for rows, name in zip(everything, names, strict=True)
    ]
    sums = [gram(rows, block_rows=block_rows) for rows in prepared]

    def factor(index: int) -> Factored:
        rows, (total, products) = prepared[index], sums[index]
        found = whiten(rows, rows.n_samples, total, products, variance=variance, name=names[index])
        return Factored(rows, found)

    return list(_each(factor, range(len(prepared)), prepared[0].shift.device))


def mean_correlation_of(cross: Tensor, *, solver: str) -> Tensor:
    """Mean singular value (...) of products (..., k_x, k_y) of orthonormal bases.

    Parameters
    ----------
    cross
        Products of two orthonormal bases.
    solver
        ``"eigh"`` or ``"polar"``; see :func:`svcca_grid`.
    """
    if cross.shape[-2] > cross.shape[-1]:
        cross = cross.mT
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


def _available(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        place = torch.device(device)
        torch.ones(1, device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"`device` must be one that is there, such as 'cpu'; got {str(device)!r} ({error})") from error
    return place


def _check_rows(everything: Sequence[Rows], names: Sequence[str]) -> int:
    """Complain about what is no table of numbers, and about different numbers of rows; gives that number."""
    counts = {}
    for rows, name in zip(everything, names, strict=True):
        shape = tuple(getattr(rows, "shape", ()))
        if len(shape) != 2 or shape[1] < 1:
            raise ValueError(f"`{name}` must be an array (n_samples, n_features); got {_described(rows, shape)}")
        if shape[0] < 2:
            raise ValueError(f"`{name}` must have at least 2 samples; got {shape[0]}")
        given = rows[0:1]
        kind = given.dtype if isinstance(given, Tensor) else np.asarray(given).dtype
        real = not (kind.is_complex or kind == torch.bool) if isinstance(kind, torch.dtype) else kind.kind in "iuf"
        if not real:
            raise TypeError(f"`{name}` must hold real numbers; got {kind}")
        counts[name] = int(shape[0])
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise ValueError(
            f"representations must be of the same samples, row by row; got {counts[few]} in `{few}` and {counts[many]} in "
            f"`{many}`"
        )
    return next(iter(counts.values()), 0)


def _described(rows: object, shape: tuple[int, ...]) -> str:
    return f"shape {shape}" if hasattr(rows, "shape") else f"a {type(rows).__name__}"


def _check_samples(n_kept: Sequence[int], names: Sequence[str], n_samples: int) -> None:
    """Refuse what is 1 whatever the other side holds."""
    for k, name in zip(n_kept, names, strict=True):
        if k >= n_samples - 1:
            raise ValueError(
                f"`{name}` must have more samples than kept directions, at least two more; got {n_samples} samples and {k} "
                "directions, so that every correlation is 1 whatever the other side holds. Take more rows"
            )


def _cross_products(left: Sequence[Factored], right: Sequence[Factored], *, block_rows: int) -> Tensor:
    """Products of all variates of one side with all of the other, (sum of k_x, sum of k_y), block by block of rows."""
    n, place = left[0].rows.n_samples, left[0].rows.shift.device
    same = [id(side) for side in left] == [id(side) for side in right]
    exact = all(side.rows.dtype == torch.float64 for side in (*left, *right))
    dtype = torch.float64 if exact else torch.float32
    cross = torch.zeros(*(sum(side.n_kept for side in sides) for sides in (left, right)), dtype=dtype, device=place)
    for start, stop in blocks(0, n, block_rows):
        a = _variates(left, start, stop, dtype)
        cross.addmm_(a.mT, a if same else _variates(right, start, stop, dtype))
    return cross


def _variates(sides: Sequence[Factored], start: int, stop: int, dtype: torch.dtype) -> Tensor:
    widths = [side.n_kept for side in sides]
    found = torch.empty(stop - start, sum(widths), dtype=dtype, device=sides[0].rows.shift.device)
    for side, part in zip(sides, found.split(widths, dim=1), strict=True):
        side.variates(start, stop, part)
    return found


def _each(function: Callable[[Item], Answer], items: Sequence[Item], place: torch.device) -> Iterator[Answer]:
    """Small decompositions: on a CPU several at once, elsewhere one after the other."""
    return in_parallel(function, items) if place.type == "cpu" else map(function, items)
