"""The grid the plain way: singular value decompositions of the stacked representations themselves, batched on the device.

Slower than second moments by far on a CPU, and all rows must fit into memory; kept as the independent second way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynprobe.metrics.rows import Rows, prepare, read
from dynprobe.metrics.subspace import count_kept


def bases_by_svd(
    everything: Sequence[Rows], names: Sequence[str], *, variance: float, device: torch.device | None
) -> list[Tensor]:
    """Orthonormal variates (n_samples, k) of each representation; those of one width are decomposed together.

    Parameters
    ----------
    everything
        Representations (n_samples, n_features).
    names
        What messages call them.
    variance
        Share of the variance kept of each.
    device
        Where to compute; by default where they lie.

    Raises
    ------
    ValueError
        For non-finite entries, or a representation that does not vary.
    """
    found: dict[int, Tensor] = {}
    by_kind: dict[tuple[int, torch.dtype], list[int]] = {}
    centred, rounding = [], []
    for index, (rows, name) in enumerate(zip(everything, names, strict=True)):
        one, known = _centred(rows, name, device)
        centred.append(one)
        rounding.append(known)
        by_kind.setdefault((one.shape[1], one.dtype), []).append(index)
    for members in by_kind.values():
        left, singular, _ = torch.linalg.svd(torch.stack([centred[index] for index in members]), full_matrices=False)
        known = torch.stack([rounding[index] for index in members])
        for index, equal in zip(members, (singular[:, 0] <= 4 * known).tolist(), strict=True):
            if equal:
                raise ValueError(
                    f"`{names[index]}` must vary; got samples that are all equal, for which SVCCA is undefined"
                )
        shape = (int(centred[members[0]].shape[0]), int(centred[members[0]].shape[1]))
        kept = count_kept(singular, variance, rounding=known, shape=shape)
        found |= {index: left[i, :, : int(kept[i])] for i, index in enumerate(members)}
    return [found[index] for index in range(len(everything))]


def mean_correlations(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and mean squared canonical correlation (n_left, n_right) of all pairs of bases, by one batch of decompositions."""
    first, second = (torch.stack(_padded(side)) for side in (left, right))
    singular = torch.linalg.svdvals(first.mT.unsqueeze(1) @ second)
    smaller = torch.tensor([[min(a.shape[1], b.shape[1]) for b in right] for a in left], device=singular.device)
    return singular.sum(dim=-1) / smaller, singular.square().sum(dim=-1) / smaller


def _padded(bases: Sequence[Tensor]) -> list[Tensor]:
    """Bases with columns of zeros, which add no correlation, up to a common width."""
    dtype = bases[0].dtype
    for basis in bases:
        dtype = torch.promote_types(dtype, basis.dtype)
    most = max(basis.shape[1] for basis in bases)
    return [torch.nn.functional.pad(basis.to(dtype), (0, most - basis.shape[1])) for basis in bases]


def _centred(rows: Rows, name: str, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """All rows about their mean, and how exactly an entry of them is known."""
    ready = prepare(rows, device=device, name=name)
    whole = read(rows, 0, int(rows.shape[0]), ready.shift.device, ready.dtype)
    if not bool(torch.isfinite(whole).all()):
        raise ValueError(f"`{name}` must be finite; got NaN or Inf. Find the layer and step that made it")
    mean = whole.mean(dim=0, dtype=torch.float64)
    size = whole.double().square().mean().sqrt()
    return whole - mean.to(whole.dtype), ready.spacing * size
