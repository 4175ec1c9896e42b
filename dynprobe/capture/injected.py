"""Inside a program started by ``dynprobe capture -- CMD``: adds capture to each Trainer, and reports."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from dynprobe.capture.callback import DynprobeCallback, say
from dynprobe.capture.inject import OPTIONS, STATUS, InjectedOptions
from dynprobe.capture.settings import CaptureSettings
from dynprobe.storage.layout import probe_path
from dynprobe.storage.probe_file import read_probe_set

# One process may train several models, one after the other: run, run-2, run-3.
_trainings_captured = 0


class InjectedCallback(DynprobeCallback):
    """As its base, but a fault before training is reported and not raised: the program does not know of capture."""

    def __init__(self, run_dir: str | Path, **options: Any) -> None:
        super().__init__(run_dir, **options)
        self._first_run_dir = self.run_dir

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin capture in the run directory of this training."""
        global _trainings_captured
        begun_again = self._begins_again(args)
        if not begun_again:
            number = f"-{_trainings_captured + 1}" if _trainings_captured else ""
            self.run_dir = self._first_run_dir.with_name(self._first_run_dir.name + number)
        try:
            super().on_train_begin(args, state, control, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            self._stop()
            report({"event": "fault", "reason": str(error) or repr(error)})
            say(f"this training is not captured: {error}", stacklevel=3)
        if self.recorder is not None and not begun_again:
            _trainings_captured += 1


def attach_from_environment(trainer: Trainer) -> None:
    """Add capture to a Trainer as the environment says; called by the bootstrap after ``Trainer.__init__``."""
    options = InjectedOptions(**json.loads(os.environ[OPTIONS]))
    report({"event": "trainer"})
    probe = None if options.probe_run is None else read_probe_set(probe_path(Path(options.probe_run)))
    settings = CaptureSettings(**options.settings)
    trainer.add_callback(
        InjectedCallback(options.run_dir, probe_set=probe, settings=settings, existing=options.existing)
    )


def report(record: Mapping[str, Any]) -> None:
    """Append one line to the status file; a program whose news are lost is no reason to end it."""
    path = os.environ.get(STATUS)
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(record)) + "\n")
        except OSError as error:
            print(f"dynprobe: could not write {path}: {error}", file=sys.stderr)  # noqa: T201
