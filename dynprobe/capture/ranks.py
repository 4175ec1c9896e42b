"""Who measures a model that several processes train, who writes, and how they stay in step.

Where every process holds the whole model (DistributedDataParallel), the first one measures it alone. Where each holds a part of
every weight (``fully_shard``, FSDP2), a forward pass needs all of them: all run the same passes, and the first one writes. They
tell each other before each pass and at the end how far they are, so that a fault of one, such as a full disk, ends the snapshot
for all and leaves none waiting.
"""

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprobe.capture.guard import reshard, sharded_kind, sharded_parts
from dynprobe.capture.snapshot_writer import DoesNotFitFloat16
from dynprobe.errors import CaptureError, DynprobeError
from dynprobe.storage.writer import FileWriter

# What a process tells the others, in the order in which one word outweighs another.
_GOING_ON, _DONE, _YES, _FAULT = range(4)


class Ranks:
    """The processes that train one model, as one of them sees them.

    Parameters
    ----------
    mesh
        The device mesh over which the weights are sharded; ``None`` where each process holds whole weights.
    rank
        Number of this process where there is no mesh.

    Attributes
    ----------
    shared
        Whether several processes measure the model together, each holding a part of it.
    measures
        Whether this process runs the model on the probe set.
    writes
        Whether this process claims and writes the run directory.

    Examples
    --------
    >>> Ranks.of(nn.Linear(1, 1)).writes, Ranks(None, rank=1).measures
    (True, False)
    """

    def __init__(self, mesh: Any = None, *, rank: int = 0) -> None:
        self._mesh = mesh
        self.writes = rank == 0 if mesh is None else not any(mesh.get_coordinate())
        self.shared = mesh is not None
        self.measures = self.shared or self.writes
        self._parted = False
        self._held_back: Exception | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Ranks":
        """The processes that train a model; every process of a sharded model must ask.

        Raises
        ------
        CaptureError
            When the model is a part of the sharded one, or sharded over several meshes.
        """
        if not sharded_parts(model):
            return cls(rank=_own_rank())
        _require_root(model)
        reshard(model)
        for part in sharded_parts(model):  # makes ready what the first pass would, which the guard would then undo
            part.unshard()
            part.reshard()
        meshes = {parameter.device_mesh for parameter in model.parameters() if hasattr(parameter, "device_mesh")}
        if len(meshes) != 1:
            raise CaptureError(
                f"the weights of the model must be sharded over one device mesh; got {len(meshes)}. Capture the saved "
                "checkpoints"
            )
        return cls(meshes.pop())

    @contextmanager
    def together(self) -> Iterator[None]:
        """A deed of all processes: an error of one is an error of all. Not to be nested.

        Raises
        ------
        CaptureError
            When another process met an error.
        """
        self._parted = self._mesh is None
        try:
            self._raise_held_back()
            yield
        except Exception:
            if not self._parted:
                self._tell(_FAULT)
            raise
        if not self._parted:
            self._tell(_DONE)

    def wait_for_others(self, seconds: float) -> None:
        """Wait until all processes come to this point, but not for ever: at the end of a program one of them may be gone.

        Raises
        ------
        CaptureError
            When one does not come.
        """
        if self._mesh is None:
            return
        here = torch.zeros(1, device=self._mesh.device_type)
        try:
            for axis in range(self._mesh.ndim):
                work = torch.distributed.all_reduce(here, group=self._mesh.get_group(axis), async_op=True)
                work.wait(timedelta(seconds=seconds))
        except (RuntimeError, ValueError) as error:  # the group is gone, another process is, or it took too long
            raise CaptureError(
                f"all processes of a sharded training must come to its end for the last snapshot; one did not: {error}"
            ) from error

    @contextmanager
    def in_step(self, model: nn.Module) -> Iterator[None]:
        """Begin each forward pass of a model only when all processes begin it; inside :meth:`together`."""
        if self._mesh is None:
            yield
            return
        # Before the hook of fully_shard, so that a pass that does not take place leaves nothing behind there.
        handle = model.register_forward_pre_hook(lambda *_: self._announce_pass(), prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def decided(self, flag: bool) -> bool:  # noqa: FBT001 - it is the argument
        """What the process that writes has found; inside :meth:`together`."""
        self._raise_held_back()
        return flag if self._mesh is None else self._tell(_YES if flag and self.writes else _DONE) == _YES

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - it is the argument
        """Whether any process has found it; inside :meth:`together`."""
        return flag if self._mesh is None else self._tell(_YES if flag else _DONE) == _YES

    def require_same(self, what: str, text: str) -> None:
        """Check that all processes hold the same text; inside :meth:`together`.

        Raises
        ------
        CaptureError
            When they do not, naming `what`.
        """
        if self._mesh is None:
            return
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        self._tell(_DONE, number)
        if self._spread:
            raise CaptureError(
                f"all processes of a sharded training must have the same {what}; got different ones. Give the same "
                "`probe_set` and `settings` everywhere"
            )

    def summed(self, values: Tensor) -> Tensor:
        """Sums over the shards of the weights; inside :meth:`together`."""
        if self._mesh is None:
            return values
        self._tell(_DONE)
        sums = values.to(self._mesh.device_type)
        torch.distributed.all_reduce(sums, group=self._mesh.get_group(self._mesh.ndim - 1))
        return sums.cpu()

    def write(self, action: Callable[[], None]) -> None:
        """Write to the run directory where this process is the one that does.

        Of several processes that measure together none must be left behind by a full disk: there the error comes up in the next
        :meth:`together`.
        """
        if not self.writes:
            return
        try:
            action()
        except (OSError, DynprobeError) as error:
            if self._mesh is None:
                raise
            self.hold_back(error)

    def hold_back(self, error: Exception) -> None:
        """Raise an error of this process only where the others can hear of it: before the next pass, or at the end."""
        self._held_back = self._held_back or error

    def open_file(self, path: Path, meta: Mapping[str, Any]) -> "FileWriter | SharedFile":
        """A new file that the process that writes keeps, and that is closed when all are done with it."""
        return FileWriter(path, meta) if self._mesh is None else SharedFile(self, path, meta)

    def _raise_held_back(self) -> None:
        error, self._held_back = self._held_back, None
        if error is not None:
            raise error

    def _announce_pass(self) -> None:
        self._raise_held_back()
        if self._tell(_GOING_ON) != _GOING_ON:
            self._parted = True
            raise CaptureError(
                "all processes of a sharded training must measure alike; got one that has no more batches"
            )

    def _tell(self, word: int, number: int = 0) -> int:
        """Tell the others a word, and hear the weightiest of all."""
        if self._parted:
            raise CaptureError("a snapshot of a sharded training must be taken by all its processes; one has given up")
        self._parted = True  # for good, should a process be gone
        said = torch.tensor([word, -word, number, -number], dtype=torch.int64, device=self._mesh.device_type)
        for axis in range(self._mesh.ndim):
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, self._mesh.get_group(axis))
        highest, lowest, self._spread = int(said[0]), -int(said[1]), int(said[2] + said[3])
        if highest == _FAULT:
            if word != _FAULT:
                raise CaptureError(
                    "another process of this training could not go on with the capture; what that one says is the reason"
                )
            return highest
        if lowest == _GOING_ON != highest:
            raise CaptureError(
                "all processes of a sharded training must measure alike; got different numbers of batches"
            )
        self._parted = False
        return highest


