"""One forward pass over a batch of the probe set: hidden states, attention probabilities and outputs, checked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprobe.capture.architecture import Architecture, Stack
from dynprobe.capture.taps import NO_TAPS, Key, Take, Taps, Watch, taken_off
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet

# Rows of attention must sum to 1 within what the dtype of the model can say.
_ROW_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# So many tokens are read to see how a model is built.
_FEW = 8


@dataclass(frozen=True)
class Batch:
    """A part of the probe set, trimmed to its longest example.

    Attributes
    ----------
    start, stop
        Which examples.
    inputs
        What the model's forward is called with, on the model's device.
    real
        Stack name to a boolean array (n_examples, n_positions), trimmed alike.
    """

    start: int
    stop: int
    inputs: Mapping[str, Tensor]
    real: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Measurement:
    """What the model returned for one batch; tensors still on its device.

    Attributes
    ----------
    batch
        The batch.
    hidden_states
        Stack name to one tensor (n_examples, n_positions, d_model) per layer, layer 0 first.
    raw
        The model's own output object.
    vectors
        ``"pooler_output"`` and ``"classifier_input"``, (n_examples, width) each, where the model has them.
    """

    batch: Batch
    hidden_states: Mapping[str, tuple[Tensor, ...]]
    raw: Mapping[str, Any]
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


def batches(probe: ProbeSet, architecture: Architecture, device: torch.device) -> Iterator[Batch]:
    """The probe set in batches of its fixed size, in order, with what the model's forward takes and nothing else."""
    names = [name for name in probe.inputs if name in architecture.forward_names]
    if not names:
        raise CaptureError(
            f"the probe inputs must fit the model's forward; got inputs {sorted(probe.inputs)} for "
            f"{architecture.model_class}, which takes {sorted(architecture.forward_names)[:8]}"
        )
    for start in range(0, probe.n_examples, probe.batch_size):
        stop = min(start + probe.batch_size, probe.n_examples)
        real = {stack: _trimmed(mask[start:stop]) for stack, mask in probe.real.items()}
        yield Batch(start, stop, {name: _on_device(probe, name, start, stop, real, device) for name in names}, real)


def measure(
    model: nn.Module, batch: Batch, architecture: Architecture, *, take: Take | None = None, taps: Taps = NO_TAPS
) -> Measurement:
    """Run the model on a batch.

    Parameters
    ----------
    model
        In eval mode and, for attention, with eager attention.
    batch
        What to run it on.
    architecture
        Its architecture.
    take
        Called with (stack, kind), block and attention probabilities (n_examples, n_heads, n_query, n_key), block after block,
        kind ``"self"`` or ``"cross"``. Without it the model is not asked for attention.
    taps
        Where the model makes its attention: it is then taken off during the pass, and only that of one block is in memory.

    Raises
    ------
    CaptureError
        When the model returns another number of layers than it has, or attention that is no probability.
    """
    asked: dict[str, Any] = {
        "output_hidden_states": True, "output_attentions": take is not None, "return_dict": True,
    }  # fmt: skip
    if "use_cache" in architecture.forward_names:
        asked["use_cache"] = False

    taken: list[Key] = []

    def checked(key: Key, layer: int, attention: Tensor) -> None:
        _check_probabilities(batch, key, layer, attention, architecture)
        taken.append(key)
        if take is not None:
            take(key, layer, attention)

    with taken_off(model, taps if take is not None else NO_TAPS, checked), _vectors_of(model, taps) as vectors:
        output = model(**batch.inputs, **asked)
    if not hasattr(output, "keys"):
        raise CaptureError(f"the model must return a transformers output object; got {type(output).__name__}")
    hidden_states = {
        stack.name: _complete(output, f"{_prefix(stack)}hidden_states", stack, extra=1) for stack in architecture.stacks
    }
    if take is not None:
        for key, layers in attentions_of(output, architecture).items():
            if not taps.attention:
                for layer, attention in enumerate(layers, start=1):
                    checked(key, layer, attention)
            elif taken.count(key) != len(layers):
                raise CaptureError(
                    f"the model must make attention of {len(layers)} blocks, as when it was looked at; got "
                    f"{taken.count(key)}. Capture it with attention='none'"
                )
    return Measurement(batch, hidden_states, output, vectors)


def attentions_of(output: Mapping[str, Any], architecture: Architecture) -> dict[Key, tuple[Tensor, ...]]:
    """The attention that a model returned: (stack, kind) to one tensor per block.

    Raises
    ------
    CaptureError
        When it returned another number of tensors than it has blocks.
    """
    kept = {}
    for stack in architecture.stacks:
        kept[stack.name, "self"] = _complete(output, f"{_prefix(stack)}attentions", stack, extra=0)
        if stack.name == "decoder":
            kept[stack.name, "cross"] = _complete(output, "cross_attentions", stack, extra=0)
    return kept


