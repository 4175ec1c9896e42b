"""Run the cells of an experiment side by side, resumably, compare what they leave, and bring the results together."""

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib

from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments.cell_work import RESULT, read_json, run_cell, write_json
from dynprobe.experiments.checks import require_usable
from dynprobe.experiments.comparisons import comparisons_of
from dynprobe.experiments.experiment import Cell, Experiment
from dynprobe.experiments.pair_work import run_comparison
from dynprobe.experiments.results import RESULTS, cells_of, pairs_of, write_results
from dynprobe.storage.claim import claim

FAILED = "failed.txt"
# In the folder of an experiment: whose it is.
OWNER = "experiment.json"
_CELLS, _PAIRS = "cells", "pairs"

Progress = Callable[[int, int, str], None]


class CellsFailedError(DynprobeError):
    """Some cells of an experiment could not be carried out; those that could are kept."""


@dataclass(frozen=True)
class Standing:
    """How far an experiment is.

    Attributes
    ----------
    results
        Of the cells that are finished, then of the comparisons, as :func:`run_experiment` returns them.
    n_cells, n_comparisons
        How many there will be.
    missing
        Names of the cells and comparisons that are not finished.
    failed
        Those of them that were tried and failed.
    """

    results: list[dict[str, Any]]
    n_cells: int
    n_comparisons: int
    missing: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """So many of so many, and which are not."""
        n_done = len(cells_of(self.results)), len(pairs_of(self.results))
        words = [f"{n_done[0]} of {self.n_cells} cells finished"]
        words += [f"{n_done[1]} of {self.n_comparisons} comparisons finished"] if self.n_comparisons else []
        words += [f"failed: {_some(self.failed)}"] if self.failed else []
        others = [name for name in self.missing if name not in self.failed]
        words += [f"missing: {_some(others)}"] if others else []
        return "; ".join(words)


def run_experiment(
    experiment: Experiment, folder: Path, *, n_jobs: int = 1, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Run every cell that is not there yet, compare what they leave, and write ``results.jsonl``; also when some failed.

    Parameters
    ----------
    experiment
        What to run.
    folder
        Folder of the experiment: made where it is missing, gone on with where it is there. A cell whose setup was changed is
        run again, and so are its comparisons; what an earlier setup left stays beside it and is not read.
    n_jobs
        Cells at a time, each in a process with one thread of torch; 1 runs them in this process with all threads.
    progress
        Called with (cells and comparisons done, all of them, name of the last, and whether it failed).

    Returns
    -------
    list of dict
        One per cell, in the order of the file, as :func:`~dynprobe.experiments.cell_work.run_cell`; then one per comparison, as
        :func:`~dynprobe.experiments.pair_work.run_comparison`. :func:`cells_of` and :func:`pairs_of` tell them apart.

    Raises
    ------
    UsageError
        When another process works in the folder, it is that of another experiment, or a model or task is not there.
    CellsFailedError
        When a cell failed, after all others have been run; ``failed.txt`` in its folder says how.
    """
    if n_jobs < 1:
        raise UsageError(f"the number of jobs must be at least 1; got {n_jobs}")
    require_own_folder(experiment, folder)
    require_usable(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder):
        write_json(folder / OWNER, {"name": experiment.name})
        trainings, comparisons = _trainings(experiment, folder), _comparisons(experiment, folder)
        show = progress or _silent
        jobs = [*trainings, *comparisons]
        n_done = sum(job.is_done for job in jobs)
        show(n_done, len(jobs), experiment.name)
        for together in (trainings, comparisons):  # what is compared must be there
            failures = []
            for job, failure in _run([job for job in together if not job.is_done], n_jobs):
                n_done += 1
                show(n_done, len(jobs), f"{job.label}: failed" if failure else job.label)
                failures += [f"{job.label}: {failure} (see {job.folder / FAILED})"] if failure else []
            if failures:
                if finished := standing(experiment, folder).results:
                    write_results(folder / RESULTS, finished)
                raise CellsFailedError(
                    f"{folder}: every cell must end; {len(failures)} of {len(together)} failed. {failures[0]}. "
                    "The others are kept: the same command goes on from them"
                )
        results = collect(experiment, folder)
        write_results(folder / RESULTS, results)
    return results


def require_own_folder(experiment: Experiment, folder: Path) -> None:
    """Refuse the folder of another experiment, whose results would be overwritten.

    Parameters
    ----------
    experiment
        What is to be run, or was.
    folder
        Where; it need not exist. One that no experiment has put its name in is taken for its own.

    Raises
    ------
    UsageError
        When it is no folder, or that of an experiment with another name.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder}: must be a folder for the experiment to work in; got a file. Name another one with -o"
        )
    owner = folder / OWNER
    if not owner.is_file():
        return
    found = read_json(owner)
    name = found.get("name") if isinstance(found, dict) else None
    if name != experiment.name:
        raise UsageError(
            f"{folder}: must be the folder of the experiment {experiment.name!r}; got that of {name!r:.60}. Name another one "
            f"with -o; if the experiment itself was given another name, remove {owner}"
        )


