"""A whole experiment as a file describes it: models x arms x seeds, each a chain of trainings with what is measured after."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dynprobe.capture.schedule import Schedule
from dynprobe.capture.settings import parse_bytes
from dynprobe.errors import UsageError
from dynprobe.experiments.setup import Setup, parse_fields, parse_setup
from dynprobe.experiments.task_files import digests_of
from dynprobe.experiments.yaml_file import read_yaml

PAIRS = ("start", "end", "seeds", "arms")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,40}")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured of each training beside its scores.

    Attributes
    ----------
    schedule
        When snapshots are taken, as for ``dynprobe capture``; the drift of each from the first is kept.
    probe_task
        A task on whose examples every training is measured; by default each on its own validation split.
    probe_examples
        How many of them.
    probes
        Tasks for linear probes: what can be read from the vectors of each layer after each training of a chain.
    probe_train, probe_test
        Examples to fit and to score the probes.
    pairs
        Which snapshots are compared layer by layer once all cells are done: ``start`` and ``end`` (every snapshot of a training
        with its first, or with its last one), ``seeds`` (the last ones of all pairs of seeds of an arm), ``arms`` (of all pairs
        of arms with the same seed). Where there are any, the run directories are kept.
    budget
        Bytes for the snapshots of one training, such as ``2GB``.
    isotropy
        Whether to keep the isotropy of [CLS] and of the classifier's vector at each snapshot.
    """

    schedule: str = "ends"
    probe_task: str | None = None
    probe_examples: int = 256
    probes: tuple[str, ...] = ()
    probe_train: int = 500
    probe_test: int = 500
    pairs: tuple[str, ...] = ()
    budget: str = "500MB"
    isotropy: bool = False


@dataclass(frozen=True)
class Cell:
    """One unit of work of an experiment: one model, one arm, one seed.

    Attributes
    ----------
    model, arm
        Names in the file.
    seed
        Of the first training of the chain; each later one has its own.
    stages
        The trainings, each on the encoder that the one before left.
    measure
        What is measured.
    task_files
        Name and hash of the content of each of its tasks that is a file of the user, as
        :func:`~dynprobe.experiments.task_files.digests_of` gives them.
    is_first_seed
        Whether its seed is the first of its arm: what is too large to be kept of every training is kept of that one. Decides
        no number of a result, and is not in the key.
    """

    model: str
    arm: str
    seed: int
    stages: tuple[Setup, ...]
    measure: Measure
    task_files: tuple[tuple[str, str], ...] = ()
    is_first_seed: bool = False

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.model} {self.arm} seed {self.seed}"

    @property
    def key(self) -> str:
        """Name of the cell, with a hash of all that decides its result and is not as it is by default."""
        facts = [*map(_asked, self.stages), _asked(self.measure)]
        # Sorting leaves the order of methods out. Added only where there is something to say, so that other keys stay.
        orders = [list(stage.methods) for stage in self.stages]
        facts += [{"orders of methods": orders}] if any(len(order) > 1 for order in orders) else []
        facts += [{"task files": dict(self.task_files)}] if self.task_files else []
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=dict).encode()).hexdigest()[:10]
        return f"{self.model}.{self.arm}.{self.seed}.{digest}"


@dataclass(frozen=True)
class Experiment:
    """Models x arms x seeds.

    Attributes
    ----------
    name, description
        For tables.
    cells
        All units of work, in the order of the file: the seeds of an arm stand together.
    """

    name: str
    description: str
    cells: tuple[Cell, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, in the order of the file; the first that a model has is what its others are compared with."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order of the file."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))


