"""Fine-tune a pretrained model on a task, with capture on."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.models import resolve_model
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import UsageError
from dynprobe.tasks import Task, encode


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes
    ----------
    model
        A model folder, ``package:NAME``, or a name on the model hub.
    seed
        Decides the new classifier's weights, dropout and the order of the data.
    max_steps, batch_size, learning_rate, warmup_ratio, weight_decay
        As in transformers' ``TrainingArguments``.
    max_length
        Number of tokens of an example.
    """

    model: str
    seed: int = 0
    max_steps: int = 120
    batch_size: int = 16
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 128


def train_with_capture(
    task: Task,
    recipe: Recipe,
    run_dir: Path,
    *,
    settings: CaptureSettings | None = None,
    existing: str = "refuse",
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Fine-tune a classifier and capture its run.

    Parameters
    ----------
    task
        Labelled data with a train and a validation split.
    recipe
        How to fine-tune.
    run_dir
        New run directory.
    settings, existing
        As for :class:`~dynprobe.capture.callback.DynprobeCallback`.
    on_step
        Called with (steps done, steps in all) after each optimizer step; switches the Trainer's own bar off.

    Returns
    -------
    dict
        Metrics of the last evaluation on the validation split: ``eval_accuracy``, ``eval_loss``.
    """
    set_seed(recipe.seed)
    place = resolve_model(recipe.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = _classifier(place, task)
    except (OSError, ValueError) as error:
        raise UsageError(f"{recipe.model}: must be a model that transformers can load; {error}") from error
    training, validation = (encode(task.splits[name], tokenizer, max_length=recipe.max_length) for name in _SPLITS)
    facts = {"task": task.name, **asdict(recipe)}
    callbacks: list[TrainerCallback] = [
        DynprobeCallback(run_dir, settings=settings, facts=facts, existing=existing),
        *([_Progress(on_step)] if on_step is not None else []),
    ]
    with tempfile.TemporaryDirectory(prefix="dynprobe-") as scratch:
        trainer = Trainer(
            model,
            _arguments(recipe, scratch, silent=on_step is not None),
            train_dataset=training,
            eval_dataset=validation,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_accuracy,
            callbacks=callbacks,
        )
        if on_step is not None:
            trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {name: float(value) for name, value in _last_evaluation(trainer.state.log_history).items()}


_SPLITS = ("train", "validation")


def _classifier(place: str, task: Task) -> Any:
    names = list(task.label_names or ["score"])
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # a new classifier is the purpose, no reason for a warning
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            place, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
        )
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _arguments(recipe: Recipe, scratch: str, *, silent: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        seed=recipe.seed,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=recipe.learning_rate,
        warmup_steps=round(recipe.warmup_ratio * recipe.max_steps),
        weight_decay=recipe.weight_decay,
        eval_strategy="steps",
        eval_steps=max(1, recipe.max_steps // 2),
        logging_steps=max(1, recipe.max_steps // 24),
        save_strategy="no",
        report_to=[],
        disable_tqdm=silent,
        log_level="error" if silent else "passive",
        dataloader_pin_memory=False,
    )


def _accuracy(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.argmax(logits, axis=-1) == prediction.label_ids).mean())}


def _last_evaluation(history: list[dict[str, Any]]) -> Mapping[str, Any]:
    found = [record for record in history if "eval_loss" in record]
    return {name: value for name, value in found[-1].items() if name.startswith("eval_")} if found else {}


class _Progress(TrainerCallback):
    """Passes the count of optimizer steps on."""

    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report one step."""
        self._on_step(state.global_step, state.max_steps)
