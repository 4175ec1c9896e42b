"""Mixout: in each training pass, part of the weights is the pretrained ones."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dynprobe.finetune.anatomy import core_model, is_inside, new_modules
from dynprobe.finetune.streams import Stream

Mask = Literal["columns", "elements"]
_DROPOUT = "dropout", "attention_dropout", "activation_dropout", "attn_dropout", "dropout_rate", "dropout_prob"


class _Mixing:
    """What both kinds of layer share. The weight keeps its name; the pretrained one stands beside it as a buffer."""

    weight: Any
    anchor: Tensor
    training: bool
    mixout_p: float
    mixout_mask: Mask
    mixout_stream: Stream | None
    mixout_as_released: bool

    def mixed_weight(self) -> Tensor:
        """The weight of one training pass: u + M (w - u) / (1 - p); in evaluation mode w itself."""
        if not self.training or self.mixout_p == 0:
            return self.weight
        keep = 1 - self.mixout_p
        difference = self.weight - self.anchor
        if self.mixout_as_released and difference.requires_grad:
            difference.register_hook(lambda grad: grad * keep)  # the published backward leaves 1 / (1 - p) out
        return torch.addcmul(self.anchor, self._mask(), difference, value=1 / keep)

    def _mask(self) -> Tensor:
        """1 where this pass uses the trained weight; per weight, or per input feature as the published code draws it."""
        weight = self.weight
        shape = list(weight.shape)
        if self.mixout_mask == "columns":
            shape[0 if isinstance(self, nn.Linear) else 1] = 1
        generator = None if self.mixout_stream is None else self.mixout_stream.generator(weight.device)
        draws = torch.rand(shape, device=weight.device, generator=generator)
        return (draws >= self.mixout_p).to(weight.dtype)


class MixoutLinear(_Mixing, nn.Linear):
    """A linear layer under Mixout; :func:`apply_mixout` makes it of a linear layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Apply the layer with the weight of this pass."""
        return functional.linear(input, self.mixed_weight(), self.bias)


class MixoutConv1D(_Mixing, Conv1D):
    """GPT-2's transposed linear layer under Mixout; :func:`apply_mixout` makes it of one."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with the weight of this pass."""
        weight = self.mixed_weight()
        return super().forward(x) if weight is self.weight else functional.linear(x, weight.mT, self.bias)


_MIXED: dict[type, type] = {nn.Linear: MixoutLinear, Conv1D: MixoutConv1D}
_PLAIN: dict[type, type] = {mixed: plain for plain, mixed in _MIXED.items()}


