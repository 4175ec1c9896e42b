"""Whether what an experiment names is there, before hours of work begin."""

from dynprobe.capture.models import resolve_model
from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments.experiment import Experiment
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
        has no classes.
    """
    stages = [stage for cell in experiment.cells for stage in cell.stages]
    measures = [cell.measure for cell in experiment.cells]
    for model in dict.fromkeys(stage.model for stage in stages):
        resolve_model(model)
    for name in dict.fromkeys(stage.task for stage in stages):
        missing = {"train", "validation"} - set(_load(name, experiment).splits)
        if missing:
            raise UsageError(
                f"{experiment.name}: task {name} must have the splits to train on; it lacks {sorted(missing)}"
            )
    for name in dict.fromkeys(task for measure in measures for task in measure.probes):
        if _load(name, experiment).is_regression:
            raise UsageError(f"{experiment.name}: probe task {name} must have classes; its labels are numbers")
    for name in dict.fromkeys(measure.probe_task for measure in measures if measure.probe_task):
        if "validation" not in _load(name, experiment).splits:
            raise UsageError(f"{experiment.name}: probe task {name} must have a validation split, which is measured on")


def _load(name: str, experiment: Experiment) -> Task:
    try:
        return load_task(name)
    except DynprobeError as error:
        raise UsageError(f"{experiment.name}: {error}") from error
