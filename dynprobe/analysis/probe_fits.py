"""Linear probes of one snapshot, or of an encoder with random weights, for one probe task: who answered what correctly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dynprobe.analysis.moments import Moment
from dynprobe.analysis.probe_labels import TaskLabels
from dynprobe.metrics.tuned_probes import TunedProbe, fit_tuned_probe

Vectors = Callable[[str, str, int, str], np.ndarray | None]


@dataclass(frozen=True)
class Place:
    """A layer of a stack and a kind of pooled vector."""

    stack: str
    kind: str
    layer: int


@dataclass(frozen=True, eq=False)
class Answers:
    """What the probe of one place got right.

    Attributes
    ----------
    place
        Where the vectors come from.
    right
        (n_fits, n_test) whether each test example was labelled correctly, one row per training subset.
    held_out
        Mean accuracy and minus the mean log-loss over the training folds: what a layer is chosen by.
    control
        (n_test,) the same for labels drawn by lot for words, or ``None``.
    """

    place: Place
    right: np.ndarray
    held_out: tuple[float, float]
    control: np.ndarray | None = None


def answers(
    places: Sequence[Place],
    vectors: Vectors,
    labels: TaskLabels,
    *,
    subsets: Sequence[np.ndarray],
    control: bool = False,
) -> list[Answers]:
    """Fit probes on each training subset at each place and score them on the test examples.

    Parameters
    ----------
    places
        Where to fit.
    vectors
        Gives the pooled vectors of a split ("train" or "test"), kind, layer and stack, or ``None``.
    labels
        Labels and groups of the task.
    subsets
        Training rows of each fit.
    control
        Whether to fit labels drawn by lot for words as well, on the first subset.

    Returns
    -------
    list of Answers
        For each place that has vectors.
    """
    found: list[Answers] = []
    for alike in _alike(places):
        pairs = [[vectors(split, p.kind, p.layer, p.stack) for split in ("train", "test")] for p in alike]
        known = [i for i, pair in enumerate(pairs) if all(part is not None for part in pair)]
        if known:
            train, test = (np.stack([np.asarray(pairs[i][k], dtype=np.float64) for i in known]) for k in (0, 1))
            found += _fitted([alike[i] for i in known], train, test, labels, subsets, control=control)
    return found


def _fitted(
    places: Sequence[Place],
    train: np.ndarray,
    test: np.ndarray,
    labels: TaskLabels,
    subsets: Sequence[np.ndarray],
    *,
    control: bool,
) -> list[Answers]:
    drawn = labels.control() if control else None
    right, held_out, by_lot = [], [], None
    for number, rows in enumerate(subsets):
        own = labels.train[rows][None]
        with_control = drawn is not None and number == 0 and len(np.unique(drawn[0][rows])) > 1
        if drawn is not None and with_control:
            own = np.concatenate([own, drawn[0][rows][None]])
        fitted = fit_tuned_probe(train[:, rows], own, labels.folds(rows), n_classes=labels.n_classes)
        predicted = np.asarray(fitted.probe.predict(test))
        right.append(predicted[0] == labels.test)
        held_out.append(_held_out(fitted))
        if drawn is not None and with_control:
            by_lot = predicted[1] == drawn[1]
    scores = np.mean(held_out, axis=0)
    return [
        Answers(
            place,
            np.stack([part[i] for part in right]),
            (float(scores[0, i]), float(scores[1, i])),
            None if by_lot is None else by_lot[i],
        )
        for i, place in enumerate(places)
    ]


def _held_out(fitted: TunedProbe) -> np.ndarray:
    return np.stack([fitted.accuracy[0], -fitted.log_loss[0]])


def _alike(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Places of one stack and kind together: their vectors have one width."""
    for key in dict.fromkeys((place.stack, place.kind) for place in places):
        yield [place for place in places if (place.stack, place.kind) == key]


def places_of(moment: Moment, task: str, *, layers: Sequence[int] | None = None) -> list[Place]:
    """All places of a snapshot that a probe task was measured at, the stand-in for [CLS] first; only some layers if asked."""
    snapshot, part = moment.snapshot, f"{task}.train"
    return [
        Place(stack, kind, layer)
        for stack in moment.run.stacks
        for kind in snapshot.pooled_kinds(stack, probe=part)
        for layer in snapshot.pooled_layers(kind, stack, probe=part)
        if layers is None or layer in layers
    ]


def snapshot_vectors(moment: Moment, task: str) -> Vectors:
    """Pooled vectors of a snapshot, for :func:`answers`."""

    def vectors(split: str, kind: str, layer: int, stack: str) -> np.ndarray | None:
        return moment.snapshot.pooled(kind, layer, stack, probe=f"{task}.{split}")

    return vectors


def random_vectors(moment: Moment, task: str) -> Vectors:
    """Pooled vectors of the same architecture with random weights, ``None`` where they were not measured."""

    def vectors(split: str, kind: str, layer: int, stack: str) -> np.ndarray | None:
        return moment.run.random_encoder(task, split, kind, layer, stack)

    return vectors


def best_of(candidates: Sequence[Answers]) -> Answers:
    """The place that read the held-out training examples best; of equals the first."""
    return max(candidates, key=lambda each: each.held_out)


def last_of(candidates: Sequence[Answers]) -> Answers:
    """The last layer, of the first kind of pooled vector."""
    kind = candidates[0].place.kind
    return max((each for each in candidates if each.place.kind == kind), key=lambda each: each.place.layer)
