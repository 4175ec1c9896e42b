"""Training methods inside transformers' Trainer: switched on for one trainer, whose loop and class stay as they are."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from dynprobe.errors import UsageError
from dynprobe.finetune.meter import Meter
from dynprobe.finetune.method import Method, StepLoss
from dynprobe.finetune.passes import unwrapped
from dynprobe.finetune.registry import method as make_method
from dynprobe.finetune.registry import require_compatible
from dynprobe.finetune.state_files import load_state, save_state
from dynprobe.finetune.streams import Streams
from dynprobe.finetune.trainer_checks import require_kept_parameters, require_possible, require_seedable_order
from dynprobe.finetune.trainer_shares import BatchShares


def enable(
    trainer: Trainer, method: str | Method, *, streams: Streams | None = None, **options: Any
) -> "MethodCallback":
    """Switch a training method on for an existing Trainer, before ``train()``.

    The trainer keeps its loop, its class and its data. Only this instance is touched: what ``compute_loss`` returns in
    training, what ``log`` writes, and a callback that saves and resumes the state of the method beside each checkpoint.
    Evaluation stays as it is. Call it again to combine methods.

    Parameters
    ----------
    trainer
        The trainer.
    method
        Name of a method, or one made by :func:`dynprobe.finetune.method`.
    streams
        Random streams of this training: data order, dropout and noise each get the seed of theirs. Without them, data order and
        dropout are those that the trainer has without the method, as it leaves the random state of the process alone. The head
        is there already: make the model inside ``streams.head.in_charge()``.
    options
        Options of the method, if `method` is a name.

    Returns
    -------
    MethodCallback
        The callback that was added.

    Raises
    ------
    ValueError
        For unknown or incompatible methods and options, for a model or trainer with which the method cannot work, and after
        training has begun.

    Examples
    --------
    >>> dynprobe.finetune.enable(trainer, "r3f", eps=1e-4)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """
    if isinstance(method, Method) and options:
        raise ValueError(f"options must be given where the method is made; got {sorted(options)} beside a method")
    made = make_method(method, **options) if isinstance(method, str) else method
    present = next((each for each in trainer.callback_handler.callbacks if isinstance(each, MethodCallback)), None)
    require_compatible([*(present.methods if present else []), made])
    if present is not None and streams is not None:
        raise ValueError("`streams` must be given with the first method that is switched on; got them with a later one")
    require_possible(trainer, made)
    if streams is not None:
        require_seedable_order(trainer)
    callback = present or MethodCallback(trainer, streams)
    callback.add(made)
    if present is None:  # nothing of the trainer is touched before all has been checked
        callback.attach()
    return callback


class MethodCallback(TrainerCallback):
    """The methods of one trainer; made by :func:`enable`.

    Attributes
    ----------
    methods
        The methods that are on.
    streams
        The random streams, if any were given.
    """

    def __init__(self, trainer: Trainer, streams: Streams | None) -> None:
        self.methods: list[Method] = []
        self.streams = streams
        self._trainer = trainer
        self._meter = Meter()
        self._resumed_from: Path | None = None
        self._n_losses = 0
        self._optimizer: Any = None
        replaced = ("compute_loss", "log", "train", "call_model_init", "create_optimizer")
        self._original: dict[str, Callable[..., Any]] = {name: getattr(trainer, name) for name in replaced}
        self._shares = BatchShares(trainer, self._original["compute_loss"])

    def attach(self) -> None:
        """Take part in the trainer's training from now on."""
        trainer = self._trainer
        for name in self._original:
            setattr(trainer, name, getattr(self, f"_{name}"))
        if self.streams is not None:
            trainer.args.data_seed = self.streams.data.seed
            trainer.accelerator.dataloader_config.data_seed = self.streams.data.seed
        trainer.add_callback(self)

    def add(self, made: Method) -> None:
        """Take one more method and prepare the model for it."""
        if self.streams is not None:
            made.use_noise_seed(self.streams.noise.seed)
        if self._trainer.model_init is None:  # else the model is made anew in train()
            made.prepare(unwrapped(self._trainer.model))
            require_kept_parameters(self._trainer)
        self.methods.append(made)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the state beside the checkpoint that training resumes from."""
        if state.global_step == 0 or not self._has_state():
            return
        if self._resumed_from is None:
            raise UsageError("a training that resumes must be started by `trainer.train(resume_from_checkpoint=...)`")
        load_state(self._resumed_from, self.methods, self.streams)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let teachers follow; notice a trainer that computes its loss elsewhere."""
        if self._n_losses == 0:
            raise UsageError(
                f"the trainer's `training_step` must call `compute_loss`, where methods take part; "
                f"{type(self._trainer).__name__} did not call it in a whole step"
            )
        self._n_losses = 0
        self._meter.end_step()
        for each in self.methods:
            each.after_step(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state beside the checkpoint."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.should_save and self._has_state() and folder.is_dir():
            save_state(folder, self.methods, self.streams)

    def _compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: Any = None, **kwargs: Any
    ) -> Any:
        """In place of the trainer's own, which it calls."""
        if not model.training:
            return self._original["compute_loss"](model, inputs, return_outputs=return_outputs, **kwargs)
        step = self._step(model, inputs, kwargs)
        self._n_losses += 1
        self._meter.add(step, part=self._shares.part_of_step(kwargs.get("num_items_in_batch")))
        return (step.loss, step.outputs) if return_outputs else step.loss

    def _step(self, model: nn.Module, inputs: Mapping[str, Any], kwargs: Mapping[str, Any]) -> StepLoss:
        def task_loss(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
            found = self._original["compute_loss"](model, dict(inputs), return_outputs=True, **kwargs)
            if not isinstance(found, tuple):
                raise UsageError(
                    "the trainer's `compute_loss` must return the outputs too when asked to (`return_outputs=True`); got "
                    f"{type(found).__name__} from {type(self._trainer).__name__}"
                )
            return found

        acting = next((each for each in self.methods if each.has_passes), self.methods[0])
        with self.streams.dropout.in_charge(_device(model)) if self.streams is not None else nullcontext():
            return acting.loss(
                model,
                inputs,
                task_loss,
                share=self._shares.of(unwrapped(model), inputs, kwargs.get("num_items_in_batch")),
                loss_scale=_loss_scale(self._trainer) if acting.has_passes else 1.0,
            )

    def _log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """In place of the trainer's own: training losses come with what they consist of."""
        if "loss" in logs:
            several = self._trainer.accelerator.num_processes > 1
            logs.update(self._meter.drain(self._mean_over_processes if several else None))
        self._original["log"](logs, *args, **kwargs)

    def _train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """In place of the trainer's own: remember where it resumes from."""
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(str(self._trainer.args.output_dir))
        self._resumed_from = Path(found) if found else None
        return self._original["train"](resume_from_checkpoint, *args, **kwargs)

    def _call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        """In place of the trainer's own: a model made anew is prepared anew."""
        model: nn.Module = self._original["call_model_init"](*args, **kwargs)
        self.methods = [type(each)(**each.settings()) for each in self.methods]
        for each in self.methods:
            if self.streams is not None:
                each.use_noise_seed(self.streams.noise.seed)
            each.prepare(model)
        return model

    def _create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the trainer's own: methods that change how it steps have their say, once for each optimizer."""
        optimizer = self._original["create_optimizer"](*args, **kwargs)
        if optimizer is not self._optimizer:
            for each in sorted(self.methods, key=lambda made: made.optimiser_turn):
                model: Any = self._trainer.model
                optimizer = each.optimise(optimizer, unwrapped(model))
            self._optimizer = self._trainer.optimizer = optimizer
        return optimizer

    def _has_state(self) -> bool:
        return self.streams is not None or any(each.state_dict() for each in self.methods)

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        mean: Tensor = self._trainer.accelerator.reduce(values, reduction="mean")
        return mean


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _loss_scale(trainer: Trainer) -> float:
    """What the loss is multiplied by before it is back-propagated, with float16."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
