"""One training of an experiment as its file describes it, checked before anything is trained."""

import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from dynprobe.errors import UsageError
from dynprobe.experiments.training import Recipe
from dynprobe.finetune import method as make_method
from dynprobe.finetune import require_compatible
from dynprobe.tasks import Task, load_task

# What the kinds of values are called in an experiment file.
_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    Mapping: "a mapping of names to settings",
    types.NoneType: "nothing",
}
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How one training of an experiment is done; the words of an experiment file.

    Attributes
    ----------
    model
        A model folder, ``package:NAME``, or a name on the model hub.
    task
        A task as for :func:`~dynprobe.tasks.load_task`.
    train_examples, validation_examples, test_examples
        How many examples of each split are used, always the same ones; ``None`` for all.
    methods
        Training methods with their options, such as ``{r3f: {eps: 1e-4}}``.
    capture
        Whether snapshots are taken; not possible where a method gives no numbers before its first step.
    max_steps, batch_size, learning_rate, warmup_ratio, weight_decay, max_length, evaluations, patience, dropout
        As in :class:`~dynprobe.experiments.training.Recipe`.
    """

    model: str
    task: str
    train_examples: int | None = None
    validation_examples: int | None = 500
    test_examples: int | None = 1000
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_steps: int = 200
    batch_size: int = 16
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_length: int = 64
    evaluations: int = 4
    patience: int = 0
    dropout: float | None = None
    capture: bool = True

    def recipe(self, seed: int, *, model: str | None = None) -> Recipe:
        """What a training with one seed is told; `model` in place of the one that the file names."""
        return Recipe(
            model=model or self.model,
            seed=seed,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_ratio=self.warmup_ratio,
            weight_decay=self.weight_decay,
            max_length=self.max_length,
            methods=tuple((name, dict(options)) for name, options in self.methods.items()),
            n_evaluations=self.evaluations,
            patience=self.patience,
            dropout=self.dropout,
        )

    def load_task(self) -> Task:
        """The task with as many examples as are used, chosen by their content alone."""
        return take_examples(
            load_task(self.task),
            train=self.train_examples,
            validation=self.validation_examples,
            test=self.test_examples,
        )

    def facts(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return {**asdict(self), "methods": {name: dict(options) for name, options in self.methods.items()}}


def take_examples(task: Task, **sizes: int | None) -> Task:
    """A task with at most so many examples of each named split; of a smaller split all.

    Parameters
    ----------
    task
        The task.
    sizes
        Number of examples by split; ``None`` for all. The choice depends on nothing but the texts.
    """
    splits = {
        name: split if (n := sizes.get(name)) is None else split.take(min(n, len(split)))
        for name, split in task.splits.items()
    }
    return replace(task, splits=splits)


def parse_setup(words: Mapping[str, Any], *, where: str) -> Setup:
    """A setup from the words of an experiment file.

    Parameters
    ----------
    words
        Name to value.
    where
        Place in the file, for messages.

    Raises
    ------
    UsageError
        For a name that does not exist, a value of the wrong kind or out of range, methods that do not exist or go together.
    """
    setup = parse_fields(Setup, {**words, "methods": _methods(words.get("methods"), where)}, where=where)
    low = {"max_steps": 1, "batch_size": 1, "max_length": 1, "evaluations": 1, "patience": 0}
    low |= {"train_examples": 1, "validation_examples": 1, "test_examples": 1}
    for name, least in low.items():
        value = getattr(setup, name)
        if value is not None and value < least:
            raise UsageError(f"{where}: `{name}` must be at least {least}; got {value}")
    if not 0 < setup.learning_rate < float("inf") or not setup.weight_decay >= 0 or not 0 <= setup.warmup_ratio <= 1:
        raise UsageError(
            f"{where}: `learning_rate` must be positive, `weight_decay` at least 0 and `warmup_ratio` from 0 to 1; got "
            f"{setup.learning_rate}, {setup.weight_decay} and {setup.warmup_ratio}"
        )
    if setup.dropout is not None and not 0 <= setup.dropout < 1:
        raise UsageError(f"{where}: `dropout` must be from 0 to below 1; got {setup.dropout}")
    try:
        require_compatible([make_method(name, **options) for name, options in setup.methods.items()])
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from error
    return setup


def parse_fields(kind: Any, words: Any, *, where: str) -> Any:
    """A dataclass from the words of an experiment file.

    Raises
    ------
    UsageError
        For what is no mapping, a name that does not exist or is missing, or a value of another type.
    """
    if not isinstance(words, Mapping):
        raise UsageError(f"{where}: must be names with values; got {_said(words)}")
    known, hints = {entry.name: entry for entry in fields(kind)}, typing.get_type_hints(kind)
    for name in words:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise UsageError(f"{where}: must be among {', '.join(known)}; got {name!r}{_meant(near)}")
    needed = [n for n, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING]
    if missing := [name for name in needed if name not in words]:
        raise UsageError(f"{where}: must also give {', '.join(missing)}")
    return kind(**{name: _value(value, hints[name], f"{where}: `{name}`") for name, value in words.items()})


def _meant(near: list[str]) -> str:
    return f". Is {near[0]!r} meant?" if near else ""


def _value(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kinds = arguments if origin in (types.UnionType, typing.Union) else (hint,)
    plain = [typing.get_origin(kind) or kind for kind in kinds]
    if isinstance(value, list) and tuple in plain:
        return _list(value, kinds[plain.index(tuple)], where)
    if float in plain:
        value = _number(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in plain and int not in plain:
        return float(value)
    if (isinstance(value, bool) and bool not in plain) or not isinstance(value, tuple(plain)):
        raise UsageError(f"{where} must be {' or '.join(_KINDS[kind] for kind in plain)}; got {_said(value)}")
    return value


def _list(values: list[Any], hint: Any, where: str) -> tuple[Any, ...]:
    """A list, all of whose entries are of the one kind that ``tuple[kind, ...]`` names."""
    (kind, *_) = typing.get_args(hint)
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{where} must be a list, each entry of it {_KINDS[kind]}; got {_said(value)} in it")
    return tuple(values)


def _said(value: Any) -> str:
    """A value as an experiment file would have it."""
    words = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return "nothing" if value is None else words or f"{value!r:.60}"


def _methods(words: Any, where: str) -> dict[str, dict[str, Any]]:
    """Methods named alone, in a list, or with their options."""
    named: Any = words or {}
    if isinstance(named, str):
        named = [named]
    if isinstance(named, list):
        named = {str(name): None for name in named}
    if not isinstance(named, Mapping) or not all(isinstance(own or {}, Mapping) for own in named.values()):
        raise UsageError(f"{where}: `methods` must be names of methods, each with its options; got {words!r:.80}")
    try:
        return {
            str(name): {str(key): _number(value) for key, value in dict(own or {}).items()}
            for name, own in named.items()
        }
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from error


def _number(value: Any) -> Any:
    """A number that YAML takes for a word, such as 1e-4 without a point, as a number."""
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
