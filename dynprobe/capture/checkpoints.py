"""The `checkpoint-N` folders that transformers' Trainer leaves, read without believing them: only safetensors and JSON."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynprobe.capture.models import is_adapter
from dynprobe.errors import CaptureError, UsageError

STATE = "trainer_state.json"
# More than any training logs; a larger file is none of the Trainer's.
MAX_STATE_BYTES = 256 * 2**20
MAX_RECORDS = 1_000_000
_MAX_NAME, _MAX_VALUES = 200, 1000
_MAX_STEP = 10**12
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,10})")
_WEIGHTS = {False: ("model.safetensors", "model.safetensors.index.json"), True: ("adapter_model.safetensors",)}


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training.

    Attributes
    ----------
    step
        Number of optimizer steps before it.
    path
        Its folder.
    """

    step: int
    path: Path

    @property
    def is_adapter(self) -> bool:
        """Whether it holds a PEFT adapter, not a whole model."""
        return is_adapter(str(self.path))


@dataclass(frozen=True)
class TrainerLog:
    """What ``trainer_state.json`` says, as far as it is numbers.

    Attributes
    ----------
    step, max_steps
        Optimizer steps done and planned, or ``None`` when it does not say.
    records
        What the trainer logged, each with its ``step``: finite numbers only.
    n_dropped
        Number of logged values that were none, such as NaN.
    """

    step: int | None = None
    max_steps: int | None = None
    records: tuple[Mapping[str, float], ...] = ()
    n_dropped: int = 0


def find_checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """Checkpoints in the output folder of a Trainer, or the one that the folder itself is; by step.

    Parameters
    ----------
    folder
        Holds folders ``checkpoint-N``, in any order and with gaps, or is one. A model folder of another name is one too
        when its ``trainer_state.json`` says the step.

    Raises
    ------
    UsageError
        When there is no such folder or no checkpoint in it.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise UsageError(f"{folder}: must be a folder with checkpoint-N folders, or one of them; got {got}")
    folder = folder.resolve() if folder.name in ("", ".", "..") else folder
    if _NAME.fullmatch(folder.name) and (own := _step_of(folder)) is not None:
        return (Checkpoint(own, folder),)
    found = [Checkpoint(int(name[1]), path) for path in folder.iterdir() if (name := _NAME.fullmatch(path.name))]
    found = [checkpoint for checkpoint in found if checkpoint.path.is_dir()]
    if found:
        return tuple(sorted(found, key=lambda checkpoint: checkpoint.step))
    step = _step_of(folder)
    if step is not None:
        return (Checkpoint(step, folder),)
    names = sorted(path.name for path in folder.iterdir())
    raise UsageError(
        f"{folder}: must hold checkpoint-N folders as transformers' Trainer saves them, or be one; got "
        f"{names[:6] or 'an empty folder'}. Train with save_strategy='steps', or rename a model's folder to checkpoint-STEP"
    )


def choose_checkpoints(found: Sequence[Checkpoint], steps: Sequence[int] | None) -> tuple[Checkpoint, ...]:
    """The checkpoints of some steps; all without a choice.

    Raises
    ------
    UsageError
        When a step has no checkpoint, saying which have one.

    Examples
    --------
    >>> found = [Checkpoint(step, Path(f"checkpoint-{step}")) for step in (4, 8)]
    >>> [checkpoint.step for checkpoint in choose_checkpoints(found, [8])]
    [8]
    """
    if steps is None:
        return tuple(found)
    there = [checkpoint.step for checkpoint in found]
    absent = sorted(set(steps) - set(there))
    if absent or not steps:
        folder = found[0].path.parent
        raise UsageError(
            f"{folder}: --steps must name steps that have a checkpoint, of {there}; got {absent or 'none'}"
        )
    return tuple(checkpoint for checkpoint in found if checkpoint.step in set(steps))


def require_safe_weights(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint holds its weights as safetensors: pickled ones are not read, whatever they claim to be.

    Raises
    ------
    CaptureError
        When it has none.
    """
    expected = _WEIGHTS[checkpoint.is_adapter]
    if not any((checkpoint.path / name).is_file() for name in expected):
        names = sorted(path.name for path in checkpoint.path.iterdir())
        raise CaptureError(
            f"{checkpoint.path}: a checkpoint must hold {expected[0]}; got {names[:8]}. Weights in pickled files are not "
            "read: load them where you trust them and save them again with save_pretrained, or choose others with --steps"
        )


def read_trainer_log(folder: Path) -> TrainerLog:
    """Steps and logged numbers of a checkpoint; an empty log where it has no ``trainer_state.json``.

    Raises
    ------
    CaptureError
        When the file is too large or no JSON object.
    """
    file = folder / STATE
    if not file.is_file():
        return TrainerLog()
    with file.open("rb") as stream:
        data = stream.read(MAX_STATE_BYTES + 1)
    try:
        state = json.loads(data) if len(data) <= MAX_STATE_BYTES else None
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise CaptureError(f"{file}: must be a JSON object of at most {MAX_STATE_BYTES} bytes; got something else")
    history = state.get("log_history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    records = [_numbers(row) for row in rows[:MAX_RECORDS]]
    kept = tuple(record for record in records if "step" in record)
    n_logged = sum(len(row) for row in rows if "step" in row)
    return TrainerLog(
        step=_step(state.get("global_step")),
        max_steps=_step(state.get("max_steps")) or None,
        records=kept,
        n_dropped=n_logged - sum(map(len, kept)),
    )


def _step_of(folder: Path) -> int | None:
    """Step of a folder that is itself a checkpoint: as its name says, or else its trainer."""
    if not is_adapter(str(folder)) and not (folder / "config.json").is_file():
        return None
    name = _NAME.fullmatch(folder.name)
    return int(name[1]) if name else read_trainer_log(folder).step


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a logged record, the step first; empty when it has no step."""
    step = _step(row.get("step"))
    if step is None:
        return {}
    values = {name: value for name, value in row.items() if name != "step" and _is_number(name, value)}
    return {"step": step, **dict(list(values.items())[:_MAX_VALUES])}


def _is_number(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return len(name) <= _MAX_NAME and is_number and abs(value) < 2**1023 and math.isfinite(value)


def _step(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MAX_STEP else None
