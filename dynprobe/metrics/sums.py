"""Sums over rows from which SVCCA and CKA of two representations follow: read once, added up over groups of rows.

Every sum is taken about the same origin, so that the sums of half the rows are those of half the groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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
    return _stacked([_side_sums(x, start, stop, block_rows) for start, stop in pairwise(groups)])


def gram(x: Prepared, *, block_rows: int = BLOCK_ROWS) -> tuple[Tensor, Tensor]:
    """Σ b (width,) and Σ b bᵀ (width, width) of all rows: the part of :func:`side_sums` that SVCCA alone needs."""
    total = torch.zeros(x.width, dtype=torch.float64, device=x.shift.device)
    products = torch.zeros(x.width, x.width, dtype=torch.float64, device=x.shift.device)
    for first, last in blocks(0, x.n_samples, block_rows):
        block = x.block(first, last)
        total += block.sum(dim=0, dtype=torch.float64)
        _add_gram(products, block)
    return total, symmetric(products)


def cross_sums(a: Prepared, b: Prepared, groups: Sequence[int], *, block_rows: int = BLOCK_ROWS) -> CrossSums:
    """Sums of two representations of the same rows; parameters as for :func:`side_sums`."""
    return _stacked([_cross_sums(a, b, start, stop, block_rows) for start, stop in pairwise(groups)])


def pooled(sums: Some, *, groups: Sequence[int] | None = None) -> Some:
    """The sums of all groups, or of some."""
    if groups is None:
        return _map(sums, lambda part: part.sum(dim=0))
    return _map(sums, lambda part: part[list(groups)].sum(dim=0))


def joined_products(a: Prepared, b: Prepared, products: Tensor) -> Tensor:
    """Products (width_a, width_b) of prepared rows as products (n_features_a, n_features_b) of shifted rows."""
    return b.joined(a.joined(products.mT).mT)


def symmetric(upper: Tensor) -> Tensor:
    """The whole of a symmetric matrix from what lies on and above its diagonal."""
    return upper.triu() + upper.triu(1).mT


def _side_sums(x: Prepared, start: int, stop: int, block_rows: int) -> SideSums:
    place, width = x.shift.device, x.width
    zero = torch.zeros((), dtype=torch.float64, device=place)
    total, weighted = torch.zeros(2, width, dtype=torch.float64, device=place)
    products = torch.zeros(width, width, dtype=torch.float64, device=place)
    squares, fourths = zero.clone(), zero.clone()
    for first, last in blocks(start, stop, block_rows):
        block = x.block(first, last)
        lengths = block.square().sum(dim=1)
        total += block.sum(dim=0, dtype=torch.float64)
        weighted += lengths @ block
        squares += lengths.sum(dtype=torch.float64)
        fourths += lengths.double().square().sum()
        _add_gram(products, block)
    return SideSums(zero + (stop - start), total, symmetric(products), squares, fourths, weighted)


def _cross_sums(a: Prepared, b: Prepared, start: int, stop: int, block_rows: int) -> CrossSums:
    place = a.shift.device
    products = torch.zeros(a.width, b.width, dtype=torch.float64, device=place)
    weighted_a, weighted_b = (torch.zeros(side.width, dtype=torch.float64, device=place) for side in (a, b))
    squares = torch.zeros((), dtype=torch.float64, device=place)
    dtype = torch.promote_types(a.dtype, b.dtype)
    for first, last in blocks(start, stop, block_rows):
        block_a, block_b = (side.block(first, last).to(dtype) for side in (a, b))
        lengths_a, lengths_b = (block.square().sum(dim=1) for block in (block_a, block_b))
        products += block_a.mT @ block_b
        squares += (lengths_a.double() * lengths_b.double()).sum()
        weighted_a += lengths_b @ block_a
        weighted_b += lengths_a @ block_b
    return CrossSums(products, squares, weighted_a, weighted_b)


def _add_gram(products: Tensor, block: Tensor) -> None:
    """Add the products of a block, the tiles on and above the diagonal only."""
    width = block.shape[1]
    edges = [width * tile // _TILES for tile in range(_TILES + 1)] if width >= _MIN_TILED else [0, width]
    for start, stop in pairwise(edges):
        products[start:stop, start:] += block[:, start:stop].mT @ block[:, start:]


def _stacked(parts: Sequence[Some]) -> Some:
    kind = type(parts[0])
    return kind(**{field.name: torch.stack([getattr(part, field.name) for part in parts]) for field in fields(kind)})


def _map(sums: Some, change: Callable[[Tensor], Tensor]) -> Some:
    return type(sums)(**{field.name: change(getattr(sums, field.name)) for field in fields(sums)})
