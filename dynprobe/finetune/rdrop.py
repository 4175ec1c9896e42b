"""R-Drop: two passes with other dropout masks should say the same, and both learn the task (Liang et al., NeurIPS 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from dynprobe.finetune.divergences import squared_difference
from dynprobe.finetune.method import StepLoss, TaskLoss
from dynprobe.finetune.passes import Passes
from dynprobe.finetune.regulariser import Regulariser
from dynprobe.finetune.targets import divergence_between, logits_of


@dataclass(kw_only=True, eq=False)
class RDrop(Regulariser):
    """Mean of the task losses of two passes + α · ½ (KL(p₁‖p₂) + KL(p₂‖p₁)); the passes differ in their dropout masks alone.

    The natural control for R3F: the same without noise. The logged share of dropout is 1 by definition, and not measured.
    As released: task losses and half divergences are summed over the two passes, so that the gradient of the task is twice as
    large, and the divergence of regression is the whole squared difference beside the task loss of one pass.

    Source: Liang et al. (2021), "R-Drop: regularized dropout for neural networks", equation 4.
    """

    name: ClassVar[str] = "rdrop"
    summary: ClassVar[str] = "symmetric KL between two passes with other dropout masks; both learn the task"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout == "shared":
            raise ValueError(
                "`dropout` must be 'independent' for R-Drop; got 'shared', with which both passes are the same"
            )

    def prepare(self, model: nn.Module) -> Self:
        """Refuse models without dropout, whose two passes never differ."""
        super().prepare(model)
        if not any(p > 0 for p in dropout_rates(model)):
            raise ValueError("the model must have dropout for R-Drop; got none, so that both passes are the same")
        return self

    def _regularised(
        self, passes: Passes, task_loss: TaskLoss, *, share: float | Tensor, loss_scale: float
    ) -> StepLoss:
        first_loss, outputs = passes.clean(task_loss)
        second_loss, second = passes.task(task_loss)
        passes.n_backwards += 1
        value = self._compared(passes, logits_of(outputs), logits_of(second))
        added = self.weight * share * value / 2
        task = (first_loss + second_loss) / 2
        if self.as_released and self._is_regression(passes, outputs):
            task, added = first_loss, 2 * added
        elif self.as_released:
            task = first_loss + second_loss
        return StepLoss(task + added, task.detach(), added.detach(), outputs, {"divergence": value.detach()})

    def _is_regression(self, passes: Passes, outputs: Any) -> bool:
        return divergence_between(passes.inner, logits_of(outputs), "auto") is squared_difference

    def _dropout_share(self, passes: Passes, step: StepLoss) -> float | None:
        """All of it."""
        return 1.0 if float(step.terms["divergence"]) > 0 else None


def dropout_rates(model: nn.Module) -> list[float]:
    """Every dropout probability that a model's modules and configuration state."""
    stated: list[Any] = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        values: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
        stated += [value for name, value in values.items() if "drop" in name]
    return [float(value) for value in stated if isinstance(value, int | float) and not isinstance(value, bool)]
