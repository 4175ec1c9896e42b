"""`dynprobe replay`: capture from saved checkpoints, after the fact."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynprobe.cli.console import err, progress_bar, say
from dynprobe.cli.recording import recording_options, take_probe_tasks

if TYPE_CHECKING:
    from dynprobe.probe_set import ProbeSet


@click.command()
@click.argument("checkpoints", metavar="CHECKPOINT_DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", "run_dir", type=click.Path(path_type=Path), required=True, help="New run directory.")
@click.option(
    "--probe", type=click.Path(path_type=Path), help="Measure on the probe set of this run (needed to compare with it)."
)
@click.option("--texts", type=click.Path(path_type=Path), help="Measure on the texts of this file.")
@click.option(
    "--tokenizer",
    metavar="NAME_OR_PATH",
    help="For --texts and --probe-task.  [that of the last checkpoint, or of the base]",
)
@click.option("--base", metavar="MODEL", help="What training started from: step 0, and what adapters are put on.")
@click.option("--steps", metavar="STEP,STEP", help="Only the checkpoints of these steps.  [all]")
@recording_options
@click.option("--force", is_flag=True, help="Replace a run that is already there.")
@click.option("--resume", is_flag=True, help="Go on with a run that is already there: take the steps that it lacks.")
def replay(
    checkpoints: Path,
    run_dir: Path,
    base: str | None,
    steps: str | None,
    force: bool,  # noqa: FBT001
    resume: bool,  # noqa: FBT001
    **asked: Any,
) -> None:
    """Capture a training from the checkpoints it saved, equal to a live capture at the same steps.

    \b
    CHECKPOINT_DIR is the output folder of transformers' Trainer, with checkpoint-N folders of models or PEFT
    adapters, or one such folder. Weights are read from safetensors; pickled files are never opened.

    \b
    Give --probe RUN, or --texts FILE: one text per line, or CSV / JSONL / Parquet with text columns.

    \b
    Example:
      dynprobe replay output --base bert-base-uncased --texts texts.txt -o runs/after
    """
    from dynprobe.capture.replay import replay as replay_checkpoints
    from dynprobe.capture.replay import tokenizer_of
    from dynprobe.capture.settings import settings_from_words
    from dynprobe.errors import UsageError
    from dynprobe.storage.directory import read_manifest
    from dynprobe.storage.folder import list_steps
    from dynprobe.tasks import probe_task

    if force and resume:
        raise UsageError("--force and --resume must not be given together: replace the run, or go on with it")
    probe, texts, tokenizer = (asked.pop(name) for name in ("probe", "texts", "tokenizer"))
    tasks = take_probe_tasks(asked)
    settings = settings_from_words(**asked)
    wanted = _steps(steps)
    probe_set = _probe_set(
        checkpoints, probe=probe, texts=texts, tokenizer=tokenizer, base=base, reads_tasks=bool(tasks)
    )
    reader: Any = tokenizer_of(checkpoints, tokenizer=tokenizer, base=base) if tasks else None
    with progress_bar() as advance:
        replay_checkpoints(
            checkpoints,
            run_dir,
            probe_set=probe_set,
            base=base,
            steps=wanted,
            settings=settings,
            existing="replace" if force else "resume" if resume else "refuse",
            progress=advance,
            probe_tasks={name: probe_task(task, reader, n_train=None, n_test=None) for name, task in tasks.items()},
        )
    done = list_steps(run_dir)
    err.print(f"dynprobe: {len(done)} snapshots, steps {', '.join(map(str, done))}", markup=False)
    for note in read_manifest(run_dir).get("notes", []):
        say(f"Note: {note}")
    err.print(f"Next: dynprobe info {run_dir}\n      dynprobe compare {run_dir} OTHER_RUN -o report.html", markup=False)


def _steps(text: str | None) -> list[int] | None:
    from dynprobe.errors import UsageError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
        raise UsageError(f"--steps must be numbers of optimizer steps such as 100,200; got {text!r}")
    return [int(part) for part in parts]


def _probe_set(
    checkpoints: Path,
    *,
    probe: str | Path | None,
    texts: str | Path | None,
    tokenizer: str | Path | None,
    base: str | None,
    reads_tasks: bool,
) -> "ProbeSet":
    from dynprobe.capture.replay import probe_set_from_texts
    from dynprobe.errors import UsageError
    from dynprobe.storage.folder import require_run
    from dynprobe.storage.layout import probe_path
    from dynprobe.storage.probe_file import read_probe_set
    from dynprobe.tasks import read_texts

    if (probe is None) == (texts is None):
        got = "none" if probe is None else "both"
        raise UsageError(f"one of --probe RUN and --texts FILE must be given, to say what to measure on; got {got}")
    if texts is None:
        if tokenizer is not None and not reads_tasks:
            raise UsageError(
                "--tokenizer must be given with --texts or --probe-task only; the probe set of a run holds its tokens"
            )
        require_run(Path(str(probe)))
        return read_probe_set(probe_path(Path(str(probe))))
    words = None if tokenizer is None else str(tokenizer)
    return probe_set_from_texts(checkpoints, read_texts(str(texts)), tokenizer=words, base=base)
