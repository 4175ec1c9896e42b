"""Where in a model attention and the input of the classifier come from, so that each can be taken off as soon as it is made.

A model that is asked for attention returns that of all its layers at the end: of a long text the attention of one layer
is gigabytes, and that of all layers does not fit. Which module makes which tensor is not asked of the model's class but
watched: in a pass over a few tokens, the tensor that the model returns at the end is the very object that some module
returned before.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Stack and kind of attention ("self" or "cross"), and the block, counted from 1.
Key = tuple[str, str]
Take = Callable[[Key, int, Tensor], None]


class Source(NamedTuple):
    """One tensor on its way: which module returns it, at which place of its tuple, and at which of its calls in a pass.

    A module that returns nothing but the tensor has place -1.
    """

    module: str
    place: int
    call: int


@dataclass(frozen=True)
class Taps:
    """What was found out about a model.

    Attributes
    ----------
    attention
        Where the attention of each block is made; empty where that could not be seen, or where the model needs what it returns.
    classifier
        Name of the linear module whose output the model returns as logits, or ``None``.
    pooler
        Name of the module that makes one vector of each example for the classifier, or ``None``.
    """

    attention: Mapping[Source, tuple[Key, int]] = field(default_factory=dict)
    classifier: str | None = None
    pooler: str | None = None


NO_TAPS = Taps()


class Watch:
    """Remembers, for each tensor that a module returns, who returned it first.

    Parameters
    ----------
    model
        The model to watch while the context is open.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._alone: dict[int, Source] = {}
        self._in_tuple: dict[int, Source] = {}
        self._kept: list[Tensor] = []  # as long as they live, no other tensor can have their identity
        self._calls: dict[str, int] = {}

    def __enter__(self) -> "Watch":
        self._handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self._model.named_modules() if name
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def returned_alone(self, tensor: Any) -> Source | None:
        """Who first returned this very tensor and nothing else."""
        return self._alone.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def returned_in_tuple(self, tensor: Any) -> Source | None:
        """Who first returned this very tensor as a part of a tuple."""
        return self._in_tuple.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def _hook(self, name: str) -> Callable[..., None]:
        def see(_module: nn.Module, _args: Any, output: Any) -> None:
            call = self._calls[name] = self._calls.get(name, -1) + 1
            in_tuple = type(output) is tuple
            first = self._in_tuple if in_tuple else self._alone
            for place, part in enumerate(output) if in_tuple else [(-1, output)]:
                if isinstance(part, Tensor) and id(part) not in first:
                    first[id(part)] = Source(name, place, call)
                    self._kept.append(part)

        return see


@contextmanager
def taken_off(model: nn.Module, taps: Taps, take: Take) -> Iterator[None]:
    """During a pass, hand each block's attention to `take` when it is made, and let the model carry an empty one on.

    Parameters
    ----------
    model
        The model.
    taps
        Where its attention is made.
    take
        Called with (stack, kind), block and the tensor, in the order of the blocks.
    """
    places: dict[str, set[int]] = {}
    for source in taps.attention:
        places.setdefault(source.module, set()).add(source.place)
    modules = dict(model.named_modules())
    # Ahead of the hooks with which transformers collects what the model will return.
    handles = [
        modules[name].register_forward_hook(_diversion(name, wanted, taps, take), prepend=True)
        for name, wanted in places.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _diversion(name: str, places: set[int], taps: Taps, take: Take) -> Callable[..., Any]:
    calls = -1

    def divert(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        parts = list(output)
        for place in places:
            known = taps.attention.get(Source(name, place, calls))
            if known is not None:
                take(*known, parts[place])
                parts[place] = empty_like(parts[place])
        return tuple(parts)

    return divert


def empty_like(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes the memory of one number."""
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
