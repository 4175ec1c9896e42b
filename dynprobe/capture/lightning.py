"""Capture inside Lightning's Trainer. Importing this module needs the optional package ``lightning``."""

import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from dynprobe.capture.capturing import Capturing
from dynprobe.capture.guard import sharded_parts, unwrapped
from dynprobe.capture.live import live_drift
from dynprobe.capture.loop import Due
from dynprobe.capture.recorder import Recorder
from dynprobe.errors import CaptureError, UsageError

try:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise UsageError(
        "Lightning must be installed for LightningCallback; got none. Install it with `pip install dynprobe[lightning]`"
    ) from error


class LightningCallback(Capturing, Callback):
    """Takes snapshots during ``trainer.fit()``: at step 0, as scheduled, and after the last optimizer step.

    A step is a step of the optimizer (``trainer.global_step``), however many batches are accumulated for it. A fault during
    training switches capture off with a warning; training goes on.

    Parameters
    ----------
    run_dir
        New folder for the run.
    probe_set
        The fixed inputs to measure the model on; must be given.
    model_attr
        The transformers model inside the LightningModule: its path, such as ``"model.encoder"``, or a function of the module
        that returns it; by default the largest one.
    settings
        What to keep and when; see :class:`~dynprobe.capture.settings.CaptureSettings`.
    facts
        JSON-able facts for the manifest, such as the task.
    existing
        What to do with a run that is already in `run_dir`: ``"refuse"``, ``"resume"`` or ``"replace"``. A training that
        resumes from a checkpoint always goes on with its run.
    on_snapshot
        Called with (step, path) after each snapshot.
    live
        Whether the drift of each snapshot goes to the trainer's loggers; see :class:`~dynprobe.analysis.drift.Drift`.
    strict
        Whether a fault of capture is raised and so ends the training, instead of switching capture off.
    probe_tasks
        As for :class:`~dynprobe.capture.recorder.Recorder`.

    Examples
    --------
    >>> trainer = Trainer(callbacks=[LightningCallback("runs/seed-1", probe_set=probe_set)])  # doctest: +SKIP
    """

    def __init__(
        self, run_dir: str | Path, *, model_attr: str | Callable[[Any], nn.Module] | None = None, **options: Any
    ) -> None:
        super().__init__(run_dir, **options)
        self.model_attr = model_attr
        self._due: Due | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        self._logged_at = -1
        self._last: dict[str, float] = {}
        self._of_epochs: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the run directory and take the snapshot of step 0 (or of the step that training resumes from)."""
        self._stop(finished=False)
        if self.probe_set is None:
            raise CaptureError(
                "`probe_set` must be given to a LightningCallback; got none. Make one with ProbeSet.from_texts, or take that "
                "of another run: open_run(path).probe_set"
            )
        model = unwrapped(self._model_in(pl_module))
        if not trainer.is_global_zero and not sharded_parts(model):
            return
        step = trainer.global_step
        recorder = Recorder(
            model,
            self.probe_set,
            self.run_dir,
            settings=self.settings,
            max_steps=_n_steps(trainer),
            facts={**_training_facts(trainer), **self.facts},
            existing="resume" if step else self.existing,
            on_snapshot=self._announced,
            probe_tasks=self.probe_tasks,
        )
        self._trainer, self._logged_at = weakref.ref(trainer), step
        self._open(recorder, lambda recorder: self._begin(recorder, step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the snapshot of a scheduled step; batches that are only accumulated are no steps."""
        step, due = trainer.global_step, self._due
        if due is not None:
            self._shielded(lambda recorder: due.take_if_due(step))
            self._log_new()
        interval = getattr(trainer, "log_every_n_steps", 0)
        if step != self._logged_at and interval and step % interval == 0:
            self._logged_at = step
            self._keep_metrics(trainer, of_epoch=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what validation logged; the trial run before training is none."""
        self._keep_metrics(trainer, of_epoch=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the epoch before logged at its end."""
        self._keep_metrics(trainer, of_epoch=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last snapshot and release the run directory."""
        self._keep_metrics(trainer, of_epoch=True)
        self._snapshot(trainer.global_step)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the run directory; the snapshots taken so far are safe."""
        if self._recorder is not None:
            self._recorder.fault(f"the training was ended by {exception!r}")
        self._stop(finished=False)

    def _begin(self, recorder: Recorder, step: int) -> None:
        self._drift = live_drift(self._log_drift) if self.live else None
        self._due = Due(recorder, self.settings, first=step)
        self._log_new()

    def _stop(self, *, finished: bool = True) -> None:
        super()._stop(finished=finished)
        self._due = self._trainer = None
        self._last, self._of_epochs = {}, {}

    def _model_in(self, module: LightningModule) -> nn.Module:
        if callable(self.model_attr):
            return self.model_attr(module)
        if self.model_attr is not None:
            try:
                return module.get_submodule(self.model_attr)
            except AttributeError as error:
                raise CaptureError(
                    f"`model_attr` must be the path of a module inside {type(module).__name__}; got {self.model_attr!r}: "
                    f"{error}"
                ) from error
        return largest_transformer(module)

    def _keep_metrics(self, trainer: Trainer, *, of_epoch: bool) -> None:
        """Keep what was logged; of an epoch what is new, at a step all that is not left over from the end of an epoch."""
        if self._recorder is None:
            return
        now = {name: float(value) for name, value in trainer.logged_metrics.items()}
        old = self._last if of_epoch else self._of_epochs
        new = {name: value for name, value in now.items() if repr(old.get(name)) != repr(value)}  # NaN is itself
        self._last.update(new)
        if of_epoch:
            self._of_epochs.update(new)
        if new:
            record = {**new, "step": trainer.global_step}
            self._shielded(lambda recorder: recorder.log(record))

    def _log_drift(self, numbers: Mapping[str, float], step: int) -> None:
        trainer = self._trainer() if self._trainer is not None else None
        for logger in trainer.loggers if trainer is not None else ():
            logger.log_metrics(dict(numbers), step=step)


def largest_transformer(module: nn.Module) -> nn.Module:
    """The transformers model (or PEFT model around one) with most weights inside a module, and part of no other.

    Raises
    ------
    CaptureError
        When there is none.
    """
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel) or hasattr(part, "get_base_model")]
    inner = {id(part) for model in models for part in model.modules() if part is not model}
    outermost = [model for model in models if id(model) not in inner]
    if not outermost:
        raise CaptureError(
            f"the LightningModule must contain a transformers model; got none in {type(module).__name__}. Make it an attribute "
            "of the module, or give `model_attr`"
        )
    return max(outermost, key=lambda model: sum(parameter.numel() for parameter in model.parameters()))


def _n_steps(trainer: Trainer) -> int | None:
    """Number of optimizer steps of the training, where Lightning can tell."""
    try:
        n_steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # another number of batches is accumulated in each epoch
        n_steps = trainer.max_steps
    return int(n_steps) if 0 < n_steps < math.inf else None


def _training_facts(trainer: Trainer) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "loop": "Lightning",
        "precision": str(trainer.precision),
        "gradient_accumulation_steps": trainer.accumulate_grad_batches,
        "max_epochs": trainer.max_epochs,
        "num_processes": trainer.world_size,
    }
    for optimizer in trainer.optimizers[:1]:
        facts["optim"] = type(optimizer).__name__
        facts |= {
            fact: float(optimizer.param_groups[0][name])
            for name, fact in (("lr", "learning_rate"), ("weight_decay", "weight_decay"))
            if optimizer.param_groups[0].get(name) is not None
        }
    return {name: value for name, value in facts.items() if value is not None}
