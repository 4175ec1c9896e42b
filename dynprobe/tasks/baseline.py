"""What a task gives away without a language model: the majority class, and bags of words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from dynprobe.errors import TaskDataError
from dynprobe.tasks.task import Split, Task

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Baseline:
    """Accuracy of a simple classifier, with its interval.

    Attributes
    ----------
    name
        ``majority`` or ``tfidf``.
    columns
        Text columns that the classifier saw; none for ``majority``.
    accuracy
        Share of right answers, 0 to 1.
    low, high
        Exact (Clopper-Pearson) 95 % interval of the accuracy.
    n
        Number of examples.
    """

    name: str
    columns: tuple[str, ...]
    accuracy: float
    low: float
    high: float
    n: int


def baselines(task: Task, *, split: str = "test") -> tuple[Baseline, ...]:
    """Accuracy of simple classifiers: what a fine-tuned model must beat before its changes mean anything.

    A side of a pair task that alone beats the majority says that the task can be solved without comparing.

    Parameters
    ----------
    task
        A task with classes. The classifiers are fitted on its train split.
    split
        Split that is measured.

    Returns
    -------
    tuple of Baseline
        The majority class of the train split; TF-IDF of words and pairs of neighbouring words with logistic regression
        on all texts; for pairs, the same on each text alone. The texts of a pair have features of their own, so the
        classifier can add up what each says, but not compare them.

    Raises
    ------
    TaskDataError
        For regression, and for splits without labels.

    Notes
    -----
    Deterministic: the solver (L-BFGS) starts at zero and draws nothing.
    """
    train, measured = task["train"], task[split]
    if task.is_regression or train.labels is None or measured.labels is None:
        raise TaskDataError(f"baselines need classes in train and {split}; task `{task.name}` has none there")
    majority = int(np.bincount(train.labels).argmax())
    results = [_baseline("majority", (), np.asarray(measured.labels) == majority)]
    sides = range(len(task.text_columns))
    views = [list(sides)] + ([[side] for side in sides] if len(sides) > 1 else [])
    for view in views:
        right = _tfidf_predictions(train, measured, view) == measured.labels
        results.append(_baseline("tfidf", tuple(task.text_columns[side] for side in view), right))
    return tuple(results)


def binomial_interval(successes: int, n: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) 95 % interval of a probability.

    Parameters
    ----------
    successes, n
        `successes` of `n` trials, 0 to `n`.

    Returns
    -------
    tuple of float
        Low and high end, each in [0, 1].

    Raises
    ------
    ValueError
        When `n` is less than 1 or `successes` out of range.

    Notes
    -----
    The ends are the probabilities at which a tail of the binomial distribution is 2.5 %, found by halving.

    References
    ----------
    Clopper and Pearson (1934), Biometrika 26.

    Examples
    --------
    With no success in n trials the high end solves (1 - p)^n = 0.025.

    >>> low, high = binomial_interval(0, 10)
    >>> low, round(high, 6) == round(1 - 0.025 ** 0.1, 6)
    (0.0, True)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"`successes` must be from 0 to `n` >= 1; got {successes} of {n}")
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if successes == 0 else _halve(lambda p: 1 - _at_most(successes - 1, n, p) < tail)
    high = 1.0 if successes == n else _halve(lambda p: _at_most(successes, n, p) > tail)
    return low, high


def _at_most(k: int, n: int, p: float) -> float:
    """Probability of at most `k` successes in `n` trials, summed in logarithms."""
    i = np.arange(k + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_terms = factorial[n] - factorial[i] - factorial[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(np.exp(log_terms).sum())


def _halve(is_below: Callable[[float], bool]) -> float:
    """Probability at which a monotone condition stops to hold."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _baseline(name: str, columns: tuple[str, ...], right: np.ndarray) -> Baseline:
    successes, n = int(right.sum()), len(right)
    low, high = binomial_interval(successes, n)
    return Baseline(name=name, columns=columns, accuracy=successes / n, low=low, high=high, n=n)


def _tfidf_predictions(train: Split, measured: Split, view: Sequence[int]) -> np.ndarray:
    # The side is written before each word, so that a word on the left and the same on the right are two features.
    model = make_pipeline(
        TfidfVectorizer(analyzer=_Grams(tuple(view)), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=2000),
    )
    return model.fit(train.texts, train.labels).predict(measured.texts)


@dataclass(frozen=True)
class _Grams:
    """Words and neighbouring pairs of words of some texts of an example, marked with the text they are from."""

    view: tuple[int, ...]

    def __call__(self, texts: tuple[str, ...]) -> list[str]:
        grams = []
        for side in self.view:
            words = texts[side].lower().split()
            grams += [f"{side}:{word}" for word in words]
            grams += [f"{side}:{a} {b}" for a, b in pairwise(words)]
        return grams
