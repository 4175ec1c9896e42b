"""One training by a loop of the program's own: its steps are counted from outside, by the optimizers that take them."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynprobe.capture.guard import reshard
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.schedule import Schedule
from dynprobe.capture.settings import CaptureSettings, show_bytes
from dynprobe.capture.weights import own_part
from dynprobe.storage.layout import snapshot_path

_N_WITNESSES, _WITNESS_LENGTH = 6, 8
# Seconds to wait at the end of a program for the other processes of a sharded training.
_PATIENCE = 60.0


class Due:
    """Takes the snapshots of a training, of known length or not, as its schedule and its budget say.

    Parameters
    ----------
    recorder
        Already entered. The snapshot of step `first` is taken at once.
    settings
        When snapshots are taken, and the bytes they may take.
    first
        Steps that the training had behind it when capture began; 0, unless it was resumed.

    Attributes
    ----------
    taken
        Step of the last snapshot.
    """

    def __init__(self, recorder: Recorder, settings: CaptureSettings, *, first: int) -> None:
        self._recorder = recorder
        self._settings = settings
        self._schedule = Schedule.parse(settings.schedule)
        self._planned = recorder.plan.steps
        self._next = self._step_after(first)
        recorder.snapshot(first)
        self.taken = first
        written = recorder.steps if recorder.ranks.writes else ()
        self._sizes = [snapshot_path(recorder.path, step).stat().st_size for step in written]

    def take(self, step: int) -> None:
        """Take the snapshot of a step."""
        path = self._recorder.snapshot(step)
        self.taken = step
        if self._recorder.ranks.writes:
            self._sizes.append(path.stat().st_size)

    def take_if_due(self, step: int) -> None:
        """Take the snapshot of a step where the schedule has one there, or has had one since the last."""
        if self._next is not None and step >= self._next:
            self.take(step)
            self._next = self._step_after(step)
            self._keep_budget(step)

    def _step_after(self, step: int) -> int | None:
        if self._planned:
            return min((planned for planned in self._planned if planned > step), default=None)
        return self._schedule.step_after(step)

    def _keep_budget(self, step: int) -> None:
        """Of a training of unknown length, after the next snapshot the last one must still fit."""
        if self._planned or self._next is None:
            return
        expected = sum(self._sizes) + 2 * max(self._sizes, default=0)
        with self._recorder.ranks.together():
            used_up = self._recorder.ranks.decided(expected > self._settings.budget)
        if used_up:
            self._next = None
            self._recorder.note(
                f"The budget of {show_bytes(self._settings.budget)} was reached at step {step}: of the steps after it "
                "only the last is kept. Capture with --max-steps shares the budget among all steps."
            )


class LoopTraining:
    """A training that is captured while its loop knows nothing of it.

    A step ends when every optimizer known to train the model has stepped once, or when one of them is about to step again. The
    snapshot of a step is taken as soon as the step has ended.

    Parameters
    ----------
    recorder
        Already entered. The snapshot of step `first` is taken at once.
    model
        What it measures.
    first
        Steps that the training had behind it when capture began; 0, unless it was resumed.
    settings
        When snapshots are taken, and the bytes they may take.
    on_death
        Called when the last optimizer of the training is gone.

    Attributes
    ----------
    recorder, model
        As given.
    step
        Number of optimizer steps so far.
    """

    def __init__(
        self,
        recorder: Recorder,
        model: nn.Module,
        *,
        first: int,
        settings: CaptureSettings,
        on_death: Callable[["LoopTraining"], None],
    ) -> None:
        self.recorder = recorder
        self.model = model
        self.step = first
        self._due = Due(recorder, settings, first=first)
        self._on_death = on_death
        self._optimizers: dict[int, weakref.ref[Optimizer]] = {}
        self._in_step: set[int] = set()
        self._stepped: set[int] = set()
        self._parameters = list(
            model.parameters()
        )  # walking through the modules at each step would cost more than looking
        self._weights = _Weights(self._parameters)

    def join(self, optimizer: Optimizer) -> None:
        """Take note of an optimizer that trains the model."""
        identity = id(optimizer)

        def forget(_reference: object) -> None:
            self._optimizers.pop(identity, None)
            self._in_step.discard(identity)
            self._stepped.discard(identity)
            if not self._optimizers:
                self._on_death(self)

        self._optimizers[identity] = weakref.ref(optimizer, forget)
        self._parameters = list(self.model.parameters())

    def knows(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer has joined."""
        return id(optimizer) in self._optimizers

    def before(self, optimizer: Optimizer) -> None:
        """An optimizer that has joined is about to step."""
        if id(optimizer) in self._stepped:
            self._stepped.clear()
            self._due.take_if_due(self.step)
        self._in_step.add(id(optimizer))

    def after(self, optimizer: Optimizer) -> None:
        """An optimizer that has joined has stepped."""
        if id(optimizer) not in self._in_step:
            return  # its class passes the step on to a parent class, which has said so already
        self._in_step.discard(id(optimizer))
        if not self._stepped:
            self.step += 1
        self._stepped.add(id(optimizer))
        self._weights = _Weights(self._parameters)
        if self._stepped >= self._optimizers.keys():
            self._due.take_if_due(self.step)

    def end(self) -> None:
        """Take the snapshot of the last step, if the weights are still those that it left."""
        if self.step == self._due.taken:
            return
        ranks = self.recorder.ranks
        ranks.wait_for_others(_PATIENCE)
        reshard(self.model)
        with ranks.together():
            changed = ranks.any(bool(self._in_step) or self._weights != _Weights(list(self.model.parameters())))
        if changed:
            self.recorder.note(
                f"The weights after the last step ({self.step}) were not captured: the program changed them afterwards, "
                "before anything could know that training was over."
            )
            return
        self._due.take(self.step)

    def close(self) -> None:
        """Release the run directory, and forget the optimizers: their references would keep this object, and the model."""
        self._optimizers.clear()
        self.recorder.close()


class _Weights:
    """What is cheap to know about weights, and tells whether they were changed in between.

    Versions tell what changes a parameter; a few values also tell what changes its data behind its back, as averaging does.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._versions = [(id(parameter), parameter._version, parameter.dtype) for parameter in parameters]
        stride = max(1, len(parameters) // _N_WITNESSES)
        self._values = [_first_values(parameter) for parameter in parameters[::stride] if parameter.numel()]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Weights)
            and self._versions == other._versions
            and len(self._values) == len(other._values)
            # Where they lie does not matter: a program may take a trained model off its GPU.
            and all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(self._values, other._values, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _first_values(parameter: Tensor) -> Tensor:
    row = own_part(parameter)
    while row.ndim > 1:
        row = row[0]
    return row.reshape(-1)[:_WITNESS_LENGTH].clone()
