"""Capture in a program that does not know of it: options and news travel through the environment and a status file."""

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynprobe.errors import NothingCapturedError, UsageError
from dynprobe.storage.directory import list_steps

OPTIONS = "DYNPROBE_CAPTURE"
_BOOTSTRAP = Path(__file__).parent / "bootstrap"
_STATUS = "DYNPROBE_STATUS"
_trained_here = 0


@dataclass(frozen=True)
class InjectedOptions:
    """What ``dynprobe capture`` was asked to do.

    Attributes
    ----------
    run_dir
        Absolute path of the run directory.
    probe_run
        Run whose probe set is used, or ``None`` for the trainer's own evaluation data.
    settings
        Arguments of :class:`~dynprobe.capture.plan.CaptureSettings`.
    existing
        ``"refuse"``, ``"resume"`` or ``"replace"``.
    """

    run_dir: str
    probe_run: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    existing: str = "refuse"


def run_with_capture(command: Sequence[str], options: InjectedOptions, status_file: Path) -> int:
    """Run a command whose Python processes capture what transformers' Trainer trains in them.

    Parameters
    ----------
    command
        Program and arguments.
    options
        What to capture, and where to.
    status_file
        New file in which the program's processes report.

    Returns
    -------
    int
        The command's exit code; 128 + n when signal n ended it.

    Raises
    ------
    UsageError
        When the command cannot be started.
    NothingCapturedError
        When the command ended with 0 and no snapshot was taken, with the reason.
    """
    environment = {
        **os.environ,
        OPTIONS: json.dumps(asdict(options)),
        _STATUS: str(status_file),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_BOOTSTRAP), os.environ.get("PYTHONPATH")])),
    }
    before = list_steps(Path(options.run_dir)) if options.existing == "resume" else ()
    code = _run(command, environment)
    if code == 0 and not set(list_steps(Path(options.run_dir))) - set(before):
        raise NothingCapturedError(_why_nothing(status_file, command))
    return code


def attach_from_environment(trainer: Any) -> None:
    """Add capture to a Trainer as the environment says; called by the bootstrap after ``Trainer.__init__``."""
    from dynprobe.capture.callback import DynprobeCallback  # noqa: PLC0415 - importing it needs transformers

    options = InjectedOptions(**json.loads(os.environ[OPTIONS]))
    _report({"event": "trainer"})

    class InjectedCallback(DynprobeCallback):
        """Faults before training start are reported, never raised: the program does not know of capture."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            global _trained_here  # noqa: PLW0603 - one process may train several models, one after the other
            _trained_here += 1
            if _trained_here > 1:
                self.run_dir = Path(f"{options.run_dir}-{_trained_here}")
            try:
                super().on_train_begin(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - as above
                self._stop()
                _report({"event": "fault", "reason": str(error)})
                warnings.warn(f"dynprobe: this training is not captured: {error}", stacklevel=2)

    trainer.add_callback(_callback(InjectedCallback, options))


def _callback(kind: Any, options: InjectedOptions) -> Any:
    from dynprobe.capture.plan import CaptureSettings  # noqa: PLC0415
    from dynprobe.storage.layout import probe_path  # noqa: PLC0415
    from dynprobe.storage.probe_file import read_probe_set  # noqa: PLC0415

    probe = None if options.probe_run is None else read_probe_set(probe_path(Path(options.probe_run)))
    return kind(
        options.run_dir, probe_set=probe, settings=CaptureSettings(**options.settings), existing=options.existing
    )


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    try:
        child = subprocess.Popen(list(command), env=dict(environment))  # noqa: S603 - running it is the purpose
    except OSError as error:
        raise UsageError(f"the command must be a program that can be started; got {command[0]!r}: {error}") from error
    # The terminal sends its interrupt to the child as well; the child decides what to do, and we report how it ended.
    handlers = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None), getattr(signal, "SIGUSR1", None)):
        if number is not None:
            handlers[number] = signal.signal(number, lambda received, _frame: child.send_signal(received))
    try:
        code = child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _report(record: Mapping[str, Any]) -> None:
    """Append one line to the status file; a program that goes on without one is no reason to fail."""
    path = os.environ.get(_STATUS)
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(record)) + "\n")
        except OSError as error:
            print(f"dynprobe: could not write {path}: {error}", file=sys.stderr)  # noqa: T201


def _why_nothing(status_file: Path, command: Sequence[str]) -> str:
    lines = status_file.read_text(encoding="utf-8").splitlines() if status_file.is_file() else []
    records = [json.loads(line) for line in lines]
    faults = [record["reason"] for record in records if record.get("event") == "fault"]
    if faults:
        return f"nothing was captured: {faults[-1]}"
    if records:
        return "nothing was captured: the command made a transformers Trainer, but never called its train()"
    return (
        f"nothing was captured: no transformers Trainer was made by `{' '.join(command[:4])}`. Capture needs one; "
        "Python started with -I or -E ignores PYTHONPATH and cannot be captured; for a loop of your own use "
        "dynprobe.Recorder"
    )