def apply_mixout(
    model: nn.Module,
    p: float,
    *,
    mask: Mask = "columns",
    new: tuple[str, ...] | None = None,
    zero_dropout: bool = False,
    stream: Stream | None = None,
    as_released: bool = False,
) -> tuple[str, ...]:
    """Train with Mixout (Lee, Cho and Kang, 2020): each pass replaces weights by the pretrained ones with probability `p`.

    The weights of the linear layers as they are now become the anchors. Parameters, their names and the optimizer's view of
    them stay; each layer gets a buffer ``anchor``, which is saved and resumed with the model. A saved folder loads as a plain
    model (the anchors are listed as unexpected). To go on from one: load, :func:`apply_mixout`,
    :func:`dynprobe.finetune.restore_saved_state`. To save a plain model: :func:`remove_mixout` first.

    Parameters
    ----------
    model
        A transformers model with its pretrained weights.
    p
        Probability of the pretrained weight, in [0, 1). 0 is standard training.
    mask
        ``"columns"``: one draw per input feature, as published code does (dropout is the case of zero anchors);
        ``"elements"``: one draw per weight.
    new
        Names of modules to leave alone because their weights are new; by default what stands beside the pretrained body.
    zero_dropout
        Whether to train without dropout from now on, as the few-sample study does; also in :func:`remove_mixout`'s model.
        Layers that keep their dropout as a number (BART, Llama) are included.
    stream
        Random stream of the masks; by default the process's, which dropout uses too.
    as_released
        The published code: also the new head, whose anchor is its random start; gradients without the factor 1 / (1 - p);
        columns; nothing in GPT-2's transposed layers; `zero_dropout` for dropout modules only.

    Returns
    -------
    tuple of str
        Names of the layers that are mixed.

    Raises
    ------
    ValueError
        For `p` out of range, a model already under Mixout or without trainable linear layers in its body, a contradiction.

    Notes
    -----
    w̃ = ((1 - M) u + M w - p u) / (1 - p) = u + M (w - u) / (1 - p), with M of mean 1 - p, so that the mean of w̃ is w; the
    derivative is M / (1 - p). Biases, norms and embeddings are not mixed. In evaluation mode the layer is the plain one.
    A stream of its own cannot draw the same masks again when gradient checkpointing repeats a pass; the two are refused
    together.

    Examples
    --------
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    >>> model = BertForSequenceClassification(config)
    >>> len(apply_mixout(model, 0.1)), len(remove_mixout(model))
    (7, 7)
    """
    if not 0 <= p < 1:
        raise ValueError(f"`p` must lie in [0, 1), where 1 would train nothing; got {p}")
    if mask not in ("columns", "elements"):
        raise ValueError(f"`mask` must be 'columns' or 'elements'; got {mask!r}")
    if as_released and (mask != "columns" or new is not None):
        raise ValueError(
            "`as_released` must stand without `mask` and `new`; the published code mixes columns of all layers"
        )
    core = core_model(model)
    if any(isinstance(part, _Mixing) for part in core.modules()):
        raise ValueError("`model` must not be under Mixout already; got one that is. Undo it first (remove_mixout)")
    left_out = () if as_released else new_modules(core, new)
    kinds = (nn.Linear,) if as_released else tuple(_MIXED)
    chosen = {
        name: part
        for name, part in core.named_modules()
        if type(part) in kinds and not is_inside(name, left_out) and part.weight.requires_grad
    }
    if not chosen:
        raise ValueError("`model` must have trainable linear layers in its pretrained body; got none")
    for part in chosen.values():
        _mix(part, p, mask, stream, as_released=as_released)
    if zero_dropout:
        _zero_dropout(core, numbers=not as_released)
    if stream is not None:
        core.__dict__["_dynprobe_mixout_guard"] = core.base_model.register_forward_pre_hook(_refuse_repetition)
    return tuple(chosen)


def remove_mixout(model: nn.Module) -> tuple[str, ...]:
    """Make plain layers with the trained weights again.

    Parameters
    ----------
    model
        A model under Mixout; predicts the same before and after.

    Returns
    -------
    tuple of str
        Names of the layers that were mixed.

    Raises
    ------
    ValueError
        When there is none.
    """
    core = core_model(model)
    mixed = {name: part for name, part in core.named_modules() if isinstance(part, _Mixing)}
    if not mixed:
        raise ValueError("`model` must be under Mixout; got one without any mixed layer")
    for part in mixed.values():
        layer = cast(Any, part)
        layer.__class__ = _PLAIN[type(part)]
        del layer.anchor, layer.mixout_p, layer.mixout_mask, layer.mixout_stream, layer.mixout_as_released
    guard = core.__dict__.pop("_dynprobe_mixout_guard", None)
    if guard is not None:
        guard.remove()
    return tuple(mixed)


def _mix(layer: Any, p: float, mask: Mask, stream: Stream | None, *, as_released: bool) -> None:
    # The class changes in place, as torch's own parametrisations do it: hooks, ties and the optimizer's references stay.
    layer.__class__ = _MIXED[type(layer)]
    layer.register_buffer("anchor", layer.weight.detach().clone())
    layer.mixout_p, layer.mixout_mask, layer.mixout_stream, layer.mixout_as_released = p, mask, stream, as_released


def _zero_dropout(core: nn.Module, *, numbers: bool) -> None:
    for part in core.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif numbers:
            for name in _DROPOUT:
                if isinstance(vars(part).get(name), float):
                    setattr(part, name, 0.0)


def _refuse_repetition(body: nn.Module, args: tuple[Any, ...]) -> None:
    if body.training and any(getattr(part, "gradient_checkpointing", False) for part in body.modules()):
        raise ValueError(
            "Mixout with a `stream` of its own must run without gradient checkpointing, which would repeat a pass with other "
            "masks; got both. Turn checkpointing off, or apply Mixout without `stream`"
        )