def standing(experiment: Experiment, folder: Path) -> Standing:
    """What is finished, what failed and what is missing in the folder of an experiment.

    Raises
    ------
    DynprobeError
        When a result is damaged.
    """
    trainings, comparisons = _trainings(experiment, folder), _comparisons(experiment, folder)
    jobs = [*trainings, *comparisons]
    missing = [job for job in jobs if not job.is_done]
    return Standing(
        results=[read_json(job.folder / RESULT) for job in jobs if job.is_done],
        n_cells=len(trainings),
        n_comparisons=len(comparisons),
        missing=tuple(job.label for job in missing),
        failed=tuple(job.label for job in missing if (job.folder / FAILED).is_file()),
    )


def collect(experiment: Experiment, folder: Path) -> list[dict[str, Any]]:
    """The results of all cells and comparisons.

    Raises
    ------
    DynprobeError
        When some are not there: the experiment is not finished.
    """
    found = standing(experiment, folder)
    if found.missing:
        raise DynprobeError(f"{folder}: the experiment is not finished: {found.in_words}. Run it again to go on")
    return found.results


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell of an experiment works and leaves its result."""
    return folder / _CELLS / cell.key


@dataclass(frozen=True)
class _Job:
    """Something to do once, that leaves its result in a folder of its own."""

    label: str
    folder: Path
    work: Callable[..., Any]

    @property
    def is_done(self) -> bool:
        return (self.folder / RESULT).is_file()


def _trainings(experiment: Experiment, folder: Path) -> list[_Job]:
    places = [(cell, cell_folder(folder, cell)) for cell in experiment.cells]
    return [_Job(cell.label, place, partial(run_cell, cell, place)) for cell, place in places]


def _comparisons(experiment: Experiment, folder: Path) -> list[_Job]:
    jobs = []
    for asked in comparisons_of(experiment):
        place, cells = folder / _PAIRS / asked.key, (cell_folder(folder, asked.a), cell_folder(folder, asked.b))
        jobs.append(_Job(asked.label, place, partial(run_comparison, asked, place, cells)))
    return jobs


def _run(jobs: list[_Job], n_jobs: int) -> Iterable[tuple[_Job, str]]:
    if n_jobs == 1:
        return ((job, _attempt(job, None)) for job in jobs)
    calls = (joblib.delayed(_attempted)(job) for job in jobs)
    found: Iterable[tuple[_Job, str]] = joblib.Parallel(n_jobs, return_as="generator_unordered")(calls)
    return found


def _attempted(job: _Job) -> tuple[_Job, str]:
    return job, _attempt(job, 1)


def _attempt(job: _Job, n_threads: int | None) -> str:
    """What went wrong, or nothing: one cell that fails must not end the hours of work of the others."""
    try:
        job.work(n_threads=n_threads)
    except Exception as error:  # noqa: BLE001 - the wall between one cell and all others
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / FAILED).write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {error}"
    (job.folder / FAILED).unlink(missing_ok=True)
    return ""


def _some(names: Sequence[str], most: int = 5) -> str:
    """A few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _silent(done: int, total: int, label: str) -> None:
    """Show nothing."""
