"""How far each trained weight tensor has moved from where it started."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

# A copy of the starting weights is held in main memory; beyond this size it is not worth it.
MAX_BYTES = 2 * 2**30


class StartingWeights:
    """A copy of a model's trainable weights, to measure distances from; of sharded weights, of this process's part.

    Parameters
    ----------
    model
        The model at step 0.
    """

    def __init__(self, model: nn.Module) -> None:
        self._start: Mapping[str, Tensor] = {
            name: own_part(parameter).to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether the copy is small enough to be held."""
        sizes = (p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return sum(sizes) <= MAX_BYTES

    def distances(
        self, model: nn.Module, *, summed: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, tuple[float, float]]:
        """L2 distance from the start and L2 norm now, by name, accumulated in float64.

        Parameters
        ----------
        model
            The model now.
        summed
            Adds up an array over the processes that hold the parts of a sharded weight.
        """
        now = {name: parameter for name, parameter in model.named_parameters() if name in self._start}
        found, parts = {}, {}
        for name, parameter in now.items():
            value = own_part(parameter).to("cpu")
            moved = torch.linalg.vector_norm(value - self._start[name], dtype=torch.float64)
            norms = torch.stack([moved, torch.linalg.vector_norm(value, dtype=torch.float64)])
            found[name] = (float(norms[0]), float(norms[1]))
            if hasattr(parameter, "to_local"):
                parts[name] = norms.square()
        if parts and summed is not None:
            whole = summed(torch.stack(list(parts.values()))).sqrt().tolist()
            found |= {name: (moved, norm) for name, (moved, norm) in zip(parts, whole, strict=True)}
        return found


def own_part(parameter: Tensor) -> Tensor:
    """A weight without its history; of a sharded one, what this process holds of it."""
    own: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return own.detach()
