"""`dynprobe capture`: run a command with capture on."""

import sys
import tempfile
from pathlib import Path

import click

from dynprobe.cli.console import err


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-o", "--output", "run_dir", type=click.Path(path_type=Path), required=True, help="New run directory.")
@click.option(
    "--schedule", default=None, help="log:N, every:N, at:STEP,STEP or ends. Step 0 and the last always.  [log:8]"
)
@click.option("--budget", default=None, help="Bytes for all snapshots of the run.  [2GB]")
@click.option(
    "--hidden", default=None, help="Tokens whose hidden states are kept: sample, all, none or a number.  [sample]"
)
@click.option(
    "--attention", default=None, help="Examples whose attention is kept: sample, all, none or a number.  [sample]"
)
@click.option("--attention-dtype", default=None, help="How attention is stored: float16 or float32.  [float16]")
@click.option(
    "--probe", type=click.Path(path_type=Path), help="Use the probe set of this run (needed to compare with it)."
)
@click.option("--force", is_flag=True, help="Replace a run that is already there.")
@click.option("--resume", is_flag=True, help="Go on with a run that is already there.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def capture(
    run_dir: Path,
    probe: Path | None,
    force: bool,  # noqa: FBT001
    resume: bool,  # noqa: FBT001
    command: tuple[str, ...],
    **asked: str | None,
) -> None:
    """Run COMMAND and capture what transformers' Trainer trains in it, without changing the command or its training.

    \b
    The probe set is 512 examples of the trainer's own evaluation data, at most 128 tokens each.
    The exit code is that of COMMAND; 4 when it ended well but nothing was captured.

    \b
    Example:
      dynprobe capture -o runs/seed-1 -- python train.py --seed 1
    """
    from dataclasses import asdict

    from dynprobe.capture.inject import InjectedOptions, run_with_capture
    from dynprobe.capture.settings import settings_from_words
    from dynprobe.errors import UsageError
    from dynprobe.storage.directory import list_steps, require_run

    if force and resume:
        raise UsageError("--force and --resume must not be given together: replace the run, or go on with it")
    if probe is not None:
        require_run(probe)
    settings = settings_from_words(**asked)
    options = InjectedOptions(
        run_dir=str(run_dir.absolute()),
        probe_run=None if probe is None else str(probe.absolute()),
        settings=asdict(settings),
        existing="replace" if force else "resume" if resume else "refuse",
    )
    with tempfile.TemporaryDirectory(prefix="dynprobe-") as folder:
        code = run_with_capture(command, options, Path(folder) / "status.jsonl")
    steps = list_steps(run_dir)
    if steps:
        err.print(f"dynprobe: {len(steps)} snapshots, steps {', '.join(map(str, steps))}", markup=False)
        err.print(
            f"Next: dynprobe info {run_dir}\n      dynprobe compare {run_dir} OTHER_RUN -o report.html", markup=False
        )
    sys.exit(code)
