"""Streaming one snapshot of a live model into its file, batch by batch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprobe.capture.architecture import Architecture, Stack, transformer_inside
from dynprobe.capture.guard import set_eager_attention
from dynprobe.capture.measure import Measurement, batches, measure, real_blocks, tokens
from dynprobe.capture.outputs import Said, what_it_says
from dynprobe.capture.plan import Plan
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.writer import FileWriter

_PROBE = "main"


class DoesNotFitFloat16(Exception):  # noqa: N818 - a signal between two functions, never seen by a user
    """Arrays hold values beyond the range of float16 and must be written in float32."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


@dataclass(frozen=True)
class SnapshotJob:
    """Everything that is the same for all snapshots of a run.

    Attributes
    ----------
    architecture, probe, plan
        The model's architecture, the probe set, and what is kept.
    meta
        Facts stored in each file.
    """

    architecture: Architecture
    probe: ProbeSet
    plan: Plan
    meta: Mapping[str, Any]


def write_snapshot(
    path: Path, model: nn.Module, job: SnapshotJob, *, step: int, wide: set[str], parameters: Mapping[str, np.ndarray]
) -> None:
    """Measure the model on the probe set and write one snapshot file.

    Parameters
    ----------
    path
        File to write.
    model
        Guarded by :func:`dynprobe.capture.guard.undisturbed`.
    job
        What to measure and keep.
    step
        Number of optimizer steps so far.
    wide
        Names of arrays that need float32; grows when values do not fit float16, and the pass is repeated once.
    parameters
        Arrays for the group ``parameters``.

    Raises
    ------
    CaptureError
        For NaN or Inf, naming array and step.
    """
    while True:
        try:
            with FileWriter(path, {"kind": "snapshot", "step": step, **job.meta}) as file:
                _stream(file, model, job, step=step, wide=wide)
                for name, array in parameters.items():
                    file.write(f"parameters/{name}", array)
            return
        except DoesNotFitFloat16 as overflow:
            wide |= overflow.names


def _stream(file: FileWriter, model: nn.Module, job: SnapshotJob, *, step: int, wide: set[str]) -> None:
    sink = _Sink(file, step, wide)
    _declare(sink, job)
    said: list[Said] = []
    vocabulary = getattr(transformer_inside(model).config, "vocab_size", None)
    if job.plan.n_attention_examples:
        set_eager_attention(model)
    device = next(model.parameters()).device
    for batch in batches(job.probe, job.architecture, device):
        with_attention = batch.start < job.plan.n_attention_examples
        measurement = measure(model, batch, job.architecture, attentions=with_attention)
        for stack in job.architecture.stacks:
            _write_states(sink, measurement, stack, job.plan)
        if with_attention:
            _write_attentions(sink, measurement, job)
        output = what_it_says(measurement, job.architecture, vocabulary)
        if output is not None:
            said.append(output)
    if sink.overflowed:  # only now, when all of them are known
        raise DoesNotFitFloat16(sink.overflowed)
    _write_outputs(sink, said)


class _Sink:
    """Checks numbers and hands them to the file in float16, or float32 where an array needs it."""

    def __init__(self, file: FileWriter, step: int, wide: set[str]) -> None:
        self.file, self._step, self._wide = file, step, wide
        self.overflowed: set[str] = set()

    def declare(self, name: str, shape: tuple[int, ...], **facts: Any) -> None:
        """Announce an array of known shape."""
        self.file.create(name, shape, np.float32 if name in self._wide else np.float16, **facts)

    def declare_wide(self, name: str, shape: tuple[int, ...], **facts: Any) -> None:
        """Announce an array that is wanted in float32, whether or not its values fit float16."""
        self._wide.add(name)
        self.declare(name, shape, **facts)

    def append(self, name: str, values: Tensor) -> None:
        """Write the next rows of an array."""
        block = values.detach().to(device="cpu", dtype=torch.float32).numpy()
        self.require_finite(name, block)
        if name not in self._wide:
            with np.errstate(over="ignore"):
                narrow = block.astype(np.float16)
            if not np.isfinite(narrow).all():
                self.overflowed.add(name)
            block = narrow
        self.file.append(name, block)

    def require_finite(self, name: str, values: np.ndarray) -> None:
        """Refuse NaN and Inf, naming where and when."""
        if not np.isfinite(values).all():
            kind = "NaN" if np.isnan(values).any() else "Inf"
            raise CaptureError(
                f"step {self._step}: activations must be finite; got {kind} in {_in_words(name)}. "
                "The model has diverged: lower the learning rate, or train in float32"
            )


def _in_words(name: str) -> str:
    """Say which array it is: ``main/model/hidden_states/3`` is "the hidden states of layer 3 (stack 'model')"."""
    _, stack, *what, layer = name.split("/")
    if stack == "outputs":
        return f"the outputs ({layer})"
    return f"the {' '.join(what).replace('_', ' ')} of layer {layer} (stack {stack!r})"


