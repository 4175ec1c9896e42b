"""Spectral normalisation of a model's head: every weight matrix divided by its largest singular value."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynprobe.finetune.targets import core_of

_WEIGHT = "weight"
_ORIGINAL = "parametrizations.weight.original"
_INSIDE = "parametrizations.weight."


class SpectralNorm(nn.Module):
    """Divides a weight matrix by its largest singular value, which is then 1.

    Parameters
    ----------
    weight
        The weight; more than two axes are flattened to (first, all others).
    iterations
        ``None``: exact, by a singular value decomposition. Else so many power iterations in each training pass, which
        approach the largest singular value from below, so that the result starts with one above 1.
    generator
        Draws the start of the power iterations.

    Notes
    -----
    The gradient flows through the singular value. Computed in float32 or the weight's own type, whichever is wider.
    Miyato et al. (2018), "Spectral normalization for generative adversarial networks".

    Examples
    --------
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.5]])
    >>> SpectralNorm(weight)(weight).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """

    left: Tensor
    right: Tensor

    def __init__(
        self, weight: Tensor, *, iterations: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.iterations = iterations
        if iterations is not None:
            for name, size in zip(("left", "right"), weight.flatten(1).shape, strict=True):
                start = torch.randn(size, generator=generator).to(weight.device)
                self.register_buffer(name, nn.functional.normalize(start, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
            largest = torch.linalg.matrix_norm(matrix, 2) if self.iterations is None else self._estimate(matrix)
            return (weight / largest.clamp_min(torch.finfo(matrix.dtype).tiny)).to(weight.dtype)

    def _estimate(self, matrix: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for _ in range(self.iterations or 0):
                    self.left.copy_(nn.functional.normalize(matrix.mv(self.right.to(matrix)), dim=0))
                    self.right.copy_(nn.functional.normalize(matrix.t().mv(self.left.to(matrix)), dim=0))
        left, right = self.left.to(matrix), self.right.to(matrix)
        return left.clone() @ matrix @ right.clone()


def head_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The modules outside a model's base that have a weight matrix of their own, by name.

    Raises
    ------
    ValueError
        When there is none: a model without a head, or one whose head is its word embeddings.
    """
    core = core_of(model)
    base = core.base_model
    in_base = set() if base is core else {id(weight) for weight in base.parameters()}
    found = {
        name: module
        for name, module in core.named_modules()
        if base is not core and getattr(module, _WEIGHT, None) is not None and _is_head(module, in_base)
    }
    if not found:
        raise ValueError(
            f"the model must have a head with weights of its own for spectral normalisation; got {type(core).__name__}, where "
            "there are none outside the base model (a language model's head may be its word embeddings). Use 'r3f'"
        )
    return found


def normalise(modules: Mapping[str, nn.Module], *, iterations: int | None, generator: torch.Generator) -> None:
    """Put spectral normalisation on weights; saved models hold the normalised weights under their usual names.

    Raises
    ------
    ValueError
        When a weight is parametrised already.
    """
    for name, module in modules.items():
        if parametrize.is_parametrized(module, _WEIGHT):
            raise ValueError(f"`{name}.weight` must not be parametrised yet; got one that is. Normalise a head once")
    for module in modules.values():
        weight: Any = module.weight
        norm = SpectralNorm(weight.detach(), iterations=iterations, generator=generator).train(module.training)
        parametrize.register_parametrization(module, _WEIGHT, norm, unsafe=True)
        module.register_state_dict_post_hook(_save_plain)
        module.register_load_state_dict_pre_hook(_load_plain)


def raw_state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights before normalisation, and the state of power iterations."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in modules.items()
        for key, value in module.parametrizations[_WEIGHT].state_dict().items()  # type: ignore[index, union-attr]
    }


def load_raw_state(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> None:
    """Take over a :func:`raw_state`."""
    for name, module in modules.items():
        inside = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        module.parametrizations[_WEIGHT].load_state_dict(inside)  # type: ignore[index, union-attr]


def _is_head(module: nn.Module, in_base: set[int]) -> bool:
    weight: Any = module.weight
    if not isinstance(weight, Tensor):
        return False
    own = any(id(weight) == id(value) for value in module.parameters(recurse=False))
    parametrised = parametrize.is_parametrized(module, _WEIGHT)
    outside = parametrised or (own and id(weight) not in in_base)
    return weight.ndim >= 2 and outside and not any(id(value) in in_base for value in module.parameters())


def _save_plain(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A saved model works in programs that know nothing of the parametrisation: it holds the normalised weight."""
    for key in [key for key in state if key.startswith(prefix + _INSIDE)]:
        del state[key]
    weight: Any = module.weight
    state[prefix + _WEIGHT] = weight.detach()


def _load_plain(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if prefix + _WEIGHT in state:
        state[prefix + _ORIGINAL] = state.pop(prefix + _WEIGHT)
        for name, buffer in module.parametrizations[_WEIGHT].named_buffers():  # type: ignore[index, union-attr]
            state[f"{prefix}{_INSIDE}{name}"] = buffer
