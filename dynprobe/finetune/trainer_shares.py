"""How much of an accumulated batch one batch is, as a Trainer counts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from dynprobe.finetune.streams import random_state_kept
from dynprobe.finetune.targets import core_of, predicts_next_token

_IGNORED = -100


class BatchShares:
    """What a mean over one batch is multiplied by, so that it weighs beside the loss of the task as it should.

    A Trainer hands the number of targets in the accumulated batch to the model or the loss function, and does not divide by the
    number of batches then. Not every model makes use of it: many classifiers return the mean over their batch all the same.
    So it is measured once what the number does to the loss, and the method's own term is treated in the same way; also where
    the number is not that of the targets, as when it counts the first token of a language model's text.

    Parameters
    ----------
    trainer
        The trainer.
    compute_loss
        Its own ``compute_loss``.
    """

    def __init__(self, trainer: Trainer, compute_loss: Callable[..., Any]) -> None:
        self._trainer = trainer
        self._compute_loss = compute_loss
        self._uses_number: bool | None = None

    def part_of_step(self, num_items_in_batch: Tensor | int | None) -> float:
        """What the Trainer will multiply the loss by when it adds the batches of an optimizer step up."""
        return 1.0 if self._undivided(num_items_in_batch) else 1.0 / self._n_batches()

    def of(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None
    ) -> float | Tensor:
        """The factor for one batch.

        Parameters
        ----------
        model, inputs
            The model without wrappers, and the batch.
        num_items_in_batch
            Number of targets in the accumulated batch, over all processes where the trainer averages tokens over them.
        """
        processes = self._trainer.accelerator.num_processes if self._trainer.args.average_tokens_across_devices else 1
        if not self._undivided(num_items_in_batch):
            return 1.0
        labels = inputs.get("shift_labels", inputs.get("labels"))
        if num_items_in_batch is None or not isinstance(labels, Tensor):
            return 1.0 / self._n_batches()
        if (
            labels.ndim < 2
            and self._trainer.args.gradient_accumulation_steps * self._trainer.accelerator.num_processes == 1
        ):
            return 1.0
        if self._uses_number is None:
            self._uses_number = self._measured(model, inputs, num_items_in_batch)
        if not self._uses_number:
            return float(processes)
        if "shift_labels" not in inputs and predicts_next_token(core_of(model)):
            labels = labels[..., 1:]
        return (labels != _IGNORED).sum() / num_items_in_batch * processes

    def _measured(self, model: nn.Module, inputs: Mapping[str, Any], number: Tensor | int) -> bool:
        """Whether twice the number of targets halves the loss."""
        modes = [(module, module.training) for module in model.modules()]
        with random_state_kept(next(model.parameters()).device), torch.no_grad():
            model.eval()
            try:
                once, twice = (
                    float(self._compute_loss(model, dict(inputs), num_items_in_batch=factor * number))
                    for factor in (1, 2)
                )
            finally:
                for module, mode in modes:
                    module.training = mode
        return twice < 0.75 * once

    def _undivided(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether the Trainer leaves the losses of accumulated batches as they are."""
        stated = getattr(self._trainer, "loss_is_scaled_for_ga", None)
        if stated is not None:
            return bool(stated)
        counted = self._trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(counted or self._trainer.compute_loss_func is not None)

    def _n_batches(self) -> int:
        return int(self._trainer.current_gradient_accumulation_steps)
