"""Inside a program started by ``dynprobe capture -- CMD``: captures the model that a loop of the program's own trains.

The bootstrap calls :func:`before_step` and :func:`after_step` around every step of every optimizer of torch. Nothing is put on
models and optimizers: they are only looked at. What a transformers Trainer trains is left to
:mod:`dynprobe.capture.injected`.
"""

import atexit
import functools
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dynprobe.capture.asked_probe import asked_probe_set, asked_probe_tasks
from dynprobe.capture.guard import random_state_kept, unwrapped
from dynprobe.capture.inject import OPTIONS, InjectedOptions, give_up
from dynprobe.capture.live import live_drift, show_line
from dynprobe.capture.loop import LoopTraining
from dynprobe.capture.news import report, report_fault, run_names, say
from dynprobe.capture.owners import is_trained, live_optimizers, trained_parameters, trained_transformer
from dynprobe.capture.ranks import Ranks
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.rehearsal import leave
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.folder import list_steps

_TRAINER = "transformers.trainer"


class LoopCapture:
    """Decides which optimizers are followed, and begins and ends the capture of what they train.

    Parameters
    ----------
    options
        What ``dynprobe capture`` was asked to do.
    """

    def __init__(self, options: InjectedOptions) -> None:
        self._options = options
        self._settings = CaptureSettings(**options.settings)
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._training: LoopTraining | None = None
        self._over = False  # the training's optimizers are gone, at a moment that was no good for a snapshot
        self._busy = False
        # Optimizers that are not followed, with the number of their groups: a new group may bring other parameters.
        self._passed_over: dict[int, tuple[weakref.ref[Optimizer], int]] = {}
        # Optimizers that were there when the model was chosen, and train another one.
        self._rivals: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._waiting_for = ""

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: the last moment to see the weights it starts from."""
        if os.getpid() != self._process or self._busy or self._is_passed_over(optimizer):
            return
        if self._over:
            self.end_training()
        if self._training is None or not self._training.knows(optimizer):
            self._shielded(lambda: self._meet(optimizer))
        training = self._training
        if training is not None and training.knows(optimizer):
            self._shielded(lambda: training.before(optimizer))

    def after_step(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        training = self._training
        if os.getpid() == self._process and training is not None and training.knows(optimizer):
            self._shielded(lambda: training.after(optimizer))

    def end_training(self) -> None:
        """Take the last snapshot of the training that is being captured, if there is one, and release its run."""
        training, self._over = self._training, False
        if training is not None:
            self._shielded(training.end)
            self._release()

    def end_program(self) -> None:
        """Called at the end of the process; a copy of the process, made by fork, has nothing to end."""
        if os.getpid() != self._process:
            return
        if self._training is not None and self._training.recorder.ranks.shared and hasattr(sys, "last_value"):
            self._release()  # the program crashed: the other processes are not at their end, and would not answer
        self.end_training()
        if self._waiting_for:
            report({"event": "fault", "reason": self._waiting_for})

    def end_group(self) -> None:
        """The program is about to part its processes, which measure a sharded model together or not at all."""
        if os.getpid() == self._process and self._training is not None and self._training.recorder.ranks.shared:
            self.end_training()

    def _meet(self, optimizer: Optimizer) -> None:
        """An optimizer steps that is not known yet: decide whether to follow it."""
        training = self._training
        ours = training is not None and is_trained(training.model, optimizer)
        if _stepped_by_trainer() or (_is_other_rank() and not _holds_parts(optimizer)):
            if self._options.dry_run and _is_other_rank():
                leave(None)
            if ours:
                self.end_training()
            self._pass_over(optimizer)
        elif ours and training is not None:
            training.join(optimizer)
        elif optimizer in self._rivals:
            self._pass_over(optimizer)
        else:
            self._begin_with(optimizer)

    def _begin_with(self, optimizer: Optimizer) -> None:
        others = [other for other in live_optimizers() if other is not optimizer]
        try:
            model = trained_transformer(optimizer, others, name=self._options.model_attr)
            if model is None:
                self._pass_over(optimizer)
            elif not is_trained(model, optimizer):
                self._wait(optimizer, model)
            else:
                self.end_training()
                self._waiting_for = ""
                self._begin(optimizer, model, others)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            self._pass_over(optimizer)
            report_fault(str(error) or repr(error), stacklevel=6)
            if self._options.strict:
                give_up(error)
            if self._options.dry_run:
                leave(None)

    def _wait(self, optimizer: Optimizer, model: nn.Module) -> None:
        """What this optimizer trains is not what will be captured."""
        self._pass_over(optimizer)
        self._waiting_for = (
            f"the largest transformer that an optimizer holds, {type(model).__name__}, was never stepped. "
            "Give --model-attr NAME with the class or path of the one to capture"
        )

    def _begin(self, optimizer: Optimizer, model: nn.Module, others: list[Optimizer]) -> None:
        first = _steps_behind(optimizer)
        run_dir = run_names.next_after(self._options.run_dir)
        existing = "resume" if first else self._options.existing
        ranks = Ranks.of(unwrapped(model))
        with ranks.together():
            probe = self._probe_set(model)
            with random_state_kept():
                tasks = asked_probe_tasks(self._options, model)
            goes_on = ranks.decided(existing == "resume" and len(list_steps(run_dir)) > 1)
        if goes_on and not first:
            raise CaptureError(
                f"{run_dir}: to go on with a run, the program's optimizer must know how many steps it has behind it, as Adam "
                f"does when its state is loaded; got {type(optimizer).__name__} at step 0. Give --force to replace the run"
            )
        live = live_drift(lambda numbers, step: _show(recorder, numbers, step)) if self._options.live else None
        recorder = Recorder(
            model,
            probe,
            run_dir,
            settings=self._settings,
            max_steps=self._options.max_steps,
            facts=_facts(optimizer),
            existing=existing,
            on_snapshot=live,
            probe_tasks=tasks,
        )
        if self._options.dry_run:
            rehearsal = recorder.rehearse()
            leave(rehearsal if ranks.writes else None)
        try:
            recorder.__enter__()
            for note in recorder.notes if ranks.writes else ():
                say(note, stacklevel=7)
            training = LoopTraining(
                recorder, model, first=first, settings=self._settings, on_death=self._optimizers_died
            )
        except BaseException as error:
            recorder.fault(str(error) or repr(error))
            recorder.close()
            raise
        report({"event": "capturing"})
        run_names.n_taken += 1
        self._follow(training, optimizer, others)

    def _probe_set(self, model: nn.Module) -> ProbeSet:
        with random_state_kept():
            probe = asked_probe_set(self._options, model)
        if probe is None:
            raise CaptureError(
                "a training loop without transformers' Trainer has no evaluation data that capture could use. Give texts and "
                "the tokenizer of the model (--probe FILE --tokenizer NAME_OR_FOLDER), or the probe set of another run "
                "(--probe RUN)"
            )
        return probe

    def _follow(self, training: LoopTraining, optimizer: Optimizer, others: list[Optimizer]) -> None:
        training.join(optimizer)
        own = trained_parameters(optimizer)
        for other in others:
            # One that shares parameters is part of this one, or wraps it.
            if is_trained(training.model, other) and not own.keys() & trained_parameters(other).keys():
                training.join(other)
        self._rivals = weakref.WeakSet(other for other in others if not training.knows(other))
        self._training = training

    def _optimizers_died(self, training: LoopTraining) -> None:
        """The last snapshot at once, unless this comes in the middle of one, or from another thread than the training's."""
        if training is not self._training or os.getpid() != self._process:
            return
        if training.recorder.ranks.shared:
            return  # garbage is not collected in step: these processes meet again at the end
        self._over = True
        if not self._busy and threading.get_ident() == self._thread:
            self.end_training()

    def _shielded(self, action: Callable[[], Any]) -> None:
        """The wall that keeps a capture fault from ending somebody's training."""
        nested, self._busy = self._busy, True
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
            detail = str(error) or repr(error)
            report({"event": "fault", "reason": detail})
            is_noted = self._switch_off(detail)
            if self._options.strict:
                give_up(error)
            unsaid = "" if is_noted else ". This could not be noted in the run, whose status is still `capturing`"
            say(f"capture is switched off, training goes on: {detail}{unsaid}", stacklevel=5)
        finally:
            self._busy = nested

    def _switch_off(self, detail: str) -> bool:
        """Let go of the training; false when the reason could not be written into the run."""
        training = self._training
        if training is None:
            return True
        for optimizer in live_optimizers():
            if training.knows(optimizer):
                self._pass_over(optimizer)
        is_noted = training.recorder.fault(detail)
        self._release()
        return is_noted

    def _release(self) -> None:
        if self._training is not None:
            self._training.close()
            self._training = None

    def _pass_over(self, optimizer: Optimizer) -> None:
        identity = id(optimizer)
        reference = weakref.ref(optimizer, lambda _reference: self._passed_over.pop(identity, None))
        self._passed_over[identity] = reference, len(optimizer.param_groups)

    def _is_passed_over(self, optimizer: Optimizer) -> bool:
        return id(optimizer) in self._passed_over and self._passed_over[id(optimizer)][1] == len(optimizer.param_groups)


