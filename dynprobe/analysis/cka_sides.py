"""Debiased linear CKA of many pairs: what belongs to one side is computed once, and groups are left out by subtraction."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class CkaSide:
    """One representation, centred, with what every comparison needs of it.

    The value of a pair is that of ``linear_cka_similarity(x, y, debiased=True)``, for one product instead of three.

    Attributes
    ----------
    data
        (n_rows, n_features) float64, centred and scaled to a largest entry of 1.
    """

    data: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "CkaSide":
        """Centre and scale.

        Raises
        ------
        ValueError
            When all rows are equal.
        """
        wide = states.double()
        centred = wide - wide.mean(dim=0)
        largest = centred.abs().max()
        if not bool(largest > 4 * torch.finfo(torch.float64).eps * wide.abs().max()):
            raise ValueError("observations must vary; got samples that are all equal, for which the value is undefined")
        return cls(centred / largest)

    @cached_property
    def squares(self) -> Tensor:
        """(n_rows,) squared length of each row."""
        return (self.data**2).sum(dim=1)

    @cached_property
    def self_similarity(self) -> Tensor:
        """Unbiased HSIC of the side with itself."""
        return _hsic(self.data.T @ self.data, self.squares, self.squares)

    def rolled(self, shift: int) -> "CkaSide":
        """The same side with its rows shifted cyclically, which leaves its similarity with itself as it is."""
        shifted = CkaSide(self.data.roll(shift, dims=0))
        shifted.__dict__["self_similarity"] = self.self_similarity
        return shifted


def similarity(a: CkaSide, b: CkaSide) -> float:
    """Debiased linear CKA of two sides with the same rows.

    Raises
    ------
    ValueError
        For fewer than four rows, or when a side has no similarity structure beyond chance.
    """
    return _ratio(_hsic(a.data.T @ b.data, a.squares, b.squares), a.self_similarity, b.self_similarity)


def leave_group_out(a: CkaSide, b: CkaSide, groups: Tensor, n_groups: int) -> list[float]:
    """Debiased linear CKA without each group of rows: products of the groups are subtracted from those of all rows.

    Parameters
    ----------
    a, b
        Sides with the same rows.
    groups
        (n_rows,) group of each row, 0 to n_groups - 1.
    n_groups
        Number of groups.
    """
    sides = ((a, b), (a, a), (b, b))
    totals = [first.data.T @ second.data for first, second in sides]
    values = []
    for group in range(n_groups):
        out, kept = groups == group, groups != group
        n = int(kept.sum())
        mean = {id(side): -side.data[out].sum(dim=0) / n for side in (a, b)}
        squares = {id(side): _recentred(side, kept, mean[id(side)]) for side in (a, b)}
        parts = [
            _hsic(
                total - first.data[out].T @ second.data[out] - n * torch.outer(mean[id(first)], mean[id(second)]),
                squares[id(first)],
                squares[id(second)],
            )
            for total, (first, second) in zip(totals, sides, strict=True)
        ]
        values.append(_ratio(*parts))
    return values


def _recentred(side: CkaSide, kept: Tensor, mean: Tensor) -> Tensor:
    """Squared lengths of the kept rows around their own mean."""
    return (side.squares[kept] - 2 * side.data[kept] @ mean + mean @ mean).clamp_min(0.0)


def _ratio(shared: Tensor, self_a: Tensor, self_b: Tensor) -> float:
    if not bool(self_a > 0) or not bool(self_b > 0):
        raise ValueError(
            "states must have similarity structure; got one whose debiased self-similarity is not positive"
        )
    return float((shared / (self_a.sqrt() * self_b.sqrt())).clamp(-1.0, 1.0))


def _hsic(product: Tensor, k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC, up to a factor that cancels, from the product of centred sides and their squared row lengths."""
    n = len(k)
    if n < 4:
        raise ValueError(f"debiased CKA needs at least 4 samples; got {n}")
    shared = (k * m).sum()
    return (product**2).sum() - shared * (1 + 2 / (n - 2)) + k.sum() * m.sum() / ((n - 1) * (n - 2))
