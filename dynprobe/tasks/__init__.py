"""Labelled tasks: shipped, of packages, of GLUE, the user's files, data sets in memory; with splits that share no text."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dynprobe.tasks.encoding import encode
from dynprobe.tasks.load import load_task, read_texts, task_from_dataset
from dynprobe.tasks.packaged import packaged_tasks
from dynprobe.tasks.probing import probe_task, probed_part
from dynprobe.tasks.shipped import shipped_license, shipped_tasks
from dynprobe.tasks.task import Split, Task

if TYPE_CHECKING:
    from dynprobe.tasks.baseline import Baseline, baselines

__all__ = [
    "Baseline",
    "Split",
    "Task",
    "baselines",
    "encode",
    "load_task",
    "packaged_tasks",
    "probe_task",
    "probed_part",
    "read_texts",
    "shipped_license",
    "shipped_tasks",
    "task_from_dataset",
]


def __getattr__(name: str) -> Any:
    """Load the baselines, and scikit-learn with them, when they are first used: who only reads texts need not wait."""
    if name not in ("Baseline", "baselines"):
        raise AttributeError(f"module 'dynprobe.tasks' must be asked for one of {__all__}; got {name!r}")
    return getattr(import_module("dynprobe.tasks.baseline"), name)
