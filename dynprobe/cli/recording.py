"""The options that say what a snapshot holds; the same words wherever something is captured."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dynprobe.tasks import Task

_OPTIONS = (
    click.option("--budget", default=None, help="Bytes for all snapshots of the run.  [2GB]"),
    click.option(
        "--hidden",
        default=None,
        help="Tokens whose hidden states are kept: sample, all, pooled (vectors of examples only) or a number.  [sample]",
    ),
    click.option(
        "--attention", default=None, help="Examples whose attention is kept: sample, all, none or a number.  [sample]"
    ),
    click.option(
        "--attention-rows", default=None, help="all tokens as queries, or cls: [CLS] or what stands for it.  [all]"
    ),
    click.option("--attention-dtype", default=None, help="How attention is stored: float16 or float32.  [float16]"),
    click.option("--layers", default=None, help="all, or numbers such as 0,6,-1 (0 embeddings, -1 the last).  [all]"),
    click.option(
        "--cross-attention/--no-cross-attention", default=None, help="Attention of a decoder to its encoder.  [yes]"
    ),
    click.option(
        "--value-norms/--no-value-norms",
        default=None,
        help="Also the norm of what each head carries on from each token.  [no]",
    ),
    click.option(
        "--probe-task",
        "probe_tasks",
        multiple=True,
        metavar="TASK",
        help="Also the vectors of examples of this task, shipped or a file, for linear probes; may be given several times.",
    ),
    click.option(
        "--probe-task-examples",
        metavar="N_TRAIN,N_TEST",
        help="Of each such task, as many to fit probes on and to score them on.  [1000,500]",
    ),
)


def recording_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets them by name, `None` where nothing was said."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_probe_tasks(asked: dict[str, Any], *, option: str = "--probe-task") -> dict[str, "Task"]:
    """Take the probe tasks out of the options of a command: name to a task with a train and a test split of the asked sizes.

    `option` is what the user gave them with.

    Raises
    ------
    UsageError
        For a task that cannot be probed, two of one name, or a number of examples that is none.
    """
    from dynprobe.cli.naming import load_asked_task, options_of
    from dynprobe.errors import UsageError
    from dynprobe.storage.layout import task_name_of
    from dynprobe.tasks import probed_part

    names, examples = asked.pop("probe_tasks"), asked.pop("probe_task_examples")
    if examples is not None and not names:
        raise UsageError(f"--probe-task-examples must go with a --probe-task; got {examples!r} alone")
    n_train, n_test = _sizes(examples)
    tasks: dict[str, Task] = {}
    for name in names:
        task = load_asked_task(name, option)
        own = task_name_of(task.name)
        if own in tasks:
            raise UsageError(f"{option} must be given once for each name; got {own!r} twice")
        with options_of(n_train="--probe-task-examples", n_test="--probe-task-examples"):
            tasks[own] = probed_part(task, n_train=n_train, n_test=n_test)
    return tasks


def _sizes(text: str | None) -> tuple[int, int]:
    from dynprobe.errors import UsageError
    from dynprobe.tasks.probing import DEFAULT_N_TEST, DEFAULT_N_TRAIN

    if text is None:
        return DEFAULT_N_TRAIN, DEFAULT_N_TEST
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"--probe-task-examples must be two numbers such as 1000,500; got {text!r}")
    return int(parts[0]), int(parts[1])
