"""Probe tasks read from snapshots: every probe is fitted here, and what cannot be probed is said."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dynprobe.analysis.moments import Moment, ends_of
from dynprobe.analysis.probe_fits import Answers, Place, Vectors, answers, places_of, random_vectors, snapshot_vectors
from dynprobe.analysis.probe_labels import TaskLabels, group_name, refusal, refusal_of_classes
from dynprobe.analysis.progress import Progress, Tick
from dynprobe.metrics.workers import in_parallel

METRIC = "knowledge_accuracy"

Key = TypeVar("Key")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Plan:
    """How probes are fitted; see :func:`~dynprobe.analysis.probe_suite.probe_suite`."""

    fractions: tuple[float, ...] = (1.0,)
    n_seeds: int = 1
    control: bool = True
    margin: float = 0.0
    level: float = 0.95
    layers: Sequence[int] | None = None

    def subsets(self, labels: TaskLabels, fraction: float) -> list[np.ndarray]:
        """Training rows of each fit; all examples can be chosen in one way only."""
        return [labels.subset(fraction, seed) for seed in range(1 if fraction >= 1 else self.n_seeds)]


@dataclass(frozen=True, eq=False)
class Reading:
    """One probe task read from one snapshot.

    Attributes
    ----------
    moment, task
        Where and what.
    labels
        Labels of the task.
    fits
        For each fraction of the training examples the answers at each place.
    random
        The same of an encoder with random weights; empty where it was not measured.
    """

    moment: Moment
    task: str
    labels: TaskLabels
    fits: Mapping[float, Sequence[Answers]]
    random: Mapping[float, Sequence[Answers]] = field(default_factory=dict)


def read_tasks(
    moments: Sequence[Moment], tasks: Sequence[str], plan: Plan, *, progress: Progress | None = None
) -> tuple[list[Reading], list[dict[str, Any]]]:
    """Fit the probes of all snapshots and tasks.

    Returns
    -------
    tuple
        What was read, and rows that say what could not be.
    """
    starts = {moment.name: moment for moment in reversed(moments)}
    known: dict[tuple[str, str], _Prepared] = {}
    refused: list[dict[str, Any]] = []
    for name, start in reversed(starts.items()):
        if not start.run.probe_tasks:
            reason = f"{name} holds no probe tasks; name them when capturing: --probe-task NAME"
            refused.append({**start.columns(), "metric": METRIC, "status": "not-captured", "reason": reason})
            continue
        for task in tasks:
            prepared, rows = _prepare(start, task, plan)
            refused += rows
            if prepared is not None:
                known[name, task] = prepared
    ends = ends_of(moments)
    work = [(moment, task) for moment in moments for task in tasks if (moment.name, task) in known]
    tick = Tick(progress, len(known) + len(work), "probe tasks")

    def read_random(key: tuple[str, str]) -> dict[float, list[Answers]]:
        start, task = starts[key[0]], key[1]
        return _fits(places_of(start, task, layers=plan.layers), random_vectors(start, task), known[key])

    def read(item: tuple[Moment, str]) -> dict[float, list[Answers]]:
        moment, task = item
        places = places_of(moment, task, layers=plan.layers)
        control = plan.control and moment in ends
        return _fits(places, snapshot_vectors(moment, task), known[moment.name, task], control=control)

    random = _with_ticks(zip(known, in_parallel(read_random, list(known)), strict=True), tick)
    fits = _with_ticks(zip(work, in_parallel(read, work), strict=True), tick)
    return [
        Reading(moment, task, known[moment.name, task].labels, found, random[moment.name, task])
        for (moment, task), found in fits.items()
    ], refused


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Labels of a task and the training rows of each fit, by fraction."""

    labels: TaskLabels
    subsets: Mapping[float, Sequence[np.ndarray]]


def _with_ticks(pairs: Iterable[tuple[Key, Found]], tick: Tick) -> dict[Key, Found]:
    found = {}
    for key, value in pairs:
        found[key] = value
        tick()
    return found


def _fits(
    places: Sequence[Place], vectors: Vectors, prepared: _Prepared, *, control: bool = False
) -> dict[float, list[Answers]]:
    """Answers for each fraction; labels drawn by lot for words with the largest only."""
    largest = max(prepared.subsets)
    return {
        fraction: answers(places, vectors, prepared.labels, subsets=rows, control=control and fraction == largest)
        for fraction, rows in prepared.subsets.items()
    }


def _prepare(start: Moment, task: str, plan: Plan) -> tuple[_Prepared | None, list[dict[str, Any]]]:
    """What to fit of a task of a run, and rows for what cannot be probed."""
    row = {**start.columns(), "metric": METRIC, "group": task}
    if task not in start.run.probe_tasks:
        there = ", ".join(start.run.probe_tasks)
        reason = f"{start.name} was not captured with the probe task {task}, but with {there}"
        return None, [{**row, "status": "not-captured", "reason": reason}]
    train, test = (start.run.probe_task(task, split) for split in ("train", "test"))
    if why := refusal(train, test):
        return None, [{**row, **why}]
    labels = TaskLabels.of(train, test)
    rows, subsets = [], {}
    for fraction in plan.fractions:
        chosen = plan.subsets(labels, fraction)
        reasons = [why for part in chosen if (why := refusal_of_classes(labels.train[part], labels.n_classes))]
        if reasons:
            rows.append({**row, "group": group_name(task, fraction), **reasons[0]})
        else:
            subsets[fraction] = chosen
    return (_Prepared(labels, subsets) if subsets else None), rows


def by_place(found: Sequence[Answers]) -> dict[Place, Answers]:
    """Answers by their place."""
    return {each.place: each for each in found}
