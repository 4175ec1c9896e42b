"""Drift while training goes on: after each snapshot its distance from the start goes to whatever the user already watches."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from transformers import Trainer

from dynprobe.capture.guard import random_state_kept
from dynprobe.capture.news import say

Log = Callable[[dict[str, float], int], object]


class Measure(Protocol):
    """What :class:`~dynprobe.analysis.drift.Drift` is to capture."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Name to reason of what cannot be trusted."""

    def __call__(self, step: int, /) -> Mapping[str, float]:
        """Name to number."""


def live_drift(log: Log) -> "LiveDrift":
    """What to give as `on_snapshot`, so that the drift of each snapshot is logged.

    Parameters
    ----------
    log
        Called with (numbers, step) after each snapshot; see :class:`~dynprobe.analysis.drift.Drift` for names and units.

    Examples
    --------
    In a loop of one's own, for Weights & Biases and for TensorBoard:

    >>> on_snapshot = live_drift(lambda numbers, step: wandb.log(numbers, step=step))  # doctest: +SKIP
    >>> on_snapshot = live_drift(  # doctest: +SKIP
    ...     lambda numbers, step: [writer.add_scalar(name, value, step) for name, value in numbers.items()]
    ... )
    >>> with Recorder(model, probe_set, "runs/seed-1", on_snapshot=on_snapshot) as recorder:  # doctest: +SKIP
    ...     recorder.snapshot(0)
    """
    return LiveDrift(log)


class LiveDrift:
    """Measures and logs the drift of each snapshot, and never ends what it is called from.

    The first fault, of measuring or of logging, switches it off with a warning; capture and training go on. Random states,
    gradients and autocast of the training are as before.

    Parameters
    ----------
    log
        Called with (numbers, step) after each snapshot of one run.

    Attributes
    ----------
    is_on
        Whether no fault has switched it off.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._measure: Measure | None = None
        self._warned = False
        self.is_on = True

    def __call__(self, step: int, path: Path) -> None:
        """Log the drift of a snapshot that has just been written; nothing in a process that does not write it."""
        if not self.is_on or not path.is_file():
            return
        try:
            with random_state_kept():
                numbers = self._numbers(step, path.parent.parent)
                if numbers:
                    self._log(numbers, step)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            self.is_on = False
            say(f"live drift is switched off, capture and training go on: {str(error) or repr(error)}", stacklevel=3)

    def _numbers(self, step: int, run_dir: Path) -> dict[str, float]:
        if self._measure is None:
            self._measure = _drift_of(run_dir)
        # The program may be in the middle of autocast.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            numbers = dict(self._measure(step))
        left_out = self._measure.left_out.items()
        few = [f"{name} ({why})" for name, why in left_out if why.startswith("insufficient-sample")]
        if few and not self._warned:
            self._warned = True
            say(f"the probe set is too small for {len(few)} of the live numbers, such as {few[0]}", stacklevel=4)
        return numbers


def log_to_trainer(trainer: Trainer, numbers: Mapping[str, float]) -> None:
    """Log numbers as the Trainer logs its loss: to its history and to every dashboard that it reports to.

    Not by ``trainer.log``, which some trainers extend to log, and then to forget, what they have gathered since the last time;
    and a wish to log the loss at this step, which any logging fulfils, is kept.
    """
    wanted = trainer.control.should_log
    try:
        Trainer.log(trainer, dict(numbers))
    finally:
        trainer.control.should_log = wanted


def show_line(numbers: Mapping[str, float], step: int) -> None:
    """One line on standard error: the means over the blocks."""
    means = ", ".join(f"{_in_words(name)} {value:.4g}" for name, value in numbers.items() if name.endswith("mean"))
    sys.stderr.write(f"dynprobe: step {step}, mean over the layers: {means or 'nothing to be seen yet'}\n")


def _in_words(name: str) -> str:
    """As ``encoder svcca_similarity`` for ``dynprobe/svcca_similarity/encoder_mean``."""
    _, metric, place = name.split("/")
    return f"{place.removesuffix('mean').replace('_', ' ')}{metric}"


def _drift_of(run_dir: Path) -> Measure:
    """Imported when it is first wanted: capture does without analysis, which takes a second to load."""
    from dynprobe.analysis.drift import Drift  # noqa: PLC0415

    return Drift(run_dir)
