"""That an encoder stays frozen while it is probed: a hash of its weights before and after."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynprobe.errors import CaptureError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Check that nothing within changes a weight.

    Parameters
    ----------
    model
        The model; of sharded weights, the parts that this process has.

    Raises
    ------
    CaptureError
        Afterwards, naming a parameter that another value than before.
    """
    before = weight_hashes(model)
    yield
    changed = [name for name, value in weight_hashes(model).items() if before.get(name) != value]
    if changed:
        raise CaptureError(
            f"the encoder must stay frozen while probe tasks are measured; got another value of {changed[0]!r} afterwards "
            f"({len(changed)} of {len(before)} parameters). A forward pass of this model changes its own weights: measure it "
            "without probe tasks"
        )


def weight_hashes(model: nn.Module) -> dict[str, int]:
    """A hash of the bits of each parameter: any single change gives another one.

    Returns
    -------
    dict
        Name to torch's hash of the tensor, which reads it once and copies nothing; without it, the sum of its bits as integers.
    """
    tensors = ((name, _own_part(value.detach())) for name, value in model.named_parameters())
    return {name: _hash(value) for name, value in tensors if value.device.type != "meta"}


def _own_part(value: Tensor) -> Tensor:
    """Of sharded weights what this process has."""
    return value.to_local() if hasattr(value, "to_local") else value


def _hash(value: Tensor) -> int:
    if value.numel() == 0:
        return 0
    bits = value.contiguous().flatten().view(_INTEGERS.get(value.element_size(), torch.uint8))
    if hasattr(torch, "hash_tensor") and bits.device.type in ("cpu", "cuda"):  # from torch 2.9 on
        return int(torch.hash_tensor(bits).view(torch.int64))
    return int(bits.sum(dtype=torch.int64))
