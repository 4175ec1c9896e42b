"""One recipe, two seeds: how much of what fine-tuning does is the seed alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from dynprobe.analysis import compare
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import UsageError
from dynprobe.experiments.training import Recipe, Watch, train_with_capture
from dynprobe.report import write_json, write_report
from dynprobe.run import open_run
from dynprobe.tasks import load_task

# A small model and few steps: twice the usual rate, and snapshots mostly early, where most happens.
LEARNING_RATE = 1e-4
SCHEDULE = "log:6"

Progress = Callable[[int, int, str], None]


def compare_seeds(
    folder: Path,
    *,
    model: str,
    task: str,
    seeds: tuple[int, int],
    max_steps: int,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, tuple[Path, Path]]:
    """Fine-tune a model twice, differing only in the seed, and report what differs.

    Parameters
    ----------
    folder
        Folder for the two run directories, ``report.html`` and ``report.json``.
    model, task
        A model as in :class:`~dynprobe.experiments.training.Recipe`; a shipped task or a file.
    seeds
        The two seeds.
    max_steps
        Optimizer steps of each run.
    force
        Whether to replace what an earlier call left in `folder`.
    progress
        Called with (done, total, what is being done).

    Returns
    -------
    tuple
        The report, and the two run directories.
    """
    if len(set(seeds)) != 2:
        raise UsageError(f"`seeds` must be two different numbers; got {seeds}")
    report = folder / "report.html"
    if report.exists() and not force:
        raise UsageError(
            f"{report}: the report must be new; got one that exists. Choose another folder, or give --force"
        )
    whole = load_task(task)
    # The test split is for those who choose between methods; here it would only take time.
    data = replace(whole, splits={name: split for name, split in whole.splits.items() if name != "test"})
    show = progress or _silent
    runs = []
    for number, seed in enumerate(seeds):
        run_dir = folder / f"seed-{seed}"
        train_with_capture(
            data,
            Recipe(model=model, seed=seed, max_steps=max_steps, learning_rate=LEARNING_RATE),
            run_dir,
            watch=Watch(CaptureSettings(schedule=SCHEDULE)),
            existing="replace" if force else "refuse",
            on_step=partial(_show_step, show, number * max_steps, f"training, seed {seed}"),
        )
        runs.append(run_dir)
    result = compare(open_run(runs[0]), open_run(runs[1]), progress=show)
    write_report(result, report, force=force)
    write_json(result, folder / "report.json", force=force)
    return report, (runs[0], runs[1])


def _show_step(show: Progress, before: int, label: str, done: int, total: int) -> None:
    show(before + done, 2 * total, label)


def _silent(done: int, total: int, label: str) -> None:
    """Show nothing."""
