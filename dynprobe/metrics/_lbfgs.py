"""L-BFGS for many convex problems at once, each with its own step length."""

from collections.abc import Callable

import torch
from torch import Tensor

_MEMORY = 8  # pairs of steps and gradient changes that L-BFGS remembers
_MAX_ITERATIONS = 1000
_HALVINGS = 30


def minimise(function: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor, *, tolerance: float) -> Tensor:
    """Minimise a batch of convex problems of unit curvature, from a starting point.

    Parameters
    ----------
    function
        Loss (...) and gradient (..., rows, columns) at a point (..., rows, columns).
    u
        Where to start.
    tolerance
        The search ends when no entry of the gradient exceeds it.

    Raises
    ------
    ValueError
        When the gradient does not settle, which a penalty that is too small causes.

    Notes
    -----
    Nocedal (1980), with halved steps. A member that has converged stays where it is.
    """
    loss, gradient = function(u)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(_MAX_ITERATIONS):
        if float(gradient.abs().max()) <= tolerance:
            break
        direction = -_two_loops(gradient, history)
        slope = _dot(direction, gradient)
        uphill = slope >= 0
        direction = torch.where(_wide(uphill), -gradient, direction)
        slope = torch.where(uphill, -_dot(gradient, gradient), slope)
        next_u, next_loss, next_gradient = _line_search(function, u, loss, direction, slope)
        step, change = next_u - u, next_gradient - gradient
        curvature = _dot(step, change)
        # A pair without positive curvature (a member that has converged) is remembered as nothing.
        inverse = torch.where(curvature > 0, 1 / torch.where(curvature > 0, curvature, torch.ones_like(curvature)), 0.0)
        history = [*history[1 - _MEMORY :], (step, change, inverse)]
        u, loss, gradient = next_u, next_loss, next_gradient
    else:
        raise ValueError(f"`penalty` must be large enough for the fit to settle; got none in {_MAX_ITERATIONS} steps")
    return u


def _two_loops(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse curvature that the history describes, applied to a gradient (Nocedal 1980)."""
    q, factors = gradient, []
    for step, change, inverse in reversed(history):
        factor = inverse * _dot(step, q)
        factors.append(factor)
        q = q - _wide(factor) * change
    if history:
        _, change, inverse = history[-1]
        length = _dot(change, change)
        known = (inverse > 0) & (length > 0)
        gamma = torch.where(known, 1 / (torch.where(known, inverse * length, torch.ones_like(length))), 1.0)
        q = _wide(gamma) * q
    for (step, change, inverse), factor in zip(history, reversed(factors), strict=True):
        q = q + _wide(factor - inverse * _dot(change, q)) * step
    return q


def _line_search(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor, loss: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve each member's step until its loss falls enough; a member that cannot fall stays where it is."""
    length = torch.ones_like(loss)
    for _ in range(_HALVINGS):
        trial = u + _wide(length) * direction
        trial_loss, trial_gradient = function(trial)
        # The slack is the rounding of the loss itself, without which a converged member would halve for ever.
        slack = 8 * torch.finfo(loss.dtype).eps * loss.abs()
        enough = trial_loss <= loss + 1e-4 * length * slope + slack
        if bool(enough.all()):
            return trial, trial_loss, trial_gradient
        length = torch.where(enough, length, length / 2)
    return trial, trial_loss, trial_gradient


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1))


def _wide(value: Tensor) -> Tensor:
    return value[..., None, None]
