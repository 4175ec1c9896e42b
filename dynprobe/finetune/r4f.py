"""R4F: R3F with a head that cannot amplify (Aghajanyan et al., ICLR 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from dynprobe.finetune.method import option, require_range
from dynprobe.finetune.passes import unwrapped
from dynprobe.finetune.r3f import R3F
from dynprobe.finetune.spectral import head_weights, load_raw_state, normalise, raw_state
from dynprobe.finetune.streams import Stream

_HEAD = "head."


@dataclass(kw_only=True, eq=False)
class R4F(R3F):
    """R3F, and every weight matrix of the head is divided by its largest singular value, so that its Lipschitz bound is 1.

    The head is what lies outside the base model. Dropout in it scales by 1 / (1 - p) in training and is not bounded. Saved
    models hold the normalised weights under their usual names; the weights behind them go into the state of the method.

    As released: only the last weight matrix, by one power iteration per pass, whose norm starts above 1.

    Source: Aghajanyan et al. (2021), "Better fine-tuning by reducing representational collapse", section 3.
    """

    name: ClassVar[str] = "r4f"
    summary: ClassVar[str] = "R3F, and every weight matrix of the head divided by its largest singular value"

    power_iterations: int = option(0, "estimate the singular value by so many power iterations per pass; 0: exact")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("power_iterations", self.power_iterations, low=0, high=1000)
        self._modules: dict[str, nn.Module] = {}

    def prepare(self, model: nn.Module) -> Self:
        """Normalise the head; refuse heads without weights, and what R3F refuses."""
        super().prepare(model)
        modules = head_weights(unwrapped(model))
        iterations: int | None = self.power_iterations or None
        if self.as_released:
            last = list(modules)[-1]
            modules, iterations = {last: modules[last]}, 1
        normalise(modules, iterations=iterations, generator=Stream("power iteration", self.seed).generator("cpu"))
        self._modules = modules
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Random streams, and the head's weights before normalisation."""
        return super().state_dict() | {_HEAD + name: value for name, value in raw_state(self._modules).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`; after :meth:`prepare`."""
        super().load_state_dict(state)
        raw = {name.removeprefix(_HEAD): value for name, value in state.items() if name.startswith(_HEAD)}
        load_raw_state(self._modules, raw)
