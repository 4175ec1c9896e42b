"""Methods that change the model before training: what stands before the classifier, Mixout, re-initialised blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from dynprobe.finetune.batch_norm import BatchNormBaseline
from dynprobe.finetune.insertion import classifier, insert_before_classifier
from dynprobe.finetune.isobn import IsoBN
from dynprobe.finetune.method import Method, option, require_range
from dynprobe.finetune.mixout import apply_mixout
from dynprobe.finetune.reinit import reinitialise
from dynprobe.finetune.streams import Stream


@dataclass(kw_only=True, eq=False)
class IsoBNMethod(Method):
    """IsoBN on the input of the classifier; see :class:`~dynprobe.finetune.IsoBN`."""

    name: ClassVar[str] = "isobn"
    summary: ClassVar[str] = "isotropic batch normalisation of the vector that is classified (IsoBN)"

    momentum: float = option(0.05, "weight of the newest batch in the statistics")
    beta: float = option(0.5, "strength of the scaling, 0 none to 1 full")
    eps: float = option(1e-3, "added where is divided")
    as_released: bool = option(False, "as the published code, with its cold start")  # noqa: FBT003

    def prepare(self, model: nn.Module) -> Self:
        """Put the module before the classifier."""
        module = IsoBN(
            classifier(model).in_features,
            momentum=self.momentum,
            beta=self.beta,
            eps=self.eps,
            as_released=self.as_released,
        )
        insert_before_classifier(model, module)
        return self


@dataclass(kw_only=True, eq=False)
class BatchNormMethod(Method):
    """Plain batch norm where IsoBN would stand; its baseline."""

    name: ClassVar[str] = "batch-norm"
    summary: ClassVar[str] = "batch normalisation of the vector that is classified, the baseline of isobn"

    momentum: float = option(0.1, "weight of the newest batch in the statistics")
    eps: float = option(1e-5, "added where is divided")

    def prepare(self, model: nn.Module) -> Self:
        """Put the module before the classifier."""
        module = BatchNormBaseline(classifier(model).in_features, momentum=self.momentum, eps=self.eps)
        insert_before_classifier(model, module)
        return self


@dataclass(kw_only=True, eq=False)
class Mixout(Method):
    """Mixout; see :func:`~dynprobe.finetune.apply_mixout`."""

    name: ClassVar[str] = "mixout"
    summary: ClassVar[str] = "weights replaced by pretrained ones at random in each pass (Mixout)"

    p: float = option(0.1, "probability of the pretrained weight")
    mask: str = option("columns", "one draw per input feature, or per weight", choices=("columns", "elements"))
    zero_dropout: bool = option(False, "train without dropout")  # noqa: FBT003
    seed: int = option(0, "seed of the masks")
    as_released: bool = option(False, "as the published code, with its gradient")  # noqa: FBT003

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("p", self.p, low=0, high=1)
        self._stream = Stream("noise", self.seed)

    def use_noise_seed(self, seed: int) -> None:
        """Draw masks from this seed from now on."""
        self._stream.seed = seed

    def prepare(self, model: nn.Module) -> Self:
        """Let the model mix its weights with those that it has now."""
        apply_mixout(
            model,
            self.p,
            mask="columns" if self.mask == "columns" else "elements",
            zero_dropout=self.zero_dropout,
            stream=self._stream,
            as_released=self.as_released,
        )
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The random stream of the masks; anchors are saved with the model."""
        return {"masks": self._stream.state_dict()["seed_and_uses"]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`; after :meth:`prepare`."""
        super().load_state_dict({name: value for name, value in state.items() if name != "masks"})
        self._stream.load_state_dict({"seed_and_uses": state["masks"]})


@dataclass(kw_only=True, eq=False)
class Reinit(Method):
    """Re-initialised top blocks and pooler; see :func:`~dynprobe.finetune.reinitialise`."""

    name: ClassVar[str] = "reinit"
    summary: ClassVar[str] = "pooler and top blocks initialised anew"

    n_blocks: int = option(1, "number of blocks, from the top")
    seed: int = option(0, "seed of the new weights")
    as_released: bool = option(False, "as the published code")  # noqa: FBT003

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seed = self.seed

    def use_noise_seed(self, seed: int) -> None:
        """Draw the new weights from this seed."""
        self._seed = seed

    def prepare(self, model: nn.Module) -> Self:
        """Initialise anew."""
        reinitialise(model, n_blocks=self.n_blocks, seed=self._seed, as_released=self.as_released)
        return self
