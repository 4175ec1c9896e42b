"""The tasks of GLUE, read through the optional `datasets` library."""

from typing import Any

import numpy as np

from dynprobe.errors import TaskDataError
from dynprobe.tasks.task import Split

PREFIX = "glue/"
TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
_ON_THE_HUB = "nyu-mll/glue"


def glue_splits(name: str) -> dict[str, Any]:
    """Train and validation split of a GLUE task, as the `datasets` library gives them.

    Parameters
    ----------
    name
        ``glue/`` and the task, such as ``glue/rte``. The validation split of ``glue/mnli`` is the matched one.

    Raises
    ------
    TaskDataError
        For an unknown task, without the library, or when the data can be had neither from the hub nor from its cache.
    """
    task = name.removeprefix(PREFIX)
    if task not in TASKS:
        raise TaskDataError(f"a GLUE task must be one of {', '.join(PREFIX + known for known in TASKS)}; got `{name}`")
    try:
        import datasets  # noqa: PLC0415 - optional
    except ImportError as error:
        raise TaskDataError(
            f"`{name}` needs the datasets library; install it with `pip install dynprobe[datasets]`"
        ) from error
    try:
        found = datasets.load_dataset(_ON_THE_HUB, task)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise TaskDataError(
            f"`{name}` must come from the model hub ({_ON_THE_HUB}) or from the cache of the datasets library; got neither: "
            f"{type(error).__name__}: {error}. Load it once where the hub can be reached, or choose another task"
        ) from error
    return {"train": found["train"], "validation": found["validation_matched" if task == "mnli" else "validation"]}


def halved(train: Split, validation: Split) -> dict[str, Split]:
    """Cut the validation split in two: the labels of the test splits of GLUE are not public.

    Parameters
    ----------
    train, validation
        The splits of the benchmark.

    Returns
    -------
    dict
        The train split without the texts of the others; one half for choosing (``validation``) and one for reporting
        (``test``), each class in proportion, no text in both. Which text is in which half depends on the content alone.

    Notes
    -----
    After Zhang et al. (2021), who halve each class at random with one fixed seed; the halves here are others than theirs.
    """
    held_out = set(validation.texts)
    kept = _rows(train, [i for i, texts in enumerate(train.texts) if texts not in held_out])
    last = {texts: i for i, texts in enumerate(validation.texts)}  # of texts that stand there twice one is kept
    unique = _rows(validation, sorted(last.values()))
    ordered = unique.take(len(unique))
    half = (len(ordered) + 1) // 2
    return {
        "train": kept,
        "validation": ordered.head(half),
        "test": _rows(ordered, list(range(half, len(ordered)))),
    }


def _rows(split: Split, rows: list[int]) -> Split:
    labels = None if split.labels is None else np.asarray(split.labels)[rows]
    return Split(texts=tuple(split.texts[i] for i in rows), labels=labels)
