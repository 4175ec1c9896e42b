"""Inside a program started by ``dynprobe capture -- CMD``: adds capture to each Trainer, and reports."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from dynprobe.capture.asked_probe import asked_probe_set, asked_probe_tasks
from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.inject import OPTIONS, InjectedOptions, give_up
from dynprobe.capture.news import report, report_fault, run_names
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.rehearsal import leave
from dynprobe.capture.settings import CaptureSettings


class InjectedCallback(DynprobeCallback):
    """As its base, but a fault before training is reported and not raised: the program does not know of capture."""

    def __init__(self, run_dir: str | Path, *, dry_run: bool = False, **options: Any) -> None:
        super().__init__(run_dir, **options)
        self._dry_run = dry_run
        self._first_run_dir = self.run_dir

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin capture in the run directory of this training."""
        begun_again = self._begins_again(args)
        if not begun_again:
            self.run_dir = run_names.next_after(self._first_run_dir)
        try:
            super().on_train_begin(args, state, control, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            self._stop()
            report_fault(str(error) or repr(error), stacklevel=3)
            if self.strict:
                give_up(error)
        if self._dry_run:
            leave(None)  # a process that does not capture
        if self.recorder is not None and not begun_again:
            run_names.n_taken += 1

    def _begin(self, recorder: Recorder, state: TrainerState) -> None:
        if self._dry_run:
            rehearsal = recorder.rehearse()
            leave(rehearsal if recorder.ranks.writes else None)
        super()._begin(recorder, state)
        report({"event": "capturing"})

    def _switch_off(self, reason: str) -> None:
        report({"event": "fault", "reason": reason})
        super()._switch_off(reason)


def attach_from_environment(trainer: Trainer) -> None:
    """Add capture to a Trainer as the environment says; called by the bootstrap after ``Trainer.__init__``."""
    options = InjectedOptions(**json.loads(os.environ[OPTIONS]))
    report({"event": "trainer"})
    try:
        tokenizer = getattr(trainer, "processing_class", None)
        probe = asked_probe_set(options, trainer.model, tokenizer=tokenizer)
        tasks = asked_probe_tasks(options, trainer.model, tokenizer=tokenizer)
    except Exception as error:
        if options.strict:
            report({"event": "fault", "reason": str(error) or repr(error)})
            give_up(error)
        raise
    settings = CaptureSettings(**options.settings)
    trainer.add_callback(
        InjectedCallback(
            options.run_dir,
            probe_set=probe,
            settings=settings,
            existing=options.existing,
            live=options.live,
            strict=options.strict,
            dry_run=options.dry_run,
            probe_tasks=tasks,
        )
    )
