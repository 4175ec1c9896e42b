"""`dynprobe capture`: run a command with capture on."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynprobe.cli.console import err
from dynprobe.cli.recording import recording_options, take_probe_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynprobe.tasks import Task

# The probe set is chosen among so many texts of a file.
_MAX_TEXTS = 20_000


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-o", "--output", "run_dir", type=click.Path(path_type=Path), required=True, help="New run directory.")
@click.option(
    "--schedule", default=None, help="log:N, every:N, at:STEP,STEP or ends. Step 0 and the last always.  [log:8]"
)
@recording_options
@click.option(
    "--probe",
    type=click.Path(path_type=Path),
    metavar="RUN_OR_FILE",
    help="Use the probe set of this run (needed to compare with it), or the texts of this file.",
)
@click.option(
    "--tokenizer",
    metavar="NAME_OR_FOLDER",
    help="With --probe FILE or --probe-task: the model's tokenizer.  [that of the folder the model came from]",
)
@click.option(
    "--model-attr",
    metavar="NAME",
    help="Of several trained transformers: class, path in its module, or global variable.  [the largest]",
)
@click.option(
    "--max-steps", type=click.IntRange(min=1), help="Optimizer steps of a training loop without Trainer, if known."
)
@click.option("--live", is_flag=True, help="Log the drift from step 0: to the Trainer's dashboards, or as a line each.")
@click.option(
    "--strict", is_flag=True, help="End COMMAND when capture has a fault, instead of going on without capture."
)
@click.option("--dry-run", is_flag=True, help="Stop where training begins: print bytes, disk and the time of one pass.")
@click.option("--force", is_flag=True, help="Replace a run that is already there.")
@click.option("--resume", is_flag=True, help="Go on with a run that is already there.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def capture(
    run_dir: Path,
    probe: Path | None,
    tokenizer: str | None,
    model_attr: str | None,
    max_steps: int | None,
    force: bool,  # noqa: FBT001
    resume: bool,  # noqa: FBT001
    command: tuple[str, ...],
    **asked: Any,
) -> None:
    """Run COMMAND and capture the transformers model that it trains, without changing the command or its training.

    \b
    With transformers' Trainer the probe set is 512 examples of its own evaluation data, at most 128 tokens each.
    Any other PyTorch loop is captured on the texts of --probe FILE: one text per line, or CSV / JSONL / Parquet.
    The exit code is that of COMMAND; 4 when it ended well but nothing was captured.

    \b
    Examples:
      dynprobe capture -o runs/seed-1 -- python train.py --seed 1
      dynprobe capture -o runs/seed-1 --probe dev.txt --tokenizer bert-base-uncased -- python loop.py
    """
    from dataclasses import asdict, replace

    from dynprobe.capture.inject import InjectedOptions, run_with_capture
    from dynprobe.capture.settings import settings_from_words
    from dynprobe.errors import UsageError
    from dynprobe.storage.folder import list_steps, require_run

    if force and resume:
        raise UsageError("--force and --resume must not be given together: replace the run, or go on with it")
    texts = probe if probe is not None and probe.is_file() else None
    if probe is not None and texts is None:
        require_run(probe)
    tasks = take_probe_tasks(asked)
    if tokenizer is not None and texts is None and not tasks:
        raise UsageError(
            f"--tokenizer must go with --probe FILE or --probe-task, whose texts it reads; got --probe {probe}"
        )
    flags = {name: asked.pop(name) for name in ("live", "strict", "dry_run")}
    settings = settings_from_words(**asked)
    options = InjectedOptions(
        run_dir=str(run_dir.absolute()),
        probe_run=None if probe is None or texts is not None else str(probe.absolute()),
        tokenizer=str(Path(tokenizer).absolute()) if tokenizer is not None and Path(tokenizer).is_dir() else tokenizer,
        model_attr=model_attr,
        max_steps=max_steps,
        settings=asdict(settings),
        existing="replace" if force else "resume" if resume else "refuse",
        **flags,
    )
    with tempfile.TemporaryDirectory(prefix="dynprobe-") as folder:
        if texts is not None:
            options = replace(options, probe_texts=_texts_as_json(texts, Path(folder) / "texts.json"))
        if tasks:
            options = replace(options, probe_tasks=_tasks_as_json(tasks, Path(folder) / "tasks.json"))
        code = run_with_capture(command, options, Path(folder) / "status.jsonl")
    steps = list_steps(run_dir)
    if steps:
        err.print(f"dynprobe: {len(steps)} snapshots, steps {', '.join(map(str, steps))}", markup=False)
        err.print(
            f"Next: dynprobe info {run_dir}\n      dynprobe compare {run_dir} OTHER_RUN -o report.html", markup=False
        )
    sys.exit(code)


def _texts_as_json(source: Path, target: Path) -> str:
    """Leave the texts of a file where the command finds them; of very many, evenly spaced ones."""
    import json

    from dynprobe.tasks import read_texts

    texts = read_texts(source)
    target.write_text(json.dumps(texts[:: -(-len(texts) // _MAX_TEXTS)]), encoding="utf-8")
    return str(target)


def _tasks_as_json(tasks: "Mapping[str, Task]", target: Path) -> str:
    """Leave the examples of probe tasks where the command finds them."""
    import json

    words: dict[str, dict[str, Any]] = {name: {"label_names": task.label_names} for name, task in tasks.items()}
    for name, task in tasks.items():
        for split, of in task.splits.items():
            words[name][split] = {"texts": of.texts, "labels": [] if of.labels is None else of.labels.tolist()}
    target.write_text(json.dumps(words), encoding="utf-8")
    return str(target)
