"""One forward pass over a batch of the probe set: hidden states, attention probabilities and outputs, checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprobe.capture.architecture import Architecture, Stack
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet

# Rows of attention must sum to 1 within what the dtype of the model can say.
_ROW_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


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
    attentions
        (stack, kind) to one tensor (n_examples, n_heads, n_query, n_key) per block, kind ``"self"`` or ``"cross"``.
    raw
        The model's own output object.
    """

    batch: Batch
    hidden_states: Mapping[str, tuple[Tensor, ...]]
    attentions: Mapping[tuple[str, str], tuple[Tensor, ...]]
    raw: Mapping[str, Any]


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


def measure(model: nn.Module, batch: Batch, architecture: Architecture, *, attentions: bool) -> Measurement:
    """Run the model on a batch.

    Parameters
    ----------
    model
        In eval mode and, for attention, with eager attention.
    batch
        What to run it on.
    architecture
        Its architecture.
    attentions
        Whether to keep attention probabilities.

    Raises
    ------
    CaptureError
        When the model returns another number of layers than it has, or attention that is no probability.
    """
    asked: dict[str, Any] = {"output_hidden_states": True, "output_attentions": attentions, "return_dict": True}
    if "use_cache" in architecture.forward_names:
        asked["use_cache"] = False
    output = model(**batch.inputs, **asked)
    if not hasattr(output, "keys"):
        raise CaptureError(f"the model must return a transformers output object; got {type(output).__name__}")
    hidden_states, kept = {}, {}
    for stack in architecture.stacks:
        prefix = "" if stack.name == "model" else f"{stack.name}_"
        hidden_states[stack.name] = _complete(output, f"{prefix}hidden_states", stack, extra=1)
        if attentions:
            kept[stack.name, "self"] = _complete(output, f"{prefix}attentions", stack, extra=0)
            if stack.name == "decoder":
                kept[stack.name, "cross"] = _complete(output, "cross_attentions", stack, extra=0)
    measurement = Measurement(batch, hidden_states, kept, output)
    for key, layers in kept.items():
        _check_probabilities(measurement, key, layers, architecture)
    return measurement


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
    hidden_states = measure(model, first, architecture, attentions=False).hidden_states
    shapes = {stack: (probe.n_examples, hidden_states[stack][0].shape[1]) for stack in missing}
    return replace(
        probe,
        real={**probe.real, **{stack: np.ones(shape, dtype=bool) for stack, shape in shapes.items()}},
        special={**probe.special, **{stack: np.zeros(shape, dtype=bool) for stack, shape in shapes.items()}},
    )


def real_blocks(measurement: Measurement, key: tuple[str, str], layer: int) -> Iterator[Tensor]:
    """Attention of one block among real tokens: one (n_heads, n_query, n_key) tensor per example of the batch.

    Virtual tokens (prompt and prefix tuning) precede the others; they stay as keys and are left out as queries.
    """
    stack, kind = key
    attention = measurement.attentions[key][layer - 1]
    query_real = measurement.batch.real[stack]
    key_real = measurement.batch.real["encoder" if kind == "cross" else stack]
    n_virtual = attention.shape[-1] - key_real.shape[1]
    for example in range(len(query_real)):
        queries = np.flatnonzero(query_real[example]) + attention.shape[-2] - query_real.shape[1]
        keys = np.concatenate([np.arange(n_virtual), np.flatnonzero(key_real[example]) + n_virtual])
        block = attention[example][:, torch.as_tensor(queries, device=attention.device)]
        yield block[:, :, torch.as_tensor(keys, device=attention.device)]


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


def _check_probabilities(
    measurement: Measurement, key: tuple[str, str], layers: tuple[Tensor, ...], architecture: Architecture
) -> None:
    stack, kind = key
    n_query = measurement.batch.real[stack].shape[1]
    n_key = measurement.batch.real["encoder" if kind == "cross" else stack].shape[1]
    queries = torch.as_tensor(measurement.batch.real[stack])
    for number, layer in enumerate(layers, start=1):
        if layer.ndim != 4 or layer.shape[-1] < n_key or layer.shape[-2] < n_query:
            raise CaptureError(
                f"{kind} attention of block {number} must be (examples, heads, {n_query}, {n_key}); got "
                f"{tuple(layer.shape)} from {architecture.model_class}. Capture it with attention='none'"
            )
        sums = layer[:, :, -n_query:].sum(dim=-1, dtype=torch.float32).transpose(1, 2)[queries.to(layer.device)]
        worst = float((sums - 1).abs().max())
        if not worst <= _ROW_SUM_TOLERANCE.get(layer.dtype, 1e-4):
            raise CaptureError(
                f"{kind} attention of block {number} must be probabilities: rows that sum to 1; got a row that sums to "
                f"1 ± {worst:.3g} from {architecture.model_class}. Capture it with attention='none'"
            )
