"""Random streams that do not disturb each other: head initialisation, data order, dropout, the noise of a method.

torch has one random state per device for everything. What a method draws from it, or how often it runs the model, would shift
the dropout masks and the data order of all that follows, and two trainings that should differ in the method alone would differ
in everything. Here whatever a method draws comes from streams of its own, and the state of the process is put back after.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SEED_LIMIT = 2**63


class Stream:
    """A sequence of seeds: the draws number 0, 1, 2, … of one purpose.

    Each use takes the next seed, which depends on the stream's own seed, its name, how often it was used, and the process of
    a distributed training; on nothing else. So its whole state is two numbers, on every device.

    Parameters
    ----------
    name
        Purpose; streams with the same seed and other names are independent.
    seed
        At least 0.

    Examples
    --------
    >>> noise = Stream("noise", 7)
    >>> first = torch.rand(2, generator=noise.generator("cpu"))
    >>> bool((first == torch.rand(2, generator=noise.generator("cpu"))).any())  # the next draws
    False
    >>> bool((first == torch.rand(2, generator=Stream("noise", 7).generator("cpu"))).all())
    True
    """

    def __init__(self, name: str, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEED_LIMIT:
            raise ValueError(f"`seed` must be a whole number from 0 to 2**63 - 1; got {seed!r}")
        self.name = name
        self.seed = seed
        self.n_used = 0

    def next_seed(self) -> int:
        """The seed of the next use, from 0 to 2**63 - 1."""
        words = f"{self.name}:{self.seed}:{self.n_used}:{_process_index()}".encode()
        self.n_used += 1
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 1

    def generator(self, device: torch.device | str) -> torch.Generator:
        """A generator for the next use."""
        return torch.Generator(device=device).manual_seed(self.next_seed())

    @contextmanager
    def in_charge(self, device: torch.device | str | None = None) -> Iterator[None]:
        """Let everything inside draw from this stream; the random state of the process stays as it was.

        Parameters
        ----------
        device
            Where the draws are made; by default the current accelerator. The CPU is always included.
        """
        seed = self.next_seed()
        with random_state_kept(device):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            kind = _accelerator(device)
            if kind is not None:
                _module(kind).manual_seed(seed)
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Seed and number of uses."""
        return {"seed_and_uses": torch.tensor([self.seed, self.n_used], dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.seed, self.n_used = (int(value) for value in state["seed_and_uses"])


class Streams:
    """The four random streams of a training, each with its own seed.

    Parameters
    ----------
    seed
        Seed of every stream that is not given one of its own.
    head, data, dropout, noise
        Seeds: of the weights that are initialised anew, of the order of the examples, of the dropout masks, of the method.

    Examples
    --------
    >>> streams = Streams(0, dropout=5)
    >>> with streams.head.in_charge("cpu"):
    ...     head = torch.nn.Linear(2, 2)
    >>> streams.data.seed, streams.dropout.seed
    (0, 5)
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        head: int | None = None,
        data: int | None = None,
        dropout: int | None = None,
        noise: int | None = None,
    ) -> None:
        given = {"head": head, "data": data, "dropout": dropout, "noise": noise}
        made = {name: Stream(name, seed if own is None else own) for name, own in given.items()}
        self.head, self.data, self.dropout, self.noise = made.values()

    def state_dict(self) -> dict[str, Tensor]:
        """State of all streams."""
        return {f"{stream.name}.{key}": value for stream in self._all() for key, value in stream.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`."""
        for stream in self._all():
            stream.load_state_dict({"seed_and_uses": state[f"{stream.name}.seed_and_uses"]})

    def _all(self) -> tuple[Stream, ...]:
        return self.head, self.data, self.dropout, self.noise


@dataclass(frozen=True)
class RandomState:
    """The random state of the process at one moment: of Python, of torch on the CPU and on one accelerator."""

    python: Any
    cpu: Tensor
    accelerator: str | None
    on_accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device | str | None = None) -> "RandomState":
        """The state as it is; of the accelerator that `device` names, by default the current one."""
        kind = _accelerator(device)
        return cls(
            random.getstate(),
            torch.get_rng_state(),
            kind,
            None if kind is None else _module(kind).get_rng_state(),
        )

    def restore(self) -> None:
        """Make this the state of the process."""
        random.setstate(self.python)
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            _module(self.accelerator).set_rng_state(self.on_accelerator)


@contextmanager
def random_state_kept(device: torch.device | str | None = None) -> Iterator[RandomState]:
    """Leave the random state of the process as it was; yields it."""
    before = RandomState.now(device)
    try:
        yield before
    finally:
        before.restore()


@contextmanager
def replayed(state: RandomState, device: torch.device | str | None = None) -> Iterator[None]:
    """Draw inside what was drawn after `state`: the same dropout masks once more."""
    with random_state_kept(device):
        state.restore()
        yield


def _accelerator(device: torch.device | str | None) -> str | None:
    """Kind of the accelerator whose random state counts, if the process uses one."""
    if device is not None:
        kind = torch.device(device).type
        return None if kind in ("cpu", "meta") else kind
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _module(kind: str) -> Any:
    return getattr(torch, kind)


def _process_index() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
