"""Re-initialise the pooler and the top blocks of a pretrained model."""

import copy
import hashlib
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from dynprobe.finetune.anatomy import block_stacks, core_model, pretrained_pooler


def reinitialise(
    model: nn.Module,
    *,
    n_blocks: int,
    pooler: bool | None = None,
    seed: int = 0,
    as_released: bool = False,
) -> tuple[str, ...]:
    """Give the pooler and the top blocks new random weights, as Zhang et al. (2021) do against a bad start.

    Each part is initialised as its architecture does it before pretraining. Embeddings and all other blocks keep every bit.
    Call it before the optimizer is made and before weights are anchored (Mixout, pull towards the start).

    Parameters
    ----------
    model
        A transformers model with its pretrained weights; of an encoder-decoder the decoder's blocks are meant.
    n_blocks
        Number of blocks from the top, L, from 0; the study uses 1 to 6.
    pooler
        Whether the body's pooler too; by default where there is one.
    seed
        Decides the new weights, the same on every device. The top block's do not depend on `n_blocks`, and the random state
        of the process is left as it is.
    as_released
        The published code: only linear layers, by a normal distribution with the configuration's standard deviation, and
        layer norms (BART and T5 by their own initialisation); no error for a missing pooler; draws from the random state of
        the process, so that dropout and data order that follow are other ones. Then `seed` says nothing.

    Returns
    -------
    tuple of str
        Names of the modules with new weights.

    Raises
    ------
    ValueError
        For `n_blocks` out of range, a missing pooler, blocks that share their weights, or an architecture whose own
        initialisation leaves a weight of the block out.

    Examples
    --------
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=3, num_attention_heads=1, intermediate_size=4)
    >>> reinitialise(BertForSequenceClassification(config), n_blocks=2)
    ('bert.pooler', 'bert.encoder.layer.2', 'bert.encoder.layer.1')
    """
    core = core_model(model)
    parts = [*_pooler(core, pooler, as_released=as_released), *_top_blocks(core, n_blocks)]
    for number, (name, part) in parts:
        if as_released and hasattr(core.config, "initializer_range"):
            _initialise_as_released(core, part)
        else:
            _initialise(core, name, part, None if as_released else _seed_of(seed, number))
    return tuple(name for _, (name, _) in parts)


# A module with its name, and a number by which its random stream is told from the others: 0 the pooler, 1 the top block.
_Part = tuple[int, tuple[str, nn.Module]]


def _pooler(core: nn.Module, wanted: bool | None, *, as_released: bool) -> list[_Part]:  # noqa: FBT001
    found = pretrained_pooler(core)
    if wanted is True and found is None and not as_released:
        raise ValueError(
            f"`pooler` must be False or None for a model without a pretrained pooler; got True for "
            f"{type(core).__name__}, whose head is new anyway"
        )
    return [] if found is None or wanted is False else [(0, found)]


def _top_blocks(core: nn.Module, n_blocks: int) -> list[_Part]:
    if isinstance(n_blocks, bool) or not isinstance(n_blocks, int) or n_blocks < 0:
        raise ValueError(f"`n_blocks` must be a whole number of at least 0; got {n_blocks!r}")
    if n_blocks == 0:
        return []
    stack = block_stacks(core)[-1]
    n_all = len(stack.blocks)
    if n_blocks > n_all:
        raise ValueError(f"`n_blocks` must be at most {n_all}, the blocks of {stack.path}; got {n_blocks}")
    return [
        (1 + below_top, (f"{stack.path}.{n_all - 1 - below_top}", stack.blocks[n_all - 1 - below_top]))
        for below_top in range(n_blocks)
    ]


def _seed_of(seed: int, number: int) -> int:
    """Seed of one part; the same in all processes that train together, unlike a stream's."""
    words = f"reinitialise:{seed}:{number}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 1


def _initialise(core: Any, name: str, part: nn.Module, seed: int | None) -> None:
    """Initialise a copy on the CPU in fp32, children before parents as transformers does, and take its weights over."""
    fresh = copy.deepcopy(part).to("cpu", torch.float32)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)
        with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            fresh.apply(core.base_model._init_weights)
        untouched = [own for own, parameter in fresh.named_parameters() if not bool(parameter.isfinite().all())]
        if untouched:
            raise ValueError(
                f"`model` must initialise every weight of {name} itself; got {type(core).__name__}, which "
                f"leaves out {untouched}"
            )
        old = dict(part.named_parameters())
        for own, parameter in fresh.named_parameters():
            old[own].copy_(parameter)


def _initialise_as_released(core: Any, part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=core.config.initializer_range)
            if module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()
