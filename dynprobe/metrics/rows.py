"""Observations that are read block by block, and how they are prepared so that float32 products lose nothing that matters."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics._arrays import power_of_two, resolution, symmetric_product

BLOCK_ROWS = 2048
# Below this width products are made in float64: they cost nothing there.
_WIDE = 128
# Directions that are kept apart. Those that dominate a hidden state are two or three; a few more cost nothing.
_N_LEADING = 16
_POWER_STEPS = 3
_LEADING_ROWS = 512
_ORDINARY = (2.0**-30, 2.0**30)  # sizes whose fourth powers float32 can still hold


class Rows(Protocol):
    """Observations (n_samples, n_features) that give their rows when sliced: an array, a tensor, a memory map, a file."""

    @property
    def shape(self) -> Any:
        """Number of samples and of features."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Some of the rows, as an array or tensor."""


@dataclass(frozen=True)
class Rolled:
    """Rows shifted cyclically: row i is row i - shift of the original, as ``numpy.roll`` has it.

    Attributes
    ----------
    rows
        The original.
    shift
        By how many rows.
    """

    rows: Rows
    shift: int

    @property
    def shape(self) -> Any:
        """Number of samples and of features."""
        return self.rows.shape

    def __getitem__(self, rows: slice) -> Any:
        n = int(self.shape[0])
        start, stop, _ = rows.indices(n)
        first = (start - self.shift) % n
        head = self.rows[first : min(first + stop - start, n)]
        rest = stop - start - len(head)
        if rest == 0:
            return head
        tail = self.rows[0:rest]
        return torch.cat([head, tail]) if isinstance(head, Tensor) else np.concatenate([head, tail])


@dataclass(frozen=True)
class Scaled:
    """Rows with a mean taken out of each feature and each divided by a scale.

    Attributes
    ----------
    rows
        The original.
    mean, scale
        (n_features,) float64; features of infinite scale become 0.
    spacing
        Relative spacing of the original numbers, as a share of the size of the scaled ones.
    """

    rows: Rows
    mean: Tensor
    scale: Tensor
    spacing: float

    @property
    def shape(self) -> Any:
        """Number of samples and of features."""
        return self.rows.shape

    def __getitem__(self, rows: slice) -> Tensor:
        given = self.rows[rows]
        part = as_tensor(given, self.mean.device, torch.float64)
        exact = resolution(given) == np.finfo(np.float64).eps
        return ((part - self.mean) / self.scale).to(torch.float64 if exact else torch.float32)


def standardised(rows: Rows, *, block_rows: int = BLOCK_ROWS) -> Scaled:
    """Rows with mean 0 and standard deviation 1 in every feature; features that do not vary become 0.

    Parameters
    ----------
    rows
        Shape (n_samples, n_features); read once, block by block.
    block_rows
        Rows read at a time.
    """
    n, d = (int(size) for size in rows.shape)
    place = _place(rows[0:1])
    shift = as_tensor(rows[0:1], place, torch.float64)[0]
    total, squares = torch.zeros(2, d, dtype=torch.float64, device=place)
    for start, stop in blocks(0, n, block_rows):
        part = as_tensor(rows[start:stop], place, torch.float64) - shift
        total += part.sum(dim=0)
        squares += part.square().sum(dim=0)
    mean = total / n
    std = (squares / n - mean.square()).clamp_min(0.0).sqrt()
    mean = shift + mean
    varies = std > 4 * np.finfo(np.float64).eps * mean.abs()
    known = ((mean[varies] / std[varies]).square() + 1).mean().sqrt() if bool(varies.any()) else torch.ones(())
    spacing = resolution(rows[0:1]) * float(known)
    return Scaled(rows, mean, torch.where(varies, std, torch.inf), spacing)


@dataclass(frozen=True)
class Prepared:
    """Rows near the origin, the few strongest directions apart from the rest: (row - shift) = rest + leading · basisᵀ.

    Large means and a few directions of huge variance are usual in hidden states. Products of float32 rows are exact to about
    1e-7 of the largest direction, which is too little for the small ones; apart, the large ones do not touch them.

    Attributes
    ----------
    rows
        What is read.
    shift
        (n_features,) taken out of every row, float64.
    basis
        (n_features, n_leading) orthonormal; no columns for float64 products.
    dtype
        Of the products.
    scale
        Power of two by which rows are divided, so that squares neither overflow nor vanish; 1 for ordinary numbers.
    offset
        Squared length of what was taken out of each row, over the squared scale.
    spacing
        Relative spacing of the numbers as they were given.
    n_features
        Number of features as they were given.
    stored
        All rows, prepared, when they are held in memory.
    """

    rows: Rows
    shift: Tensor
    basis: Tensor
    dtype: torch.dtype
    scale: float
    offset: float
    spacing: float
    n_features: int
    stored: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.rows.shape[0])

    @property
    def width(self) -> int:
        """Columns of a prepared row: the rest, then the leading coordinates."""
        return sum(self.basis.shape)

    @property
    def n_bytes(self) -> int:
        """Memory that all prepared rows take."""
        return self.n_samples * self.width * self.dtype.itemsize

    def block(self, start: int, stop: int) -> Tensor:
        """(stop - start, width) prepared rows."""
        if self.stored is not None:
            return self.stored[start:stop]
        found = self.shifted(start, stop)
        n_rest, n_leading = self.basis.shape
        if n_leading == 0:
            return found
        basis = self.basis.to(self.dtype)
        block = torch.empty(len(found), n_rest + n_leading, dtype=self.dtype, device=found.device)
        leading = found @ basis
        torch.addmm(found, leading, basis.mT, alpha=-1.0, out=block[:, :n_rest])
        block[:, n_rest:] = leading
        return block

    def shifted(self, start: int, stop: int) -> Tensor:
        """(stop - start, n_features) rows near the origin, not taken apart."""
        found = read(self.rows, start, stop, self.shift.device, self.dtype) - self.shift.to(self.dtype)
        return found if self.scale == 1.0 else found.div_(self.scale)

    def held(self) -> "Prepared":
        """The same with all rows in memory."""
        return replace(self, stored=self.block(0, self.n_samples))

    def released(self) -> "Prepared":
        """The same without rows in memory; they are read again."""
        return self if self.rows is self.stored else replace(self, stored=None)

    def rolled(self, shift: int) -> "Prepared":
        """The same with its rows shifted cyclically."""
        stored = None if self.stored is None else self.stored.roll(shift, dims=0)
        return replace(self, rows=Rolled(self.rows, shift), stored=stored)

    def spread(self, columns: Tensor) -> Tensor:
        """A map (n_features, k) of shifted rows as a map (width, k) of prepared rows."""
        return torch.cat([columns, self.basis.mT @ columns])

    def joined(self, columns: Tensor) -> Tensor:
        """Sums (..., width) over prepared columns as sums (..., n_features) over features."""
        n_rest = self.basis.shape[0]
        return columns[..., :n_rest] + columns[..., n_rest:] @ self.basis.mT


