"""Debiased CKA from the products of rows with each other: where rows are few, fewer products than those of features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dynprobe.metrics._arrays import power_of_two, symmetric_product
from dynprobe.metrics.rows import Rows, as_tensor, dtype_of_products

_BLOCK = 2**16  # entries of two kernels multiplied at a time, few enough for the cache


@dataclass(frozen=True)
class Kernel:
    """Products of all rows of one representation with each other.

    Attributes
    ----------
    products
        (n, n) inner products of the rows about their mean, up to a common factor; zero on the diagonal.
    sums
        (n, n_groups) float64 sums of them over the rows of each group.
    groups
        Ascending row numbers at which groups start and, last, where the last one stops.
    shift
        By how many rows `products` are still to be shifted, along both axes.
    """

    products: Tensor
    sums: Tensor
    groups: tuple[int, ...]
    shift: int = 0

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, n) some rows of the products."""
        if self.shift == 0:
            return self.products[start:stop]
        return self.products[(torch.arange(start, stop) - self.shift) % len(self.products)].roll(self.shift, 1)

    def ungrouped(self) -> "Kernel":
        """The same with all rows in one group."""
        return replace(self, sums=self.sums.sum(dim=1, keepdim=True), groups=(0, len(self.sums)))

    def rolled(self, shift: int) -> "Kernel":
        """The kernel of the rows shifted cyclically, in one group."""
        whole = self.ungrouped()
        return replace(whole, sums=whole.sums.roll(shift, 0), shift=self.shift + shift)


def kernel_of(x: Rows, groups: Sequence[int]) -> Kernel:
    """Products of all rows with each other; takes n² numbers of memory.

    Parameters
    ----------
    x
        Shape (n, n_features); read whole.
    groups
        As in :class:`Kernel`.

    Raises
    ------
    ValueError
        For rows that are not finite.
    """
    given = x[0 : int(x.shape[0])]
    rows = as_tensor(given, torch.device("cpu"), dtype_of_products(given, *given.shape))
    mean = rows.mean(dim=0, dtype=torch.float64)
    if not bool(torch.isfinite(mean).all()):
        raise ValueError("`representations` must be finite; got NaN or Inf. Find the layer and step that made it")
    rows = rows - mean.to(rows.dtype)  # the one copy, changed in place from here on
    lowest, highest = rows.aminmax()
    rows /= power_of_two(torch.maximum(-lowest, highest))
    rows /= power_of_two(torch.linalg.vector_norm(rows, dim=1).amax())  # so that squares of products stay in range
    products = symmetric_product(rows.mT).fill_diagonal_(0.0)
    sums = [products[:, start:stop].sum(dim=1, dtype=torch.float64) for start, stop in pairwise(groups)]
    return Kernel(products, torch.stack(sums, dim=1), tuple(groups))


def hsic(a: Kernel, b: Kernel, chosen: Tensor) -> Tensor:
    """Unbiased Hilbert–Schmidt independence criterion of linear kernels, up to a factor that cancels in CKA.

    Parameters
    ----------
    a, b
        Kernels of the same rows in the same groups.
    chosen
        (..., n_groups) of 0 and 1: which groups take part, of any number of choices.

    Returns
    -------
    Tensor
        (...) one value for each choice.

    Notes
    -----
    Σ k l + Σ k Σ l / ((n - 1)(n - 2)) - 2 / (n - 2) · Σ (k 1)(l 1) over kernels with zero diagonal, each sum over the rows that
    take part. Sums over groups by groups are made once; those of all choices follow from them. Song et al. 2012 (JMLR),
    equation 5.
    """
    return _terms(a, b, chosen).sum(dim=0)


def self_hsic(a: Kernel, chosen: Tensor) -> Tensor:
    """Unbiased criterion of one kernel with itself; NaN where nothing is left of it but rounding.

    That is so for fewer than four rows, and where the estimator is zero, such as with one row apart from all others.
    """
    terms, n = _terms(a, a, chosen), _n_rows(a, chosen)
    rounding = 4 * n.sqrt() * torch.finfo(a.products.dtype).eps * terms.abs().sum(dim=0)
    return torch.where((n >= 4) & (terms.sum(dim=0) > rounding), terms.sum(dim=0), torch.nan)


def _terms(a: Kernel, b: Kernel, chosen: Tensor) -> Tensor:
    """(3, ...) the three terms of the criterion."""
    spans, n = list(pairwise(a.groups)), _n_rows(a, chosen)
    both = torch.stack([_products_by_group(a, b, start, stop) for start, stop in spans])
    paths = torch.stack([a.sums[start:stop].mT @ b.sums[start:stop] for start, stop in spans])
    of_a, of_b = (torch.stack([side.sums[start:stop].sum(dim=0) for start, stop in spans]) for side in (a, b))
    product, total_a, total_b = (torch.einsum("...g,...h,gh->...", chosen, chosen, part) for part in (both, of_a, of_b))
    path = torch.einsum("...i,...g,...h,igh->...", chosen, chosen, chosen, paths)
    return torch.stack([product, total_a * total_b / ((n - 1) * (n - 2)), -2 / (n - 2) * path])


def _n_rows(a: Kernel, chosen: Tensor) -> Tensor:
    return chosen @ torch.tensor([stop - start for start, stop in pairwise(a.groups)], dtype=chosen.dtype)


def _products_by_group(a: Kernel, b: Kernel, start: int, stop: int) -> Tensor:
    """(n_groups,) sums of k l over some rows, and over the columns of each group."""
    n, n_rows = len(a.sums), max(1, _BLOCK // len(a.sums))
    columns = torch.zeros(n, dtype=torch.float64)
    for first in range(start, stop, n_rows):
        last = min(first + n_rows, stop)
        columns += (a.rows(first, last) * b.rows(first, last)).sum(dim=0, dtype=torch.float64)
    return torch.stack([columns[first:last].sum() for first, last in pairwise(a.groups)])