_captures: list[LoopCapture] = []  # one, made when the first optimizer steps


def before_step(optimizer: Optimizer) -> None:
    """Called by the bootstrap before each step of each optimizer."""
    if not _captures:
        _captures.append(LoopCapture(InjectedOptions(**json.loads(os.environ[OPTIONS]))))
        # Only now, when all that capture needs is imported: what is registered last is called first.
        atexit.register(_captures[0].end_program)
        if torch.distributed.is_available():
            _ended_before_the_group(_captures[0].end_group)
    _captures[0].before_step(optimizer)


def after_step(optimizer: Optimizer) -> None:
    """Called by the bootstrap after each step of each optimizer."""
    if _captures:
        _captures[0].after_step(optimizer)


def _stepped_by_trainer() -> bool:
    """Whether a Trainer drives this step. Frames are asked for their module only: reading their variables would keep them."""
    if _TRAINER not in sys.modules:
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _TRAINER:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _holds_parts(optimizer: Optimizer) -> bool:
    """Whether an optimizer trains sharded weights, which all processes hold parts of."""
    return any(hasattr(parameter, "device_mesh") for group in optimizer.param_groups for parameter in group["params"])


def _ended_before_the_group(end: Callable[[], None]) -> None:
    """Have something done before the processes of this training part."""
    original = torch.distributed.destroy_process_group

    @functools.wraps(original)
    def destroy_process_group(*args: Any, **kwargs: Any) -> None:
        end()
        original(*args, **kwargs)

    torch.distributed.destroy_process_group = destroy_process_group


def _is_other_rank() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0


def _steps_behind(optimizer: Optimizer) -> int:
    """Number of steps that an optimizer knows it has taken, in this process or before; 0 for one that does not count."""
    counts = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    return max(counts, default=0)


def _show(recorder: Recorder, numbers: Mapping[str, float], step: int) -> None:
    show_line(numbers, step)
    recorder.log({"step": step, **numbers})


def _facts(optimizer: Optimizer) -> dict[str, Any]:
    group = optimizer.param_groups[0]
    names = {"lr": "learning_rate", "weight_decay": "weight_decay"}
    numbers = {fact: float(group[name]) for name, fact in names.items() if group.get(name) is not None}
    return {"loop": "PyTorch", "optim": type(optimizer).__name__, "seed": torch.initial_seed(), **numbers}
