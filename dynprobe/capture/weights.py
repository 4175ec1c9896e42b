"""How far each trained weight tensor has moved from where it started."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# A copy of the starting weights is held in main memory; beyond this size it is not worth it.
MAX_BYTES = 2 * 2**30


class StartingWeights:
    """A copy of a model's trainable weights, to measure distances from.

    Parameters
    ----------
    model
        The model at step 0.
    """

    def __init__(self, model: nn.Module) -> None:
        self._start: Mapping[str, Tensor] = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether the copy is small enough to be held."""
        sizes = (p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return sum(sizes) <= MAX_BYTES

    def distances(self, model: nn.Module) -> dict[str, tuple[float, float]]:
        """L2 distance from the start and L2 norm now, by name, accumulated in float64."""
        now = dict(model.named_parameters())
        found = {}
        for name, start in self._start.items():
            if name in now:
                value = now[name].detach().to("cpu")
                moved = torch.linalg.vector_norm(value - start, dtype=torch.float64)
                found[name] = (float(moved), float(torch.linalg.vector_norm(value, dtype=torch.float64)))
        return found
