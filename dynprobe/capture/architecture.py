"""What a model is, as far as capture must know: its stacks, their depth and width, what it predicts."""

import inspect
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from dynprobe.capture.guard import sharded_kind, sharded_parts
from dynprobe.errors import CaptureError

# Attention that is no distribution over the other tokens, one row per token.
_BANDED = {"longformer": "banded attention rows (window positions, not tokens)", "led": "banded attention rows"}
_BANDED |= {
    "big_bird": "block-sparse attention",
    "bigbird_pegasus": "block-sparse attention",
    "reformer": "hashed attention",
}

# Models that see all tokens, like encoders, and whose [CLS] stands at the end.
_CLS_LAST = frozenset({"xlnet"})
# A wrapper whose weights a process sees only in parts, and cannot be asked for.
_FSDP1 = "FullyShardedDataParallel"


@dataclass(frozen=True)
class Stack:
    """One pile of transformer blocks.

    Attributes
    ----------
    name
        ``"model"``, ``"encoder"`` or ``"decoder"``.
    n_layers
        Number of blocks; hidden states are numbered 0 (embeddings) to `n_layers`.
    d_model
        Width of the hidden states.
    n_heads
        Number of query heads of a block.
    causal
        Whether a position sees only itself and what precedes it.
    pooled
        Kinds of pooled vectors, the stand-in for [CLS] first.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    causal: bool
    pooled: tuple[str, str]


@dataclass(frozen=True)
class Architecture:
    """What capture must know about a model.

    Attributes
    ----------
    stacks
        Its stacks: one, or encoder and decoder.
    forward_names
        Argument names of its forward.
    model_type, model_class, name
        As its configuration, its class and its origin call it.
    n_parameters, n_trainable
        Number of weights, and of those that training changes.
    n_labels
        Number of classes that its configuration names.
    """

    stacks: tuple[Stack, ...]
    forward_names: frozenset[str]
    model_type: str
    model_class: str
    name: str
    n_parameters: int
    n_trainable: int
    n_labels: int = 1

    def facts(self) -> dict[str, Any]:
        """JSON-able description for manifests and snapshots."""
        facts = {key: value for key, value in asdict(self).items() if key != "forward_names"}
        facts["hidden_states"] = (
            "0 = embeddings, k = output of block k; the last as the model returns it (after a final norm)"
        )
        return facts


def describe_model(model: nn.Module) -> Architecture:
    """Read a model's architecture from its configuration.

    Parameters
    ----------
    model
        A transformers model, or a PEFT model around one.

    Raises
    ------
    CaptureError
        When it is no transformers model, its configuration does not state its size, or its weights are sharded.
    """
    core = transformer_inside(model)
    _require_weights_within_reach(model)
    config: Any = core.config
    parameters = list(model.parameters())
    return Architecture(
        stacks=_stacks(core, config),
        forward_names=frozenset(_forward_names(type(core))),
        model_type=config.model_type,
        model_class=_own_class(core).__name__,
        name=str(getattr(config, "name_or_path", "") or config.model_type),
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        n_labels=int(getattr(config, "num_labels", 1) or 1),
    )


def require_token_attention(architecture: Architecture) -> None:
    """Check that attention is one distribution over the tokens per row.

    Raises
    ------
    CaptureError
        For banded, block-sparse and hashed attention, by name.
    """
    if architecture.model_type in _BANDED:
        raise CaptureError(
            f"the model must return one attention probability per pair of tokens; got {architecture.model_class} with "
            f"{_BANDED[architecture.model_type]}. Capture it without attention (`attention='none'`, --attention none)"
        )


def transformer_inside(model: nn.Module) -> Any:
    """The transformers model itself: `model`, or the base of a PEFT model.

    Raises
    ------
    CaptureError
        When there is none.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not hasattr(getattr(base, "config", None), "model_type"):
        raise CaptureError(
            f"the model must be a transformers model (with a `config`), or a PEFT model around one; "
            f"got {type(model).__module__}.{type(model).__name__}"
        )
    return base


def _stacks(core: nn.Module, config: Any) -> tuple[Stack, ...]:
    names: list[tuple[str, int, bool]]
    if getattr(config, "is_encoder_decoder", False):
        n_encoder = _first(config, "encoder_layers", "num_layers", "num_hidden_layers")
        n_decoder = _first(config, "decoder_layers", "num_decoder_layers", "num_hidden_layers")
        names = [("encoder", n_encoder, False), ("decoder", n_decoder, True)]
    else:
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        names = [("model", _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"), _is_causal(core))]
    return tuple(
        Stack(
            name=name,
            n_layers=n_layers,
            d_model=_first(config, "hidden_size", "d_model", "n_embd", "dim"),
            n_heads=_first(config, f"{name}_attention_heads", "num_attention_heads", "num_heads", "n_head", "n_heads"),
            causal=causal,
            pooled=("last" if causal or config.model_type in _CLS_LAST else "first", "mean"),
        )
        for name, n_layers, causal in names
    )


def _forward_names(kind: type) -> set[str]:
    """Arguments of a class's forward, and of those that it may pass its ``**kwargs`` on to."""
    names: set[str] = set()
    for parent in kind.__mro__:
        forward = None if parent is nn.Module else vars(parent).get("forward")
        if forward is None:
            continue
        parameters = inspect.signature(forward).parameters
        names |= set(parameters) - {"self"}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _first(config: Any, *names: str) -> int:
    found = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    if found is None:
        raise CaptureError(
            f"the model's configuration must state one of {list(names)}; got none in {type(config).__name__}"
        )
    return found


def _is_causal(core: Any) -> bool:
    """Whether its attention is causal, as the attention modules themselves say; else as its family and head say."""
    said = [module.is_causal for module in core.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    if said:
        return all(said)
    if core.config.model_type in _CLS_LAST:
        return False
    kind = type(core.config)
    only_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    return only_causal or bool(getattr(core.config, "is_decoder", False))


def _own_class(core: nn.Module) -> type:
    """The model's class; ``fully_shard`` gives a model another one, derived from it."""
    sharded = sharded_kind()
    return next(kind for kind in type(core).__mro__ if sharded is None or not issubclass(kind, sharded))


def _require_weights_within_reach(model: nn.Module) -> None:
    """Whole weights, or those that ``fully_shard`` gathers for each pass."""
    gathered = {id(parameter) for part in sharded_parts(model) for parameter in part.parameters()}
    kinds = {_FSDP1 for module in model.modules() if type(module).__name__ == _FSDP1}
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            kinds.add("DeepSpeed ZeRO-3")
        elif hasattr(parameter, "_fsdp_flattened") or type(parameter).__name__ == "FlatParameter":
            kinds.add(_FSDP1)  # whose wrapper is outside of the model
        elif type(parameter).__name__ == "DTensor" and not (id(parameter) in gathered and _is_only_sharded(parameter)):
            kinds.add("tensor parallelism, or by `fully_shard` of what contains the model")
    if kinds:
        raise CaptureError(
            "the process that captures must hold whole weights, or those of `fully_shard` (FSDP2) alone; got weights sharded "
            f"by {', '.join(sorted(kinds))}. Train with DistributedDataParallel or FSDP2, or capture the saved checkpoints"
        )


def _is_only_sharded(parameter: Any) -> bool:
    """Whether a DTensor is laid out as ``fully_shard`` does by itself: copies of shards, and no second kind of shard."""
    *copies, last = parameter.placements
    return type(last).__name__ == "Shard" and all(placement.is_replicate() for placement in copies)
