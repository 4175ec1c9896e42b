"""The parts of a transformers model that training methods treat differently: body, blocks, embeddings, head."""

from dataclasses import dataclass
from typing import Any

from torch import nn

# Where configurations say how many blocks a stack has.
_SIZES = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
# A norm beside the blocks that stands after the last of them.
_FINAL_NORMS = frozenset({"ln_f", "norm", "norm_f", "final_norm", "final_layer_norm", "final_layernorm", "layer_norm"})


@dataclass(frozen=True)
class Stack:
    """One pile of transformer blocks.

    Attributes
    ----------
    path
        Name of the list of blocks inside the model, such as ``"bert.encoder.layer"``.
    blocks
        The blocks, the first applied first.
    """

    path: str
    blocks: nn.ModuleList


def core_model(model: nn.Module) -> Any:
    """The transformers model itself: `model`, or the base of a PEFT model.

    Parameters
    ----------
    model
        A transformers model, or a PEFT model around one.

    Returns
    -------
    PreTrainedModel
        The model that has a `config` and a `base_model`.

    Raises
    ------
    ValueError
        When there is none.
    """
    core: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not hasattr(getattr(core, "config", None), "model_type") or not hasattr(core, "base_model"):
        raise ValueError(
            f"`model` must be a transformers model, or a PEFT model around one; got "
            f"{type(model).__module__}.{type(model).__name__}. Unwrap it first (`model.module` of DistributedDataParallel)"
        )
    return core


def body_prefix(model: nn.Module) -> str:
    """Path of the pretrained body inside the transformers model, with a final dot; empty when the model is a body.

    Parameters
    ----------
    model
        A transformers model, or a PEFT model around one.

    Returns
    -------
    str
        Such as ``"bert."`` in a ``BertForSequenceClassification``.

    Raises
    ------
    ValueError
        When `model` is no transformers model.
    """
    core = core_model(model)
    return next((f"{name}." for name, module in core.named_modules() if name and module is core.base_model), "")


def new_modules(model: nn.Module, new: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Names of the modules whose weights no pretraining has seen.

    Parameters
    ----------
    model
        A transformers model.
    new
        Names that the user gives; then they are only checked. ``()`` says that nothing is new, as after training on an
        intermediate task whose head is kept.

    Returns
    -------
    tuple of str
        Without `new`: what stands beside the pretrained body. Nothing for a language model, whose output layer is
        pretrained.

    Raises
    ------
    ValueError
        For a name that is no module of the model.
    """
    core = core_model(model)
    if new is not None:
        known = {name for name, _ in core.named_modules()}
        unknown = [name for name in new if name not in known or not name]
        if unknown:
            beside = [name for name, _ in core.named_children()]
            raise ValueError(f"`new` must name modules of the model, such as {beside}; got {unknown}")
        return tuple(new)
    if core.base_model is core or core.get_output_embeddings() is not None:
        return ()
    return tuple(name for name, child in core.named_children() if child is not core.base_model)


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    """Whether the module or parameter `name` lies in one of `modules`.

    Parameters
    ----------
    name
        Dotted name.
    modules
        Dotted names of modules.

    Returns
    -------
    bool
        True also for the module itself.

    Examples
    --------
    >>> is_inside("classifier.weight", ("classifier",)), is_inside("classifier2.weight", ("classifier",))
    (True, False)
    """
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def block_stacks(model: nn.Module) -> tuple[Stack, ...]:
    """The stacks of blocks: one, or encoder and decoder in this order.

    Parameters
    ----------
    model
        A transformers model, or a PEFT model around one.

    Returns
    -------
    tuple of Stack
        At least one.

    Raises
    ------
    ValueError
        When the blocks share their weights (ALBERT), so that no block has weights of its own, or are not found.
    """
    core = core_model(model)
    config = core.config.get_text_config() if hasattr(core.config, "get_text_config") else core.config
    sizes = {size for source in (core.config, config) for name in _SIZES if isinstance(size := _get(source, name), int)}
    prefix = body_prefix(core)
    lists = [(f"{prefix}{name}", found) for name, found in _outermost_lists(core.base_model)]
    stacks = tuple(Stack(path, found) for path, found in lists if len(found) in sizes)
    if not stacks and hasattr(config, "num_hidden_groups"):
        raise ValueError(
            f"`model` must have blocks with weights of their own; got {type(core).__name__}, whose "
            f"{config.num_hidden_layers} layers share the weights of {config.num_hidden_groups} group(s)"
        )
    if not stacks:
        raise ValueError(
            f"`model` must hold its blocks in a list as long as its configuration says ({sorted(sizes)}); got "
            f"{ {path: len(found) for path, found in lists} } in {type(core).__name__}"
        )
    return stacks


def final_norm_stack(name: str, stacks: tuple[Stack, ...]) -> int | None:
    """Number of the stack whose last block the norm with parameter `name` follows.

    Parameters
    ----------
    name
        Dotted name of a parameter, such as ``"transformer.ln_f.weight"``.
    stacks
        As :func:`block_stacks` gives them.

    Returns
    -------
    int or None
        None when it belongs to no such norm.
    """
    module = name.rpartition(".")[0]
    parent, _, own = module.rpartition(".")
    beside = [number for number, stack in enumerate(stacks) if stack.path.rpartition(".")[0] == parent]
    return beside[0] if beside and own in _FINAL_NORMS else None


def pretrained_pooler(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The pooler of the pretrained body with its name.

    Parameters
    ----------
    model
        A transformers model, or a PEFT model around one.

    Returns
    -------
    tuple or None
        None when the body has none, as RoBERTa's under a classification head, ELECTRA's, DistilBERT's and all decoders.
    """
    core = core_model(model)
    pooler = getattr(core.base_model, "pooler", None)
    return (f"{body_prefix(core)}pooler", pooler) if isinstance(pooler, nn.Module) else None


def undecayed_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay leaves alone: biases and the weights of norms.

    Parameters
    ----------
    model
        Any module.

    Returns
    -------
    frozenset of str
        By kind of module and shape, not by a part of the name: an embedding called ``relative_attention_bias`` is decayed.
    """
    names = set()
    for path, module in model.named_modules(remove_duplicate=False):
        norm = isinstance(module, nn.LayerNorm | nn.GroupNorm) or "Norm" in type(module).__name__
        for own, parameter in module.named_parameters(recurse=False):
            if norm or parameter.dim() < 2 or own.endswith("bias"):
                names.add(f"{path}.{own}" if path else own)
    return frozenset(names)


def _get(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def _outermost_lists(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            found.append((f"{prefix}{name}", child))
        else:
            found += _outermost_lists(child, f"{prefix}{name}.")
    return found
