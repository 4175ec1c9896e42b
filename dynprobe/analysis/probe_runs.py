"""The probe suite of whole runs, with their provenance, for a report."""

from collections.abc import Sequence
from typing import Any

from dynprobe.analysis.knowledge import DEFAULT_MARGIN
from dynprobe.analysis.moments import moments, run_names
from dynprobe.analysis.probe_suite import probe_suite
from dynprobe.analysis.progress import Progress
from dynprobe.analysis.provenance import provenance
from dynprobe.errors import IncompatibleRunsError, UsageError
from dynprobe.result import Result, merge
from dynprobe.run import Run


def probe_runs(
    runs: Sequence[Run], *, margin: float = DEFAULT_MARGIN, progress: Progress | None = None, **how: Any
) -> Result:
    """Probe tasks at every snapshot of one or more runs: :func:`probe_suite` with provenance and the notes of the captures.

    Parameters
    ----------
    runs
        Runs that were captured with probe tasks.
    margin, progress, how
        As for :func:`~dynprobe.analysis.probe_suite.probe_suite`.

    Raises
    ------
    UsageError
        When a run holds no probe task, a task or layer was not captured, or an option is out of range.
    IncompatibleRunsError
        When a run has no snapshot.

    Examples
    --------
    >>> probe_runs([open_run("runs/seed-1")]).findings  # doctest: +SKIP
    """
    for run in runs:
        if not run.steps:
            raise IncompatibleRunsError(f"{run.path}: must hold at least one snapshot; got none. Capture the run again")
        if not run.probe_tasks:
            raise UsageError(
                f"{run.path}: must hold probe tasks; got none. Capture it again with --probe-task NAME, such as "
                "--probe-task wic, or with `probe_tasks` of a Recorder"
            )
    names = run_names([run.path for run in runs])
    snapshots = [moment for run, name in zip(runs, names, strict=True) for moment in moments(run, name=name)]
    try:
        result = probe_suite(snapshots, margin=margin, progress=progress, **how)
    except ValueError as error:
        raise UsageError(str(error)) from error
    finally:
        for moment in snapshots:
            moment.snapshot.close()
    options = {"margin": margin, **{name: value for name, value in how.items() if value is not None}}
    notes = tuple(f"{name}: {note}" for run, name in zip(runs, names, strict=True) for note in run.notes)
    return merge(
        f"Knowledge of other tasks: {', '.join(names)}",
        [result],
        notes=(*result.notes, *notes),
        provenance=provenance(dict(zip(names, runs, strict=True)), options),
    )
