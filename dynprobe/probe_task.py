"""A task to measure beside the main probe set: labelled examples to fit a linear probe on, and others to test it on.

From snapshot to snapshot such probes say whether a model still holds what the task asks for, layer by layer, also when the
model is trained on something else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprobe.errors import UsageError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH, ProbeSet

# Texts of each example, one or two, and the class of each.
LabelledTexts = tuple[Sequence[tuple[str, ...]], Sequence[int] | np.ndarray]


@dataclass(frozen=True)
class ProbeTask:
    """The examples of a probe task as model inputs; frozen.

    Attributes
    ----------
    train
        What probes are fitted on, with labels of at least two classes.
    test
        What probes are scored on, labelled with the same classes.

    Raises
    ------
    UsageError
        Without labels, for labels that are no classes, with one class only, or with other names of the classes in `test`.

    Examples
    --------
    >>> ids = np.array([[5, 6], [7, 8]])
    >>> inputs = {"inputs": {"input_ids": ids}, "real": {"model": ids > 0}, "special": {"model": ids < 0}}
    >>> task = ProbeTask(train=ProbeSet(**inputs, labels=[0, 1]), test=ProbeSet(**inputs, labels=[1, 1]))
    >>> task.n_examples, task.n_classes
    (4, 2)
    """

    train: ProbeSet
    test: ProbeSet

    def __post_init__(self) -> None:
        for split, probe in self.splits.items():
            labels = probe.labels
            if labels is None:
                raise UsageError(
                    f"`{split}` of a probe task must have labels; got none. Give the class of each example"
                )
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise UsageError(
                    f"labels in `{split}` of a probe task must be one class index per example; got {labels.dtype} of shape "
                    f"{labels.shape}. Probes of regression are not measured"
                )
            n_classes = int(labels.max()) + 1 if probe.label_names is None else len(probe.label_names)
            if labels.min() < 0 or labels.max() >= n_classes:
                raise UsageError(
                    f"labels in `{split}` of a probe task must be indices of its classes, 0 to {n_classes - 1}; got "
                    f"{labels.min()} to {labels.max()}"
                )
        if self.n_classes < 2:
            raise UsageError(
                f"`train` of a probe task must hold at least two classes; got {self.n_classes}. Give more examples"
            )
        if self.train.label_names != self.test.label_names:
            raise UsageError(
                f"`train` and `test` of a probe task must have the same classes; got {self.train.label_names} and "
                f"{self.test.label_names}"
            )

    @property
    def splits(self) -> Mapping[str, ProbeSet]:
        """The two probe sets by name, ``"train"`` first."""
        return {"train": self.train, "test": self.test}

    @property
    def n_examples(self) -> int:
        """Number of examples of both."""
        return self.train.n_examples + self.test.n_examples

    @property
    def n_classes(self) -> int:
        """Number of classes that `train` has examples of."""
        return len(np.unique(self.train.labels)) if self.train.labels is not None else 0

    @classmethod
    def from_texts(
        cls,
        train: LabelledTexts,
        test: LabelledTexts,
        tokenizer: Callable[..., Mapping[str, Any]],
        *,
        label_names: Sequence[str] | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
    ) -> "ProbeTask":
        """Tokenise all the texts that are given; of examples with the same tokens, one is kept.

        Parameters
        ----------
        train, test
            One tuple of one or two texts per example, and one class index per example.
        tokenizer
            A transformers tokenizer, or anything that is called like one.
        label_names
            Name of each class index.
        max_length
            Examples are truncated to that many tokens.

        Raises
        ------
        UsageError
            As for the class itself.
        ProbeSetError
            Without any text, or when a text has no token.
        """

        def tokenised(texts: Sequence[tuple[str, ...]], labels: Sequence[int] | np.ndarray) -> ProbeSet:
            return ProbeSet.from_texts(
                texts,
                tokenizer,
                labels=labels,
                label_names=label_names,
                n_examples=max(1, len(texts)),
                max_length=max_length,
            )

        return cls(train=tokenised(*train), test=tokenised(*test))