@dataclass(frozen=True, kw_only=True)
class _File:
    """The top level of an experiment file."""

    name: str
    models: Mapping[str, Any]
    arms: Mapping[str, Any]
    description: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    measure: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | tuple[int, ...] = 5


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file and check all of it but whether its models and tasks are there.

    Parameters
    ----------
    path
        A YAML file; see ``dynprobe experiment --help`` for its words. What an arm says wins over what a model says, that over
        ``tasks`` (settings for a task wherever it is trained on), and that over ``training``.

    Returns
    -------
    Experiment

    Raises
    ------
    UsageError
        When there is no such file, it is no YAML, or anything in it is unknown, missing, given twice or out of range; says
        where.

    Examples
    --------
    >>> len(read_experiment(Path("analyses/methods/standard.yaml")).cells)  # doctest: +SKIP
    169
    """
    return parse_experiment(read_yaml(path), where=str(path))


def parse_experiment(words: Any, *, where: str = "experiment") -> Experiment:
    """As :func:`read_experiment`, from what was read.

    Parameters
    ----------
    words
        Names with values, as in the file.
    where
        For messages.
    """
    file: _File = parse_fields(_File, words, where=where)
    measure: Measure = parse_fields(Measure, file.measure, where=f"{where}, measure")
    _check_measure(measure, f"{where}, measure")
    for kind in ("models", "arms"):
        if not getattr(file, kind):
            raise UsageError(f"{where}: `{kind}` must name at least one")
        for name in getattr(file, kind):
            if not _NAME.fullmatch(str(name)):
                raise UsageError(f"{where}: names of {kind} must be letters, digits, _, + and -; got {name!r:.60}")
    cells = [
        cell
        for model, of_model in file.models.items()
        for arm, of_arm in file.arms.items()
        for cell in _cells(str(model), of_model, str(arm), of_arm, (file, measure, where))
    ]
    if not cells:
        raise UsageError(f"{where}: at least one arm must be for one of the models; got none")
    _check_tasks(file.tasks, cells, where)
    _check_partners(cells, where)
    _check_captured(cells, where)
    if "arms" in measure.pairs:
        _check_same_examples(cells, where)
    return Experiment(file.name, file.description, _with_task_files(cells))


def _with_task_files(cells: list[Cell]) -> tuple[Cell, ...]:
    """Cells with the content of the user's files that they depend on; each file is read once."""
    of_cells = [{stage.task for stage in cell.stages} | set(_measured_on(cell.measure)) for cell in cells]
    digests = digests_of(name for names in of_cells for name in names)
    return tuple(
        replace(cell, task_files=tuple(pair for pair in digests if pair[0] in names))
        for cell, names in zip(cells, of_cells, strict=True)
    )


def _asked(part: Setup | Measure) -> dict[str, Any]:
    """What is not as it is by default: a later version with more to choose from knows the cell again."""
    values = {entry.name: getattr(part, entry.name) for entry in fields(part)}
    defaults = {entry.name: entry.default for entry in fields(part)}
    return {name: value for name, value in values.items() if value != defaults[name] and value not in ({}, ())}


def _cells(model: str, of_model: Any, arm: str, of_arm: Any, context: tuple[_File, Measure, str]) -> list[Cell]:
    file, measure, where = context
    own_model, own_arm = (_mapping(words, f"{where}, {name}") for words, name in ((of_model, model), (of_arm, arm)))
    only = own_arm.pop("models", None)
    if only is not None and not (isinstance(only, list) and set(only) <= set(file.models)):
        raise UsageError(
            f"{where}, arm {arm}: `models` must be a list of models of this file {list(file.models)}; got {only!r:.60}"
        )
    if only is not None and model not in only:
        return []
    place = f"{where}, arm {arm} of model {model}"
    of_seeds = own_model.pop("seeds", file.seeds), own_arm.pop("seeds", None)
    seeds = _seeds(of_seeds[0] if of_seeds[1] is None else of_seeds[1], place)
    chain, cycles = own_arm.pop("stages", [{}]), own_arm.pop("cycles", 1)
    if not isinstance(chain, list) or not chain or type(cycles) is not int or cycles < 1:
        raise UsageError(f"{place}: `stages` must be a list of trainings, and `cycles` how often it is gone through")
    stages = []
    for number, words in enumerate(chain * cycles):
        own = {**own_model, **own_arm, **_stage(words, place)}
        task = str(own.get("task", file.training.get("task")))
        of_task = _mapping(file.tasks.get(task, {}), f"{where}, task {task}")
        merged = {**file.training, **of_task, **own}
        stages.append(parse_setup(merged, where=place if len(chain) * cycles == 1 else f"{place}, stage {number + 1}"))
    return [Cell(model, arm, seed, tuple(stages), measure, is_first_seed=seed == seeds[0]) for seed in seeds]


def _stage(words: Any, where: str) -> dict[str, Any]:
    """A stage named by its task alone, or by the settings in which it differs."""
    return {"task": words} if isinstance(words, str) else _mapping(words, f"{where}, stages")


