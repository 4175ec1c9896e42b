"""Pull towards the start: weight decay whose origin is the pretrained weights."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynprobe.finetune.anatomy import core_model, is_inside, new_modules, undecayed_parameters

_KEY = "anchor"


class PullToStart:
    """Prior weight decay in an optimizer; :func:`pull_to_start` makes it.

    Attributes
    ----------
    n_pulled, n_decayed
        Number of parameter tensors pulled to where they started, and to zero.
    """

    def __init__(
        self, optimizer: Optimizer, strength: float, pulled: list[nn.Parameter], decayed: list[nn.Parameter]
    ) -> None:
        self.n_pulled, self.n_decayed = len(pulled), len(decayed)
        self._strength = strength
        self._decayed = set(decayed)
        # Held here until the optimizer has made its own state of a parameter, which it does only while there is none.
        self._starts = {parameter: parameter.detach().clone() for parameter in pulled}
        self._pulled = set(pulled)
        self._handles = [
            optimizer.register_step_pre_hook(self._pull),
            optimizer.register_step_post_hook(self._hand_over),
        ]

    def remove(self) -> None:
        """Stop pulling. Anchors that the optimizer's state holds stay in it."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the optimizer's step: move each weight by its share of the way."""
        for group in optimizer.param_groups:
            share = float(group["lr"]) * self._strength
            pulled = [parameter for parameter in group["params"] if parameter in self._pulled]
            if pulled:
                torch._foreach_lerp_(pulled, [self._anchor(optimizer, parameter) for parameter in pulled], share)
            decayed = [parameter for parameter in group["params"] if parameter in self._decayed]
            if decayed:
                torch._foreach_mul_(decayed, 1 - share)

    def _anchor(self, optimizer: Optimizer, parameter: nn.Parameter) -> Tensor:
        saved = optimizer.state[parameter].get(_KEY) if parameter in optimizer.state else None
        anchor = self._starts[parameter] if saved is None else saved
        return anchor.to(device=parameter.device, dtype=parameter.dtype)

    def _hand_over(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After the optimizer's step: its state, which is saved and resumed, takes the anchors."""
        for parameter in [key for key in self._starts if key.grad is not None]:
            start = self._starts.pop(parameter)
            optimizer.state[parameter].setdefault(_KEY, start.to(device=parameter.device, dtype=parameter.dtype))


def pull_to_start(
    optimizer: Optimizer,
    model: nn.Module,
    strength: float,
    *,
    towards: Literal["start", "zero"] = "start",
    new: tuple[str, ...] | None = None,
    as_released: bool = False,
) -> PullToStart:
    """Let an optimizer pull the weights back to where they are now: prior weight decay, of Lee et al. and Zhang et al. (2021).

    Before each step θ moves by learning rate × `strength` of its way to its anchor, with the rate that its group has then. The
    weights of a new head, which have no pretrained value, decay to zero instead. Biases and the weights of norms are left
    alone. The anchors live in the optimizer's state: its ``state_dict`` saves and resumes them, the model stays plain.

    Parameters
    ----------
    optimizer
        Any optimizer over the model's parameters, whose own weight decay is 0; the result works as long as it does. Also
        inside a Trainer and with gradient scaling, whose skipped steps pull nothing.
    model
        A transformers model with its pretrained weights.
    strength
        λ, at least 0; the published study uses 1e-3.
    towards
        ``"zero"`` is ordinary weight decay by the same rule, for comparison.
    new
        Names of modules whose weights are new; by default what stands beside the pretrained body.
    as_released
        The published code: with ``"start"`` the new head is pulled to its random start (its test for the last group can never
        hold); with ``"zero"`` nothing happens at all, since it sets every group's decay to 0 and applies only the prior one.

    Returns
    -------
    PullToStart
        Whose ``remove()`` ends it.

    Raises
    ------
    ValueError
        For a negative `strength`, an optimizer with a weight decay of its own or without some of the weights.

    Notes
    -----
    θ ← θ - η_t λ (θ - θ_0), decoupled from the gradient. After t steps without gradient the distance to the anchor is
    Π (1 - η_t λ) of what it was.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(
    ...     BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    ... )
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> pull_to_start(optimizer, model, 0.5).n_pulled
    10
    >>> weight = model.pooler.dense.weight
    >>> before = weight.detach().clone()
    >>> _ = weight.data.add_(1.0)
    >>> optimizer.step()
    >>> round(float((weight - before).mean().detach()), 5)
    0.75
    """
    if not strength >= 0 or strength == float("inf"):
        raise ValueError(f"`strength` must be a finite number of at least 0; got {strength}")
    if towards not in ("start", "zero"):
        raise ValueError(f"`towards` must be 'start' or 'zero'; got {towards!r}")
    core = core_model(model)
    weights = _weights(core)
    _require_in(optimizer, weights)
    head = () if as_released else new_modules(core, new)
    if towards == "zero":
        return PullToStart(optimizer, strength, [], [] if as_released else list(weights.values()))
    pulled = [parameter for name, parameter in weights.items() if not is_inside(name, head)]
    decayed = [parameter for name, parameter in weights.items() if is_inside(name, head)]
    return PullToStart(optimizer, strength, pulled, decayed)


def _weights(core: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters that weight decay concerns."""
    left_alone = undecayed_parameters(core)
    return {name: p for name, p in core.named_parameters() if p.requires_grad and name not in left_alone}


def _require_in(optimizer: Optimizer, weights: dict[str, nn.Parameter]) -> None:
    group_of = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    absent = [name for name, parameter in weights.items() if parameter not in group_of]
    if absent:
        raise ValueError(
            f"`optimizer` must hold every trainable weight of the model; got one without {len(absent)} of {len(weights)}, "
            f"such as {absent[0]!r}. Make it after the model is complete and on its device"
        )
    decays = {float(group_of[parameter].get("weight_decay", 0.0)) for parameter in weights.values()} - {0.0}
    if decays:
        raise ValueError(
            f"`optimizer` must have weight_decay=0 beside the pull, which takes its place; got {max(decays)}"
        )
