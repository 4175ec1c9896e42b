"""What a training method is: options that can be listed and checked, and the loss of one step."""

import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.optim import Optimizer

# Runs the model on inputs and returns the loss of the task and what the model returned.
TaskLoss = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Any]]


@dataclass(frozen=True)
class StepLoss:
    """The loss of one batch, and what it consists of.

    Attributes
    ----------
    loss
        Scalar to call ``backward()`` on.
    task
        Loss of the task alone, without gradient.
    regulariser
        What the method adds to it, weighted: `loss` less `task`, without gradient. 0 for standard training.
    terms
        What the regulariser is made of, before the weights, without gradient: ``"divergence"`` and the like.
    outputs
        What the model returned in the pass without perturbation.
    extra_forwards, extra_backwards
        Passes beyond the one forward and one backward pass of standard training.
    dropout_share
        Share of the regulariser that dropout alone would have produced, in [0, infinity); ``None`` where not measured now.
    """

    loss: Tensor
    task: Tensor
    regulariser: Tensor
    outputs: Any = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    extra_forwards: int = 0
    extra_backwards: int = 0
    dropout_share: float | None = None


@dataclass(frozen=True)
class Option:
    """One option of a method, as help texts show it.

    Attributes
    ----------
    name, default, help
        How it is called, what it is when nobody says, what it means.
    kind
        ``int``, ``float``, ``bool`` or ``str``.
    choices
        The values that it can have; empty where any.
    optional
        Whether it may be ``None``.
    """

    name: str
    default: Any
    help: str
    kind: type
    choices: tuple[str, ...] = ()
    optional: bool = False


def option(default: Any, text: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A field of a method that is one of its options, with its default, its meaning and the values it can have."""
    return field(default=default, metadata={"help": text, "choices": choices})


def model_loss(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """The loss that a transformers model itself computes from `labels` among its inputs, and its outputs.

    Raises
    ------
    ValueError
        When the model returns none.
    """
    outputs = model(**inputs)
    loss = getattr(outputs, "loss", None)
    if loss is None:
        raise ValueError(
            "the model must return a `loss`; got none. Give it `labels`, or pass a `task_loss` that computes the loss"
        )
    return loss, outputs


@dataclass(kw_only=True, eq=False)
class Method:
    """A training method; this one changes nothing and is standard fine-tuning.

    Use it in a loop of one's own as below, or with :func:`dynprobe.finetune.enable` in a transformers Trainer.

    Examples
    --------
    >>> method = R3F(eps=1e-4)  # doctest: +SKIP
    >>> method.prepare(model)  # before the optimizer is made  # doctest: +SKIP
    >>> step = method.loss(model, batch)  # doctest: +SKIP
    >>> step.loss.backward(); optimizer.step(); method.after_step(model)  # doctest: +SKIP
    """

    name: ClassVar[str] = "standard"
    summary: ClassVar[str] = "fine-tuning without any method"
    # Methods with extra passes through the model cannot be combined with each other.
    has_passes: ClassVar[bool] = False
    # Of several methods that change the optimizer, the one with the lower number comes first.
    optimiser_turn: ClassVar[int] = 0

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options of this method by name."""
        hints = typing.get_type_hints(cls)
        found = {}
        for entry in fields(cls):
            if "help" in entry.metadata and entry.default is not MISSING:
                kinds = typing.get_args(hints[entry.name]) or (hints[entry.name],)
                found[entry.name] = Option(
                    entry.name,
                    entry.default,
                    entry.metadata["help"],
                    next(kind for kind in kinds if kind is not type(None)),
                    entry.metadata["choices"],
                    type(None) in kinds,
                )
        return found

    def settings(self) -> dict[str, Any]:
        """The value of each option, as it was given."""
        return {name: getattr(self, name) for name in self.options()}

    def __post_init__(self) -> None:
        for entry in self.options().values():
            _check(entry, getattr(self, entry.name))

    def prepare(self, model: nn.Module) -> Self:
        """Put into the model what the method needs, and refuse models that it cannot train.

        Call it once, before the optimizer is made and before the model is wrapped for several devices.
        """
        return self

    def optimise(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """Given the optimizer that the training would use, the one that it shall use: another one, or the same.

        Call it once, after :meth:`prepare` and before learning-rate schedulers are made.
        """
        return optimizer

    def use_noise_seed(self, seed: int) -> None:
        """Draw what the method draws from this seed from now on; before the first step."""

    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        task_loss: TaskLoss = model_loss,
        *,
        share: float | Tensor = 1.0,
        loss_scale: float = 1.0,
    ) -> StepLoss:
        """The loss of one batch.

        Parameters
        ----------
        model
            The model in training mode, also wrapped in DistributedDataParallel. In evaluation mode only the task's loss is
            computed.
        inputs
            Keyword arguments of its forward.
        task_loss
            What runs the model and computes the task's loss; by default the model's own loss.
        share
            What the method's own term is multiplied by beside its weight: the part of an accumulated batch that this one is,
            where `task_loss` is already scaled so.
        loss_scale
            What the loss will be multiplied by before ``backward()``, such as ``scaler.get_scale()`` with float16.
        """
        loss, outputs = task_loss(model, inputs)
        return StepLoss(loss, loss.detach(), loss.new_zeros(()), outputs)

    def after_step(self, model: nn.Module) -> None:
        """Tell the method that the optimizer has made a step; methods with a teacher need it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a training which goes on later needs: teachers, statistics, random streams; all as tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`; after :meth:`prepare`.

        Raises
        ------
        ValueError
            When the state is another method's.
        """
        unknown = sorted(set(state))
        if unknown:
            raise ValueError(f"`state` must be one of method {self.name!r}; got also {unknown}")


def require_range(name: str, value: float, *, low: float, high: float = float("inf"), open_low: bool = False) -> None:
    """Check a number among the options.

    Raises
    ------
    ValueError
        When it is NaN, infinite or outside.
    """
    inside = (low < value if open_low else low <= value) and value <= high and value != float("inf")
    if not inside:
        above = f"above {low:g}" if open_low else f"at least {low:g}"
        raise ValueError(
            f"`{name}` must be a finite number {above}{f' and at most {high:g}' if high != float('inf') else ''}; "
            f"got {value!r}"
        )


def _check(entry: Option, value: Any) -> None:
    if value is None and entry.optional:
        return
    kinds: tuple[type, ...] = (int, float) if entry.kind is float else (entry.kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and entry.kind is not bool):
        raise TypeError(f"`{entry.name}` must be {entry.kind.__name__}; got {value!r}")
    if entry.choices and value not in entry.choices:
        raise ValueError(f"`{entry.name}` must be one of {list(entry.choices)}; got {value!r}")
