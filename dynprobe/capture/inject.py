"""Running a program that does not know of capture: options travel in the environment, news comes back in a status file.

This side belongs to the command line and imports neither torch nor transformers; :mod:`dynprobe.capture.injected` is the other.
"""

import contextlib
import json
import os
import signal
import subprocess
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from dynprobe.errors import CaptureError, NothingCapturedError, UsageError
from dynprobe.storage.folder import is_run, list_steps
from dynprobe.storage.layout import snapshot_path

# Names of environment variables.
OPTIONS = "DYNPROBE_CAPTURE"
STATUS = "DYNPROBE_STATUS"

_BOOTSTRAP = Path(__file__).parent / "bootstrap"


@dataclass(frozen=True)
class InjectedOptions:
    """What ``dynprobe capture`` was asked to do.

    Attributes
    ----------
    run_dir
        Absolute path of the run directory.
    probe_run
        Run whose probe set is used, or ``None``.
    probe_texts
        JSON file with the texts to use as probe set, each a list of one or two, or ``None``. Without this and `probe_run` the
        trainer's own evaluation data is used.
    tokenizer
        Folder or name of the tokenizer for `probe_texts`, or ``None`` for that of the model.
    model_attr
        Which of several models to capture in a loop without Trainer; ``None`` for the largest.
    max_steps
        Number of optimizer steps of a loop without Trainer, if known.
    settings
        Arguments of :class:`~dynprobe.capture.settings.CaptureSettings`.
    existing
        ``"refuse"``, ``"resume"`` or ``"replace"``.
    live
        Whether the drift of each snapshot is logged while training goes on.
    strict
        Whether a fault of capture ends the program.
    probe_tasks
        JSON file with the probe tasks, or ``None``: name to ``label_names``, ``train`` and ``test``, each with ``texts`` and
        ``labels``.
    dry_run
        Whether the program ends where its training would begin, after saying what a snapshot takes.
    """

    run_dir: str
    probe_run: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    existing: str = "refuse"
    probe_texts: str | None = None
    tokenizer: str | None = None
    model_attr: str | None = None
    max_steps: int | None = None
    live: bool = False
    strict: bool = False
    dry_run: bool = False
    probe_tasks: str | None = None


def run_with_capture(command: Sequence[str], options: InjectedOptions, status_file: Path) -> int:
    """Run a command whose Python processes capture the transformers model that they train.

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
        When the run directory holds a run, or the command cannot be started.
    NothingCapturedError
        When the command ended with 0 and no snapshot was taken, with the reason.
    CaptureError
        When the command ended with 0 although capture had a fault and was to be strict.
    """
    environment = {
        **os.environ,
        OPTIONS: json.dumps(asdict(options)),
        STATUS: str(status_file),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_BOOTSTRAP), os.environ.get("PYTHONPATH")])),
    }
    if options.existing == "refuse" and is_run(Path(options.run_dir)):
        raise UsageError(
            f"{options.run_dir}: the run directory must be new; got one that holds a run. Choose another path with -o, "
            "or give --force to replace it or --resume to go on with it"
        )
    if Path(options.run_dir).exists() and not Path(options.run_dir).is_dir():
        raise UsageError(
            f"{options.run_dir}: the run directory must be a folder; got a file. Choose another path with -o"
        )
    before = _snapshots(Path(options.run_dir))
    code = _run(command, environment)
    if options.dry_run and any(record.get("event") == "rehearsal" for record in _news(status_file)):
        return code
    began = any(record.get("event") == "capturing" for record in _news(status_file))
    if code == 0 and (
        not began or _snapshots(Path(options.run_dir)) <= before
    ):  # new ones may also be another writer's
        raise NothingCapturedError(_why_nothing(status_file, command))
    faults = _faults(_news(status_file)) if options.strict else []
    if code == 0 and faults:  # where the program could not be ended, such as while Python itself was ending
        raise CaptureError(f"capture was strict and had a fault: {faults[-1]}")
    return code


def give_up(error: Exception) -> NoReturn:
    """End a program that is captured strictly, with the traceback of the fault and exit code 1.

    By `SystemExit`, which goes through the walls that keep faults of capture away from the program, and through its own.
    """
    traceback.print_exception(error)
    raise SystemExit(1) from error


def _snapshots(run_dir: Path) -> set[tuple[int, int, int]]:
    """Step, time and number of each snapshot file: one that replaces another is a new one."""
    files = {step: snapshot_path(run_dir, step).stat() for step in list_steps(run_dir)}
    return {(step, file.st_mtime_ns, file.st_ino) for step, file in files.items()}


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


def _news(status_file: Path) -> list[dict[str, Any]]:
    lines = status_file.read_text(encoding="utf-8").splitlines() if status_file.is_file() else []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):  # half a line of a process that was killed
            records.append(json.loads(line))
    return records


def _faults(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [record["reason"] for record in records if record.get("event") == "fault"]


def _why_nothing(status_file: Path, command: Sequence[str]) -> str:
    records = _news(status_file)
    faults = _faults(records)
    if faults:
        return f"nothing was captured: {faults[-1]}"
    if records:
        return (
            "nothing was captured: the command made a transformers Trainer, but trained nothing new with it: it never "
            "called its train(), or the run held every step already"
        )
    return (
        f"nothing was captured: no transformers Trainer was made by `{' '.join(command[:4])}`, and no torch optimizer "
        "stepped the weights of a transformers model there. Steps inside torch.compile cannot be seen, and Python started "
        "with -I or -E ignores PYTHONPATH and cannot be captured: use dynprobe.Recorder in the program"
    )
