"""Sums over rows from which SVCCA and CKA of two representations follow: read once, added up over groups of rows.

Every sum is taken about the same origin, so that the sums of half the rows are those of half the groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from dynprobe.metrics.rows import BLOCK_ROWS, Prepared, blocks

_TILES = 4  # per side of a Gram matrix; only those on and above the diagonal are computed
_MIN_TILED = 256

Some = TypeVar("Some", "SideSums", "CrossSums")


@dataclass(frozen=True)
class SideSums:
    """Sums over the prepared rows b of one representation, each with a leading axis for groups of rows.

    Attributes
    ----------
    n
        Number of rows.
    total
        (..., width) Σ b.
    products
        (..., width, width) Σ b bᵀ.
    squares, fourths
        Σ |b|² and Σ |b|⁴.
    weighted
        (..., width) Σ |b|² b.
    """

    n: Tensor
    total: Tensor
    products: Tensor
    squares: Tensor
    fourths: Tensor
    weighted: Tensor


@dataclass(frozen=True)
class CrossSums:
    """Sums over the prepared rows a, b of two representations, each with a leading axis for groups of rows.

    Attributes
    ----------
    products
        (..., width_a, width_b) Σ a bᵀ.
    squares
        Σ |a|² |b|².
    weighted_a, weighted_b
        (..., width) Σ |b|² a and Σ |a|² b.
    """

    products: Tensor
    squares: Tensor
    weighted_a: Tensor
    weighted_b: Tensor


def side_sums(x: Prepared, groups: Sequence[int], *, block_rows: int = BLOCK_ROWS) -> SideSums:
    """Sums of one representation over groups of rows.

    Parameters
    ----------
    x
        Prepared rows.
    groups
        Ascending row numbers at which groups start and, last, where the last one stops.
    block_rows
        Rows read at a time.
    """
    n_groups, place = len(groups) - 1, x.shift.device
    zeros = torch.zeros(n_groups, dtype=torch.float64, device=place)
    total, weighted = torch.zeros(2, n_groups, x.width, dtype=torch.float64, device=place)
    products = torch.zeros(n_groups, x.width, x.width, dtype=torch.float64, device=place)
    sums = SideSums(zeros.clone(), total, products, zeros.clone(), zeros.clone(), weighted)
    for group, (start, stop) in enumerate(pairwise(groups)):
        _add_rows(sums, group, x, start, stop, block_rows)
    return sums


def gram(x: Prepared, *, block_rows: int = BLOCK_ROWS) -> tuple[Tensor, Tensor]:
    """Σ b (width,) and Σ b bᵀ (width, width) of all rows: the part of :func:`side_sums` that SVCCA alone needs."""
    total = torch.zeros(x.width, dtype=torch.float64, device=x.shift.device)
    products = torch.zeros(x.width, x.width, dtype=torch.float64, device=x.shift.device)
    for first, last in blocks(0, x.n_samples, block_rows):
        block = x.block(first, last)
        total += block.sum(dim=0, dtype=torch.float64)
        _add_gram(products, block)
    return total, _whole(products)


def cross_sums(a: Prepared, b: Prepared, groups: Sequence[int], *, block_rows: int = BLOCK_ROWS) -> CrossSums:
    """Sums of two representations of the same rows; parameters as for :func:`side_sums`."""
    n_groups, place = len(groups) - 1, a.shift.device
    products = torch.zeros(n_groups, a.width, b.width, dtype=torch.float64, device=place)
    weighted_a, weighted_b = (torch.zeros(n_groups, side.width, dtype=torch.float64, device=place) for side in (a, b))
    squares = torch.zeros(n_groups, dtype=torch.float64, device=place)
    dtype = torch.promote_types(a.dtype, b.dtype)
    for group, (start, stop) in enumerate(pairwise(groups)):
        for first, last in blocks(start, stop, block_rows):
            block_a, block_b = (side.block(first, last).to(dtype) for side in (a, b))
            lengths_a, lengths_b = (block.square().sum(dim=1) for block in (block_a, block_b))
            products[group] += block_a.mT @ block_b
            squares[group] += (lengths_a.double() * lengths_b.double()).sum()
            weighted_a[group] += lengths_b @ block_a
            weighted_b[group] += lengths_a @ block_b
    return CrossSums(products, squares, weighted_a, weighted_b)


def pooled(sums: Some, *, groups: Sequence[int] | None = None) -> Some:
    """The sums of all groups, or of some."""
    if groups is None:
        return _map(sums, lambda part: part.sum(dim=0))
    return _map(sums, lambda part: reduce(torch.add, (part[group] for group in groups)))  # one copy, not one per group


def joined_products(a: Prepared, b: Prepared, products: Tensor) -> Tensor:
    """Products (width_a, width_b) of prepared rows as products (n_features_a, n_features_b) of shifted rows."""
    return b.joined(a.joined(products.mT).mT)


def _add_rows(sums: SideSums, group: int, x: Prepared, start: int, stop: int, block_rows: int) -> None:
    sums.n[group] = stop - start
    for first, last in blocks(start, stop, block_rows):
        block = x.block(first, last)
        lengths = block.square().sum(dim=1)
        sums.total[group] += block.sum(dim=0, dtype=torch.float64)
        sums.weighted[group] += lengths @ block
        sums.squares[group] += lengths.sum(dtype=torch.float64)
        sums.fourths[group] += lengths.double().square().sum()
        _add_gram(sums.products[group], block)
    _whole(sums.products[group])


def _add_gram(products: Tensor, block: Tensor) -> None:
    """Add the products of a block, the tiles on and above the diagonal only."""
    width = block.shape[1]
    edges = [width * tile // _TILES for tile in range(_TILES + 1)] if width >= _MIN_TILED else [0, width]
    for start, stop in pairwise(edges):
        products[start:stop, start:] += block[:, start:stop].mT @ block[:, start:]


def _whole(upper: Tensor) -> Tensor:
    """The whole of a symmetric matrix from what lies on and above its diagonal, in place."""
    upper.triu_()
    upper += upper.triu(1).mT
    return upper


def _map(sums: Some, change: Callable[[Tensor], Tensor]) -> Some:
    return type(sums)(**{field.name: change(getattr(sums, field.name)) for field in fields(sums)})
