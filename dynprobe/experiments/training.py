"""Fine-tune a pretrained model on a task, with capture on and with any of the training methods."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.models import resolve_model
from dynprobe.errors import UsageError
from dynprobe.experiments.watch import Watch
from dynprobe.finetune import Streams, enable
from dynprobe.finetune import method as make_method
from dynprobe.storage.directory import append_scalars, read_manifest, write_status
from dynprobe.storage.folder import is_run
from dynprobe.tasks import Task, encode

# In a folder of checkpoints that is ours to remove.
_MARK = ".dynprobe-finetune"
# What configurations call the probability that a unit is dropped in training.
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "activation_dropout", "seq_classif_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout",
    "hidden_dropout", "pooler_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes
    ----------
    model
        A model folder, ``package:NAME``, or a name on the model hub.
    seed
        Decides the new classifier's weights, the order of the data, dropout and the noise of a method, each by a stream of its
        own: trainings with the same seed and other methods are paired.
    max_steps, batch_size, learning_rate, warmup_ratio, weight_decay
        As in transformers' ``TrainingArguments``.
    max_length
        Number of tokens of an example.
    methods
        Training methods and their options, in the order in which they change the model; see ``dynprobe.finetune.METHODS``.
    n_evaluations
        How often the validation split is scored, evenly spread over the training.
    patience
        Stop after so many evaluations without a better score, and keep the best weights; 0 goes on to the end and keeps the
        last.
    dropout
        Every dropout probability of the model; ``None`` for those it comes with.
    """

    model: str
    seed: int = 0
    max_steps: int = 120
    batch_size: int = 16
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 128
    methods: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    n_evaluations: int = 2
    patience: int = 0
    dropout: float | None = None


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes
    ----------
    scores
        ``eval_accuracy`` and ``eval_loss`` (for regression ``eval_mean_squared_error``) of the validation split, the best with
        early stopping and else the last, and ``kept_step``, at which it was; the same with ``test_`` where there is a test
        split, scored once at the end.
    log
        What the Trainer logged, oldest first.
    """

    scores: Mapping[str, float]
    log: Sequence[Mapping[str, Any]]


def train_with_capture(
    task: Task,
    recipe: Recipe,
    run_dir: Path | None,
    *,
    watch: Watch | None = None,
    existing: str = "refuse",
    checkpoints: Path | None = None,
    save_model: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Trained:
    """Fine-tune a classifier and capture its run.

    Parameters
    ----------
    task
        Labelled data with a train and a validation split, and a test split if there is one.
    recipe
        How to fine-tune.
    run_dir
        New run directory; ``None`` to capture nothing.
    watch
        What to capture.
    existing
        As for :class:`~dynprobe.capture.callback.DynprobeCallback`.
    checkpoints
        Folder for what an interrupted training goes on from, removed when it is over; with `existing` "resume" the newest
        checkpoint there is used. Without it a training that is interrupted begins anew.
    save_model
        Folder for the tuned model and its tokenizer.
    on_step
        Called with (steps done, steps in all) after each optimizer step; switches the Trainer's own bar off.

    Returns
    -------
    Trained
        Scores and log.

    Raises
    ------
    UsageError
        For a model that cannot be loaded, or a method or option that does not exist or does not go with the model.
    """
    if run_dir is not None and existing == "refuse" and is_run(run_dir):
        raise UsageError(
            f"{run_dir}: the run directory must be new; got one that holds a run. Give --force or --resume"
        )
    facts = _facts(task, recipe)
    if run_dir is not None and existing == "resume":
        _require_unfinished(run_dir, facts, checkpoints)
    watch = watch or Watch()
    place = resolve_model(recipe.model)
    streams = Streams(recipe.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        with streams.head.in_charge("cpu"):
            model = _classifier(place, task, dropout=recipe.dropout)
    except (OSError, ValueError) as error:
        raise UsageError(f"{recipe.model}: must be a model that transformers can load; {error}") from error
    data = {name: encode(split, tokenizer, max_length=recipe.max_length) for name, split in task.splits.items()}
    callbacks: list[TrainerCallback] = [
        *([EarlyStoppingCallback(recipe.patience)] if recipe.patience else []),
        *([_Progress(on_step)] if on_step is not None else []),
    ]
    if run_dir is not None:
        capture = DynprobeCallback(
            run_dir,
            probe_set=watch.probe_set(tokenizer, max_length=recipe.max_length),
            settings=watch.settings,
            facts=facts,
            existing=existing,
            probe_tasks=watch.tasks(tokenizer, max_length=recipe.max_length),
        )
        callbacks.insert(0, capture)
    with _scratch(checkpoints, goes_on=existing == "resume") as folder:
        trainer = Trainer(
            model,
            _arguments(task, recipe, folder, silent=on_step is not None, saves=checkpoints is not None),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_mean_squared_error if task.is_regression else _accuracy,
            callbacks=callbacks,
        )
        _switch_on(trainer, recipe, streams)
        if on_step is not None:
            trainer.remove_callback(PrinterCallback)
        with quiet() if on_step is not None else nullcontext():  # saving has bars of its own
            trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if existing == "resume" else None)
        scores = _scores(trainer, recipe)
        if "test" in data:
            test: Any = data["test"]
            scores |= _numbers(trainer.predict(test, metric_key_prefix="test").metrics or {}, "test")
        if run_dir is not None:
            _keep_scores(run_dir, {"step": trainer.state.global_step, "final": True, **scores})
        if save_model is not None:
            with quiet():
                trainer.save_model(str(save_model))
    return Trained(scores, tuple(trainer.state.log_history))


def _switch_on(trainer: Trainer, recipe: Recipe, streams: Streams) -> None:
    try:
        enable(trainer, "standard", streams=streams)  # which changes nothing and carries the streams
        for name, options in recipe.methods:
            if name != "standard":
                enable(trainer, make_method(name, **options))
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def _keep_scores(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Add a line to the scalars of a run whose capture is over: its manifest says how long they are."""
    append_scalars(run_dir, record)
    status = read_manifest(run_dir).get("status", {})
    if status.get("state") in ("finished", "fault"):
        write_status(run_dir, status["state"], step=status.get("step"), reason=status.get("reason"))


