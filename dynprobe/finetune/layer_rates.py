"""Layer-wise learning-rate decay: the nearer to the input, the smaller the learning rate."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from dynprobe.finetune.anatomy import (
    Stack,
    block_stacks,
    body_prefix,
    core_model,
    final_norm_stack,
    pretrained_pooler,
    undecayed_parameters,
)


@dataclass(frozen=True)
class LayerRates:
    """Learning rates of the parts of a model.

    Attributes
    ----------
    head
        Of the head and the pooler.
    blocks
        Of each block, the top one first.
    embeddings
        Of the embeddings.
    """

    head: float
    blocks: tuple[float, ...]
    embeddings: float


def layerwise_rates(
    n_blocks: int,
    *,
    learning_rate: float,
    decay: float = 0.95,
    head_offset: int = 1,
    decay_embeddings: bool = True,
) -> LayerRates:
    """Learning rate of each part: η for the head, η ξ^k for the k-th block from the top, η ξ^(n + 1) for the embeddings.

    Parameters
    ----------
    n_blocks
        Number of blocks, n.
    learning_rate
        η, above 0.
    decay
        ξ in (0, 1]; 1 gives every part the same rate.
    head_offset
        How many steps the top block lies below the head: 1 in the few-sample study, 2 in ELECTRA's published code, 0 where
        the top block learns as fast as the head.
    decay_embeddings
        False gives the embeddings the rate of the head, as XLNet's published code does.

    Returns
    -------
    LayerRates
        All above 0.

    Raises
    ------
    ValueError
        For an option out of range.

    Notes
    -----
    Zhang et al. (2021), "Revisiting Few-sample BERT Fine-tuning"; Howard and Ruder (2018) for the idea.

    Examples
    --------
    >>> rates = layerwise_rates(24, learning_rate=2e-5)
    >>> [f"{rate:.4g}" for rate in (rates.head, rates.blocks[0], rates.blocks[-1], rates.embeddings)]
    ['2e-05', '1.9e-05', '5.84e-06', '5.548e-06']
    """
    if n_blocks < 0:
        raise ValueError(f"`n_blocks` must be at least 0; got {n_blocks}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"`learning_rate` must be above 0 and finite; got {learning_rate}")
    if not 0 < decay <= 1:
        raise ValueError(f"`decay` must lie in (0, 1], the factor from one block to the next below; got {decay}")
    if head_offset not in (0, 1, 2):
        raise ValueError(f"`head_offset` must be 0, 1 or 2; got {head_offset}")
    blocks = tuple(learning_rate * decay ** (k + head_offset) for k in range(n_blocks))
    lowest = learning_rate * decay ** (n_blocks + head_offset)
    return LayerRates(learning_rate, blocks, lowest if decay_embeddings else learning_rate)


def layerwise_param_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    decay: float = 0.95,
    weight_decay: float = 0.0,
    head_offset: int = 1,
    decay_embeddings: bool = True,
    as_released: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups with layer-wise learning rates, for any optimizer of torch.

    Parameters
    ----------
    model
        A transformers model with blocks of their own weights: every encoder, decoder and encoder-decoder but ALBERT.
    learning_rate, decay, head_offset, decay_embeddings
        As for :func:`layerwise_rates`.
    weight_decay
        For all but biases and the weights of norms.
    as_released
        As the published code: no weight decay in the head and the pooler either.

    Returns
    -------
    list of dict
        With ``params``, ``lr``, ``weight_decay`` and ``name``, the head first; every trainable parameter in exactly one, no
        group empty. Schedulers scale each group's own rate.

    Raises
    ------
    ValueError
        For a model whose blocks share their weights, or an option out of range.

    Notes
    -----
    A norm after the last block has that block's rate; everything else in the body that lies in no block, such as relative
    positions, has that of the embeddings. In an encoder-decoder the encoder lies below the decoder: its top block is one
    below the decoder's lowest. Shared embeddings are embeddings.

    Examples
    --------
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    >>> groups = layerwise_param_groups(BertForSequenceClassification(config), learning_rate=1e-3, decay=0.5)
    >>> [(group["name"], group["lr"]) for group in groups]
    [('head', 0.001), ('block 0', 0.0005), ('embeddings', 0.00025)]
    """
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"`weight_decay` must be at least 0 and finite; got {weight_decay}")
    core = core_model(model)
    stacks = block_stacks(core)
    n_blocks = sum(len(stack.blocks) for stack in stacks)
    rates = layerwise_rates(
        n_blocks,
        learning_rate=learning_rate,
        decay=decay,
        head_offset=head_offset,
        decay_embeddings=decay_embeddings,
    )
    rate_of = {"head": rates.head, **_block_rates(stacks, rates), "embeddings": rates.embeddings}
    left_alone, part_of = undecayed_parameters(core), _Parts(core, stacks)
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for part in rate_of:
        for own in (weight_decay, 0.0):
            groups[part, own] = {"params": [], "lr": rate_of[part], "weight_decay": own, "name": part}
    for name, parameter in core.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            own = 0.0 if name in left_alone or (as_released and part == "head") else weight_decay
            groups[part, own]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


class _Parts:
    """Says to which part of the model a parameter belongs: ``head``, ``block …`` or ``embeddings``."""

    def __init__(self, core: nn.Module, stacks: tuple[Stack, ...]) -> None:
        self._body, self._stacks = body_prefix(core), stacks
        pooler = pretrained_pooler(core)
        self._pooler = None if pooler is None else f"{pooler[0]}."

    def __call__(self, name: str) -> str:
        if not name.startswith(self._body) or (self._pooler is not None and name.startswith(self._pooler)):
            return "head"
        for number, stack in enumerate(self._stacks):
            if name.startswith(f"{stack.path}."):
                index = name.removeprefix(f"{stack.path}.").split(".")[0]
                return _block_name(self._stacks, number, int(index))
        number_of_norm = final_norm_stack(name, self._stacks)
        if number_of_norm is not None:
            return _block_name(self._stacks, number_of_norm, len(self._stacks[number_of_norm].blocks) - 1)
        return "embeddings"


def _block_name(stacks: tuple[Stack, ...], number: int, index: int) -> str:
    side = "" if len(stacks) == 1 else ("encoder ", "decoder ")[number]
    return f"{side}block {index}"


def _block_rates(stacks: tuple[Stack, ...], rates: LayerRates) -> dict[str, float]:
    """Rate of each block by name, the top block of the last stack first."""
    names = [
        _block_name(stacks, number, index)
        for number in reversed(range(len(stacks)))
        for index in reversed(range(len(stacks[number].blocks)))
    ]
    return dict(zip(names, rates.blocks, strict=True))
