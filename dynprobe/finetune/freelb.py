"""FreeLB: adversarial noise on the word embeddings, whose steps train the model too (Zhu et al., ICLR 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dynprobe.finetune.deferred import with_gradients
from dynprobe.finetune.embeddings import WordEmbeddings, real_tokens, require_resolution, word_embeddings
from dynprobe.finetune.extra_passes import ExtraPasses
from dynprobe.finetune.method import StepLoss, TaskLoss, model_loss, option, require_range
from dynprobe.finetune.passes import Passes, unwrapped
from dynprobe.finetune.r3f import noise

_SMALLEST_RELEASED = 1e-10  # the published code's smallest gradient norm


@dataclass(kw_only=True, eq=False)
class FreeLB(ExtraPasses):
    """Mean of the task losses of K passes, whose noise on the word embeddings climbs the loss from pass to pass.

    δ starts uniform (l2: entries within ± magnitude / √(n_tokens · width) of each text); after each pass
    δ ← Π(δ + α g / ‖g‖), g the gradient of the loss, where Π brings back what is longer than `max_norm`. One backward pass
    gives the step of δ and the gradient of the weights, so K passes cost K times standard training. The gradients of all but
    the last pass are held until ``backward()``: one more copy of the trained weights. Logged as the loss of the task is that of
    the first pass, as the regulariser what the mean of all lies above it.

    As released (the RoBERTa code): K steps after the first pass, so K + 1 passes; the gradient is not masked at padding.

    Source: Zhu et al. (2020), "FreeLB: enhanced adversarial training for natural language understanding", algorithm 1.
    """

    name: ClassVar[str] = "freelb"
    summary: ClassVar[str] = "adversarial noise on the word embeddings; the mean loss over its ascent steps"

    steps: int = option(3, "passes K, each with one step of the noise")
    step_size: float = option(0.1, "length of a step of the noise (α)")
    init_magnitude: float = option(0.1, "size of the noise at the start; 0: none")
    max_norm: float = option(0.3, "largest noise of a text; 0: no bound")
    norm: str = option("l2", "norm of the noise of a text", choices=("l2", "linf"))
    dropout: str = option(
        "shared", "dropout masks of the passes: independent, or shared by all", choices=("independent", "shared")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("steps", self.steps, low=1, high=100)
        for name in ("step_size", "init_magnitude", "max_norm"):
            require_range(name, getattr(self, name), low=0, high=1e3)

    def prepare(self, model: nn.Module) -> Self:
        """Refuse models without word embeddings, and noise below the resolution of the weights."""
        embeddings = word_embeddings(unwrapped(model))
        if self.step_size > 0:
            require_resolution(embeddings, self.step_size, name="step_size")
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
        """The mean loss of the passes; see :meth:`Method.loss`."""
        if not model.training:
            return super().loss(model, inputs, task_loss)
        self._n_batches += 1
        passes = Passes(model, inputs, self._masks, dropout=self.dropout)
        climb = _Climb(passes, task_loss, loss_scale / self._n_passes)
        mask = real_tokens(passes.inputs)[..., None]
        delta = self._start(mask, climb.embeddings)
        for _ in range(self._n_passes - 1):
            delta = self._moved(delta, climb.step(delta), mask)
        loss, outputs = climb.end(delta)
        passes.n_backwards = self._n_passes - 1
        first = loss.detach() if climb.first is None else climb.first
        return StepLoss(loss, first, loss.detach() - first, outputs, {}, passes.n_forwards, passes.n_backwards)

    @property
    def _n_passes(self) -> int:
        return self.steps + self.as_released

    def _start(self, mask: Tensor, embeddings: WordEmbeddings) -> Tensor:
        shape = (*mask.shape[:2], embeddings.width)
        delta = noise(shape, self.init_magnitude, "uniform", self._noise.generator(mask.device)) * mask
        if self.norm == "linf":
            return delta
        n_entries = mask.sum(dim=1, keepdim=True) * embeddings.width
        return delta / n_entries.clamp_min(1).sqrt()

    def _moved(self, delta: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
        """One step up, and back into the ball; texts without a usable gradient stay where they are."""
        order = 2.0 if self.norm == "l2" else float("inf")
        if not self.as_released:
            gradient = gradient * mask
        length = _lengths(gradient, order)
        least = _SMALLEST_RELEASED if self.as_released else torch.finfo(length.dtype).tiny
        direction = gradient / length.clamp_min(least)
        delta = delta + self.step_size * torch.where(length.isfinite(), direction, torch.zeros_like(direction))
        if self.max_norm == 0:
            return delta
        if self.norm == "linf":
            return delta.clamp(-self.max_norm, self.max_norm)
        return delta * (self.max_norm / _lengths(delta, order).clamp_min(self.max_norm))


class _Climb:
    """The passes of one batch: each gives the gradients of the noise and of the weights."""

    def __init__(self, passes: Passes, task_loss: TaskLoss, scale: float) -> None:
        self.embeddings = word_embeddings(passes.inner)
        self.first: Tensor | None = None
        self._passes = passes
        self._task_loss = task_loss
        self._scale = scale  # of the gradients while they are made, so that float16 can hold them
        self._parameters = [parameter for parameter in passes.inner.parameters() if parameter.requires_grad]
        self._gradients: list[Tensor | None] = [None] * len(self._parameters)
        self._losses: list[Tensor] = []

    def step(self, delta: Tensor) -> Tensor:
        """A pass whose gradients are kept; returns that of the noise, scaled."""
        delta = delta.detach().requires_grad_()
        loss, _ = self._passes.task(self._task_loss, self.embeddings, delta)
        found = torch.autograd.grad(loss * self._scale, [delta, *self._parameters], allow_unused=True)
        self._gradients = [_sum(old, new) for old, new in zip(self._gradients, found[1:], strict=True)]
        self._losses.append(loss.detach())
        self.first = self._losses[0]
        return found[0]

    def end(self, delta: Tensor) -> tuple[Tensor, Any]:
        """The last pass, which the loop back-propagates; its loss carries the gradients of the others."""
        loss, outputs = self._passes.task(self._task_loss, self.embeddings, delta, wrapped=True)
        if not self._losses:
            return loss, outputs
        n_passes = len(self._losses) + 1
        earlier = torch.stack(self._losses).sum() / n_passes
        unscaled = [None if value is None else value.div_(self._scale * n_passes) for value in self._gradients]
        return loss / n_passes + with_gradients(earlier, self._parameters, unscaled), outputs


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)


def _lengths(values: Tensor, order: float) -> Tensor:
    """Norm of each text's noise, shape (n_examples, 1, 1)."""
    return torch.linalg.vector_norm(values, order, dim=(1, 2), keepdim=True)
