"""From a task to what a capture measures of it beside its main probe set."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynprobe.errors import UsageError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH
from dynprobe.probe_task import ProbeTask
from dynprobe.tasks.load import load_task
from dynprobe.tasks.task import Split, Task

DEFAULT_N_TRAIN = 1000
DEFAULT_N_TEST = 500


def probe_task(
    task: Task | str | Path,
    tokenizer: Callable[..., Mapping[str, Any]],
    *,
    n_train: int | None = DEFAULT_N_TRAIN,
    n_test: int | None = DEFAULT_N_TEST,
    max_length: int = DEFAULT_MAX_LENGTH,
) -> ProbeTask:
    """Choose and tokenise the examples of a task that snapshots are measured on beside their main probe set.

    Parameters
    ----------
    task
        A task, or a name or path as for :func:`~dynprobe.tasks.load_task`.
    tokenizer
        The tokenizer of the model that will be measured.
    n_train, n_test
        As for :func:`probed_part`. Of examples with the same tokens one is kept.
    max_length
        Examples are truncated to that many tokens.

    Returns
    -------
    ProbeTask
        To be given to a Recorder or callback as one of its `probe_tasks`.

    Raises
    ------
    UsageError
        As for :func:`probed_part`.
    TaskDataError
        As for :func:`~dynprobe.tasks.load_task`.

    Examples
    --------
    >>> Recorder(model, probe_set, "run", probe_tasks={"wic": probe_task("wic", tokenizer)})  # doctest: +SKIP
    """
    part = probed_part(task if isinstance(task, Task) else load_task(task), n_train=n_train, n_test=n_test)
    train, test = ((part[name].texts, _labels(part[name])) for name in ("train", "test"))
    return ProbeTask.from_texts(train, test, tokenizer, label_names=part.label_names, max_length=max_length)


def probed_part(task: Task, *, n_train: int | None = DEFAULT_N_TRAIN, n_test: int | None = DEFAULT_N_TEST) -> Task:
    """The examples of a task that probes are fitted on, and those that they are scored on, as a task of its own.

    Parameters
    ----------
    task
        A task with classes. Its splits share no text, so that a probe cannot know its test examples.
    n_train, n_test
        At most that many, stratified by class and chosen by content: the same ones in every run. ``None`` takes all.

    Returns
    -------
    Task
        With the splits ``"train"`` and ``"test"``, which is the validation split where the task has no labelled test split.

    Raises
    ------
    UsageError
        For a regression, a split without labels, no split to score on, or training examples of one class only.
    """
    for name, number in (("n_train", n_train), ("n_test", n_test)):
        if number is not None and number < 1:
            raise UsageError(f"`{name}` must be at least 1 example of a probe task; got {number}")
    if task.is_regression:
        raise UsageError(
            f"a probe task must have classes; got the regression `{task.name}`. Name a column of classes, or leave it out"
        )
    labelled = {name: split for name, split in task.splits.items() if split.labels is not None}
    scored = next((labelled[name] for name in ("test", "validation") if name in labelled), None)
    if "train" not in labelled or scored is None:
        raise UsageError(
            "a probe task must have a train split and a test or validation split with labels; got labels of "
            f"{', '.join(labelled) or 'no split'} in `{task.name}`"
        )
    train, test = _some(labelled["train"], n_train), _some(scored, n_test)
    if len(set(_labels(train))) < 2:
        raise UsageError(
            f"a probe task must have training examples of at least two classes; got one in {len(train)} example(s) of "
            f"`{task.name}`. Take more examples, or leave it out"
        )
    return replace(task, splits={"train": train, "test": test})


def _some(split: Split, n: int | None) -> Split:
    return split if n is None else split.take(min(n, len(split)))


def _labels(split: Split) -> list[int]:
    return [] if split.labels is None else [int(label) for label in split.labels]
