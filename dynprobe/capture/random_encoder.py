"""The encoder that has learned nothing: the architecture of a model with random weights, as a baseline for probes."""

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import nn

from dynprobe.capture.architecture import Architecture, transformer_inside
from dynprobe.capture.default_probe import LARGE_MODEL
from dynprobe.capture.guard import random_state_kept

_SEED = 0x64796E70  # none that a program is likely to begin with itself: its own new model would be the same


def why_no_random_encoder(architecture: Architecture, *, is_sharded: bool) -> str | None:
    """Why the baseline is not measured of a model, or ``None`` when it is."""
    if is_sharded:
        return "the model is sharded"
    if architecture.n_parameters > LARGE_MODEL:
        return f"the model has {architecture.n_parameters / 1e9:.2g} billion weights"
    return None


def random_encoder(model: nn.Module) -> nn.Module:
    """A second model of the same architecture, on the same device, with the random weights that its family begins with.

    Nothing of the model itself is touched, nor any random state of the process; the weights are the same each time.

    Parameters
    ----------
    model
        A transformers model, or a PEFT model around one, of which the adapters are left off.

    Raises
    ------
    Exception
        Whatever the model's class says when it is made of its configuration alone, and torch where there is no memory.
    """
    core = transformer_inside(model)
    kind: Any = type(core)
    with random_state_kept(), torch.device("cpu"):
        random.seed(_SEED)
        np.random.seed(_SEED)
        # Not torch.manual_seed: that would also seed the generator of a GPU that the program has not yet used.
        torch.default_generator.manual_seed(_SEED)
        made: nn.Module = kind(copy.deepcopy(core.config))
    first = next(parameter for parameter in core.parameters() if parameter.is_floating_point())
    return made.requires_grad_(requires_grad=False).eval().to(device=first.device, dtype=first.dtype)
