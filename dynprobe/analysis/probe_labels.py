"""The labelled examples of a probe task: which belong together, folds, smaller training sets, labels drawn by lot for words."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprobe.analysis.probing import N_FOLDS, stratified_folds
from dynprobe.probe_set import ProbeSet, choose_examples

MIN_TEST = 30
# Tokens that a larger share of the training examples holds decide no control label: nearly all would have the same one.
COMMON = 0.1


@dataclass(frozen=True, eq=False)
class TaskLabels:
    """Labels and groups of the examples of a probe task.

    Attributes
    ----------
    n_classes
        Number of classes in train and test together.
    train, test
        (n_train,) and (n_test,) class of each example, 0-based.
    train_groups, test_groups
        What each example shares with others: its first text, or its tokens where texts are not known.
    train_ids
        Content hash of each training example.
    train_words, test_words
        The token that decides the control label of each example.
    fingerprint
        Two tasks with the same one learn from the same examples, and ask the same questions with the same answers.
    """

    n_classes: int
    train: np.ndarray
    test: np.ndarray
    train_groups: tuple[str, ...]
    test_groups: tuple[str, ...]
    train_ids: tuple[str, ...]
    train_words: tuple[str, ...]
    test_words: tuple[str, ...]
    fingerprint: tuple[str | None, ...]

    @classmethod
    def of(cls, train: ProbeSet, test: ProbeSet) -> "TaskLabels":
        """Labels of the two splits of a probe task; both must have labels."""
        classes, both = np.unique(np.concatenate([_labels(train), _labels(test)]), return_inverse=True)
        return cls(
            n_classes=len(classes),
            train=both[: train.n_examples],
            test=both[train.n_examples :],
            train_groups=_groups(train),
            test_groups=_groups(test),
            train_ids=train.example_ids,
            **dict(zip(("train_words", "test_words"), _deciding_words(train, test), strict=True)),
            fingerprint=tuple(part for split in (train, test) for part in (split.fingerprint, split.label_fingerprint)),
        )

    @property
    def chance(self) -> float:
        """Share of the commonest class among the test examples."""
        return float(np.bincount(self.test).max() / len(self.test))

    def subset(self, fraction: float, seed: int) -> np.ndarray:
        """Rows of a smaller training set: whole groups, each class in proportion, another choice for each seed.

        Of one seed the smaller fractions lie within the larger ones.
        """
        if fraction >= 1:
            return np.arange(len(self.train))
        names = list(dict.fromkeys(self.train_groups))
        members: dict[str, list[int]] = {name: [] for name in names}
        for row, name in enumerate(self.train_groups):
            members[name].append(row)
        commonest = np.array([int(np.bincount(self.train[members[name]]).argmax()) for name in names])
        order = choose_examples([_hash(f"{seed}", name) for name in names], commonest, n_examples=len(names))
        rows: list[int] = []
        for index in order:
            if len(rows) >= fraction * len(self.train):
                break
            rows += members[names[index]]
        return np.array(sorted(rows))

    def folds(self, rows: np.ndarray) -> np.ndarray:
        """Fold of each of some training rows; examples of a group share one."""
        groups, ids = ([values[i] for i in rows] for values in (self.train_groups, self.train_ids))
        return stratified_folds(self.train[rows], ids, groups)

    def control(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels of train and test drawn by lot, one for each deciding word, with about the same class shares.

        After the control tasks of Hewitt and Liang (2019): a probe can get these right by knowing words, and by nothing else.
        """
        words, counts = np.unique(self.train_words, return_counts=True)
        order = np.argsort([_hash("control", str(word)) for word in words])
        places = (np.cumsum(counts[order]) - counts[order] / 2) / len(self.train)
        shares = np.cumsum(np.bincount(self.train, minlength=self.n_classes)[:-1]) / len(self.train)
        drawn = dict(zip(words[order].tolist(), np.searchsorted(shares, places, side="right").tolist(), strict=True))

        def label(word: str) -> int:
            unseen = int(_hash("control", word)[:8], 16) / 2**32
            return int(drawn.get(word, np.searchsorted(shares, unseen, side="right")))

        train, test = (np.array([label(word) for word in own]) for own in (self.train_words, self.test_words))
        return train, test


