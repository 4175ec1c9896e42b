"""What a snapshot will hold, chosen before training starts so that a whole run fits its budget of bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dynprobe.capture.architecture import Architecture, Stack, require_token_attention
from dynprobe.capture.schedule import Schedule
from dynprobe.capture.settings import CaptureSettings, parse_layers, show_bytes
from dynprobe.errors import UsageError
from dynprobe.probe_set import ProbeSet

DEFAULT_N_TOKENS = 8192
DEFAULT_ATTENTION_EXAMPLES = 64
_HALF, _SINGLE = 2, 4  # bytes of a float16 and of a float32


@dataclass(frozen=True)
class Plan:
    """What each snapshot holds.

    Attributes
    ----------
    steps
        Steps at which snapshots are planned; empty when the caller decides.
    rows
        Stack name to (n_rows, 2) example and position of each token whose hidden states are kept, in order.
    layers
        Stack name to the layers whose hidden states are kept.
    n_attention_examples
        Attention is kept of the first so many examples.
    attention_dtype
        How it is stored: ``"float16"`` or ``"float32"``.
    attention_layers
        Stack name to the blocks whose attention is kept.
    attention_rows, cross_attention, value_norms
        As in :class:`~dynprobe.capture.settings.CaptureSettings`.
    bytes_per_snapshot
        Expected size of one snapshot file.
    notes
        What the budget made smaller, or that it is exceeded; one sentence each.
    probe_tasks
        Name of each probe task, of which all layers' pooled vectors are kept as well, to its number of examples.
    bytes_once
        What the first snapshot takes more: the same vectors of an encoder with random weights.
    """

    steps: tuple[int, ...]
    rows: Mapping[str, np.ndarray]
    layers: Mapping[str, tuple[int, ...]]
    n_attention_examples: int
    bytes_per_snapshot: int
    notes: tuple[str, ...] = field(default=())
    attention_dtype: str = "float16"
    attention_layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attention_rows: str = "all"
    cross_attention: bool = True
    value_norms: bool = False
    probe_tasks: Mapping[str, int] = field(default_factory=dict)
    bytes_once: int = 0

    @property
    def total(self) -> int | None:
        """Expected bytes of all planned snapshots, or ``None`` where the caller decides on them."""
        return len(self.steps) * self.bytes_per_snapshot + self.bytes_once if self.steps else None


@dataclass(frozen=True)
class _Amounts:
    """The quantities that a budget may reduce, and what was asked for, which it may not."""

    n_attention_examples: int
    n_snapshots: int
    n_tokens: int
    layer_stride: int
    asked: CaptureSettings
    n_task_examples: int = 0
    bytes_once: int = 0


def make_plan(
    architecture: Architecture,
    probe: ProbeSet,
    settings: CaptureSettings,
    *,
    max_steps: int | None = None,
    probe_tasks: Mapping[str, int] | None = None,
    has_baseline: bool = False,
) -> Plan:
    """Decide what each snapshot holds.

    Parameters
    ----------
    architecture
        The model.
    probe
        The probe set.
    settings
        What the user asked for.
    max_steps
        Number of optimizer steps of the training; without it ten snapshots are assumed.
    probe_tasks
        Name of each probe task to its number of examples.
    has_baseline
        Whether they are measured once with random weights, too.

    Raises
    ------
    CaptureError
        When attention is asked for and the model has none that can be kept.
    """
    if settings.attention != "none":
        require_token_attention(architecture)
    schedule = Schedule.parse(settings.schedule)
    steps = () if max_steps is None else schedule.steps(max_steps)
    wanted = _wanted(architecture, probe, settings, n_snapshots=len(steps) or 10)
    tasks = dict(probe_tasks or {})
    wanted = _with_tasks(wanted, architecture, sum(tasks.values()), has_baseline=has_baseline)
    amounts = _reduced(architecture, probe, settings, wanted, may_thin_steps=schedule.kind == "log" and bool(steps))
    if amounts.n_snapshots < len(steps):
        steps = Schedule("log", (amounts.n_snapshots - 1,)).steps(int(max_steps or 0))
    per_snapshot = _bytes(architecture, probe, amounts)
    total = per_snapshot * (len(steps) or wanted.n_snapshots) + wanted.bytes_once
    notes = _notes(wanted, replace(amounts, n_snapshots=len(steps) or wanted.n_snapshots), settings.budget, total)
    return Plan(
        steps=steps,
        rows={stack.name: sample_tokens(probe, stack.name, amounts.n_tokens) for stack in architecture.stacks},
        layers={stack.name: _kept_layers(stack, amounts) for stack in architecture.stacks},
        n_attention_examples=amounts.n_attention_examples,
        bytes_per_snapshot=per_snapshot,
        notes=notes,
        attention_dtype=settings.attention_dtype,
        attention_layers={stack.name: _kept_blocks(stack, settings) for stack in architecture.stacks},
        attention_rows=settings.attention_rows,
        cross_attention=settings.cross_attention,
        value_norms=settings.value_norms,
        probe_tasks=tasks,
        bytes_once=wanted.bytes_once,
    )


def sample_tokens(probe: ProbeSet, stack: str, n_tokens: int) -> np.ndarray:
    """Choose real tokens by content; a smaller sample is part of every larger one.

    Parameters
    ----------
    probe
        The probe set.
    stack
        Which stack's tokens.
    n_tokens
        At most that many.

    Returns
    -------
    numpy.ndarray
        (n_rows, 2) int32 example and position, ascending.
    """
    rows = np.argwhere(probe.real[stack]).astype(np.int32)
    if len(rows) <= n_tokens:
        return rows
    example_keys = np.array([int(content, 16) for content in probe.example_ids], dtype=np.uint64)
    priority = _mixed(example_keys[rows[:, 0]] + rows[:, 1].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return rows[np.sort(np.argsort(priority, kind="stable")[:n_tokens])]


def _wanted(architecture: Architecture, probe: ProbeSet, settings: CaptureSettings, *, n_snapshots: int) -> _Amounts:
    d_model = max(stack.d_model for stack in architecture.stacks)
    n_real = max((int(mask.sum()) for mask in probe.real.values()), default=0)
    tokens = {"sample": max(DEFAULT_N_TOKENS, 10 * d_model), "all": n_real, "none": 0}
    examples = {"sample": DEFAULT_ATTENTION_EXAMPLES, "all": probe.n_examples, "none": 0}
    return _Amounts(
        n_attention_examples=min(probe.n_examples, _chosen(settings.attention, examples)),
        n_snapshots=n_snapshots,
        n_tokens=min(n_real, _chosen(settings.hidden, tokens)),
        layer_stride=1,
        asked=settings,
    )


def _with_tasks(amounts: _Amounts, architecture: Architecture, n_examples: int, *, has_baseline: bool) -> _Amounts:
    once = sum(_bytes_of_pooled(stack, n_examples) for stack in architecture.stacks) if has_baseline else 0
    return replace(amounts, n_task_examples=n_examples, bytes_once=once)


def _chosen(value: str | int, meanings: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else meanings[value]


def _reduced(
    architecture: Architecture, probe: ProbeSet, settings: CaptureSettings, wanted: _Amounts, *, may_thin_steps: bool
) -> _Amounts:
    """Halve one quantity after the other, the least missed first, until the run fits its budget."""
    d_model = max(stack.d_model for stack in architecture.stacks)
    depth = max(stack.n_layers for stack in architecture.stacks)
    attention, tokens = settings.attention == "sample", settings.hidden == "sample"
    thin = tokens and settings.layers == "all"
    ladder = [
        ("n_attention_examples", 16, attention),
        ("n_snapshots", 5, may_thin_steps),
        ("n_tokens", max(1024, 2 * d_model), tokens),
        ("n_attention_examples", 4, attention),
        ("n_tokens", 512, tokens),
        ("layer_stride", min(4, depth), thin),
        ("n_tokens", 256, tokens),
        ("layer_stride", depth, thin),
    ]
    concessions = [(name, limit) for name, limit, allowed in ladder if allowed]
    amounts = wanted
    for name, limit in concessions:
        while amounts.n_snapshots * _bytes(architecture, probe, amounts) + amounts.bytes_once > settings.budget:
            value = getattr(amounts, name)
            smaller = min(limit, value * 2) if name == "layer_stride" else max(limit, value // 2)
            if smaller == value or (name != "layer_stride" and value <= limit):
                break
            amounts = replace(amounts, **{name: smaller})
    return amounts


def _bytes(architecture: Architecture, probe: ProbeSet, amounts: _Amounts) -> int:
    asked = amounts.asked
    size = _SINGLE if asked.attention_dtype == "float32" else _HALF
    total = 0
    for stack in architecture.stacks:
        lengths = _lengths(probe, stack.name)
        n_kept = min(amounts.n_tokens, int(lengths.sum()))
        total += (_HALF * stack.d_model * len(_kept_layers(stack, amounts)) + 2 * _SINGLE) * n_kept
        total += _bytes_of_pooled(stack, probe.n_examples + amounts.n_task_examples)
        attending = lengths[: amounts.n_attention_examples]
        n_maps = stack.n_heads * len(_kept_blocks(stack, asked))
        total += int(size * n_maps * (attending if asked.attention_rows == "cls" else attending**2).sum())
        total += int(_HALF * n_maps * attending.sum()) if asked.value_norms else 0
        if stack.name == "decoder" and asked.cross_attention:
            of_encoder = _lengths(probe, "encoder")[: amounts.n_attention_examples]
            total += int(size * n_maps * (of_encoder * attending).sum())
    return total + _bytes_of_outputs(architecture, probe)


def _bytes_of_pooled(stack: Stack, n_examples: int) -> int:
    return _HALF * stack.d_model * n_examples * len(stack.pooled) * (stack.n_layers + 1)


def _bytes_of_outputs(architecture: Architecture, probe: ProbeSet) -> int:
    """At most so much is said: classes of each example, or likelihoods, ends or classes of each token."""
    per_token = architecture.n_labels if "TokenClassification" in architecture.model_class else 2
    n_tokens = int(_lengths(probe, architecture.stacks[-1].name).sum())
    vectors = _HALF * 2 * architecture.stacks[-1].d_model  # pooler output and classifier input
    return probe.n_examples * (_SINGLE * (architecture.n_labels + 2) + vectors) + _SINGLE * n_tokens * per_token


def _lengths(probe: ProbeSet, stack: str) -> np.ndarray:
    return np.asarray(probe.real[stack].sum(axis=1), dtype=np.int64)


def _kept_layers(stack: Stack, amounts: _Amounts) -> tuple[int, ...]:
    """The layers that were asked for; of all, every `layer_stride`-th counted from the last, and always layer 0."""
    asked = _asked_layers(stack, amounts.asked)
    return tuple(sorted({0, *range(stack.n_layers, -1, -amounts.layer_stride)})) if asked is None else asked


def _kept_blocks(stack: Stack, settings: CaptureSettings) -> tuple[int, ...]:
    asked = _asked_layers(stack, settings)
    return tuple(range(1, stack.n_layers + 1)) if asked is None else tuple(layer for layer in asked if layer > 0)


def _asked_layers(stack: Stack, settings: CaptureSettings) -> tuple[int, ...] | None:
    numbers = parse_layers(settings.layers)
    if numbers is None:
        return None
    last = stack.n_layers
    if outside := [number for number in numbers if not -last - 1 <= number <= last]:
        raise UsageError(
            f"`layers` must lie in 0..{last} (0 = embeddings), or -{last + 1}..-1 from the end; got {outside}"
        )
    return tuple(sorted({number % (last + 1) for number in numbers}))


def _notes(wanted: _Amounts, got: _Amounts, budget: int, total: int) -> tuple[str, ...]:
    words = {
        "n_attention_examples": "attention of {} examples instead of {}",
        "n_snapshots": "{} snapshots instead of {}",
        "n_tokens": "hidden states of {} tokens instead of {}",
        "layer_stride": "hidden states of one layer in {} instead of all",
    }
    changed = [
        text.format(getattr(got, name), getattr(wanted, name))
        for name, text in words.items()
        if getattr(got, name) != getattr(wanted, name)
    ]
    notes: tuple[str, ...] = ()
    if changed:
        notes += (f"The budget of {show_bytes(budget)} made the capture smaller: {', '.join(changed)}.",)
    if total > budget:
        notes += (f"The run is expected to take {show_bytes(total)}, more than its budget of {show_bytes(budget)}.",)
    return notes


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finalizer of SplitMix64), so that their order is as good as random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
