"""Labelled tasks: the shipped ones, the user's files, data sets in memory; with splits that share no text."""

from dynprobe.tasks.baseline import Baseline, baselines
from dynprobe.tasks.encoding import encode
from dynprobe.tasks.load import load_task, read_texts, task_from_dataset
from dynprobe.tasks.shipped import shipped_license, shipped_tasks
from dynprobe.tasks.task import Split, Task

__all__ = [
    "Baseline",
    "Split",
    "Task",
    "baselines",
    "encode",
    "load_task",
    "read_texts",
    "shipped_license",
    "shipped_tasks",
    "task_from_dataset",
]
