"""Arrays in, arrays out: tensors stay tensors on their device, NumPy arrays come back as NumPy arrays."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = np.ndarray | Tensor
OneKind = TypeVar("OneKind", np.ndarray, Tensor)

_TILES, _MIN_TILED, _LARGEST_TILE = 4, 256, 512
# A column whose entries differ by no more than this many roundings of its largest entry is constant.
_CONSTANT_ROUNDINGS = 4


@dataclass(frozen=True)
class Centred:
    """Observations with the mean taken out, scaled so that squares neither overflow nor vanish.

    Attributes
    ----------
    values
        (..., n_samples, n_features) centred and divided by `scale`; the largest entry is in [1, 2).
    mean
        (..., 1, n_features) in the units of the observations.
    scale
        (..., 1, 1) a power of two, so that scaling rounds nothing.
    rounding
        (...) how far the entries of `values` are known: the spacing of the numbers as given, at the root mean square.
    """

    values: Tensor
    mean: Tensor
    scale: Tensor
    rounding: Tensor


def to_float64(name: str, value: Any) -> Tensor:
    """A finite float64 tensor on the device of `value` (float32 on devices without float64).

    Raises
    ------
    TypeError
        When it is no array of real numbers.
    ValueError
        When it holds NaN or Inf, or is no regular array.
    """
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(_to_numpy(name, value))
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold real numbers; got {tensor.dtype}")
    wide = tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
    if not _all_finite(wide):
        raise ValueError(f"`{name}` must be finite; got NaN or Inf. Find the layer and step that made it")
    return wide


def _all_finite(x: Tensor) -> bool:
    """A sum is NaN or infinite when an entry is; every entry is looked at only then, for a sum may also overflow."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def _to_numpy(name: str, value: Any) -> np.ndarray:
    """A copy in float64 in this machine's byte order, whatever the order, strides and width of the original."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"`{name}` must be a regular array; got {type(value).__name__} of uneven rows") from error
    if array.dtype.kind in "bc":
        raise TypeError(f"`{name}` must hold real numbers; got {array.dtype}")
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"`{name}` must be an array or tensor of numbers; got {type(value).__name__} of dtype {array.dtype}"
        )
    return np.array(array, dtype=np.float64)


def resolution(value: Any) -> float:
    """Relative spacing of the numbers as they were given: 2.2e-16 for float64, 1.2e-7 for float32, 9.8e-4 for float16."""
    if isinstance(value, Tensor):
        return torch.finfo(value.dtype).eps if value.is_floating_point() else torch.finfo(torch.float64).eps
    kind, computed = np.asarray(value).dtype, float(np.finfo(np.float64).eps)
    return max(float(np.finfo(kind).eps), computed) if kind.kind == "f" else computed


def like(result: Tensor, *inputs: Any) -> Any:
    """`result` as a tensor when an input was one, else as a NumPy array (a NumPy scalar for a single value)."""
    if any(isinstance(value, Tensor) for value in inputs):
        return result
    array = result.cpu().numpy()
    return array[()] if array.ndim == 0 else array


def observations(name: str, value: Any) -> Tensor:
    """Check (..., n_samples, n_features) with at least two samples and no empty axis, and give it in float64."""
    tensor = to_float64(name, value)
    if tensor.ndim < 2 or tensor.shape[-2] < 2 or tensor.numel() == 0:
        raise ValueError(
            f"`{name}` must be (..., n_samples, n_features) with at least 2 samples and no empty axis; "
            f"got shape {tuple(tensor.shape)}"
        )
    return tensor


def paired(x: Any, y: Any) -> tuple[Centred, Centred]:
    """Check and centre two sets of observations of the same samples, in the same order."""
    first, second = observations("x", x), observations("y", y)
    if first.shape[-2] != second.shape[-2]:
        raise ValueError(
            f"`x` and `y` must hold the same samples, row by row; got {first.shape[-2]} and {second.shape[-2]} rows"
        )
    check_broadcast("x", first.shape[:-2], "y", second.shape[:-2])
    first_centred = centre("x", first, spacing=resolution(x))
    return first_centred, centre("y", second.to(first.device), spacing=resolution(y))


def check_broadcast(name: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> None:
    """Complain about leading axes that do not fit each other."""
    try:
        torch.broadcast_shapes(shape, other_shape)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` and `{other}` must have leading axes that broadcast; got {tuple(shape)} and {tuple(other_shape)}"
        ) from error


def centre(name: str, x: Tensor, *, spacing: float) -> Centred:
    """Take the mean of each feature out and scale by a power of two.

    The mean is taken out twice: what a large mean leaves over by rounding goes with the second pass. `spacing` is the
    relative spacing of the numbers as they were given, see :func:`resolution`.

    Raises
    ------
    ValueError
        When all samples are equal, up to the rounding of float64.
    """
    first_scale = power_of_two(_largest(x, dim=(-2, -1)))
    values = x / first_scale  # the one copy, changed in place from here on
    size = torch.linalg.vector_norm(values, dim=(-2, -1), keepdim=True) / (x.shape[-2] * x.shape[-1]) ** 0.5
    constant = _CONSTANT_ROUNDINGS * torch.finfo(x.dtype).eps * _largest(values, dim=-2)
    mean = _take_mean_out(values)
    spread = _largest(values, dim=-2)
    values.masked_fill_(spread <= constant, 0.0)
    spread = spread.masked_fill(spread <= constant, 0.0).amax(dim=-1, keepdim=True)
    if bool((spread == 0).any()):
        raise ValueError(f"`{name}` must vary; got samples that are all equal, for which the value is undefined")
    second_scale = power_of_two(spread)
    rounding = spacing * (size / second_scale).squeeze(-1).squeeze(-1)
    return Centred(values.div_(second_scale), mean * first_scale, first_scale * second_scale, rounding)


def _take_mean_out(values: Tensor) -> Tensor:
    """Centre in place, in two passes: what a large mean leaves over by rounding goes with the second; gives the mean."""
    mean = values.mean(dim=-2, keepdim=True)
    values -= mean
    rest = values.mean(dim=-2, keepdim=True)
    values -= rest
    return mean + rest


def _largest(x: Tensor, *, dim: int | tuple[int, ...]) -> Tensor:
    """Largest magnitude, without a copy of `x`."""
    return torch.maximum(-x.amin(dim=dim, keepdim=True), x.amax(dim=dim, keepdim=True))


def power_of_two(largest: Tensor) -> Tensor:
    """The power of two at or below each positive number, 1 for zero; dividing by it is exact."""
    mantissa = torch.frexp(largest).mantissa
    return torch.where(largest > 0, largest / torch.where(largest > 0, 2 * mantissa, torch.ones_like(largest)), 1.0)


def symmetric_product(x: Tensor) -> Tensor:
    """xᵀ x (..., d, d) of (..., n, d): only the tiles on and above the diagonal are computed, the others are copied."""
    d = x.shape[-1]
    if d < _MIN_TILED:
        return x.mT @ x
    product = torch.empty(*x.shape[:-2], d, d, dtype=x.dtype, device=x.device)
    tiles = max(_TILES, d // _LARGEST_TILE)
    for start, stop in pairwise(d * tile // tiles for tile in range(tiles + 1)):
        product[..., start:stop, start:] = x[..., start:stop].mT @ x[..., start:]
        product[..., stop:, start:stop] = product[..., start:stop, stop:].mT
    return product


def unit_columns(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each feature centred and with mean square 1, or all zero when it is constant; and its mean and standard deviation.

    Every feature is scaled by its own power of two first, so that squares neither overflow nor vanish.
    """
    largest = _largest(x, dim=-2)
    scale = power_of_two(largest)
    values = x / scale  # the one copy, changed in place from here on
    mean = _take_mean_out(values)
    spread = _largest(values, dim=-2)
    constant = spread <= _CONSTANT_ROUNDINGS * torch.finfo(x.dtype).eps * (largest / scale)
    values.masked_fill_(constant, 0.0).div_(spread.masked_fill(constant, 1.0))
    size = values.square().mean(dim=-2, keepdim=True).sqrt()  # of a varying column at least 1 / sqrt(n_samples)
    values.div_(size.masked_fill(constant, 1.0))
    return values, mean * scale, spread.masked_fill(constant, 0.0) * size * scale
