"""Which transformers model an optimizer trains: found among the live objects of the process, so that no object is marked."""

import gc
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from dynprobe.capture.guard import unwrapped
from dynprobe.errors import CaptureError

# What DataParallel, DistributedDataParallel and torch.compile put into the path of a module.
_WRAPPED = frozenset({"module", "_orig_mod"})


def trained_parameters(optimizer: Optimizer) -> dict[int, int]:
    """Identity of each parameter that an optimizer may change, with its place in the optimizer.

    Examples
    --------
    >>> import torch
    >>> kept, changed = nn.Linear(1, 1).requires_grad_(False), nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD([*kept.parameters(), *changed.parameters()], lr=0.1)
    >>> trained_parameters(optimizer) == {id(changed.weight): 2, id(changed.bias): 3}
    True
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {id(parameter): place for place, parameter in enumerate(parameters) if parameter.requires_grad}


def live_optimizers() -> list[Optimizer]:
    """Every optimizer of the process that holds parameters itself; wrappers that pass a step on are left out."""
    return [found for found in _live(Optimizer) if "param_groups" in vars(found)]


def is_trained(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether an optimizer may change any parameter of a model."""
    trained = trained_parameters(optimizer)
    return any(id(parameter) in trained for parameter in model.parameters())


def trained_transformer(optimizer: Optimizer, others: Iterable[Optimizer], *, name: str | None = None) -> Any:
    """The model to capture when an optimizer steps for the first time.

    Parameters
    ----------
    optimizer
        The optimizer that is about to step.
    others
        The other optimizers of the process.
    name
        Which of the trained transformers: its class (``"BertModel"``), its path in the module that contains it
        (``"encoder"``), or a global variable of the main program, with a path where needed (``"student.encoder"``).

    Returns
    -------
    torch.nn.Module or None
        The largest transformers model (or PEFT model around one) that any of the optimizers trains and that is no part of
        another; of equally large ones the one that comes first in `optimizer`. ``None`` when no transformer is trained.

    Raises
    ------
    CaptureError
        When `name` is that of no trained transformer, naming what there is.
    """
    own = trained_parameters(optimizer)
    trained = set(own).union(*(trained_parameters(other) for other in others))
    found = [model for model in _live(*_transformer_classes()) if _holds_any(model, trained)]
    if not found:
        return None
    candidates = _outermost(found) if name is None else _named(found, name)
    return min(candidates, key=lambda model: (-_size(model), _place(model, own)))


def _transformer_classes() -> tuple[type, ...]:
    peft = sys.modules.get("peft")
    return (PreTrainedModel,) if peft is None else (PreTrainedModel, peft.PeftModel)


def _live(*kinds: type) -> list[Any]:
    """Live objects by their type alone: asking an object for its class may run code of the program."""
    fits: dict[type, bool] = {}
    found = []
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in fits:
            fits[kind] = any(parent in kinds for parent in kind.__mro__)
        if fits[kind] and not {"_modules", "param_groups"}.isdisjoint(vars(thing)):
            found.append(thing)  # and not one that is still being made
    return found


def _holds_any(model: nn.Module, identities: set[int]) -> bool:
    return any(id(parameter) in identities for parameter in model.parameters())


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _place(model: nn.Module, places: dict[int, int]) -> int:
    """Where the first parameter of a model stands in an optimizer; behind all others when none does."""
    return min((places[id(p)] for p in model.parameters() if id(p) in places), default=len(places) + sys.maxsize // 2)


def _outermost(models: Sequence[nn.Module]) -> list[nn.Module]:
    inner = {id(module) for model in models for module in model.modules() if module is not model}
    return [model for model in models if id(model) not in inner]


def _named(models: Sequence[nn.Module], name: str) -> list[nn.Module]:
    by_class = [model for model in models if type(model).__name__ == name]
    if by_class:
        return by_class
    paths = _paths(models)
    by_path = [model for model in models if name in paths[id(model)]]
    variable = _variable_of_main(name)
    by_variable = [model for model in models if model is variable]
    if not by_path and not by_variable:
        known = [f"{type(model).__name__}{''.join(f' ({path})' for path in paths[id(model)])}" for model in models]
        raise CaptureError(
            f"`--model-attr` must be the class of a trained transformer, its path in the module that contains it, or a "
            f"global variable of the program; got {name!r}, and there is {', '.join(sorted(set(known)))}"
        )
    return by_path or by_variable


def _paths(models: Sequence[nn.Module]) -> dict[int, list[str]]:
    """The paths of models in the modules that contain them and are part of no other, without those of wrappers."""
    modules = _live(nn.Module)
    parts = {id(child) for module in modules for child in vars(module)["_modules"].values()}
    paths: dict[int, list[str]] = {id(model): [] for model in models}
    for root in modules:
        if id(root) in parts:
            continue
        for path, module in root.named_modules():
            kept = ".".join(part for part in path.split(".") if part not in _WRAPPED)
            if id(module) in paths and kept:
                paths[id(module)].append(kept)
    return paths


def _variable_of_main(name: str) -> Any:
    variable, *rest = name.split(".")
    value = vars(sys.modules["__main__"]).get(variable) if "__main__" in sys.modules else None
    if not isinstance(value, nn.Module):
        return None
    for part in rest:
        value = vars(unwrapped(value))["_modules"].get(part)
        if value is None:
            return None
    return unwrapped(value)
