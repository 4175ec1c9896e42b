"""The probe tasks of a capture: checked before training begins, kept in the run, and compared when a run is gone on with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dynprobe.capture.architecture import Architecture, transformer_inside
from dynprobe.capture.measure import with_positions
from dynprobe.capture.random_encoder import random_encoder, why_no_random_encoder
from dynprobe.errors import CaptureError, IncompatibleRunsError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.probe_task import ProbeTask
from dynprobe.storage.folder import list_probe_tasks, require_task_name
from dynprobe.storage.layout import probe_path, task_part
from dynprobe.storage.probe_file import read_probe_set, write_probe_set

_NOT_MEASURED = "A random encoder, the baseline for probes, was not measured: {}."


class ProbeTasks:
    """What a Recorder knows of the tasks that it measures beside the main probe set.

    Parameters
    ----------
    tasks
        Name to task, as :func:`fingerprints` takes them.
    model
        Guarded by :func:`dynprobe.capture.guard.undisturbed`.
    architecture
        Its architecture.
    is_sharded
        Whether several processes measure it together.

    Attributes
    ----------
    parts
        Name of a probe set, such as ``"wic.train"``, to its inputs with the positions that the model makes of them.
    sizes
        Name of a task to its number of examples.
    has_baseline
        Whether an encoder with random weights is to be measured.
    notes
        Why not, as sentences for the readers of the run.

    Raises
    ------
    CaptureError
        For inputs that do not fit the model.
    """

    def __init__(
        self, tasks: Mapping[str, ProbeTask], model: nn.Module, architecture: Architecture, *, is_sharded: bool
    ) -> None:
        parts: dict[str, ProbeSet] = {}
        for name, task in sorted(tasks.items()):
            for split, probe in task.splits.items():
                require_known_tokens(probe, transformer_inside(model))
                parts[task_part(name, split)] = with_positions(model, probe, architecture)
        self.parts: Mapping[str, ProbeSet] = parts
        self.sizes = {name: tasks[name].n_examples for name in sorted(tasks)}
        reason = why_no_random_encoder(architecture, is_sharded=is_sharded) if tasks else None
        self.has_baseline = bool(tasks) and reason is None
        self.notes = () if reason is None else (_NOT_MEASURED.format(reason),)

    def facts(self) -> dict[str, Any]:
        """What each snapshot file says of them."""
        prints = {part: probe.fingerprint for part, probe in self.parts.items()}
        return {"task_fingerprints": prints} if prints else {}

    def random_encoder(self, model: nn.Module, note: Callable[[str], None]) -> nn.Module | None:
        """An encoder with random weights, or ``None`` where there is to be none or it cannot be made, which is noted."""
        if not self.has_baseline:
            return None
        try:
            return random_encoder(model)
        except Exception as error:  # noqa: BLE001 - the class of a model may be anybody's, and the rest is worth more
            note(_NOT_MEASURED.format(f"{type(model).__name__} cannot be made anew, {type(error).__name__}: {error}"))
            return None

    def keep(self, run: Path) -> None:
        """Write those that a run has not, and check the others.

        Raises
        ------
        IncompatibleRunsError
            When the run has other tasks, or the same with other examples or labels.
        """
        there = list_probe_tasks(run)
        missing = [name for name in there if name not in self.sizes]
        if missing:
            raise IncompatibleRunsError(
                f"{run}: a run must go on with its own probe tasks, {list(there)}; got {list(self.sizes)}. Give all of them, "
                "or another run directory"
            )
        for part, probe in self.parts.items():
            file = probe_path(run, part)
            if not file.is_file():
                write_probe_set(file, probe)
            elif _marks(read_probe_set(file)) != _marks(probe):
                raise IncompatibleRunsError(
                    f"{run}: a run must go on with its own probe tasks; got other examples or labels of {part!r}. Give the "
                    "data and the sizes of its first part, or another run directory"
                )


def fingerprints(tasks: Mapping[str, ProbeTask]) -> str:
    """One text that says which inputs and labels the tasks are made of; empty without tasks.

    Raises
    ------
    UsageError
        For a name that no file may have, or what is no probe task.
    """
    for name, task in tasks.items():
        require_task_name(name)
        if not isinstance(task, ProbeTask):
            raise UsageError(
                f"`probe_tasks[{name!r}]` must be a ProbeTask; got {type(task).__name__}. Make one with "
                "dynprobe.tasks.probe_task"
            )
    return " ".join(f"{name} {_marks(task.train)} {_marks(task.test)}" for name, task in sorted(tasks.items()))


def require_known_tokens(probe: ProbeSet, core: Any) -> None:
    """Check that inputs hold only tokens that a model knows.

    An unknown token is an error here; on a GPU it would end the whole process.

    Raises
    ------
    CaptureError
        For a token beyond the last.
    """
    tokens = probe.inputs.get("input_ids")
    known = None if tokens is None else getattr(core.get_input_embeddings(), "num_embeddings", None)
    if known is not None and tokens is not None and int(np.max(tokens)) >= known:
        raise CaptureError(
            f"the probe inputs must be tokens of the model, 0 to {known - 1}; got {int(np.max(tokens))}. "
            "Give the tokenizer (--tokenizer) or the run (--probe) that belongs to this model"
        )


def _marks(probe: ProbeSet) -> tuple[str, str | None]:
    return probe.fingerprint, probe.label_fingerprint
