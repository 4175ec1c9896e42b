"""BERTAdam: Adam without bias correction, as BERT was first fine-tuned."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

Scale = Literal["1", "r", "1/r"]


def bias_correction_ratio(step: int, *, betas: tuple[float, float] = (0.9, 0.999)) -> float:
    """How many times longer the step of BERTAdam is than Adam's: r(t).

    Above 1 wherever the second moment's average is slower than the first's; tends to 1. With the usual betas most at the 12th
    step, and twice as long up to about the 287th.

    Parameters
    ----------
    step
        Number of the optimizer step, t, from 1.
    betas
        Decay rates of the averages of gradients and squared gradients.

    Returns
    -------
    float
        Above 0.

    Raises
    ------
    ValueError
        For a step before the first or betas outside [0, 1).

    Notes
    -----
    (1 - β1^t) / √(1 - β2^t), exact where ε is negligible. Zhang et al. (2021), "Revisiting Few-sample BERT Fine-tuning".

    Examples
    --------
    >>> [round(bias_correction_ratio(step), 4) for step in (1, 12, 231)]
    [3.1623, 6.5685, 2.2014]
    """
    if step < 1:
        raise ValueError(f"`step` must be at least 1, the first step of the optimizer; got {step}")
    _require_betas(betas)
    first, second = (1.0 if beta == 0 else -math.expm1(step * math.log(beta)) for beta in betas)
    return first / math.sqrt(second)


class BertAdam(Optimizer):
    """Adam without bias correction beside the arms of an experiment on what that does.

    Parameters
    ----------
    params
        Parameters or parameter groups, as for any optimizer of torch.
    lr
        Learning rate α, at least 0.
    betas
        Decay rates β1, β2 in [0, 1).
    eps
        ε, above or equal to 0. The few-sample study uses 1e-8, older code 1e-6; it is added to the root of an average that is
        too small at first, and so counts for more than in Adam.
    weight_decay
        λ: after the step θ shrinks by the factor 1 - α λ, with the learning rate as it is scheduled.
    bias_correction
        Whether the averages are corrected, which makes it Adam.
    scale
        What the step, without the decay, is multiplied by: ``"1"``, ``"r"`` or ``"1/r"`` with r of
        :func:`bias_correction_ratio`. ``bias_correction=True, scale="r"`` is Adam that steps as far as BERTAdam;
        ``scale="1/r"`` is BERTAdam that steps as far as Adam, which is what transformers' former AdamW computed.

    Raises
    ------
    ValueError
        For an option out of range.

    Notes
    -----
    m ← β1 m + (1 - β1) g, v ← β2 v + (1 - β2) g², θ ← θ - α m / (√v + ε), θ ← θ (1 - α λ): the code that the few-sample study
    used. torch's AdamW corrects both averages and decays before the step. State has the names that torch's Adam uses, so that
    either loads the other's ``state_dict``.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> weight.grad = torch.ones(1)
    >>> BertAdam([weight], lr=0.1).step()
    >>> round(weight.item(), 5)  # 3.1623 times as far as Adam
    -0.31623
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        scale: Scale = "1",
    ) -> None:
        _require_betas(betas)
        for name, value in (("lr", float(lr)), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0; got {value}")
        if scale not in ("1", "r", "1/r"):
            raise ValueError(f"`scale` must be '1', 'r' or '1/r'; got {scale!r}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction, "scale": scale})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a saved state, also one of torch's Adam, whose groups lack this optimizer's options."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Parameters
        ----------
        closure
            Computes the loss once more and its gradients.

        Returns
        -------
        float or None
            What `closure` returned.

        Raises
        ------
        ValueError
            For sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        if any(grad.is_sparse for grad in grads):
            raise ValueError(
                "gradients must be dense for BertAdam; got sparse ones. Make the embedding with sparse=False"
            )
        states = [self._state_of(parameter) for parameter in params]
        beta1, beta2 = group["betas"]
        averages, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] += 1
        torch._foreach_lerp_(averages, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        factors = [_factors(int(state["step"]), group) for state in states]
        if group["bias_correction"]:
            torch._foreach_div_(roots, [root for _, root in factors])
        torch._foreach_add_(roots, group["eps"])
        lr = float(group["lr"])
        torch._foreach_addcdiv_(params, averages, roots, [-lr * factor for factor, _ in factors])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _factors(step: int, group: dict[str, Any]) -> tuple[float, float]:
    """What the step is multiplied by, and what the root of the average is divided by."""
    ratio = bias_correction_ratio(step, betas=group["betas"])
    scale = {"1": 1.0, "r": ratio, "1/r": 1 / ratio}[group["scale"]]
    if not group["bias_correction"]:
        return scale, 1.0
    first, second = (1.0 if beta == 0 else -math.expm1(step * math.log(beta)) for beta in group["betas"])
    return scale / first, math.sqrt(second)


def _require_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"`betas` must lie in [0, 1); got {betas}")
