"""Methods that change how the optimizer steps: without bias correction, at layer-wise rates, pulled back to the start."""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from torch import nn
from torch.optim import Optimizer

from dynprobe.finetune.anchor import pull_to_start
from dynprobe.finetune.bert_adam import BertAdam
from dynprobe.finetune.layer_rates import layerwise_param_groups
from dynprobe.finetune.method import Method, option, require_range

# Of a group of parameters, what every optimizer of the Adam family understands.
_OF_ADAM = ("params", "lr", "weight_decay", "betas", "eps", "name")


@dataclass(kw_only=True, eq=False)
class BertAdamMethod(Method):
    """BERTAdam in place of the training's own Adam; see :class:`~dynprobe.finetune.BertAdam`."""

    name: ClassVar[str] = "bert-adam"
    summary: ClassVar[str] = "Adam without bias correction, as BERT was first fine-tuned"
    optimiser_turn: ClassVar[int] = 1  # over groups that are there

    scale: str = option(
        "1",
        "learning rate times 1, the ratio r(t) or its inverse 1/r, to test the mechanism",
        choices=("1", "r", "1/r"),
    )
    bias_correction: bool = option(False, "correct the averages, which makes it Adam")  # noqa: FBT003

    def optimise(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """BERTAdam over the same groups, with the same rates, decays, betas and eps."""
        groups = [{key: group[key] for key in _OF_ADAM if key in group} for group in optimizer.param_groups]
        if "betas" not in optimizer.param_groups[0]:
            raise ValueError(f"method 'bert-adam' must replace an Adam; got {type(optimizer).__name__}")
        scale = cast(Literal["1", "r", "1/r"], self.scale)
        return BertAdam(groups, lr=groups[0]["lr"], bias_correction=self.bias_correction, scale=scale)


@dataclass(kw_only=True, eq=False)
class LayerRatesMethod(Method):
    """Layer-wise learning-rate decay; see :func:`~dynprobe.finetune.layerwise_param_groups`."""

    name: ClassVar[str] = "layer-rates"
    summary: ClassVar[str] = "learning rates that fall from the top block to the embeddings"

    decay: float = option(0.95, "rate of a block over that of the block above it")
    head_offset: int = option(1, "1: the top block already has a decayed rate; 0: the head's")
    as_released: bool = option(False, "as the published code, no weight decay in the head")  # noqa: FBT003

    def optimise(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The same kind of optimizer over groups by layer, from its highest rate and weight decay."""
        rate = max(group["lr"] for group in optimizer.param_groups)
        weight_decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
        groups = layerwise_param_groups(
            model,
            learning_rate=rate,
            decay=self.decay,
            weight_decay=weight_decay,
            head_offset=self.head_offset,
            as_released=self.as_released,
        )
        defaults: dict[str, Any] = {
            key: value for key, value in optimizer.defaults.items() if key not in ("lr", "weight_decay")
        }
        kind: Any = type(optimizer)
        made: Optimizer = kind(groups, lr=rate, weight_decay=weight_decay, **_accepted(kind, defaults))
        return made


@dataclass(kw_only=True, eq=False)
class Pull(Method):
    """Prior weight decay; see :func:`~dynprobe.finetune.pull_to_start`."""

    name: ClassVar[str] = "pull"
    summary: ClassVar[str] = "weights pulled back to the pretrained ones (prior weight decay)"
    optimiser_turn: ClassVar[int] = 2  # holds on to the optimizer that steps

    strength: float = option(1e-3, "part of the way back, times the learning rate, at each step")
    towards: str = option("start", "the pretrained weights, or zero", choices=("start", "zero"))
    as_released: bool = option(False, "as the published code")  # noqa: FBT003

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("strength", self.strength, low=0)

    def optimise(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The same optimizer, whose weight decay this takes the place of."""
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        towards: Literal["start", "zero"] = "start" if self.towards == "start" else "zero"
        pull_to_start(optimizer, model, self.strength, towards=towards, as_released=self.as_released)
        return optimizer


def _accepted(kind: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults that an optimizer's constructor takes; some keep more than they take."""
    return {key: value for key, value in defaults.items() if key in inspect.signature(kind.__init__).parameters}
