"""Which snapshots an analysis looks at: one run at one step, and pairs of these."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynprobe.analysis.alignment import align_steps
from dynprobe.run import Run, Snapshot


@dataclass(frozen=True)
class Moment:
    """One run at one step.

    Attributes
    ----------
    run
        The run.
    name
        What the run is called in results; two runs of the same folder name need different ones.
    step
        A step that the run has a snapshot of.
    """

    run: Run
    name: str
    step: int

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot of this step."""
        return self.run[self.step]

    def columns(self) -> dict[str, Any]:
        """Columns of a result row that say where a value of this snapshot alone comes from."""
        return {"comparison": "within", "run_a": self.name, "step_a": self.step}


@dataclass(frozen=True)
class Pair:
    """Two snapshots to compare.

    Attributes
    ----------
    comparison
        ``"from_start"``, ``"consecutive"`` or ``"between"``.
    a, b
        The snapshots; within one run `a` is the later one.
    """

    comparison: str
    a: Moment
    b: Moment

    def columns(self) -> dict[str, Any]:
        """Columns of a result row that say which snapshots were compared."""
        return {
            "comparison": self.comparison,
            "run_a": self.a.name,
            "step_a": self.a.step,
            "run_b": self.b.name,
            "step_b": self.b.step,
        }


def run_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Names of runs: the folder name, with as many parent folders as it takes to tell them apart.

    Parameters
    ----------
    paths
        Run directories; the same one may be named twice.

    Examples
    --------
    >>> run_names([Path("/x/seed-1"), Path("/x/seed-2")])
    ('seed-1', 'seed-2')
    >>> run_names([Path("/x/a/run"), Path("/x/b/run")])
    ('a/run', 'b/run')
    >>> run_names([Path("/x/run"), Path("/x/run")])
    ('run', 'run (2)')
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        names = [path.resolve().name for path in paths]
        return tuple(f"{name} ({i + 1})" if name in names[:i] else name for i, name in enumerate(names))
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return tuple("/".join(part[-depth:]).replace("//", "/") for part in parts)


def moments(run: Run, *, name: str | None = None) -> tuple[Moment, ...]:
    """Every snapshot of a run.

    Examples
    --------
    >>> [moment.step for moment in moments(open_run("runs/seed-1"))]  # doctest: +SKIP
    [0, 10, 100]
    """
    return tuple(Moment(run, name or run.name, step) for step in run.steps)


def pairs_from_start(run: Run, *, name: str | None = None) -> tuple[Pair, ...]:
    """Every later snapshot of a run against its first."""
    found = moments(run, name=name)
    return tuple(Pair("from_start", later, found[0]) for later in found[1:])


def consecutive_pairs(run: Run, *, name: str | None = None) -> tuple[Pair, ...]:
    """Every later snapshot of a run against the one before."""
    found = moments(run, name=name)
    return tuple(Pair("consecutive", later, before) for before, later in pairwise(found))


def pairs_between(run_a: Run, run_b: Run, *, names: tuple[str, str] | None = None) -> tuple[Pair, ...]:
    """Run against run at every aligned step; see :func:`~dynprobe.analysis.alignment.align_steps`."""
    name_a, name_b = names or run_names([run_a.path, run_b.path])
    aligned = align_steps(run_a.steps, run_b.steps, max_steps=(run_a.max_steps, run_b.max_steps))
    return tuple(
        Pair("between", Moment(run_a, name_a, step_a), Moment(run_b, name_b, step_b))
        for step_a, step_b in aligned.pairs
    )


def moments_in(pairs: Iterable[Pair]) -> tuple[Moment, ...]:
    """The different snapshots of some pairs, in order of appearance."""
    return tuple(dict.fromkeys(moment for pair in pairs for moment in (pair.a, pair.b)))


def last_pairs(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The last pair of each comparison and run: the end of training, where intervals are worth their time."""
    yield from {(pair.comparison, pair.a.name, pair.b.name): pair for pair in pairs}.values()


def ends_of(moments: Sequence[Moment]) -> set[Moment]:
    """First and last snapshot of each run."""
    last = {moment.name: moment for moment in moments}
    first = {moment.name: moment for moment in reversed(moments)}
    return {*first.values(), *last.values()}