def _declare(sink: _Sink, job: SnapshotJob) -> None:
    n_attention = job.plan.n_attention_examples
    for stack in job.architecture.stacks:
        prefix = f"{_PROBE}/{stack.name}"
        rows = job.plan.rows[stack.name]
        if len(rows):
            sink.file.write(f"{prefix}/index/hidden_rows", rows)
            for layer in job.plan.layers[stack.name]:
                sink.declare(f"{prefix}/hidden_states/{layer}", (len(rows), stack.d_model))
        for kind in stack.pooled:
            for layer in range(stack.n_layers + 1):
                sink.declare(f"{prefix}/pooled/{kind}/{layer}", (job.probe.n_examples, stack.d_model))
        if n_attention:
            sink.file.write(f"{prefix}/index/attention_examples", np.arange(n_attention, dtype=np.int32))


def _write_states(sink: _Sink, measurement: Measurement, stack: Stack, plan: Plan) -> None:
    prefix, rows = f"{_PROBE}/{stack.name}", plan.rows[stack.name]
    batch = measurement.batch
    first, last = np.searchsorted(rows[:, 0], [batch.start, batch.stop])
    wanted = torch.as_tensor(rows[first:last].astype(np.int64))
    real = torch.as_tensor(batch.real[stack.name])
    for layer in range(stack.n_layers + 1):
        hidden = tokens(measurement, stack.name, layer)
        if len(rows) and layer in plan.layers[stack.name]:
            picked = hidden[(wanted[:, 0] - batch.start).to(hidden.device), wanted[:, 1].to(hidden.device)]
            sink.append(f"{prefix}/hidden_states/{layer}", picked)
        for kind in stack.pooled:
            sink.append(f"{prefix}/pooled/{kind}/{layer}", pool(hidden, real.to(hidden.device), kind))


def pool(hidden: Tensor, real: Tensor, kind: str) -> Tensor:
    """One vector per example.

    Parameters
    ----------
    hidden
        (n_examples, n_positions, d_model).
    real
        (n_examples, n_positions) true at real tokens.
    kind
        ``"first"`` or ``"last"`` real token, or the ``"mean"`` of the real tokens.
    """
    if kind == "mean":
        weights = real.unsqueeze(-1)
        return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
    positions = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    ends = positions.masked_fill(~real, real.shape[1]).amin(1) if kind == "first" else positions.mul(real).amax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), ends]


def _declare_attentions(sink: _Sink, measurement: Measurement, job: SnapshotJob) -> None:
    """Announce the ragged arrays of attention; only the model itself knows how many virtual keys it adds."""
    n_kept = job.plan.n_attention_examples
    declare = sink.declare_wide if job.plan.attention_dtype == "float32" else sink.declare
    for (stack, kind), layers in measurement.attentions.items():
        key_stack = "encoder" if kind == "cross" else stack
        n_virtual = layers[0].shape[-1] - measurement.batch.real[key_stack].shape[1]
        n_query = job.probe.real[stack][:n_kept].sum(axis=1)
        n_key = job.probe.real[key_stack][:n_kept].sum(axis=1) + n_virtual
        prefix = "" if kind == "self" else f"{kind}_"
        lengths = np.stack([n_query, n_key], axis=1).astype(np.int32)
        sink.file.write(f"{_PROBE}/{stack}/index/{prefix}attention_shape", lengths)
        for number, layer in enumerate(layers, start=1):
            size = int((n_query * n_key).sum()) * layer.shape[1]
            name = f"{_PROBE}/{stack}/{kind}_attention/{number}"
            declare(name, (size,), n_heads=layer.shape[1], n_virtual_keys=n_virtual)


def _write_attentions(sink: _Sink, measurement: Measurement, job: SnapshotJob) -> None:
    if measurement.batch.start == 0:
        _declare_attentions(sink, measurement, job)
    n_kept = min(measurement.batch.stop, job.plan.n_attention_examples) - measurement.batch.start
    for key, layers in measurement.attentions.items():
        for number in range(1, len(layers) + 1):
            blocks = [block.reshape(-1) for block in islice(real_blocks(measurement, key, number), n_kept)]
            sink.append(f"{_PROBE}/{key[0]}/{key[1]}_attention/{number}", torch.cat(blocks))


def _write_outputs(sink: _Sink, said: list[Said]) -> None:
    if not said:
        return
    kind = said[0].kind
    values = np.concatenate([part.values for part in said])
    sink.require_finite(f"{_PROBE}/outputs/{kind}", values)
    sink.file.write(f"{_PROBE}/outputs/{kind}", values)
    if said[0].lengths is not None:
        lengths = np.concatenate([part.lengths for part in said if part.lengths is not None])
        sink.file.write(f"{_PROBE}/outputs/{kind}_offsets", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def parameter_arrays(distances: Mapping[str, tuple[float, float]]) -> dict[str, np.ndarray]:
    """Distance and norm of each weight tensor as arrays of the group ``parameters``."""
    if not distances:
        return {}
    return {
        "names": np.frombuffer(json.dumps(list(distances)).encode(), dtype=np.uint8),
        "distance": np.array([distance for distance, _ in distances.values()], dtype=np.float64),
        "norm": np.array([norm for _, norm in distances.values()], dtype=np.float64),
    }
