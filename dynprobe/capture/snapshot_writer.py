"""Streaming one snapshot of a live model into its file, batch by batch."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprobe.capture.architecture import Architecture, Stack, transformer_inside
from dynprobe.capture.background import InOrder
from dynprobe.capture.frozen import frozen
from dynprobe.capture.guard import set_eager_attention
from dynprobe.capture.measure import Batch, Measurement, batches, measure, real_attention, tokens
from dynprobe.capture.outputs import Said, what_it_says
from dynprobe.capture.plan import Plan
from dynprobe.capture.taps import NO_TAPS, Key, Take, Taps
from dynprobe.capture.value_norms import value_norms
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.layout import RANDOM
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
    taps
        Where the model makes what is taken off it.
    tasks
        Probe sets of which the pooled vectors are kept as well, by name.
    baseline
        A model with random weights to be measured on them, too.
    """

    architecture: Architecture
    probe: ProbeSet
    plan: Plan
    meta: Mapping[str, Any]
    taps: Taps = NO_TAPS
    tasks: Mapping[str, ProbeSet] = field(default_factory=dict)
    baseline: nn.Module | None = None


def write_snapshot(
    path: Path,
    model: nn.Module,
    job: SnapshotJob,
    *,
    step: int,
    wide: set[str],
    parameters: Mapping[str, np.ndarray],
    open_file: Callable[[Path, Mapping[str, Any]], Any] = FileWriter,
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
    open_file
        Makes the file; something else where this process only takes part in the pass.

    Raises
    ------
    CaptureError
        For NaN or Inf, naming array and step.
    """
    while True:
        try:
            with open_file(path, {"kind": "snapshot", "step": step, **job.meta}) as file:
                _stream(file, model, job, step=step, wide=wide)
                for name, array in parameters.items():
                    file.write(f"parameters/{name}", array)
            return
        except DoesNotFitFloat16 as overflow:
            wide |= overflow.names


def _stream(file: FileWriter, model: nn.Module, job: SnapshotJob, *, step: int, wide: set[str]) -> None:
    said: list[Said] = []
    vocabulary = getattr(transformer_inside(model).config, "vocab_size", None)
    if job.plan.n_attention_examples:
        set_eager_attention(model)
    device = next(model.parameters()).device
    with InOrder() as later:
        sink = _Sink(file, step, wide, later)
        _declare(sink, job)
        for batch in batches(job.probe, job.architecture, device):
            with _attention_of(batch, sink, model, job) as take:
                measurement = measure(model, batch, job.architecture, take=take, taps=job.taps)
            for stack in job.architecture.stacks:
                _write_states(sink, measurement, stack, job.plan)
            _write_vectors(sink, measurement, job)
            output = what_it_says(measurement, job.architecture, vocabulary)
            if output is not None:
                said.append(output)
        with frozen(model) if job.tasks else nullcontext():
            for part, probe in job.tasks.items():
                _write_task(sink, model, job.architecture, part, probe)
                if job.baseline is not None:
                    _write_task(sink, job.baseline, job.architecture, part, probe, mark=RANDOM)
    if sink.overflowed:  # only now, when all of them are known
        raise DoesNotFitFloat16(sink.overflowed)
    _write_outputs(sink, said)


class _Sink:
    """Checks numbers and hands them to the file in float16, or float32 where an array needs it.

    Checking and narrowing happen where the numbers are; digests and the disk are left to the thread beside.
    """

    def __init__(self, file: FileWriter, step: int, wide: set[str], later: InOrder) -> None:
        self.file, self._step, self._wide, self._later = file, step, wide, later
        self.overflowed: set[str] = set()

    def declare(self, name: str, shape: tuple[int, ...], **facts: Any) -> None:
        """Announce an array of known shape."""
        dtype = np.float32 if name in self._wide else np.float16
        self._later(lambda: self.file.create(name, shape, dtype, **facts))

    def declare_wide(self, name: str, shape: tuple[int, ...], **facts: Any) -> None:
        """Announce an array that is wanted in float32, whether or not its values fit float16."""
        self._wide.add(name)
        self.declare(name, shape, **facts)

    def append(self, name: str, values: Tensor) -> None:
        """Write the next rows of an array."""
        block = values.detach().to(torch.float32 if name in self._wide else torch.float16)
        if not bool(block.isfinite().all()):
            self.require_finite(name, values.detach().float().cpu().numpy())
            self.overflowed.add(name)
        data = block.cpu().numpy()
        self._later(lambda: self.file.append(name, data), data.nbytes)

    def write(self, name: str, array: np.ndarray) -> None:
        """Write a whole small array."""
        self._later(lambda: self.file.write(name, array))

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
    part, stack, *what, layer = name.split("/")
    if stack == "outputs":
        return f"the outputs ({layer})"
    where = f"stack {stack!r}" if part == _PROBE else f"stack {stack!r}, probe task {part!r}"
    return f"the {' '.join(what).replace('_', ' ')} of layer {layer} ({where})"


def _declare(sink: _Sink, job: SnapshotJob) -> None:
    n_attention = job.plan.n_attention_examples
    for stack in job.architecture.stacks:
        prefix = f"{_PROBE}/{stack.name}"
        rows = job.plan.rows[stack.name]
        if len(rows):
            sink.write(f"{prefix}/index/hidden_rows", rows)
            for layer in job.plan.layers[stack.name]:
                sink.declare(f"{prefix}/hidden_states/{layer}", (len(rows), stack.d_model))
        _declare_pooled(sink, prefix, stack, job.probe.n_examples)
        if n_attention:
            sink.write(f"{prefix}/index/attention_examples", np.arange(n_attention, dtype=np.int32))


def _declare_pooled(sink: _Sink, prefix: str, stack: Stack, n_examples: int) -> None:
    for kind in stack.pooled:
        for layer in range(stack.n_layers + 1):
            sink.declare(f"{prefix}/pooled/{kind}/{layer}", (n_examples, stack.d_model))


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
        _write_pooled(sink, prefix, stack, layer, hidden, real)


def _write_pooled(sink: _Sink, prefix: str, stack: Stack, layer: int, hidden: Tensor, real: Tensor) -> None:
    for kind in stack.pooled:
        sink.append(f"{prefix}/pooled/{kind}/{layer}", pool(hidden, real.to(hidden.device), kind))


def _write_task(
    sink: _Sink, model: nn.Module, architecture: Architecture, part: str, probe: ProbeSet, *, mark: str = ""
) -> None:
    """Measure a model on one split of a probe task: the pooled vectors of all layers, and nothing else."""
    for stack in architecture.stacks:
        _declare_pooled(sink, f"{part}/{mark}{stack.name}", stack, probe.n_examples)
    for batch in batches(probe, architecture, next(model.parameters()).device):
        measurement = measure(model, batch, architecture)
        for stack in architecture.stacks:
            real = torch.as_tensor(batch.real[stack.name])
            for layer in range(stack.n_layers + 1):
                hidden = tokens(measurement, stack.name, layer)
                _write_pooled(sink, f"{part}/{mark}{stack.name}", stack, layer, hidden, real)


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


class _Attention:
    """Writes the attention of one batch, block by block, as the model makes it.

    A stored kind is ``"self"``, ``"cross"``, or ``"cls"``: of self attention only the row of [CLS] or what stands for it.
    """

    def __init__(self, sink: _Sink, batch: Batch, job: SnapshotJob) -> None:
        self._sink, self._batch, self._job = sink, batch, job
        self._cls = {stack.name: stack.pooled[0] for stack in job.architecture.stacks}

    def __call__(self, key: Key, layer: int, attention: Tensor) -> None:
        """Write one block's attention, (n_examples, n_heads, n_query, n_key)."""
        (stack, kind), plan = key, self._job.plan
        if layer not in plan.attention_layers[stack] or (kind == "cross" and not plan.cross_attention):
            return
        only_cls = kind == "self" and plan.attention_rows == "cls"
        stored = "cls" if only_cls else kind
        if self._batch.start == 0:
            self._declare(stack, stored, layer, attention)
        n_kept = min(self._batch.stop, plan.n_attention_examples) - self._batch.start
        only = self._cls[stack] if only_cls else None
        values = real_attention(self._batch, key, attention, n_examples=n_kept, only=only)
        self._sink.append(f"{_PROBE}/{stack}/{stored}_attention/{layer}", values)

    def _declare(self, stack: str, stored: str, layer: int, attention: Tensor) -> None:
        """Announce a ragged array; only the model itself knows how many virtual keys it adds."""
        plan, probe = self._job.plan, self._job.probe
        n_kept, key_stack = plan.n_attention_examples, "encoder" if stored == "cross" else stack
        n_virtual = attention.shape[-1] - self._batch.real[key_stack].shape[1]
        n_query = np.ones(n_kept, dtype=int) if stored == "cls" else probe.real[stack][:n_kept].sum(axis=1)
        n_key = probe.real[key_stack][:n_kept].sum(axis=1) + n_virtual
        if layer == min(plan.attention_layers[stack]):
            prefix = "" if stored == "self" else f"{stored}_"
            lengths = np.stack([n_query, n_key], axis=1).astype(np.int32)
            self._sink.write(f"{_PROBE}/{stack}/index/{prefix}attention_shape", lengths)
        declare = self._sink.declare_wide if plan.attention_dtype == "float32" else self._sink.declare
        size, name = int((n_query * n_key).sum()) * attention.shape[1], f"{_PROBE}/{stack}/{stored}_attention/{layer}"
        declare(name, (size,), n_heads=attention.shape[1], n_virtual_keys=n_virtual)


@contextmanager
def _attention_of(batch: Batch, sink: _Sink, model: nn.Module, job: SnapshotJob) -> Iterator[Take | None]:
    """What to do with the attention of a batch: nothing, write it, or write it and the norms of the values it weighs."""
    if batch.start >= job.plan.n_attention_examples:
        yield None
        return
    write = _Attention(sink, batch, job)
    if not job.plan.value_norms:
        yield write
        return
    with value_norms(model, job.taps, _ValueNorms(sink, batch, job)) as watch:

        def both(key: Key, layer: int, attention: Tensor) -> None:
            write(key, layer, attention)
            watch(key, layer, attention)

        yield both


class _ValueNorms:
    """Writes the value norms of one batch: of the tokens of each example whose attention is kept."""

    def __init__(self, sink: _Sink, batch: Batch, job: SnapshotJob) -> None:
        self._sink, self._batch, self._job = sink, batch, job

    def __call__(self, stack: str, layer: int, norms: Tensor) -> None:
        """Write one block's norms, (n_examples, n_positions, n_heads)."""
        plan, real = self._job.plan, self._batch.real[stack]
        if layer not in plan.attention_layers[stack]:
            return
        name, n_kept = f"{_PROBE}/{stack}/value_norms/{layer}", plan.n_attention_examples
        if self._batch.start == 0:
            n_tokens = int(self._job.probe.real[stack][:n_kept].sum())
            self._sink.declare(name, (n_tokens, norms.shape[-1]))
        n_here = min(self._batch.stop, n_kept) - self._batch.start
        of_tokens = norms[:n_here, -real.shape[1] :][torch.as_tensor(real[:n_here], device=norms.device)]
        self._sink.append(name, of_tokens)


def _write_vectors(sink: _Sink, measurement: Measurement, job: SnapshotJob) -> None:
    """The pooler's output and the classifier's input, where the model has them."""
    for name, values in measurement.vectors.items():
        path = f"{_PROBE}/outputs/{name}"
        if measurement.batch.start == 0:
            sink.declare(path, (job.probe.n_examples, values.shape[1]))
        sink.append(path, values)


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
