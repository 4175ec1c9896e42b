"""Run a model for a moment as if nothing had happened: everything that a forward pass can change is put back.

Measured reasons: dropout and data loaders consume random numbers; `model.train()` un-freezes modules that were in eval mode;
transformers leaves its capturing hooks on the model for ever, and the model then cannot be pickled; dynamic rotary embeddings
change their buffers; an sdpa model left in eager mode trains to other bits.
"""

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of data parallelism and of ``torch.compile``."""
    while type(model).__name__ in _WRAPPERS:
        model = model._orig_mod if type(model).__name__ == "OptimizedModule" else model.module  # type: ignore[assignment]
    return model


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode without gradients, autocast or compilation; afterwards the model and the process are as before.

    Restored, also after an exception: per-module training flags, hooks, attributes and buffers; the random states of Python,
    NumPy and torch on every device; the attention implementation of each configuration.

    Parameters
    ----------
    model
        The model, already :func:`unwrapped`.

    Yields
    ------
    torch.nn.Module
        The same model.
    """
    reshard(model)
    with ExitStack() as stack:
        stack.enter_context(random_state_kept())
        stack.enter_context(_module_state(model))
        stack.enter_context(_resharded(model))
        stack.enter_context(_attention_implementations(model))
        stack.enter_context(torch.no_grad())
        for device in {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        # Importing dynamo costs seconds, so it is only asked to stand still when the program uses it.
        stack.enter_context(
            torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        )
        _without_patches(model)
        model.eval()
        yield model


def sharded_kind() -> type | None:
    """The class of the modules that torch's ``fully_shard`` has made; ``None`` where the process has not imported it."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def sharded_parts(model: nn.Module) -> list[Any]:
    """The modules of a model on which ``fully_shard`` was called, the outermost first."""
    kind = sharded_kind()
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def reshard(model: nn.Module) -> None:
    """Leave each process its own part of the weights: the outermost module otherwise keeps them whole after a forward pass."""
    for part in sharded_parts(model):
        part.reshard()


def set_eager_attention(model: nn.Module) -> None:
    """Ask every transformers model inside `model` for attention as explicit probabilities; undone by :func:`undisturbed`."""
    for config in _configurations(model):
        config._attn_implementation_internal = "eager"


def attention_implementation(model: nn.Module) -> str | None:
    """Name of the attention implementation that the model trains with, such as ``"sdpa"``."""
    return next((config._attn_implementation_internal for config in _configurations(model)), None)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random states of Python, NumPy and torch, on every device, as they were."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def _module_state(model: nn.Module) -> Iterator[None]:
    """Every module's attributes, hooks and buffers as they were: what the pass added is removed, what it changed is reset."""
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    # Registries of hooks, buffers, parameters and sub-modules, and whatever else a module keeps in plain containers.
    contents = [
        (value, type(value).copy(value))
        for module in modules
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, old in zip(modules, attributes, strict=True):
            _reset_attributes(vars(module), old)
        for container, old_content in contents:
            _reset_contents(container, old_content)
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def _resharded(model: nn.Module) -> Iterator[None]:
    """Weights sharded as before the pass, also when it broke off in the middle; inside :func:`_module_state`."""
    parts, running = sharded_parts(model), []
    if parts:  # what is registered here is removed with all that was added to the modules
        model.register_forward_pre_hook(lambda *_: running.append(1))
        model.register_forward_hook(lambda *_: running.clear())
    try:
        yield
    finally:
        if running:
            inner = {id(module) for part in parts for module in part.modules() if module is not part}
            for part in parts:
                if not hasattr(part, "reset_iter_state"):
                    _forget_pass(part)
                elif id(part) not in inner:
                    part.reset_iter_state()
        reshard(model)


def _forget_pass(part: Any) -> None:
    """What ``reset_iter_state`` does, which torch has from 2.13 on: otherwise training would go on in the middle of a pass."""
    state = part._get_fsdp_state()
    state._state_ctx.iter_forward_root = None
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    for unit in (state, *(group for group in groups if group is not None)):
        unit._training_state = type(unit._training_state).IDLE


@contextmanager
def _attention_implementations(model: nn.Module) -> Iterator[None]:
    before = [(config, config._attn_implementation_internal) for config in _configurations(model)]
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _configurations(model: nn.Module) -> list[Any]:
    """Every distinct transformers configuration in a model: its own, those of sub-models, and their sub-configurations."""
    found: dict[int, Any] = {}
    pending = [config for module in model.modules() if (config := vars(module).get("config")) is not None]
    while pending:
        config = pending.pop(0)
        if id(config) in found or not hasattr(config, "_attn_implementation_internal"):
            continue
        found[id(config)] = config
        pending += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    return list(found.values())


def _without_patches(model: nn.Module) -> None:
    """Set aside what replaced a module's forward: accelerate's autocast, in-place compilation."""
    for module in model.modules():
        patched = vars(module)
        if "_original_forward" in patched and "forward" in patched:
            patched["forward"] = patched["_original_forward"]
        if patched.get("_compiled_call_impl") is not None:
            patched["_compiled_call_impl"] = None


def _reset_attributes(attributes: dict[str, Any], old: dict[str, Any]) -> None:
    """Put back only what differs: compiled code watches the others."""
    for name in attributes.keys() - old.keys():
        del attributes[name]
    for name, value in old.items():
        if name not in attributes or attributes[name] is not value:
            attributes[name] = value


def _reset_contents(container: Any, old: Any) -> None:
    """Put back what a container held, in place: others, such as the handles of hooks, hold references to it."""
    now, before = _identities(container), _identities(old)
    if now == before:
        return
    container.clear()
    if isinstance(container, list):
        container.extend(old)
    else:
        container.update(old)


def _identities(container: Any) -> Any:
    """What a container holds, to be compared without asking tensors whether they are equal."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    if isinstance(container, set):
        return {id(value) for value in container}
    return [id(value) for value in container]
