"""Noise on word embeddings: where a model looks its words up, and how to add to that once, in one pass."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynprobe.finetune.targets import core_of


@dataclass(frozen=True)
class WordEmbeddings:
    """Where a model looks its words up.

    Attributes
    ----------
    table
        The module that maps token ids to vectors, before positions, token types and normalisation.
    width
        Length of the vectors.
    scale
        What the module multiplies its table by, so that noise is in the units of the table.
    reader
        The module in whose forward the look-up counts: the encoder, where there is one; else the table itself.
    """

    table: nn.Module
    width: int
    scale: float
    reader: nn.Module


def word_embeddings(model: nn.Module) -> WordEmbeddings:
    """Find a model's word embeddings; of models with an encoder and a decoder, the encoder's.

    Raises
    ------
    ValueError
        When it has none that could be perturbed, such as models of images or of characters.
    """
    core = core_of(model)
    encoder = core.get_encoder() if getattr(core.config, "is_encoder_decoder", False) else None
    try:
        table: Any = (encoder or core).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    if not isinstance(table, nn.Module) or getattr(getattr(table, "weight", None), "ndim", 0) != 2:
        raise ValueError(
            "the model must look up word embeddings that can be perturbed; got "
            f"{type(core).__name__} with {type(table).__name__ if table is not None else 'none'}. Use a method without noise "
            "on the input, such as 'rdrop'"
        )
    scale = getattr(table, "embed_scale", getattr(table, "scalar_embed_scale", 1.0))
    weight: Any = table.weight
    return WordEmbeddings(table, weight.shape[1], float(scale), encoder or table)


def require_resolution(embeddings: WordEmbeddings, size: float, *, name: str) -> None:
    """Refuse noise so small that half-precision weights round it away.

    Raises
    ------
    ValueError
        When at least half of the weights would not change by noise of this size.
    """
    weight: Any = embeddings.table.weight
    if weight.dtype not in (torch.float16, torch.bfloat16) or weight.device.type == "meta":
        return
    typical = float(weight.detach().abs().float().median())
    step = typical * torch.finfo(weight.dtype).eps / 2
    if size < step:
        raise ValueError(
            f"`{name}` must be {step:.1g} or more where embeddings are {str(weight.dtype).removeprefix('torch.')}, or rounding "
            f"swallows it; got {size:g}. Use float32 weights under autocast (bf16=True, fp16=True), or larger noise"
        )


def real_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Which tokens are not padding, shape (n_examples, n_tokens), as floats of 0 and 1.

    Raises
    ------
    ValueError
        When the inputs hold no token ids, or a mask of another shape.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"the inputs must hold `input_ids` for noise on word embeddings; got {sorted(inputs)}. Inputs that are embeddings "
            "already cannot be perturbed here"
        )
    mask = inputs.get("attention_mask")
    if mask is None:
        return torch.ones(ids.shape, device=ids.device)
    if mask.shape != ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {tuple(ids.shape)}; got {tuple(mask.shape)}"
        )
    return (mask != 0).to(torch.float32)


@contextmanager
def perturbed(embeddings: WordEmbeddings, delta: Tensor, *, detached: bool = False) -> Iterator[None]:
    """Add `delta` to the word embeddings in the one pass made inside; nothing stays on the model.

    The model still gets its token ids, so positions, token types, scaling and masks are what they are without noise.

    Parameters
    ----------
    delta
        Shape (n_examples, n_tokens, width), in the units of the table; 0 at padding.
    detached
        Whether the table gets no gradient from this pass.

    Raises
    ------
    RuntimeError
        When the pass did not look its words up exactly once, so that there was no noise, or twice.
    """
    in_reader, n_added = embeddings.reader is embeddings.table, 0

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        nonlocal n_added
        if not in_reader:
            return None
        n_added += 1
        if output.shape != delta.shape:
            raise ValueError(f"noise of shape {tuple(delta.shape)} must fit word embeddings; got {tuple(output.shape)}")
        table = output.detach() if detached else output
        return table + (delta * embeddings.scale).to(output.dtype)

    def enter(*_: Any) -> None:
        nonlocal in_reader
        in_reader = True

    def leave(*_: Any) -> None:
        nonlocal in_reader
        in_reader = False

    with ExitStack() as stack:
        stack.callback(embeddings.table.register_forward_hook(add).remove)
        if not in_reader:
            stack.callback(embeddings.reader.register_forward_pre_hook(enter).remove)
            stack.callback(embeddings.reader.register_forward_hook(leave, always_call=True).remove)
        yield
    if n_added != 1:
        raise RuntimeError(
            f"noise must reach the word embeddings exactly once in a pass; got {n_added} times. The model does not look words "
            "up in `get_input_embeddings()` when it runs"
        )
