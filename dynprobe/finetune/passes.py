"""Passes through a model beyond the one of standard training, which leave random state and statistics alone."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dynprobe.finetune.embeddings import WordEmbeddings, perturbed
from dynprobe.finetune.isobn import IsoBN
from dynprobe.finetune.method import TaskLoss
from dynprobe.finetune.running import RunningNorm
from dynprobe.finetune.streams import RandomState, Stream, replayed
from dynprobe.finetune.targets import logits_of

_WRAPPERS = ("DistributedDataParallel", "OptimizedModule")
_SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")
_EMBEDDED = ("input_ids", "token_type_ids")
_RUNNING = (RunningNorm, nn.modules.batchnorm._BatchNorm)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of data parallelism and of ``torch.compile``.

    Raises
    ------
    ValueError
        For a wrapper that splits the batch or the weights, where passes of one's own are not the same.
    """
    while True:
        kind = type(model).__name__
        if kind in _WRAPPERS:
            model = model._orig_mod if kind == "OptimizedModule" else model.module  # type: ignore[assignment]
        elif kind == "DataParallel" or kind in _SHARDED:
            raise ValueError(
                f"a method with extra passes must run on whole weights and whole batches; got a model in {kind}. Train on one "
                "device, or with DistributedDataParallel"
            )
        else:
            return model


class Passes:
    """The passes of one batch, and how many there were.

    Parameters
    ----------
    model, inputs
        What the loop trains and its batch.
    stream
        Where dropout of the extra passes draws from.
    dropout
        ``"independent"``: each pass has its own dropout masks; ``"shared"``: all have those of the first.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], stream: Stream, *, dropout: str) -> None:
        self.model = model
        self.inner = unwrapped(model)
        self.inputs = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
        self.device = next(self.inner.parameters()).device
        self.n_forwards = 0
        self.n_backwards = 0
        self._stream = stream
        self._dropout = dropout
        self._start: RandomState | None = None
        # Modules that draw from a stream of their own, such as Mixout's, share it.
        attributes = (value for module in self.inner.modules() for value in vars(module).values())
        self._streams = {id(value): value for value in attributes if isinstance(value, Stream)}.values()
        self._uses = [stream.n_used for stream in self._streams]

    def clean(self, task_loss: TaskLoss) -> tuple[Tensor, Any]:
        """The pass of standard training, with the random draws of standard training."""
        self._start = RandomState.now(self.device)
        return task_loss(self.model, dict(self.inputs))

    def again(
        self,
        embeddings: WordEmbeddings | None = None,
        delta: Tensor | None = None,
        *,
        gradient: bool = True,
        detached: bool = False,
        weights: Mapping[str, Tensor] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The logits of one more pass.

        Parameters
        ----------
        embeddings, delta
            Noise on the word embeddings, if any.
        gradient
            Whether the pass can be differentiated.
        detached
            Whether the embedding table gets no gradient from it.
        weights, inputs
            Other weights to run it with, by name, and another batch.
        """
        inputs = dict(self.inputs if inputs is None else inputs)
        with ExitStack() as stack:
            self._enter_extra(stack)
            if not gradient:
                stack.enter_context(torch.no_grad())
            if delta is not None and embeddings is not None:
                stack.enter_context(perturbed(embeddings, delta, detached=detached))
            if weights is None:
                return logits_of(self.inner(**inputs))
            return logits_of(torch.func.functional_call(self.inner, dict(weights), (), inputs))

    def task(
        self,
        task_loss: TaskLoss,
        embeddings: WordEmbeddings | None = None,
        delta: Tensor | None = None,
        *,
        wrapped: bool = False,
    ) -> tuple[Tensor, Any]:
        """One more pass that computes the loss of the task; if it is the first, it draws what standard training draws.

        Parameters
        ----------
        embeddings, delta
            Noise on the word embeddings, if any.
        wrapped
            Whether to run the model as the loop has it, so that its gradients are averaged over processes.
        """
        with ExitStack() as stack:
            if self._start is None:
                self._start = RandomState.now(self.device)
                stack.enter_context(_eager())
            else:
                self._enter_extra(stack)
            if delta is not None and embeddings is not None:
                stack.enter_context(perturbed(embeddings, delta))
            return task_loss(self.model if wrapped else self.inner, dict(self.inputs))

    def embedded(self, layer: nn.Module) -> Tensor:
        """What an embedding layer makes of the token ids, with random draws of its own; counts as no pass."""
        asked = inspect.signature(layer.forward).parameters
        with self._stream.in_charge(self.device):
            found: Tensor = layer(
                **{name: self.inputs[name] for name in _EMBEDDED if name in asked and name in self.inputs}
            )
        return found

    def _enter_extra(self, stack: ExitStack) -> None:
        """Random draws, compilation and statistics of an extra pass; the state of the process stays as it is."""
        self.n_forwards += 1
        stack.enter_context(_eager())
        stack.enter_context(_statistics_kept(self.inner))
        shared = self._dropout == "shared" and self._start is not None
        for stream, first_use in zip(self._streams, self._uses, strict=True):
            stack.enter_context(_stream_kept(stream))
            if shared:
                stream.n_used = first_use
            else:
                stream.seed = self._stream.next_seed()
        if shared and self._start is not None:
            stack.enter_context(replayed(self._start, self.device))
        else:
            stack.enter_context(self._stream.in_charge(self.device))


@contextmanager
def _stream_kept(stream: Stream) -> Iterator[None]:
    before = stream.seed, stream.n_used
    try:
        yield
    finally:
        stream.seed, stream.n_used = before


def _eager() -> Any:
    """Hooks of one pass are not seen by compiled code; importing dynamo costs seconds, so only where it is in use."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Modules that keep running statistics see a batch once, in the pass of standard training."""
    rescaling = [module for module in model.modules() if isinstance(module, IsoBN) and module.training]
    counting = [module for module in model.modules() if isinstance(module, _RUNNING) and not isinstance(module, IsoBN)]
    before = [(buffer, buffer.clone()) for module in counting for buffer in module.buffers(recurse=False)]
    for module in rescaling:
        module.training = False  # the factors that the first pass has used
    try:
        yield
    finally:
        for module in rescaling:
            module.training = True
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