class SharedFile:
    """A file of a model that several processes measure: one writes it, and it is complete when all have done their part.

    A :class:`~dynprobe.storage.writer.FileWriter`, or a :class:`NoFile` in the others. Its faults wait for the end of the pass:
    raised in the middle of it, they would leave the other processes waiting for this one's weights.

    Parameters
    ----------
    ranks
        The processes, inside :meth:`Ranks.together`.
    path, meta
        As for the file itself.
    """

    def __init__(self, ranks: Ranks, path: Path, meta: Mapping[str, Any]) -> None:
        self._ranks = ranks
        self._broken = False
        self._file: FileWriter | NoFile = FileWriter(path, meta) if ranks.writes else NoFile(path, meta)

    def __enter__(self) -> "SharedFile":
        self._file.__enter__()
        return self

    def create(self, name: str, shape: tuple[int, ...], dtype: Any, **facts: Any) -> None:
        """As for the file itself."""
        self._attempt(lambda: self._file.create(name, shape, dtype, **facts))

    def append(self, name: str, block: np.ndarray) -> None:
        """As for the file itself."""
        self._attempt(lambda: self._file.append(name, block))

    def write(self, name: str, array: np.ndarray, **facts: Any) -> None:
        """As for the file itself."""
        self._attempt(lambda: self._file.write(name, array, **facts))

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, no process may be left waiting
            self._broken = True
            self._ranks.hold_back(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        overflow = isinstance(error, DoesNotFitFloat16)
        if error is not None and not overflow:
            self._file.__exit__(kind, error, trace)
            return False
        try:
            if self._ranks.decided(overflow):
                raise error or DoesNotFitFloat16(set())
        except BaseException as fault:
            self._file.__exit__(type(fault), fault, fault.__traceback__)
            raise
        # Where nothing is written, it does not matter that something would not have fitted.
        self._file.__exit__(None, None, None)
        return True


class NoFile:
    """Takes what a :class:`~dynprobe.storage.writer.FileWriter` takes, and keeps nothing."""

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        del path, meta

    def __enter__(self) -> "NoFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def create(self, name: str, shape: tuple[int, ...], dtype: Any, **facts: Any) -> None:
        """Declare nothing."""

    def append(self, name: str, block: np.ndarray) -> None:
        """Drop rows."""

    def write(self, name: str, array: np.ndarray, **facts: Any) -> None:
        """Drop an array."""


def _own_rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _require_root(model: nn.Module) -> None:
    """A part that runs before the whole would be taken for the whole by ``fully_shard``, and training would then fail."""
    kind: Any = sharded_kind()
    for whole in [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]:
        if whole is not model and any(part is model for part in whole.modules()):
            raise CaptureError(
                f"of a sharded model, the one to capture must be the whole; got {type(model).__name__}, a part of "
                f"{type(whole).__name__}. Shard the transformers model by itself, and then what contains it without it"
            )
