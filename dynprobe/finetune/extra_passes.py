"""What methods with extra passes have in common: their random streams, and the state that a resumed training needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dynprobe.finetune.method import Method, option
from dynprobe.finetune.streams import Stream


@dataclass(kw_only=True, eq=False)
class ExtraPasses(Method):
    """Base of the methods that run the model more than once per batch."""

    has_passes: ClassVar[bool] = True

    seed: int = option(0, "seed of noise and of dropout in the extra passes")
    as_released: bool = option(False, "do as the published code does where it differs from the method")  # noqa: FBT003

    def __post_init__(self) -> None:
        super().__post_init__()
        self._noise = Stream("noise", self.seed)
        self._masks = Stream("dropout of extra passes", self.seed)
        self._probing = Stream("dropout share", self.seed)
        self._n_batches = 0

    def use_noise_seed(self, seed: int) -> None:
        """Draw noise, and dropout in extra passes, from this seed from now on."""
        for stream in self._streams().values():
            stream.seed = seed

    def state_dict(self) -> dict[str, Tensor]:
        """Random streams and the number of batches."""
        state = {name: stream.state_dict()["seed_and_uses"] for name, stream in self._streams().items()}
        return {**state, "n_batches": torch.tensor(self._n_batches)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`; after :meth:`prepare`."""
        expected = self.state_dict().keys()
        if expected != state.keys():
            raise ValueError(
                f"`state` must be one of method {self.name!r} with these options; missing {sorted(expected - state.keys())}, "
                f"unknown {sorted(state.keys() - expected)}"
            )
        self._n_batches = int(state["n_batches"])
        for name, stream in self._streams().items():
            stream.load_state_dict({"seed_and_uses": state[name]})

    def _streams(self) -> dict[str, Stream]:
        return {"noise": self._noise, "masks": self._masks, "probing": self._probing}
