"""Put a normalisation before the classifier of a model, and take it out again."""

import threading
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynprobe.finetune.anatomy import body_prefix, core_model
from dynprobe.finetune.running import RunningNorm
from dynprobe.finetune.streams import RandomState, replayed

# Transformers' parameter groups leave the weights of modules with this ending without weight decay.
_NAME = "input_norm"
_HANDLES = "_dynprobe_handles"


def insert_before_classifier(model: nn.Module, module: nn.Module, *, at: str | None = None) -> nn.Module:
    """Let `module` transform the vector that the classifier sees.

    It becomes the submodule ``input_norm`` of the classifier: it moves, is trained, copied, saved and resumed with the model,
    while every weight keeps its name. So a saved folder still loads as a plain model, without the module (transformers then
    lists its tensors as unexpected); insert it again and call :func:`dynprobe.finetune.restore_saved_state`, or call
    :func:`remove_before_classifier` with ``fold=True`` before saving.

    Parameters
    ----------
    model
        A transformers model for sequence classification. With PEFT: insert first, then wrap.
    module
        Such as :class:`IsoBN` or :class:`BatchNormBaseline`; maps (n_examples, width) to the same shape.
    at
        Name of a module of the model before which it goes instead, such as ``"classifier.dense"`` in RoBERTa. By default the
        last linear layer outside the pretrained body whose width is the number of labels.

    Returns
    -------
    nn.Module
        The module before which it was inserted.

    Raises
    ------
    ValueError
        When there is no such classifier, the widths differ, or one is inserted already.

    Notes
    -----
    Dropout between body and classifier comes after the module, as in the published code: the module sees the vector without
    dropout, and what it returns is dropped by the very mask that the model drew. Models that score every position and then
    pick one (GPT-2, Llama) are normalised at the position that they pick; the scores of the others are not used.

    Examples
    --------
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from dynprobe.finetune.isobn import IsoBN
    >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    >>> model = BertForSequenceClassification(config)
    >>> insert_before_classifier(model, IsoBN(4)) is model.classifier
    True
    >>> [name for name in model.state_dict() if name.startswith("classifier")][:3]
    ['classifier.weight', 'classifier.bias', 'classifier.input_norm.n_updates']
    """
    core = core_model(model)
    before = classifier(core) if at is None else _named(core, at)
    if hasattr(before, _NAME):
        raise ValueError(
            "`model` must not have a module inserted there already; got one. Take it out first (remove_before_classifier)"
        )
    width, wanted = getattr(before, "in_features", None), getattr(module, "n_features", None)
    if None not in (width, wanted) and width != wanted:
        raise ValueError(f"`module` must have the width of the classifier's input, {width}; got {wanted}")
    weight = next((p for p in before.parameters()), next(core.parameters()))
    before.add_module(_NAME, module.to(weight.device).train(core.training))
    seen = _Seen()
    handles = [before.register_forward_pre_hook(partial(_transform_input, seen))]
    inside, is_last = body_prefix(core), getattr(before, "out_features", None) == core.config.num_labels
    for name, part in core.named_modules():
        if is_last and isinstance(part, nn.Dropout) and inside and not name.startswith(inside):
            handles.append(part.register_forward_pre_hook(partial(_see_randomness, seen)))
            handles.append(part.register_forward_hook(partial(_see_dropout, seen)))
    if _picks_a_position(core):
        handles.append(core.base_model.register_forward_pre_hook(partial(_see_inputs, seen), with_kwargs=True))
    before.__dict__[_HANDLES] = handles
    return before


def remove_before_classifier(model: nn.Module, *, fold: bool = False) -> nn.Module:
    """Take out what :func:`insert_before_classifier` put in.

    Parameters
    ----------
    model
        The model.
    fold
        Whether the classifier's weights take over what the module does in evaluation mode, so that the plain model predicts
        the same.

    Returns
    -------
    nn.Module
        The module that was inserted.

    Raises
    ------
    ValueError
        When there is none, or it cannot be folded: no linear layer follows it, or the layer has no bias for an offset.
    """
    before = next((part for part in core_model(model).modules() if _HANDLES in part.__dict__), None)
    if before is None:
        raise ValueError("`model` must have a module inserted before its classifier; got none")
    module: nn.Module = getattr(before, _NAME)
    if fold:
        _fold(before, module)
    for handle in before.__dict__.pop(_HANDLES):
        handle.remove()
    delattr(before, _NAME)
    return module


