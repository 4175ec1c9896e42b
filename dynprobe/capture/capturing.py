"""What every callback does, whichever library calls it: begins a run, takes its snapshots, and never ends the training."""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynprobe.capture.default_probe import TRAINING_DATA_NOTE
from dynprobe.capture.live import LiveDrift
from dynprobe.capture.news import say
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet
from dynprobe.probe_task import ProbeTask


class Capturing:
    """The part of a callback that knows no training library; the arguments are those of the callbacks.

    Parameters
    ----------
    run_dir, probe_set, settings, facts, existing, on_snapshot, live, strict, probe_tasks
        As for :class:`~dynprobe.capture.callback.DynprobeCallback`.
    """

    def __init__(  # noqa: PLR0913 - all that a capture can be told
        self,
        run_dir: str | Path,
        *,
        probe_set: ProbeSet | None = None,
        settings: CaptureSettings | None = None,
        facts: Mapping[str, Any] | None = None,
        existing: str = "refuse",
        on_snapshot: Callable[[int, Path], None] | None = None,
        live: bool = False,
        strict: bool = False,
        probe_tasks: Mapping[str, ProbeTask] | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.probe_set = probe_set
        self.settings = settings or CaptureSettings()
        self.facts = dict(facts or {})
        self.existing = existing
        self.on_snapshot = on_snapshot
        self.live = live
        self.strict = strict
        self.probe_tasks = dict(probe_tasks or {})
        self._recorder: Recorder | None = None
        self._drift: LiveDrift | None = None
        self._new: list[tuple[int, Path]] = []  # snapshots whose drift has not been logged

    @property
    def recorder(self) -> Recorder | None:
        """The recorder while a training is being captured."""
        return self._recorder

    def _open(self, recorder: Recorder, begin: Callable[[Recorder], Any]) -> None:
        """Claim the run directory and take the first snapshot; a fault here is raised, before any training."""
        recorder.__enter__()
        self._recorder = recorder
        if recorder.probe_set.origin.startswith("training data"):
            recorder.note(TRAINING_DATA_NOTE)
        for note in recorder.notes if recorder.ranks.writes else ():
            say(note, stacklevel=4)
        try:
            begin(recorder)
        except BaseException as error:
            recorder.fault(str(error) or repr(error))
            self._stop()
            raise

    def _announced(self, step: int, path: Path) -> None:
        if self.on_snapshot is not None:
            self.on_snapshot(step, path)
        self._new = [(step, path)]

    def _log_new(self) -> None:
        while self._drift is not None and self._new:
            self._drift(*self._new.pop())

    def _snapshot(self, step: int) -> None:
        self._shielded(lambda recorder: recorder.snapshot(step))
        self._log_new()

    def _shielded(self, action: Callable[[Recorder], Any]) -> None:
        """The one wall that keeps a capture fault from ending somebody's training."""
        if self._recorder is None:
            return
        try:
            action(self._recorder)
        except Exception as error:  # whatever it is, the training is worth more
            self._switch_off(str(error) or traceback.format_exc(limit=-1))
            if self.strict:
                raise

    def _switch_off(self, reason: str) -> None:
        is_noted = self._recorder is None or self._recorder.fault(reason)
        self._stop()
        if not self.strict:
            unsaid = "" if is_noted else ". This could not be noted in the run, whose status is still `capturing`"
            say(f"capture is switched off, training goes on: {reason}{unsaid}", stacklevel=5)

    def _stop(self, *, finished: bool = True) -> None:
        if self._recorder is not None:
            self._recorder.close(finished=finished)
            self._recorder = None
        self._drift = None
        self._new.clear()
