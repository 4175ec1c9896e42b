"""Capture inside transformers' Trainer."""

import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dynprobe.capture.capturing import Capturing
from dynprobe.capture.default_probe import probe_set_from_trainer
from dynprobe.capture.guard import sharded_parts, unwrapped
from dynprobe.capture.live import live_drift, log_to_trainer
from dynprobe.capture.ranks import Ranks
from dynprobe.capture.recorder import Recorder
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet

# Facts of the training arguments that a reader of two runs wants to see side by side.
_ARGUMENTS = (
    "seed",
    "data_seed",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "optim",
    "bf16",
    "fp16",
    "gradient_checkpointing",
)


class DynprobeCallback(Capturing, TrainerCallback):
    """Takes snapshots during ``trainer.train()``: at step 0, as scheduled, and after the last optimizer step.

    The last snapshot holds the weights that training ended with, also after early stopping, and never a best model that the
    Trainer reloads afterwards. A fault during training switches capture off with a warning; training goes on.

    Parameters
    ----------
    run_dir
        New folder for the run.
    probe_set
        The fixed inputs to measure the model on; by default 512 examples of the trainer's evaluation data.
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
        Whether the drift of each snapshot goes to the trainer's log, and so to every dashboard that it reports to; see
        :class:`~dynprobe.analysis.drift.Drift` for the names. What cannot be trusted yet is left out.
    strict
        Whether a fault of capture is raised and so ends the training, instead of switching capture off.
    probe_tasks
        As for :class:`~dynprobe.capture.recorder.Recorder`.

    Examples
    --------
    >>> trainer = Trainer(model, args, callbacks=[DynprobeCallback("runs/seed-1")])  # doctest: +SKIP
    """

    _trainer: weakref.ref[Trainer] | None = None
    _logs_drift = False
    _steps: frozenset[int] = frozenset()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the run directory and take the snapshot of step 0 (or of the step that training resumes from)."""
        begun_again = self._begins_again(args)
        self._stop(finished=False)  # an interrupted training before this one told its callbacks nothing
        model = unwrapped(kwargs["model"])
        if not state.is_world_process_zero and not sharded_parts(model):
            return
        trainer = _calling_trainer()
        if trainer is not None:
            _move_to_end(trainer, self)
            self._trainer = weakref.ref(trainer) if state.is_world_process_zero else None
        with Ranks.of(model).together():
            probe = self.probe_set or _default_probe_set(trainer)
        recorder = Recorder(
            model,
            probe,
            self.run_dir,
            settings=self.settings,
            max_steps=state.max_steps,
            facts={**_training_facts(args), **self.facts},
            existing="resume" if state.global_step > 0 else "replace" if begun_again else self.existing,
            on_snapshot=self._announced,
            probe_tasks=self.probe_tasks,
        )
        self._begin(recorder, state)

    def _begin(self, recorder: Recorder, state: TrainerState) -> None:
        self._steps = frozenset(recorder.plan.steps)
        self._open(recorder, lambda recorder: recorder.snapshot(state.global_step))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the drift from here on, now that every other callback has begun and can take what is logged."""
        if self.live and self._drift is None and self._recorder is not None and self._trainer is not None:
            self._drift = live_drift(self._log_drift)
            self._log_new()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the snapshot of a scheduled step, and of the last."""
        if state.global_step in self._steps or state.global_step >= state.max_steps or control.should_training_stop:
            self._snapshot(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep what the trainer logs."""
        record = {"step": state.global_step, **(logs or {})}
        self._shielded(lambda recorder: recorder.log(record))
        if not self._logs_drift:  # which one process does alone, and a snapshot may need all
            self._last(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Early stopping is decided here: then these are the last weights."""
        self._last(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """As :meth:`on_evaluate`."""
        self._last(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As :meth:`on_evaluate`."""
        self._last(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last snapshot if no event before could know that it was the last, and release the run directory."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._shielded(lambda recorder: _note_missing_last(recorder, state.global_step))
        else:
            self._snapshot(state.global_step)
        self._stop()

    def _begins_again(self, args: TrainingArguments) -> bool:
        """Whether the Trainer ran out of memory and starts the same training again with a smaller batch."""
        return self._recorder is not None and bool(args.auto_find_batch_size)

    def _log_drift(self, numbers: Mapping[str, float], step: int) -> None:
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is not None:
            self._logs_drift = True
            try:
                log_to_trainer(trainer, numbers)
            finally:
                self._logs_drift = False

    def _last(self, state: TrainerState, control: TrainerControl) -> None:
        if control.should_training_stop:
            self._snapshot(state.global_step)

    def _stop(self, *, finished: bool = True) -> None:
        super()._stop(finished=finished)
        self._trainer = None


def attach(trainer: Trainer, run_dir: str | Path, **options: Any) -> DynprobeCallback:
    """Add capture to a Trainer that exists; `options` are those of :class:`DynprobeCallback`."""
    callback = DynprobeCallback(run_dir, **options)
    trainer.add_callback(callback)
    return callback


def _default_probe_set(trainer: Trainer | None) -> ProbeSet:
    if trainer is None:
        raise CaptureError("`probe_set` must be given where the callback runs outside a transformers Trainer; got none")
    return probe_set_from_trainer(trainer)


def _calling_trainer() -> Trainer | None:
    """The Trainer whose event is being handled; the callback interface does not pass it on."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _move_to_end(trainer: Trainer, callback: TrainerCallback) -> None:
    """Let every other callback decide first whether training stops; a new list, as the old one is being walked."""
    others = [other for other in trainer.callback_handler.callbacks if other is not callback]
    trainer.callback_handler.callbacks = [*others, callback]


def _training_facts(args: TrainingArguments) -> dict[str, Any]:
    values = {name: getattr(args, name, None) for name in _ARGUMENTS}
    return {
        name: value if isinstance(value, bool | int | float) else str(getattr(value, "value", value))
        for name, value in values.items()
        if value is not None
    }


def _note_missing_last(recorder: Recorder, step: int) -> None:
    if step not in recorder.steps:
        recorder.note(
            f"The weights after the last step ({step}) were not captured: the best model had been reloaded before "
            "anything could know that training was over."
        )