def classifier(model: nn.Module) -> nn.Linear:
    """The linear layer whose output the logits are.

    Parameters
    ----------
    model
        A transformers model for sequence classification.

    Returns
    -------
    nn.Linear
        Such as ``classifier``, ``classifier.out_proj`` or ``score``.

    Raises
    ------
    ValueError
        When the model is for another task, or has no linear layer as wide as its number of labels beside its body.
    """
    core = core_model(model)
    inside = body_prefix(core)
    linear = {
        name: part
        for name, part in core.named_modules()
        if isinstance(part, nn.Linear) and inside and not name.startswith(inside) and "original_module" not in name
    }
    last = [part for part in linear.values() if part.out_features == core.config.num_labels]
    if not (_classifies_sequences(core) and last):
        raise ValueError(
            f"`model` must be for sequence classification, with a linear layer of {core.config.num_labels} outputs beside its "
            f"body; got {type(core).__name__} with {sorted(linear)}. Name the module with `at`"
        )
    return last[-1]


class _Seen(threading.local):
    """What one forward pass shows on its way to the classifier. Empty between passes, so copies of a model may share it."""

    randomness: RandomState | None = None
    dropout: tuple[nn.Dropout, RandomState, Tensor, Tensor] | None = None
    positions: Tensor | int | None = None

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())


def _see_randomness(seen: _Seen, module: nn.Dropout, args: tuple[Any, ...]) -> None:
    if module.training and module.p > 0:
        seen.randomness = RandomState.now(args[0].device)


def _see_dropout(seen: _Seen, module: nn.Dropout, args: tuple[Any, ...], output: Tensor) -> None:
    randomness, seen.randomness = seen.randomness, None
    if randomness is not None:
        seen.dropout = (module, randomness, args[0], output)


def _see_inputs(seen: _Seen, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The position whose score the model will pick: the rightmost that is no padding, by the model's own rule."""
    ids = args[0] if args else kwargs.get("input_ids")
    config: Any = body.config
    pad = (config.get_text_config() if hasattr(config, "get_text_config") else config).pad_token_id
    if ids is None or pad is None:
        seen.positions = -1
    else:
        places = torch.arange(ids.shape[-1], device=ids.device, dtype=torch.int32)
        seen.positions = (places * (ids != pad).to(torch.int32)).argmax(dim=-1)


def _transform_input(seen: _Seen, before: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    given, *rest = args
    dropped, positions = seen.dropout, seen.positions
    seen.dropout = seen.positions = None
    x, mask = given, None
    if dropped is not None and dropped[3] is given:
        x, mask = dropped[2], _mask(*dropped)
    norm = getattr(before, _NAME)
    if x.dim() == 3 and positions is not None:
        rows = torch.arange(len(x), device=x.device)
        columns = positions.to(x.device) if isinstance(positions, Tensor) else positions
        out = x.index_put((rows, torch.as_tensor(columns, device=x.device).expand(len(x))), norm(x[rows, columns]))
    else:
        out = norm(x)
    return (out if mask is None else out * mask, *rest)


def _mask(dropout: nn.Dropout, randomness: RandomState, x: Tensor, output: Tensor) -> Tensor:
    """What the dropout multiplied by. What was exactly 0 before does not show it; there it is drawn once more."""
    with replayed(randomness, x.device):
        drawn = functional.dropout(x.new_empty_strided(x.shape, x.stride()).fill_(1), dropout.p)
    keep = max(1 - dropout.p, torch.finfo(x.dtype).tiny)
    return torch.where(x == 0, drawn, (output != 0).to(x.dtype) / keep)


def _fold(before: nn.Module, module: nn.Module) -> None:
    if not isinstance(module, RunningNorm) or not isinstance(before, nn.Linear):
        raise ValueError(
            f"`fold` must be False unless an IsoBN or BatchNormBaseline stands before a linear layer; got "
            f"{type(module).__name__} before {type(before).__name__}"
        )
    factor, offset = (part.to(before.weight.device, torch.float64) for part in module.fold())
    weight = before.weight.detach().double()
    shift = weight @ offset
    with torch.no_grad():
        if before.bias is not None:
            before.bias.copy_(before.bias.double() + shift)
        elif bool(shift.any()):
            raise ValueError(
                f"`fold` must be False for {type(module).__name__} before a linear layer without a bias; got one, which cannot "
                f"take over the offset"
            )
        before.weight.copy_(weight * factor)


def _named(core: nn.Module, at: str) -> nn.Module:
    parts = dict(core.named_modules())
    if at not in parts or not at:
        raise ValueError(f"`at` must name a module of the model, such as {list(parts)[-3:]}; got {at!r}")
    return parts[at]


def _classifies_sequences(core: nn.Module) -> bool:
    return any("ForSequenceClassification" in kind.__name__ for kind in type(core).__mro__)


def _picks_a_position(core: nn.Module) -> bool:
    """Whether the model may score every position and pick one, as transformers' decoders for classification do."""
    return _classifies_sequences(core) and hasattr(core, "score")