def prepare(
    rows: Rows, *, block_rows: int = BLOCK_ROWS, device: torch.device | None = None, name: str = "representations"
) -> Prepared:
    """Choose shift and leading directions of some rows from their first block.

    Parameters
    ----------
    rows
        Shape (n_samples, n_features). With no more samples than features they are read whole and turned into as many
        features as there are samples, which changes no measure that ignores rotations.
    block_rows
        Rows of the first block.
    device
        Where to compute; by default where the rows lie.
    name
        What messages call the rows.

    Returns
    -------
    Prepared
        With float64 products for float64 rows and for fewer than 128 features, else float32.

    Raises
    ------
    ValueError
        For non-finite entries in the first block.
    """
    n, d = (int(size) for size in rows.shape)
    given = rows[0 : min(block_rows, n)]
    place = device or _place(given)
    dtype = dtype_of_products(given, n, d)
    spacing = rows.spacing if isinstance(rows, Scaled) else resolution(given)
    first = as_tensor(given, place, dtype)
    if not bool(torch.isfinite(first).all()):
        raise ValueError(f"`{name}` must be finite; got NaN or Inf. Find the layer and step that made it")
    if n <= d:
        return _in_row_space(read(rows, 0, n, place, dtype), spacing)
    shift = first.mean(dim=0, dtype=torch.float64).to(dtype)
    scale = _scale(first - shift)
    few = first[:_LEADING_ROWS]
    exact = dtype == torch.float64
    basis = torch.empty(d, 0, dtype=torch.float64, device=place) if exact else _leading((few - shift) / scale)
    offset = float((shift.double() / scale).square().sum())
    return Prepared(rows, shift.double(), basis, dtype, scale, offset, spacing, d)


def dtype_of_products(given: Any, n: int, d: int) -> torch.dtype:
    """Precision of the products of n rows of d features, of which some are given."""
    exact = d < _WIDE or n <= d or resolution(given) == np.finfo(np.float64).eps
    return torch.float64 if exact else torch.float32


def _place(part: Any) -> torch.device:
    return part.device if isinstance(part, Tensor) else torch.device("cpu")


def _in_row_space(x: Tensor, spacing: float) -> Prepared:
    """The centred rows in a basis of their own span: as many columns as there are rows."""
    mean = x.mean(dim=0)
    scale = _scale(x - mean)
    turned = torch.linalg.qr(((x - mean) / scale).mT, mode="r").R.mT.contiguous()
    empty = torch.empty(turned.shape[1], 0, dtype=x.dtype, device=x.device)
    offset, nothing = float((mean / scale).square().sum()), torch.zeros_like(turned[0])
    return Prepared(turned, nothing, empty, x.dtype, 1.0, offset, spacing, x.shape[1], stored=turned)


def _scale(centred: Tensor) -> float:
    """1, or the power of two near the largest entry where its square would be out of range."""
    largest = centred.abs().amax()
    power = float(power_of_two(largest))
    return 1.0 if _ORDINARY[0] <= power <= _ORDINARY[1] else power


def _leading(centred: Tensor) -> Tensor:
    """(n_features, n_leading) about the strongest directions of some rows, by subspace iteration; need not be exact."""
    d = centred.shape[1]
    gram = symmetric_product(centred)
    gram = gram / gram.diagonal().amax().clamp_min(torch.finfo(gram.dtype).tiny)
    start = torch.from_numpy(np.random.default_rng(0).standard_normal((d, _N_LEADING))).to(gram)
    basis = torch.linalg.qr(start).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(gram @ basis).Q
    return basis.double()


def read(rows: Rows, start: int, stop: int, place: torch.device, dtype: torch.dtype) -> Tensor:
    """Some rows on a device, in the precision of the products."""
    return as_tensor(rows[start:stop], place, dtype)


def as_tensor(part: Any, place: torch.device, dtype: torch.dtype) -> Tensor:
    """An array or tensor on a device in a precision."""
    if not isinstance(part, Tensor):
        array = np.ascontiguousarray(part)
        foreign = not array.dtype.isnative or not array.flags.writeable  # which torch does not take
        part = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")) if foreign else array)
    return part.detach().to(place, dtype)


def blocks(start: int, stop: int, block_rows: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each block."""
    return ((first, min(first + block_rows, stop)) for first in range(start, stop, block_rows))