def find_taps(model: nn.Module, probe: ProbeSet, architecture: Architecture, *, attention: bool) -> Taps:
    """Watch the model read a few tokens: where attention, the classifier's input and the pooled vector are made.

    Parameters
    ----------
    model
        Guarded by :func:`dynprobe.capture.guard.undisturbed`; for attention, with eager attention.
    probe
        The probe set, of which the last tokens of the first example are used.
    architecture
        The model's architecture.
    attention
        Whether attention will be asked for.

    Returns
    -------
    Taps
        With attention only where every block's is made by a module that nobody needs it from: with it taken away, the model
        returns the same hidden states.
    """
    batch = _few_tokens(next(batches(replace(probe, batch_size=1), architecture, next(model.parameters()).device)))
    seen: dict[tuple[Key, int], Tensor] = {}
    take: Take | None = (lambda key, layer, tensor: seen.update({(key, layer): tensor})) if attention else None
    try:
        with Watch(model) as watch:
            whole = measure(model, batch, architecture, take=take)
    except CaptureError:
        return NO_TAPS  # the snapshot will say what is wrong
    modules = dict(model.named_modules())
    made_by = watch.returned_alone(whole.raw.get("logits"))
    linear = made_by is not None and getattr(modules[made_by.module], "weight", None) is not None
    taps = Taps(
        classifier=made_by.module if made_by is not None and linear else None,
        pooler=next((name for name in modules if name.split(".")[-1] == "pooler"), None),
    )
    sources = {watch.returned_in_tuple(tensor): key for key, tensor in seen.items()}
    if not seen or len(sources) < len(seen) or None in sources:
        return taps
    diverted = replace(taps, attention={source: key for source, key in sources.items() if source is not None})
    again = measure(model, batch, architecture, take=lambda *_: None, taps=diverted)
    same = all(
        torch.equal(one, other)
        for stack, layers in whole.hidden_states.items()
        for one, other in zip(layers, again.hidden_states[stack], strict=True)
    )
    return diverted if same else taps


def with_positions(model: nn.Module, probe: ProbeSet, architecture: Architecture) -> ProbeSet:
    """A probe set that says which positions are real, also for inputs without a mask, such as images: there all are.

    Parameters
    ----------
    model
        Guarded by :func:`dynprobe.capture.guard.undisturbed`; it is asked how many positions it makes of an input.
    probe
        The probe set.
    architecture
        The model's architecture.

    Raises
    ------
    CaptureError
        When the probe set has tokens, but not those of every stack of the model.
    """
    missing = [stack.name for stack in architecture.stacks if stack.name not in probe.real]
    if not missing:
        return probe
    if "decoder" in missing or "input_ids" in probe.inputs:
        raise CaptureError(
            f"the probe set must hold the tokens of {' and '.join(stack.name for stack in architecture.stacks)}; got "
            f"inputs {sorted(probe.inputs)} for {architecture.model_class}. An encoder-decoder takes `input_ids` and "
            "`decoder_input_ids`, any other model `input_ids` alone"
        )
    first = next(batches(replace(probe, batch_size=1), architecture, next(model.parameters()).device))
    hidden_states = measure(model, first, architecture).hidden_states
    shapes = {stack: (probe.n_examples, hidden_states[stack][0].shape[1]) for stack in missing}
    return replace(
        probe,
        real={**probe.real, **{stack: np.ones(shape, dtype=bool) for stack, shape in shapes.items()}},
        special={**probe.special, **{stack: np.zeros(shape, dtype=bool) for stack, shape in shapes.items()}},
    )


def real_attention(batch: Batch, key: Key, attention: Tensor, *, n_examples: int, only: str | None = None) -> Tensor:
    """Attention of one block among real tokens, flat: example after example, each in the order (head, query, key).

    Virtual tokens (prompt and prefix tuning) precede the others; they stay as keys and are left out as queries.

    Parameters
    ----------
    batch
        The batch.
    key
        Stack and kind of attention.
    attention
        (n_examples, n_heads, n_query, n_key).
    n_examples
        Of the first so many examples of the batch.
    only
        ``"first"`` or ``"last"``: of that real token alone as query; ``None`` for all of them.
    """
    stack, kind = key
    queries, keys = (
        torch.as_tensor(batch.real[name][:n_examples]) for name in (stack, "encoder" if kind == "cross" else stack)
    )
    if only is not None:
        rank = queries.cumsum(dim=1) if only == "first" else queries.flip(1).cumsum(dim=1).flip(1)
        queries = queries & (rank == 1)
    queries = nn.functional.pad(queries, (attention.shape[-2] - queries.shape[1], 0))
    keys = nn.functional.pad(keys, (attention.shape[-1] - keys.shape[1], 0), value=True)
    wanted = (queries[:, :, None] & keys[:, None, :]).to(attention.device)
    return attention[:n_examples].masked_select(wanted[:, None])