def refusal(train: ProbeSet, test: ProbeSet) -> dict[str, Any]:
    """Status and reason why a probe task cannot be probed; empty when it can."""
    for split, probe in (("training", train), ("test", test)):
        if probe.labels is None:
            return {"status": "not-captured", "reason": f"the {split} examples of the probe task have no labels"}
        if probe.labels.ndim != 1 or probe.labels.dtype.kind == "f":
            return {"status": "undefined", "reason": f"the labels of the {split} examples are numbers, not classes"}
    if test.n_examples < MIN_TEST:
        reason = f"{test.n_examples} test examples; at least {MIN_TEST} are needed"
        return {"status": "insufficient-sample", "reason": reason, "n": test.n_examples}
    labels = TaskLabels.of(train, test)
    return refusal_of_classes(labels.train, labels.n_classes)


def refusal_of_classes(labels: np.ndarray, n_classes: int) -> dict[str, Any]:
    """Status and reason why training labels, 0 to n_classes - 1, cannot be probed; empty when they can."""
    counts = np.bincount(labels, minlength=n_classes)
    if np.count_nonzero(counts) < 2:
        return {"status": "undefined", "reason": "all training examples of the probe task have the same label"}
    if counts.min() < N_FOLDS:
        reason = f"a class has {counts.min()} training examples; at least {N_FOLDS} are needed, one for each fold"
        return {"status": "insufficient-sample", "reason": reason}
    return {}


def _labels(probe: ProbeSet) -> np.ndarray:
    return np.asarray(probe.labels)


def _groups(probe: ProbeSet) -> tuple[str, ...]:
    return probe.example_ids if probe.texts is None else tuple(texts[0] for texts in probe.texts)


def _deciding_words(train: ProbeSet, test: ProbeSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """For each example the commonest of its tokens that few examples hold, so that both splits have it; else the example."""
    tokens = [_tokens(split) for split in (train, test)]
    held = Counter(token for own in tokens[0] for token in own)
    most = max(1.0, COMMON * train.n_examples)

    def of(split: ProbeSet, own: Sequence[Sequence[int]]) -> tuple[str, ...]:
        chosen = [max((t for t in known if held[t] <= most), key=lambda t: (held[t], t), default=None) for known in own]
        return tuple(str(t) if t is not None else name for t, name in zip(chosen, split.example_ids, strict=True))

    return of(train, tokens[0]), of(test, tokens[1])


def _tokens(probe: ProbeSet) -> list[list[int]]:
    """Each token of an example once, special ones left out; none where the inputs are no tokens."""
    ids, stack = probe.inputs.get("input_ids"), probe.stacks[0]
    if ids is None or ids.ndim != 2 or stack not in probe.real:
        return [[] for _ in range(probe.n_examples)]
    kept = probe.real[stack] & ~probe.special[stack]
    return [np.unique(row[mask]).tolist() for row, mask in zip(ids, kept, strict=True)]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", errors="surrogatepass")).hexdigest()


def group_name(task: str, fraction: float) -> str:
    """What rows of a task are called, with the share of the training examples where it is not all of them.

    Examples
    --------
    >>> group_name("wic", 1.0), group_name("wic", 0.1)
    ('wic', 'wic, 10 % of the training examples')
    """
    return task if fraction >= 1 else f"{task}, {100 * fraction:.3g} % of the training examples"


def require_fractions(fractions: Sequence[float], n_seeds: int) -> tuple[float, ...]:
    """Fractions from the largest on, checked.

    Raises
    ------
    ValueError
        For fractions outside (0, 1], none, or fewer than one seed.
    """
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"`fractions` must be shares of the training examples in (0, 1]; got {list(fractions)}")
    if n_seeds < 1:
        raise ValueError(f"`n_seeds` must be at least 1; got {n_seeds}")
    return tuple(sorted(set(fractions), reverse=True))
