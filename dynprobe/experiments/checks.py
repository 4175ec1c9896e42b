"""Whether what an experiment names is there, before hours of work begin."""

import numpy as np

from dynprobe.analysis.probe_labels import MIN_TEST, refusal_of_classes
from dynprobe.capture.models import resolve_model
from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments.experiment import Experiment
from dynprobe.experiments.setup import take_examples
from dynprobe.tasks import Task, load_task


def require_usable(experiment: Experiment) -> None:
    """Check that every model and task of an experiment can be found, with the splits and classes that it needs.

    Parameters
    ----------
    experiment
        What is to be run.

    Raises
    ------
    UsageError
        For a model or a task that is not there, a task without the splits to train and validate on, or one to be probed that
        has no classes, no test split, or too few of the examples that probes are fitted on and scored on.
    """
    stages = [stage for cell in experiment.cells for stage in cell.stages]
    measures = [cell.measure for cell in experiment.cells]
    for model in dict.fromkeys(stage.model for stage in stages):
        resolve_model(model)
    for name in dict.fromkeys(stage.task for stage in stages):
        splits = _load(name, experiment).splits
        missing = {"train", "validation"} - {split for split, own in splits.items() if own.labels is not None}
        if missing:
            raise UsageError(
                f"{experiment.name}: task {name} must have the labelled splits to train on; it lacks {sorted(missing)}"
            )
    for name, n_train, n_test in dict.fromkeys(
        (task, measure.probe_train, measure.probe_test) for measure in measures for task in measure.probes
    ):
        _require_probed(take_examples(_load(name, experiment), train=n_train, test=n_test), name, experiment)
    for name in dict.fromkeys(measure.probe_task for measure in measures if measure.probe_task):
        if "validation" not in _load(name, experiment).splits:
            raise UsageError(f"{experiment.name}: probe task {name} must have a validation split, which is measured on")


def _load(name: str, experiment: Experiment) -> Task:
    try:
        return load_task(name)
    except DynprobeError as error:
        raise UsageError(f"{experiment.name}: {error}") from error


def _require_probed(task: Task, name: str, experiment: Experiment) -> None:
    """Whether what capture will keep of a task can be probed: afterwards it would be too late to say so."""
    where = f"{experiment.name}: probe task {name}"
    if task.is_regression:
        raise UsageError(f"{where} must have classes; its labels are numbers")
    splits = {split: task.splits[split].labels for split in ("train", "test") if split in task.splits}
    train, test = splits.get("train"), splits.get("test")
    if train is None or test is None:
        lacking = " and ".join(split for split in ("train", "test") if splits.get(split) is None)
        raise UsageError(f"{where} must have labelled splits to fit and to score probes on; it lacks {lacking}")
    classes, both = np.unique(np.concatenate([train, test]), return_inverse=True)
    reason = f"{len(test)} test examples; at least {MIN_TEST} are needed" if len(test) < MIN_TEST else ""
    reason = reason or refusal_of_classes(both[: len(train)], len(classes)).get("reason", "")
    if reason:
        raise UsageError(
            f"{where} must have enough examples; {reason}. Give `measure` a larger `probe_train` or `probe_test`, or the task "
            "more examples, or leave it out"
        )
