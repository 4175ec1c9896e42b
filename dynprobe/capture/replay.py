"""Replay: the snapshots that a live capture would have taken, from the checkpoints that a training saved."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging as transformers_logging

from dynprobe.capture.architecture import transformer_inside
from dynprobe.capture.checkpoints import (
    Checkpoint,
    TrainerLog,
    choose_checkpoints,
    find_checkpoints,
    read_trainer_log,
    require_safe_weights,
)
from dynprobe.capture.guard import random_state_kept
from dynprobe.capture.models import Loaded, base_named_by, load_start, load_tokenizer, load_weights
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError, DynprobeError, IncompatibleRunsError, UsageError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH, ProbeSet
from dynprobe.probe_task import ProbeTask
from dynprobe.storage.directory import read_manifest, read_scalars
from dynprobe.storage.folder import is_run, list_steps

ORIGIN = "replay"
_GO_ON = "Snapshots taken before are kept: mend it or choose others with --steps, then go on with --resume"


@dataclass(frozen=True)
class _Moment:
    """One snapshot to take: its step, what it is called in messages, and how its model is loaded."""

    step: int
    name: str
    load: Callable[[], Loaded]


def replay(  # noqa: PLR0913 - all that a capture can be told
    checkpoints: str | Path,
    run_dir: str | Path,
    *,
    probe_set: ProbeSet,
    base: str | None = None,
    steps: Sequence[int] | None = None,
    settings: CaptureSettings | None = None,
    existing: str = "refuse",
    progress: Callable[[int, int, str], None] | None = None,
    probe_tasks: Mapping[str, ProbeTask] | None = None,
) -> Path:
    """Capture a training after the fact, from its saved checkpoints: equal to a live capture at the same steps.

    One model is in memory at a time. Nothing is unpickled: weights are read from safetensors, logged numbers from
    ``trainer_state.json``; optimizer, random states and training arguments are left alone, and no code of a model is run.

    Parameters
    ----------
    checkpoints
        The output folder of a transformers Trainer, with folders ``checkpoint-N`` of whole models or PEFT adapters, or one
        such folder. N is the step.
    run_dir
        New folder for the run.
    probe_set
        The fixed inputs to measure on: those of another run, or :func:`probe_set_from_texts`.
    base
        The model that training started from: measured as step 0, and what adapters are put on. By default the one that
        adapters name; without any, the run starts at its first checkpoint. What the base has no weights for (a new head)
        was random when training began: of step 0 no outputs are recorded then.
    steps
        Only the checkpoints of these steps.
    settings
        What to keep; its schedule does not matter here.
    existing
        What to do with a run that is already in `run_dir`: ``"refuse"``, ``"resume"`` (take the steps that it lacks) or
        ``"replace"``.
    progress
        Called with (snapshots done, of how many, what is measured now).
    probe_tasks
        As for :class:`~dynprobe.capture.recorder.Recorder`.

    Returns
    -------
    pathlib.Path
        The run directory.

    Raises
    ------
    UsageError
        When there is no checkpoint, or `run_dir` holds a run that may not be touched.
    CaptureError
        When a checkpoint cannot be loaded or measured, naming it; the snapshots before it are kept.
    IncompatibleRunsError
        When a checkpoint has another architecture than those before it, or a run to go on with is of another training.

    Examples
    --------
    >>> replay("output", "runs/after", probe_set=open_run("runs/live").probe_set, base="bert-base")  # doctest: +SKIP
    """
    found, path = find_checkpoints(Path(checkpoints)), Path(run_dir)
    chosen = choose_checkpoints(found, steps)
    log, notes = _checked_log(found)
    before = _run_before(path, existing, log)
    settings = _settings_for(chosen, settings or CaptureSettings(), before=list_steps(path) if before else ())
    moments = _moments(chosen, base)
    done = set(list_steps(path)) if before else set()
    todo = [moment for moment in moments if moment.step not in done]
    if not todo:
        return path
    if moments[0].step == 0 and todo[0].step != 0 and settings.weights:
        todo.insert(0, moments[0])  # measured already, but distances are from there
    max_steps = max([log.max_steps or 0, *(moment.step for moment in moments), *done])
    start = moments[0].name if len(moments) > len(chosen) else None
    facts = _facts(chosen, start, before)
    with _quietly():
        first = _loaded(todo[0], notes)
        recorder = Recorder(
            first,
            probe_set,
            path,
            settings=settings,
            max_steps=max_steps,
            facts=facts,
            existing=existing,
            probe_tasks=probe_tasks,
        )
        del first  # the recorder holds the only reference, and lets it go before the next is loaded
        with recorder:
            for record in log.records[len(read_scalars(path)) :]:
                recorder.log(record)
            _take(recorder, todo, notes, progress)
    return path


def probe_set_from_texts(
    checkpoints: str | Path,
    texts: Sequence[tuple[str, ...]],
    *,
    tokenizer: str | None = None,
    base: str | None = None,
    max_length: int = DEFAULT_MAX_LENGTH,
) -> ProbeSet:
    """A probe set of texts, tokenised as the checkpoints were trained.

    Parameters
    ----------
    checkpoints
        As for :func:`replay`.
    texts
        One tuple of one or two texts per example.
    tokenizer
        Name or folder of the tokenizer; by default that of the last checkpoint, or else of the base.
    base
        As for :func:`replay`.
    max_length
        Number of tokens of an example.

    Raises
    ------
    UsageError
        When no tokenizer is found.
    """
    return ProbeSet.from_texts(texts, tokenizer_of(checkpoints, tokenizer=tokenizer, base=base), max_length=max_length)


def tokenizer_of(checkpoints: str | Path, *, tokenizer: str | None = None, base: str | None = None) -> Any:
    """The tokenizer that checkpoints were trained with; arguments and errors as for :func:`probe_set_from_texts`."""
    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    last = find_checkpoints(Path(checkpoints))[-1]
    names = [str(last.path), *([base] if base else [base_named_by(str(last.path))] if last.is_adapter else [])]
    try:
        return load_tokenizer(*names)
    except UsageError as error:
        raise UsageError(f"{error}, or give --tokenizer NAME_OR_PATH") from error


def _take(
    recorder: Recorder,
    todo: Sequence[_Moment],
    notes: list[str],
    progress: Callable[[int, int, str], None] | None,
) -> None:
    for number, moment in enumerate(todo):
        if progress is not None:
            progress(number, len(todo), f"step {moment.step}")
        if number:
            _exchange(recorder, moment, notes)
        for note in notes:
            recorder.note(note)
        try:
            recorder.snapshot(moment.step)
        except (OSError, IndexError, RuntimeError) as error:
            raise CaptureError(
                f"{moment.name}: the snapshot of step {moment.step} must be measured on the probe set and written to "
                f"{recorder.path}; {type(error).__name__}: {error}. {_GO_ON}"
            ) from error
    if progress is not None:
        progress(len(todo), len(todo), "done")


def _exchange(recorder: Recorder, moment: _Moment, notes: list[str]) -> None:
    try:
        recorder.exchange(lambda: _loaded(moment, notes))
    except IncompatibleRunsError as error:
        raise IncompatibleRunsError(f"{moment.name}: {error}. {_GO_ON}") from error


def _moments(chosen: Sequence[Checkpoint], base: str | None) -> list[_Moment]:
    """The snapshots in order: the start where it is known, then each checkpoint."""
    first = chosen[0]
    start = base or (base_named_by(str(first.path)) if first.is_adapter else None)
    moments = [_Moment(checkpoint.step, str(checkpoint.path), _loader(checkpoint, base)) for checkpoint in chosen]
    if first.step == 0:
        if base is not None and not first.is_adapter:
            raise UsageError(f"step 0 must be given once; got {first.path} and --base {base}. Leave out one of them")
        return moments
    if start is None:
        return moments
    return [_Moment(0, start, _start_loader(first, start, is_given=base is not None)), *moments]


def _loader(checkpoint: Checkpoint, base: str | None) -> Callable[[], Loaded]:
    def load() -> Loaded:
        require_safe_weights(checkpoint)
        try:
            return load_weights(str(checkpoint.path), base=base)
        except UsageError as error:
            raise CaptureError(f"step {checkpoint.step}: {error}. {_GO_ON}") from error

    return load


def _start_loader(first: Checkpoint, name: str, *, is_given: bool) -> Callable[[], Loaded]:
    def load() -> Loaded:
        try:
            return load_start(str(first.path), base=name)
        except UsageError as error:
            hint = "Give another --base, or none" if is_given else "Say with --base MODEL where the adapters' base is"
            raise UsageError(f"{error}. {hint}") from error

    return load


def _loaded(moment: _Moment, notes: list[str]) -> nn.Module:
    """Load a model; what is random in it, because no file holds it, is kept out of the run."""
    try:
        with random_state_kept(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model, missing = moment.load()
    except DynprobeError:
        raise
    except Exception as error:  # whatever the libraries that read a damaged file choose to raise
        raise CaptureError(
            f"{moment.name}: must be a checkpoint that can be loaded, as step {moment.step}; got "
            f"{type(error).__name__}: {error}. {_GO_ON}"
        ) from error
    if missing:
        _require_blocks(moment, model, missing)
        notes.append(
            f"Outputs of step {moment.step} are not recorded: {moment.name} has no weights for "
            f"{', '.join(sorted(missing)[:4])}, which were random there."
        )
        _without_head(model, missing)
    return model


def _require_blocks(moment: _Moment, model: nn.Module, missing: frozenset[str]) -> None:
    core = transformer_inside(model)
    prefix = f"{core.base_model_prefix}." if hasattr(core, core.base_model_prefix) else ""
    inside = sorted(name for name in missing if name.startswith(prefix) and "pooler" not in name)
    if inside:
        raise CaptureError(
            f"{moment.name}: must hold all weights of the embeddings and blocks of {type(core).__name__}; "
            f"{len(inside)} are missing or of another shape, such as {inside[0]}. {_GO_ON}"
        )


def _without_head(model: nn.Module, missing: frozenset[str]) -> None:
    """Random weights say nothing: no distance is measured from them, and what they make of the hidden states is hidden."""
    for name, parameter in model.named_parameters():
        if name in missing:
            parameter.requires_grad = False
    model.register_forward_hook(
        lambda _module, _inputs, output: {name: value for name, value in output.items() if not name.endswith("logits")}
    )


def _checked_log(found: Sequence[Checkpoint]) -> tuple[TrainerLog, list[str]]:
    """The log of the last checkpoint that has one, and what of all of them is worth a note."""
    last, notes = TrainerLog(), []
    for checkpoint in found:
        name = checkpoint.path.name
        try:
            log = read_trainer_log(checkpoint.path)
        except CaptureError as error:
            notes.append(f"What {name} logged is left out: {error}.")
            continue
        if log.step is not None and log.step != checkpoint.step:
            notes.append(f"{name} is taken as step {checkpoint.step}, but its trainer_state.json says {log.step}.")
        if log.step is not None and log.records[: len(last.records)] != last.records:
            notes.append(f"{name} may be of another training: it did not log the same as the checkpoints before it.")
        last = log if log.records or log.max_steps else last
    if last.n_dropped:
        notes.append(f"{last.n_dropped} logged values that are no finite numbers are left out.")
    return last, notes


def _run_before(path: Path, existing: str, log: TrainerLog) -> dict[str, Any]:
    """The manifest of the run to go on with; empty for a new run."""
    if not is_run(path) or existing == "replace":
        return {}
    if existing == "refuse":
        raise UsageError(
            f"{path}: the run directory must be new; got one with {len(list_steps(path))} snapshot(s). "
            "Choose another path, or give --resume to go on with it, or --force to replace it"
        )
    before = read_manifest(path)
    training = before.get("training")
    if list_steps(path) and (not isinstance(training, dict) or training.get("origin") != ORIGIN):
        raise UsageError(
            f"{path}: a replay must go on with a run made by replay; got a live capture. Choose another path"
        )
    there, now = read_scalars(path), [dict(record) for record in log.records]
    n_common = min(len(there), len(now))
    if there[:n_common] != now[:n_common]:
        raise IncompatibleRunsError(
            f"{path}: a run must go on with checkpoints of its own training; got some that logged other numbers. "
            "Choose another path"
        )
    return before


def _settings_for(chosen: Sequence[Checkpoint], settings: CaptureSettings, *, before: Sequence[int]) -> CaptureSettings:
    """The settings, with the budget shared by just these snapshots; the start of an adapter's weights is saved nowhere."""
    steps = sorted({*before, *(checkpoint.step for checkpoint in chosen)})
    weights = settings.weights and not any(checkpoint.is_adapter for checkpoint in chosen)
    return replace(settings, schedule=f"at:{','.join(map(str, steps))}", weights=weights)


def _facts(chosen: Sequence[Checkpoint], base: str | None, before: dict[str, Any]) -> dict[str, Any]:
    training = before.get("training") if isinstance(before.get("training"), dict) else {}
    named = training.get("checkpoints") if isinstance(training, dict) else None
    names = {*(named if isinstance(named, list) else []), *(checkpoint.path.name for checkpoint in chosen)}
    facts = {**(training or {}), "origin": ORIGIN, "checkpoints": sorted(map(str, names), key=_by_number)}
    return facts if base is None else {**facts, "base": base}


def _by_number(name: str) -> tuple[int, str]:
    digits = name.rpartition("-")[2]
    return (int(digits) if digits.isdecimal() else 0, name)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports of loading: the bar of the replay is enough, and notes say what is missing."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
