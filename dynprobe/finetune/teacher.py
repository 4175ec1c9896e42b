"""A momentum teacher: a slowly moving average of the weights that are trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Teacher:
    """θ̃ ← β θ̃ + (1 - β) θ over the trained weights of a model; it starts where they are.

    Parameters
    ----------
    model
        The model, not wrapped.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 1.0)
    >>> teacher = Teacher(model)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> teacher.follow(model, momentum=0.75)
    >>> float(teacher.weights_for(model)["weight"])
    1.25
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {name: _wide(value.detach()).clone() for name, value in _trained(model)}

    @torch.no_grad()
    def follow(self, model: nn.Module, *, momentum: float) -> None:
        """Move towards the weights of a model by 1 - `momentum`."""
        for name, value in _trained(model):
            kept = self._weights[name].to(value.device)
            self._weights[name] = kept.lerp_(value.to(kept.dtype), 1 - momentum)

    def weights_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights by name, with device and type of a model's own."""
        return {name: self._weights[name].to(value.device, value.dtype) for name, value in _trained(model)}

    def state_dict(self) -> dict[str, Tensor]:
        """The weights."""
        return dict(self._weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a :meth:`state_dict`."""
        for name, value in self._weights.items():
            self._weights[name] = state[name].to(value.device, value.dtype).clone()


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _wide(value: Tensor) -> Tensor:
    """A slow average in half precision would never move."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