def tokens(measurement: Measurement, stack: str, layer: int) -> Tensor:
    """Hidden states (n_examples, n_positions, d_model) of one layer, virtual tokens left out."""
    hidden = measurement.hidden_states[stack][layer]
    n_positions = measurement.batch.real[stack].shape[1]
    return hidden[:, hidden.shape[1] - n_positions :]


def _trimmed(mask: np.ndarray) -> np.ndarray:
    """Cut the padding that all examples share on the right; positions to the left of a token keep their number."""
    return mask[:, : int(np.flatnonzero(mask.any(axis=0))[-1]) + 1].copy()


def _on_device(
    probe: ProbeSet, name: str, start: int, stop: int, real: Mapping[str, np.ndarray], device: torch.device
) -> Tensor:
    stack = "decoder" if name.startswith("decoder_") else probe.stacks[0]
    values = probe.inputs[name][start:stop]
    if stack in real and values.shape[:2] == (stop - start, probe.real[stack].shape[1]):
        values = values[:, : real[stack].shape[1]]
    return torch.from_numpy(np.array(values)).to(device)


def _complete(output: Mapping[str, Any], name: str, stack: Stack, *, extra: int) -> tuple[Tensor, ...]:
    layers = tuple(output[name] or ()) if name in output else ()
    expected = stack.n_layers + extra
    if len(layers) != expected or any(not isinstance(layer, Tensor) for layer in layers):
        raise CaptureError(
            f"the model must return {expected} tensors in `{name}`, one per layer; got {len(layers)}. "
            + ("Its attention implementation gives no probabilities: load it with attn_implementation='eager', or "
               "capture with attention='none'" if "attentions" in name else "It cannot be captured layer by layer")
        )  # fmt: skip
    return layers


def _check_probabilities(batch: Batch, key: Key, layer: int, attention: Tensor, architecture: Architecture) -> None:
    stack, kind = key
    n_query = batch.real[stack].shape[1]
    n_key = batch.real["encoder" if kind == "cross" else stack].shape[1]
    if attention.ndim != 4 or attention.shape[-1] < n_key or attention.shape[-2] < n_query:
        raise CaptureError(
            f"{kind} attention of block {layer} must be (examples, heads, {n_query}, {n_key}); got "
            f"{tuple(attention.shape)} from {architecture.model_class}. Capture it with attention='none'"
        )
    queries = torch.as_tensor(batch.real[stack], device=attention.device)
    sums = attention[:, :, -n_query:].sum(dim=-1, dtype=torch.float32).transpose(1, 2)[queries]
    worst = float((sums - 1).abs().max())
    if not worst <= _ROW_SUM_TOLERANCE.get(attention.dtype, 1e-4):
        raise CaptureError(
            f"{kind} attention of block {layer} must be probabilities: rows that sum to 1; got a row that sums to "
            f"1 ± {worst:.3g} from {architecture.model_class}. Capture it with attention='none'"
        )


@contextmanager
def _vectors_of(model: nn.Module, taps: Taps) -> Iterator[dict[str, Tensor]]:
    """One vector per example on its way through the head: what the pooler returns and what the classifier is given."""
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim == 2:
            found[name] = value

    modules = dict(model.named_modules()) if taps.pooler or taps.classifier else {}
    handles = []
    if taps.pooler:
        handles.append(modules[taps.pooler].register_forward_hook(lambda _m, _a, out: keep("pooler_output", out)))
    if taps.classifier:
        give = modules[taps.classifier].register_forward_pre_hook
        handles.append(give(lambda _m, args: keep("classifier_input", args[0] if args else None)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _few_tokens(batch: Batch) -> Batch:
    """The last real positions of a batch of one example, which is all that is needed to see how the model is built."""
    if "input_ids" not in batch.inputs:
        return batch  # an image cannot be cut
    ends = {stack: int(np.flatnonzero(real[0])[-1]) + 1 for stack, real in batch.real.items()}
    lengths = {stack: real.shape[1] for stack, real in batch.real.items()}

    def cut(name: str, value: Any) -> Any:
        stack = "decoder" if name.startswith("decoder_") else next(iter(lengths), None)
        if stack is None or value.ndim < 2 or value.shape[1] != lengths[stack]:
            return value
        return value[:, max(0, ends[stack] - _FEW) : ends[stack]]

    inputs = {name: cut(name, value) for name, value in batch.inputs.items()}
    real = {stack: mask[:, max(0, ends[stack] - _FEW) : ends[stack]] for stack, mask in batch.real.items()}
    return replace(batch, inputs=inputs, real=real)


def _prefix(stack: Stack) -> str:
    return "" if stack.name == "model" else f"{stack.name}_"