def _mapping(words: Any, where: str) -> dict[str, Any]:
    if not isinstance(words or {}, Mapping):
        raise UsageError(f"{where}: must be names with values; got {words!r:.60}")
    return {str(name): value for name, value in dict(words or {}).items()}


def _seeds(asked: Any, where: str) -> tuple[int, ...]:
    """So many seeds from 0, or those that are listed."""
    seeds = tuple(range(asked)) if type(asked) is int else tuple(asked) if isinstance(asked, list | tuple) else ()
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"{where}: `seeds` must be how many, or a list of different ones from 0; got {asked!r:.60}")
    return seeds


def _measured_on(measure: Measure) -> tuple[str, ...]:
    """The tasks that trainings are measured on, whatever they are trained on."""
    return (*measure.probes, *((measure.probe_task,) if measure.probe_task else ()))


def _check_tasks(named: Mapping[str, Any], cells: list[Cell], where: str) -> None:
    """Settings of a task that nothing uses would be ignored, as when its name is misspelt."""
    used = dict.fromkeys(stage.task for cell in cells for stage in cell.stages)
    used |= dict.fromkeys(_measured_on(cells[0].measure))
    for name in map(str, named):
        if name not in used:
            near = difflib.get_close_matches(name, used, n=1)
            raise UsageError(
                f"{where}: `tasks` must name tasks that are trained on or probed: {', '.join(used)}; got {name!r:.60}"
                + (f". Is {near[0]!r} meant?" if near else "")
            )


def _check_partners(cells: list[Cell], where: str) -> None:
    """Each arm is compared with the first of its model, seed by seed: every seed must have a partner there."""
    for model in dict.fromkeys(cell.model for cell in cells):
        seeds: dict[str, list[int]] = {}
        for cell in cells:
            if cell.model == model:
                seeds.setdefault(cell.arm, []).append(cell.seed)
        first, *others = seeds
        for arm in others:
            if lonely := [seed for seed in seeds[arm] if seed not in seeds[first]]:
                raise UsageError(
                    f"{where}, arm {arm} of model {model}: `seeds` must be among those of arm {first}, the first of the model, "
                    f"with which it is compared; got {lonely} besides. Give {first} these seeds, too, or leave them out"
                )


def _check_captured(cells: list[Cell], where: str) -> None:
    """Comparisons and probes are made of snapshots."""
    for cell in cells:
        captured, measure = [stage.capture for stage in cell.stages], cell.measure
        if (measure.pairs and not captured[-1]) or (measure.probes and not all(captured)):
            asked = "pairs" if measure.pairs and not captured[-1] else "probes"
            raise UsageError(
                f"{where}, arm {cell.arm} of model {cell.model}: `capture` must not be false where `measure` has `{asked}`, "
                "which are made of snapshots. Leave one of them out, or move the arm to an experiment of its own"
            )


def _check_same_examples(cells: list[Cell], where: str) -> None:
    """Trainings that are to be compared must be measured on the same examples."""
    for model in dict.fromkeys(cell.model for cell in cells):
        last = [(cell.arm, cell.measure.probe_task or cell.stages[-1].task) for cell in cells if cell.model == model]
        others = [(arm, task) for arm, task in last if task != last[0][1]]
        if others:
            (first, task), (other, own) = last[0], others[0]
            raise UsageError(
                f"{where}, measure: `pairs: [arms]` must have a `probe_task`, on whose examples all are measured; got none, "
                f"and arm {first} on {task}, arm {other} on {own}"
            )


def _check_measure(measure: Measure, where: str) -> None:
    Schedule.parse(measure.schedule)
    for name in ("probe_examples", "probe_train", "probe_test"):
        if getattr(measure, name) < 1:
            raise UsageError(f"{where}: `{name}` must be at least 1; got {getattr(measure, name)}")
    if unknown := [kind for kind in measure.pairs if kind not in PAIRS]:
        raise UsageError(f"{where}: `pairs` must be among {', '.join(PAIRS)}; got {unknown[0]!r}")
    try:
        parse_bytes(measure.budget)
    except UsageError as error:
        raise UsageError(f"{where}: `budget`: {error}") from error
    if len(set(measure.probes)) < len(measure.probes):
        raise UsageError(f"{where}: `probes` must name each task once; got {', '.join(measure.probes)}")
