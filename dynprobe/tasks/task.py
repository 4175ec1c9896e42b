"""What a labelled task is: texts, labels, and the splits they stand in."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from dynprobe.errors import TaskDataError
from dynprobe.probe_set import choose_examples

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Texts with their labels; frozen.

    Attributes
    ----------
    texts
        One tuple per example: one text, or two for tasks on pairs. Any characters but lone surrogates.
    labels
        Class indices (int64), regression targets (float64), or ``None`` where the labels are not known. Read-only.

    Raises
    ------
    TaskDataError
        When the number of labels is not the number of texts.

    Examples
    --------
    >>> split = Split(texts=(("good",), ("bad",)), labels=np.array([1, 0]))
    >>> len(split), split.head(1).texts
    (2, (('good',),))
    """

    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(tuple(fields) for fields in self.texts))
        if self.labels is None:
            return
        labels = np.array(self.labels)
        labels = labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)
        if labels.shape != (len(self.texts),):
            raise TaskDataError(f"`labels` must have {len(self.texts)} entries, one per text; got shape {labels.shape}")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.texts)

    def head(self, n: int) -> "Split":
        """Return the first `n` examples in the order of the file; all where there are fewer.

        Raises
        ------
        ValueError
            When `n` is negative.
        """
        if n < 0:
            raise ValueError(f"`n` must be 0 or more; got {n}")
        return self._select(list(range(min(n, len(self)))))

    def take(self, n: int, *, seed: int = 0) -> "Split":
        """Return `n` examples, each class in proportion: a few-sample version of the split.

        Parameters
        ----------
        n
            Number of examples, from 1 to ``len(split)``.
        seed
            Another seed gives another choice.

        Returns
        -------
        Split
            Nested: with one seed, ``take(100)`` is the first half of ``take(200)``. The choice depends on the content
            and the seed alone, not on the order of the file. Regression targets are stratified by quintile.

        Raises
        ------
        ValueError
            When `n` is out of range.

        Examples
        --------
        >>> split = Split(texts=tuple((word,) for word in "abcdef"), labels=np.array([0, 1, 0, 1, 0, 1]))
        >>> sorted(split.take(4).labels.tolist())
        [0, 0, 1, 1]
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"`n` must be from 1 to {len(self)}, the size of the split; got {n}")
        copies: Counter[tuple[str, ...]] = Counter()
        ids = []
        for fields in self.texts:
            copies[fields] += 1  # equal texts are examples of their own
            ids.append(text_hash(str(seed), str(copies[fields]), *fields))
        return self._select(choose_examples(ids, self.labels, n_examples=n))

    def _select(self, rows: list[int]) -> "Split":
        labels = None if self.labels is None else self.labels[rows]
        return Split(texts=tuple(self.texts[i] for i in rows), labels=labels)


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled task: named splits over the same classes; frozen.

    Attributes
    ----------
    name
        Short name for reports.
    label_names
        Name of each class index, at least two; ``None`` for regression.
    splits
        ``"train"`` and perhaps ``"validation"`` and ``"test"``, in that order.
    text_columns
        What the source calls each text of an example: one name or two.
    description
        One sentence on what is asked.
    source
        Where the data come from.

    Raises
    ------
    TaskDataError
        Without examples or splits, with other split names, one class only, or labels that are no class.

    Examples
    --------
    >>> split = Split(texts=(("good",), ("bad",)), labels=np.array([1, 0]))
    >>> task = Task(name="films", label_names=("bad", "good"), splits={"train": split}, text_columns=("text",))
    >>> task.n_classes, task.is_regression
    (2, False)
    """

    name: str
    label_names: tuple[str, ...] | None
    splits: Mapping[str, Split]
    text_columns: tuple[str, ...]
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        ordered = {name: self.splits[name] for name in SPLIT_NAMES if name in self.splits}
        unknown = sorted(set(self.splits) - set(ordered))
        if unknown or not ordered:
            raise TaskDataError(f"`splits` must be named train, validation or test; got {unknown or 'no split'}")
        object.__setattr__(self, "splits", MappingProxyType(ordered))
        object.__setattr__(self, "text_columns", tuple(self.text_columns))
        for name, split in ordered.items():
            _check_split(self, name, split)

    def __reduce__(self) -> tuple[Callable[..., "Task"], tuple[object, ...]]:
        """Pickle the fields: the read-only view of the splits cannot be pickled itself."""
        rest = (self.text_columns, self.description, self.source)
        return Task, (self.name, self.label_names, dict(self.splits), *rest)

    def __getitem__(self, split: str) -> Split:
        """Return a split by name.

        Raises
        ------
        TaskDataError
            When the task has no such split.
        """
        if split not in self.splits:
            raise TaskDataError(f"task `{self.name}` has no split `{split}`; it has {', '.join(self.splits)}")
        return self.splits[split]

    @property
    def is_regression(self) -> bool:
        """Whether the labels are real numbers instead of classes."""
        return self.label_names is None

    @property
    def n_classes(self) -> int:
        """Number of classes; 1 for regression, the number of outputs that a model head needs."""
        return 1 if self.label_names is None else len(self.label_names)


def text_hash(*texts: str) -> str:
    """Sha256 of texts and of where each ends, in hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _check_split(task: Task, name: str, split: Split) -> None:
    where = f"split `{name}` of task `{task.name}`"
    if len(split) == 0:
        raise TaskDataError(f"{where} must hold at least one example; got none")
    widths = {len(fields) for fields in split.texts}
    if widths != {len(task.text_columns)}:
        raise TaskDataError(f"each example of {where} must have {len(task.text_columns)} text(s); got {sorted(widths)}")
    if task.label_names is not None and len(task.label_names) < 2:
        raise TaskDataError(
            f"task `{task.name}` must have at least two classes; got {list(task.label_names)}. "
            "Name another column with label=..."
        )
    if split.labels is None:
        return
    if task.label_names is None:
        if not np.isfinite(split.labels).all():
            raise TaskDataError(f"targets of {where} must be finite; got NaN or infinity")
    elif split.labels.dtype.kind != "i" or split.labels.min() < 0 or split.labels.max() >= task.n_classes:
        raise TaskDataError(f"labels of {where} must be integers from 0 to {task.n_classes - 1}")
