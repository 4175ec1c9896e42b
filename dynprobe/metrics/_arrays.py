"""Arrays in, arrays out: tensors stay tensors on their device, NumPy arrays come back as NumPy arrays."""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = np.ndarray | Tensor


def to_float64(name: str, value: Any) -> Tensor:
    """A finite float64 tensor on the device of `value` (float32 on devices without float64).

    Raises
    ------
    TypeError
        When it is no array of numbers.
    ValueError
        When it holds NaN or Inf.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except TypeError as error:
        raise TypeError(f"`{name}` must be an array or tensor of numbers; got {type(value).__name__}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"`{name}` must hold real numbers; got {tensor.dtype}")
    wide = tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise ValueError(f"`{name}` must be finite; got NaN or Inf. Find the layer and step that made it")
    return wide


def resolution(value: Any) -> float:
    """Relative spacing of the numbers as they were given: 2.2e-16 for float64, 1.2e-7 for float32, 9.8e-4 for float16."""
    if isinstance(value, Tensor):
        return torch.finfo(value.dtype).eps if value.is_floating_point() else torch.finfo(torch.float64).eps
    kind = np.asarray(value).dtype
    return float(np.finfo(kind).eps) if kind.kind == "f" else float(np.finfo(np.float64).eps)


def like(result: Tensor, *inputs: Any) -> Any:
    """`result` as a tensor when an input was one, else as a NumPy array (a NumPy scalar for a single value)."""
    if any(isinstance(value, Tensor) for value in inputs):
        return result
    array = result.cpu().numpy()
    return array[()] if array.ndim == 0 else array


def observations(name: str, value: Any) -> Tensor:
    """Check (..., n_samples, n_features) with at least two samples and one feature, and give it in float64."""
    tensor = to_float64(name, value)
    if tensor.ndim < 2 or tensor.shape[-2] < 2 or tensor.shape[-1] < 1:
        raise ValueError(
            f"`{name}` must be (..., n_samples, n_features) with at least 2 samples; got shape {tuple(tensor.shape)}"
        )
    return tensor


def paired(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Check two sets of observations of the same samples, in the same order."""
    first, second = observations("x", x), observations("y", y)
    if first.shape[-2] != second.shape[-2]:
        raise ValueError(
            f"`x` and `y` must hold the same samples, row by row; got {first.shape[-2]} and {second.shape[-2]} rows"
        )
    return first, second


def unit_scale(x: Tensor) -> Tensor:
    """Centre each feature and divide by the largest entry, so that squares neither overflow nor vanish.

    The mean is taken out twice: what a large mean leaves over by rounding goes with the second pass.

    Raises
    ------
    ValueError
        When all samples are equal.
    """
    largest = x.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    centred = scaled - scaled.mean(dim=-2, keepdim=True)
    centred = centred - centred.mean(dim=-2, keepdim=True)
    # Rounding of the mean leaves a residue in a constant column; it is no variation.
    noise = 4 * torch.finfo(x.dtype).eps * scaled.abs().amax(dim=-2, keepdim=True)
    centred = torch.where(centred.abs().amax(dim=-2, keepdim=True) <= noise, torch.zeros_like(centred), centred)
    spread = centred.abs().amax(dim=(-2, -1), keepdim=True)
    if bool((spread == 0).any()):
        raise ValueError("observations must vary; got samples that are all equal, for which the value is undefined")
    return centred / spread
