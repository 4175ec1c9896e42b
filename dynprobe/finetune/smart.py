"""SMART: the model should say the same under the worst small noise, and move slowly (Jiang et al., ACL 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from dynprobe.finetune.embeddings import WordEmbeddings, real_tokens, require_resolution, word_embeddings
from dynprobe.finetune.method import StepLoss, TaskLoss, option, require_range
from dynprobe.finetune.passes import Passes, unwrapped
from dynprobe.finetune.r3f import noise
from dynprobe.finetune.regulariser import Regulariser
from dynprobe.finetune.smart_released import mt_dnn_term, require_embeddings_module
from dynprobe.finetune.targets import logits_of
from dynprobe.finetune.teacher import Teacher

_TEACHER = "teacher."


@dataclass(kw_only=True, eq=False)
class SMART(Regulariser):
    """Task loss + λ · max over ‖δ‖∞ ≤ ε of ℓ(f(x+δ), f(x)) + μ · ℓ(f(x; θ), f(x; θ̃)), ℓ the symmetric KL.

    δ on the word embeddings starts normal with `noise_std`; each step adds η g / ‖g‖∞, g the gradient of ℓ, the norm taken per
    token, and clips to ± ε. The teacher θ̃ follows the weights after each optimizer step, with momentum β, and `late_momentum`
    after `late_after` steps; in a loop of one's own call :meth:`after_step`. All passes have the same dropout masks by
    default, so that f is one function.

    As released (mt-dnn): δ is added to what the embedding layer returns, and that is fed to the embedding layer again; what is
    climbed is no KL; δ is divided by its own maximum instead of being clipped, so that it ends with maximum 1 per token
    whatever ε is; padding gets noise; no proximal term.

    Source: Jiang et al. (2020), "SMART: robust and efficient fine-tuning …", sections 3.1, 3.2 and algorithm 1.
    """

    name: ClassVar[str] = "smart"
    summary: ClassVar[str] = "symmetric KL under the worst small noise, and closeness to a momentum teacher"

    eps: float = option(1e-5, "largest entry of the noise (ε)")
    noise_std: float = option(1e-5, "standard deviation of the noise at the start (σ)")
    step_size: float = option(1e-3, "length of a step of the noise, before it is clipped (η)")
    steps: int = option(1, "steps of the noise (S)")
    proximal_weight: float = option(1.0, "what the divergence from the teacher is multiplied by (μ); 0: no teacher")
    momentum: float = option(0.99, "momentum of the teacher (β)")
    late_momentum: float = option(0.999, "momentum after `late_after` optimizer steps")
    late_after: int | None = option(None, "after how many optimizer steps the momentum changes; None: never")
    dropout: str = option(
        "shared", "dropout masks of the passes: independent, or shared by all", choices=("independent", "shared")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eps", "step_size"):
            require_range(name, getattr(self, name), low=0, high=10)
        # At no noise at all the divergence has no gradient, and nothing would ever climb.
        require_range("noise_std", self.noise_std, low=0, high=10, open_low=True)
        require_range("steps", self.steps, low=1, high=100)
        require_range("proximal_weight", self.proximal_weight, low=0)
        for name in ("momentum", "late_momentum"):
            require_range(name, getattr(self, name), low=0, high=1)
        require_range("late_after", self.late_after or 0, low=0)
        self._teacher: Teacher | None = None
        self._n_steps = 0
        self._seen: tuple[int, int] | None = None

    def prepare(self, model: nn.Module) -> Self:
        """Make the teacher; refuse models without word embeddings, one label, and noise below their resolution."""
        super().prepare(model)
        inner = unwrapped(model)
        embeddings = word_embeddings(inner)
        if self.as_released:
            require_embeddings_module(inner)
            return self
        if self.eps > 0:
            require_resolution(embeddings, self.eps, name="eps")
        self._teacher = Teacher(inner) if self.proximal_weight > 0 else None
        return self

    def after_step(self, model: nn.Module) -> None:
        """Let the teacher follow; call it after each ``optimizer.step()``."""
        self._n_steps += 1
        self._seen = None
        if self._teacher is not None:
            late = self.late_after is not None and self._n_steps > self.late_after
            self._teacher.follow(unwrapped(model), momentum=self.late_momentum if late else self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """Teacher, random streams, and how far training is."""
        teacher = {} if self._teacher is None else self._teacher.state_dict()
        counts = {"n_steps": torch.tensor(self._n_steps)}
        return super().state_dict() | counts | {_TEACHER + name: value for name, value in teacher.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`; after :meth:`prepare`."""
        super().load_state_dict(state)
        self._n_steps = int(state["n_steps"])
        if self._teacher is not None:
            self._teacher.load_state_dict(
                {name.removeprefix(_TEACHER): value for name, value in state.items() if name.startswith(_TEACHER)}
            )

    def _regularised(
        self, passes: Passes, task_loss: TaskLoss, *, share: float | Tensor, loss_scale: float
    ) -> StepLoss:
        task, outputs = passes.clean(task_loss)
        clean = logits_of(outputs)
        if self.as_released:
            value = mt_dnn_term(self, passes, clean, self._noise)
            added = self.weight * share * value
            return StepLoss(task + added, task.detach(), added.detach(), outputs, {"divergence": value.detach()})
        embeddings = word_embeddings(passes.inner)
        delta = self._worst(passes, embeddings, clean.detach(), loss_scale)
        value = self._compared(passes, clean, passes.again(embeddings, delta))
        passes.n_backwards += 1
        added, terms = self.weight * share * value, {"divergence": value.detach()}
        if self.proximal_weight > 0:
            distance = self._from_teacher(passes, clean)
            added = added + self.proximal_weight * share * distance
            terms["proximal"] = distance.detach()
        return StepLoss(task + added, task.detach(), added.detach(), outputs, terms)

    def _worst(self, passes: Passes, embeddings: WordEmbeddings, clean: Tensor, loss_scale: float) -> Tensor:
        """The noise after its steps."""
        mask = real_tokens(passes.inputs)[..., None]
        shape = (*mask.shape[:2], embeddings.width)
        delta = noise(shape, self.noise_std, "normal", self._noise.generator(mask.device)) * mask
        for _ in range(self.steps):
            delta = delta.detach().requires_grad_()
            value = self._compared(passes, clean, passes.again(embeddings, delta))
            (gradient,) = torch.autograd.grad(value * loss_scale, delta)
            passes.n_backwards += 1
            delta = (delta.detach() + self.step_size * per_token_direction(gradient * mask)).clamp(-self.eps, self.eps)
        return delta

    def _from_teacher(self, passes: Passes, clean: Tensor) -> Tensor:
        if self._teacher is None:
            raise RuntimeError("`prepare(model)` must be called before the first loss; it makes the teacher")
        self._require_followed(passes.inner)
        other = passes.again(weights=self._teacher.weights_for(passes.inner), gradient=False)
        return self._compared(passes, clean, other)

    def _require_followed(self, model: nn.Module) -> None:
        """Notice a loop that never tells of its optimizer steps: the teacher would stand still."""
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        now = (id(first), first._version)
        if self._seen is not None and self._seen[0] == now[0] and self._seen != now:
            raise RuntimeError(
                "`after_step(model)` must be called after each optimizer step, so that the teacher can follow; weights have "
                "changed without it"
            )
        self._seen = now


def per_token_direction(gradient: Tensor) -> Tensor:
    """A gradient divided by its largest entry per token; 0 for tokens whose gradient is 0 or not finite.

    Examples
    --------
    >>> per_token_direction(torch.tensor([[[2.0, -4.0], [0.0, 0.0]]])).tolist()
    [[[0.5, -1.0], [0.0, 0.0]]]
    """
    largest = gradient.abs().amax(dim=-1, keepdim=True)
    usable = largest.isfinite() & (largest > 0)
    return torch.where(usable, gradient / torch.where(usable, largest, torch.ones_like(largest)), 0.0)
