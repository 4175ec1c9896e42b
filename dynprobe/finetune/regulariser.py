"""What regularisers that compare two passes have in common: options, divergence, the share that dropout has in it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from dynprobe.finetune.divergences import KINDS, REDUCTIONS, reduced
from dynprobe.finetune.extra_passes import ExtraPasses
from dynprobe.finetune.method import StepLoss, TaskLoss, model_loss, option, require_range
from dynprobe.finetune.passes import Passes, unwrapped
from dynprobe.finetune.targets import Divergence, divergence_between, logits_of, real_rows, require_divergence


@dataclass(kw_only=True, eq=False)
class Regulariser(ExtraPasses):
    """Adds `weight` times a divergence between passes to the loss of the task; base of the methods that do."""

    weight: float = option(1.0, "what the divergence is multiplied by (λ)")
    divergence: str = option("auto", "auto (KL; squared difference for regression), kl or squared", choices=KINDS)
    reduction: str = option(
        "mean", "mean over real targets, their sum per sentence, or as published code does it", choices=REDUCTIONS
    )
    dropout: str = option(
        "independent", "dropout masks of the passes: independent, or shared by all", choices=("independent", "shared")
    )
    share_every: int = option(50, "measure the share of dropout every so many batches; 0: never")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("weight", self.weight, low=0)
        require_range("share_every", self.share_every, low=0)

    def prepare(self, model: nn.Module) -> Self:
        """Refuse models that the method cannot train."""
        require_divergence(unwrapped(model), self.divergence)
        return self

    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        task_loss: TaskLoss = model_loss,
        *,
        share: float | Tensor = 1.0,
        loss_scale: float = 1.0,
    ) -> StepLoss:
        """The loss of one batch; see :meth:`Method.loss`."""
        if not model.training:
            return super().loss(model, inputs, task_loss)
        passes = Passes(model, inputs, self._masks, dropout=self.dropout)
        self._n_batches += 1
        step = self._regularised(passes, task_loss, share=share, loss_scale=loss_scale)
        measured = self._dropout_share(passes, step)
        forwards, backwards = passes.n_forwards, passes.n_backwards
        return replace(step, dropout_share=measured, extra_forwards=forwards, extra_backwards=backwards)

    def _regularised(
        self, passes: Passes, task_loss: TaskLoss, *, share: float | Tensor, loss_scale: float
    ) -> StepLoss:
        raise NotImplementedError

    def _compared(self, passes: Passes, clean: Tensor, other: Tensor, measure: Divergence | None = None) -> Tensor:
        """The divergence of two passes as one number."""
        if clean.shape != other.shape:
            raise RuntimeError(
                f"both passes must return logits of one shape; got {tuple(clean.shape)} and {tuple(other.shape)}"
            )
        measure = measure or divergence_between(passes.inner, clean, self.divergence)
        real = real_rows(passes.inner, passes.inputs, clean)
        return reduced(measure(clean, other), real, reduction=self._reduction())

    def _reduction(self) -> str:
        return self.reduction

    def _dropout_share(self, passes: Passes, step: StepLoss) -> float | None:
        """What two passes without noise differ by, over what these differed by."""
        if self.share_every == 0 or (self._n_batches - 1) % self.share_every:
            return None
        value = float(step.terms["divergence"])
        if self.dropout == "shared":
            return 0.0 if value > 0 else None
        probe = Passes(passes.model, passes.inputs, self._probing, dropout="independent")
        passes.n_forwards += 1
        by_dropout = float(self._compared(probe, logits_of(step.outputs).detach(), probe.again(gradient=False)))
        share = by_dropout / value if value > 0 else math.nan
        return share if math.isfinite(share) else None
