"""R3F: the model should say the same with a little noise on its word embeddings (Aghajanyan et al., ICLR 2021)."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from dynprobe.finetune.divergences import squared_difference
from dynprobe.finetune.embeddings import WordEmbeddings, real_tokens, require_resolution, word_embeddings
from dynprobe.finetune.method import StepLoss, TaskLoss, option, require_range
from dynprobe.finetune.passes import Passes, unwrapped
from dynprobe.finetune.regulariser import Regulariser
from dynprobe.finetune.targets import core_of, divergence_between, logits_of

# Models to which fairseq's R3F hands embeddings that they drop unseen: what it calls R3F there has no noise.
_FAIRSEQ_DROPS_NOISE = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl"})
_MAX_EPS = 10.0


@dataclass(kw_only=True, eq=False)
class R3F(Regulariser):
    """Task loss + λ · (KL(f(x)‖f(x+z)) + KL(f(x+z)‖f(x))), with noise z on the word embeddings.

    Noise of the published size, 1e-5, is far below what dropout does: with independent dropout masks nearly all of the
    divergence comes from dropout (the logged share is close to 1), and with shared masks the term is near 0.

    As released (fairseq): RoBERTa and XLM-R never get the noise; the divergence of predictions per token is summed over all
    positions, padding included, per sentence; the table of a classifier gets no gradient from the noisy pass; regression has
    no term.

    Source: Aghajanyan et al. (2021), "Better fine-tuning by reducing representational collapse", section 3.
    """

    name: ClassVar[str] = "r3f"
    summary: ClassVar[str] = "symmetric KL between the model with and without noise on its word embeddings"

    eps: float = option(1e-5, "half width (uniform) or standard deviation (normal) of the noise")
    noise: str = option("uniform", "distribution of the noise", choices=("uniform", "normal"))
    grad_through: str = option(
        "both",
        "passes through which the divergence is differentiated: both (cost 2.00), clean (1.33) or noisy (2.00)",
        choices=("both", "clean", "noisy"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("eps", self.eps, low=0, high=_MAX_EPS)
        if self.as_released and (self.grad_through != "both" or self.dropout != "independent"):
            raise ValueError(
                "`as_released` must go with grad_through='both' and dropout='independent', as the published code does; got "
                f"{self.grad_through!r} and {self.dropout!r}"
            )

    def prepare(self, model: nn.Module) -> Self:
        """Refuse models without word embeddings, one label, and noise below the resolution of the weights."""
        super().prepare(model)
        embeddings = word_embeddings(unwrapped(model))
        if self.eps > 0:
            require_resolution(embeddings, self.eps, name="eps")
        return self

    def _regularised(
        self, passes: Passes, task_loss: TaskLoss, *, share: float | Tensor, loss_scale: float
    ) -> StepLoss:
        task, outputs = passes.clean(task_loss)
        clean = logits_of(outputs)
        embeddings = word_embeddings(passes.inner)
        delta = self._drawn(passes, embeddings)
        differentiable = self.grad_through != "clean"
        other = passes.again(embeddings, delta, gradient=differentiable, detached=self._detaches(passes, clean, delta))
        passes.n_backwards += differentiable
        value = self._compared(passes, clean.detach() if self.grad_through == "noisy" else clean, other)
        if self.as_released and divergence_between(passes.inner, clean, "auto") is squared_difference:
            value = value * 0  # computed and thrown away
        added = self.weight * share * value
        return StepLoss(task + added, task.detach(), added.detach(), outputs, {"divergence": value.detach()})

    def _reduction(self) -> str:
        return "fairseq" if self.as_released and self.reduction == "mean" else self.reduction

    def _drawn(self, passes: Passes, embeddings: WordEmbeddings) -> Tensor | None:
        if self.as_released and core_of(passes.inner).config.model_type in _FAIRSEQ_DROPS_NOISE:
            return None
        mask = real_tokens(passes.inputs)
        generator = self._noise.generator(mask.device)
        return noise((*mask.shape, embeddings.width), self.eps, self.noise, generator) * mask[..., None]

    def _detaches(self, passes: Passes, clean: Tensor, delta: Tensor | None) -> bool:
        """The published classification code keeps the gradient of the noisy pass from the embedding table."""
        return self.as_released and clean.ndim == 2 and delta is not None


def noise(shape: tuple[int, ...], size: float, kind: str, generator: torch.Generator) -> Tensor:
    """Random numbers: uniform in [-size, size], or normal with this standard deviation; float32.

    Examples
    --------
    >>> values = noise((1000,), 0.5, "uniform", torch.Generator().manual_seed(0))
    >>> bool((values.abs() <= 0.5).all()), bool(values.abs().max() > 0.49)
    (True, True)
    """
    device = generator.device
    if kind == "normal":
        return size * torch.randn(shape, generator=generator, device=device)
    return size * (2 * torch.rand(shape, generator=generator, device=device) - 1)
