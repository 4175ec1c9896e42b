"""SMART's smoothness term as mt-dnn computes it, faults included."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynprobe.finetune.divergences import detached_symmetric_kl, mt_dnn_stable_kl, squared_difference
from dynprobe.finetune.passes import Passes
from dynprobe.finetune.streams import Stream
from dynprobe.finetune.targets import core_of, divergence_between

if TYPE_CHECKING:
    from dynprobe.finetune.smart import SMART


def require_embeddings_module(model: nn.Module) -> Any:
    """The layer that makes embeddings, positions and normalisation included, as encoders have it.

    Raises
    ------
    ValueError
        When the model has none.
    """
    layer = getattr(core_of(model).base_model, "embeddings", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(
            "the model must have a layer `embeddings` for SMART as released, as encoders have; got "
            f"{type(core_of(model)).__name__}. Leave `as_released` out"
        )
    return layer


def mt_dnn_term(method: "SMART", passes: Passes, clean: Tensor, stream: Stream) -> Tensor:
    """The smoothness term of mt-dnn: of noise on embeddings that go through the embedding layer a second time.

    Raises
    ------
    ValueError
        For predictions per token, which the published code does not have.
    """
    if clean.ndim != 2:
        raise ValueError(
            "predictions must be one per text for SMART as released; got one per token. Leave `as_released` out"
        )
    regression = divergence_between(passes.inner, clean, method.divergence) is squared_difference
    embedded = passes.embedded(require_embeddings_module(passes.inner))
    generator = stream.generator(embedded.device)
    noise = torch.randn(embedded.shape, generator=generator, device=embedded.device) * method.noise_std
    inputs = {name: value for name, value in passes.inputs.items() if name != "input_ids"}
    for _ in range(method.steps):
        noise = noise.detach().requires_grad_()
        other = passes.again(inputs={**inputs, "inputs_embeds": embedded + noise})
        climbed = (clean.detach() - other).square() if regression else mt_dnn_stable_kl(other, clean.detach())
        (gradient,) = torch.autograd.grad(climbed.sum(), noise)
        passes.n_backwards += 1
        if not bool(gradient.norm().isfinite()):
            return clean.sum() * 0
        raw = noise.detach() + gradient * method.step_size
        noise = raw / (raw.abs().amax(dim=-1, keepdim=True) + method.eps)
    other = passes.again(inputs={**inputs, "inputs_embeds": embedded + noise})
    passes.n_backwards += 1
    return (squared_difference if regression else detached_symmetric_kl)(clean, other).mean()
