"""What an experiment keeps of a finished training: small tables read from its run directory."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynprobe.analysis.drift import PREFIX, Drift
from dynprobe.run import Run
from dynprobe.tasks import Task

_BLOCK = re.compile(r"\.(?:layers?|h|block)\.(\d+)\.")
_CURVES = ("loss", "task_loss", "regulariser", "dropout_share", "extra_forwards", "extra_backwards", "grad_norm")
_DIGITS = 6


def read_training(log: Sequence[Mapping[str, Any]], task: Task) -> dict[str, Any]:
    """Curves of a training.

    Parameters
    ----------
    log
        What the Trainer logged.
    task
        What was trained on.

    Returns
    -------
    dict
        ``n_classes``; ``n_test`` and ``majority``, the examples of the test split and the share of its commonest class;
        ``training`` and ``evaluations``, name to values along ``step``.
    """
    return {
        "n_classes": task.n_classes,
        "n_test": len(task.splits.get("test", task["validation"])),
        "majority": majority(task),
        "training": _without_zeros(_curves(log, lambda record: "loss" in record, _CURVES)),
        "evaluations": _curves(log, lambda record: "eval_loss" in record, ("eval_loss", "eval_accuracy")),
    }


def read_run(run: Run) -> dict[str, Any]:
    """How far a training went, from its snapshots.

    Parameters
    ----------
    run
        Its run directory.

    Returns
    -------
    dict
        ``distances``, block to how far its weights moved (L2), and ``weights``, the same relative to their norm; ``drift``,
        step to the numbers of :class:`~dynprobe.analysis.drift.Drift`. What could not be trusted or measured is absent.
    """
    drift, changes = Drift(run.path), run[run.steps[-1]].parameter_changes()
    return {
        "distances": weights_moved(changes, relative=False),
        "weights": weights_moved(changes),
        "drift": {
            str(step): {
                name.removeprefix(f"{PREFIX}/"): _rounded(value)
                for name, value in drift(step).items()
                if "mean" not in name
            }
            for step in run.steps
        },
    }


def majority(task: Task) -> float | None:
    """Share of the commonest class in the test split, or in the validation split; ``None`` for regression."""
    labels = task.splits.get("test", task["validation"]).labels
    if labels is None or task.is_regression:
        return None
    return float(np.bincount(labels).max() / len(labels))


def weights_moved(changes: Mapping[str, tuple[float, float]], *, relative: bool = True) -> dict[str, float]:
    """Distance of the weights from the start, block by block.

    Parameters
    ----------
    changes
        Name of each tensor to its distance and norm.
    relative
        Whether to divide by the norm of the weights now; blocks without weights are then left out.

    Returns
    -------
    dict
        ``block_1`` and so on in order; ``embeddings``; ``other`` for the rest, such as pooler and head.

    Examples
    --------
    >>> weights_moved({"encoder.layer.0.w": (3.0, 4.0), "encoder.layer.0.b": (0.0, 3.0), "embeddings.w": (1.0, 2.0)})
    {'block_1': 0.6, 'embeddings': 0.5}
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, (distance, norm) in changes.items():
        block = _BLOCK.search(name)
        place = f"block_{int(block.group(1)) + 1}" if block else "embeddings" if "embed" in name else "other"
        sums[place][0] += distance**2
        sums[place][1] += norm**2
    order = sorted(sums, key=lambda place: (not place.startswith("block"), len(place), place))
    if not relative:
        return {place: _rounded(math.sqrt(sums[place][0])) for place in order}
    return {place: _rounded(math.sqrt(sums[place][0] / sums[place][1])) for place in order if sums[place][1] > 0}


def _curves(records: Any, wanted: Any, names: tuple[str, ...]) -> dict[str, list[Any]]:
    """Name to values along the steps at which it was logged; a value that is not finite is ``None``."""
    found = [record for record in records if wanted(record)]
    present = [name for name in names if any(name in record for record in found)]
    return {"step": [record["step"] for record in found]} | {
        name: [_finite(record.get(name)) for record in found] for name in present
    }


def _without_zeros(curves: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Standard training has no regulariser and no extra passes: then its loss is that of the task, too."""
    kept = {name: values for name, values in curves.items() if any(values)}
    if "regulariser" not in kept:
        kept.pop("task_loss", None)
    return kept


def _finite(value: Any) -> float | None:
    return _rounded(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