def _require_unfinished(run_dir: Path, facts: Mapping[str, Any], checkpoints: Path | None) -> None:
    """Only a training that was interrupted can go on, and only as it began: snapshots of two would be taken for one."""
    if not is_run(run_dir):
        raise UsageError(f"{run_dir}: to go on with a training there must be one; got none")
    manifest = read_manifest(run_dir)
    if manifest.get("status", {}).get("state") == "finished" and not (checkpoints and checkpoints.is_dir()):
        raise UsageError(
            f"{run_dir}: a training that goes on must be unfinished; this one is over. Give --force to replace it"
        )
    before, now = manifest.get("training", {}), json.loads(json.dumps(facts))
    others = [
        f"{name} {value!r} instead of {before.get(name)!r}" for name, value in now.items() if before.get(name) != value
    ]
    if others:
        raise UsageError(
            f"{run_dir}: a training must go on as it began; got {', '.join(others)}. Give --force to begin anew"
        )


@contextmanager
def _scratch(checkpoints: Path | None, *, goes_on: bool) -> Iterator[Path]:
    """A folder for checkpoints, gone when the training is over; one that was asked for stays when it is interrupted."""
    if checkpoints is None:
        with tempfile.TemporaryDirectory(prefix="dynprobe-") as folder:
            yield Path(folder)
        return
    mark = checkpoints / _MARK
    if checkpoints.exists() and not mark.is_file():
        raise UsageError(
            f"{checkpoints}: the folder for checkpoints must be new, or left by an interrupted training; got another one. "
            "Move it, or choose another name for the run"
        )
    if not goes_on:
        _remove_checkpoints(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield checkpoints
    except UsageError:  # nothing has been trained
        _remove_checkpoints(checkpoints)
        raise
    _remove_checkpoints(checkpoints)


def _remove_checkpoints(folder: Path) -> None:
    """Remove what a training left, and the folder if nothing else is in it."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / _MARK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _facts(task: Task, recipe: Recipe) -> dict[str, Any]:
    facts = asdict(recipe)
    methods = [{"name": name, **options} for name, options in recipe.methods]
    return {"task": task.name, **facts, "methods": methods}


def _classifier(place: str, task: Task, *, dropout: float | None) -> Any:
    names = list(task.label_names or ["score"])
    with quiet():  # a new classifier is the purpose, no reason for a warning
        return AutoModelForSequenceClassification.from_pretrained(
            place,
            trust_remote_code=False,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={n: i for i, n in enumerate(names)},
            **_dropouts(place, dropout),
        )


def _dropouts(place: str, dropout: float | None) -> dict[str, float]:
    """The names that a model's configuration has for its dropout probabilities, with one value."""
    if dropout is None:
        return {}
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    named = {name for name in _DROPOUTS if isinstance(getattr(config, name, None), int | float)}
    if not named:
        raise ValueError(f"its configuration must name dropout probabilities to set them; got none of {_DROPOUTS}")
    return dict.fromkeys(sorted(named), dropout)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and progress bars of transformers."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _arguments(task: Task, recipe: Recipe, folder: Path, *, silent: bool, saves: bool) -> TrainingArguments:
    every = max(1, recipe.max_steps // recipe.n_evaluations)
    return TrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=recipe.learning_rate,
        warmup_steps=round(recipe.warmup_ratio * recipe.max_steps),
        weight_decay=recipe.weight_decay,
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=max(1, recipe.max_steps // 24),
        save_strategy="steps" if saves or recipe.patience else "no",
        save_steps=every,
        save_total_limit=2,
        save_only_model=not saves,  # to go back to the best weights needs no more
        load_best_model_at_end=recipe.patience > 0,
        metric_for_best_model="mean_squared_error" if task.is_regression else "accuracy",
        greater_is_better=not task.is_regression,
        report_to=[],
        disable_tqdm=silent,
        log_level="error" if silent else "passive",
        dataloader_pin_memory=False,
    )


def _logits(prediction: Any) -> np.ndarray:
    return np.asarray(
        prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    )


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((_logits(prediction).argmax(axis=-1) == prediction.label_ids).mean())}


def _mean_squared_error(prediction: Any) -> dict[str, float]:
    difference = _logits(prediction).reshape(-1) - np.asarray(prediction.label_ids).reshape(-1)
    return {"mean_squared_error": float((difference**2).mean())}


def _scores(trainer: Trainer, recipe: Recipe) -> dict[str, float]:
    """Of the weights that are kept: the best evaluation with early stopping, else the last."""
    found = [record for record in trainer.state.log_history if "eval_loss" in record]
    best = trainer.state.best_metric
    if recipe.patience and best is not None:
        name = f"eval_{trainer.args.metric_for_best_model}"
        found = [record for record in found if record[name] == best][:1]
    return {**_numbers(found[-1], "eval"), "kept_step": float(found[-1]["step"])} if found else {}


def _numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Scores, without how long they took."""
    slow = ("runtime", "per_second", "preparation_time")
    wanted = {
        name: value for name, value in record.items() if name.startswith(f"{prefix}_") and not name.endswith(slow)
    }
    return {name: float(value) for name, value in wanted.items()}


class _Progress(TrainerCallback):
    """Passes the count of optimizer steps on."""

    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report one step."""
        self._on_step(state.global_step, state.max_steps)
