"""Linear probes: how well a label can be read from a representation by multinomial logistic regression."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, check_broadcast, like, observations, to_float64, unit_columns
from dynprobe.metrics._lbfgs import minimise

_STAGES = (1e-3, 1e-4, 1e-6)  # tolerances at which the curvature is measured again


@dataclass(frozen=True)
class LinearProbe:
    """A fitted multinomial logistic regression; features need not be standardised before use.

    Attributes
    ----------
    coefficients
        (..., n_classes, n_features), per unit of each feature.
    intercepts
        (..., n_classes).
    """

    coefficients: Tensor
    intercepts: Tensor

    def logits(self, features: Array) -> Array:
        """Unnormalised log-probabilities (..., n_samples, n_classes)."""
        data = to_float64("features", features).to(self.coefficients.device)
        if data.shape[-1] != self.coefficients.shape[-1]:
            raise ValueError(
                f"`features` must have the {self.coefficients.shape[-1]} columns that the probe was fitted on; "
                f"got {data.shape[-1]}"
            )
        return like(data @ self.coefficients.mT + self.intercepts.unsqueeze(-2), features)

    def predict(self, features: Array) -> Array:
        """Most probable class (..., n_samples), 0-based."""
        return like(torch.as_tensor(self.logits(features)).argmax(dim=-1), features)

    def accuracy(self, features: Array, labels: Array) -> Array:
        """Share of right predictions (...), in [0, 1]."""
        logits = torch.as_tensor(self.logits(features))
        right = logits.argmax(dim=-1) == self._truth(labels, logits)
        return like(right.to(logits.dtype).mean(dim=-1), features)

    def log_loss(self, features: Array, labels: Array) -> Array:
        """Mean negative log-likelihood of the labels (...), in nats; infinite for a class that the fit never saw."""
        log_p = torch.as_tensor(self.logits(features)).log_softmax(dim=-1)
        truth = self._truth(labels, log_p)
        log_p = log_p.expand(*torch.broadcast_shapes(log_p.shape[:-1], truth.shape), log_p.shape[-1])
        picked = log_p.gather(-1, truth.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return like(-picked.mean(dim=-1), features)

    def _truth(self, labels: Array, logits: Tensor) -> Tensor:
        classes = _class_indices(labels)
        n_samples, n_classes = logits.shape[-2:]
        if classes.ndim == 0 or classes.shape[-1] != n_samples or classes.max() >= n_classes:
            raise ValueError(
                f"`labels` must give one of {n_classes} classes to each of {n_samples} samples; "
                f"got shape {classes.shape} with largest label {classes.max()}"
            )
        check_broadcast("labels", classes.shape[:-1], "features", logits.shape[:-2])
        return torch.as_tensor(classes, device=logits.device)


def fit_linear_probe(
    features: Array,
    labels: Array,
    *,
    n_classes: int | None = None,
    penalty: float = 1.0,
    tolerance: float = 1e-8,
) -> LinearProbe:
    """Fit multinomial logistic regression on standardised features, many representations at once.

    Parameters
    ----------
    features
        Shape (..., n_samples, n_features), such as one representation per layer. Each feature is standardised with its own mean
        and standard deviation; a feature that does not vary gets coefficient 0.
    labels
        Shape (..., n_samples): class of each sample, 0-based integers; the leading axes broadcast against those of `features`.
    n_classes
        Number of classes; by default the largest label plus one. A class without samples is never predicted: its
        coefficients are 0 and its intercept is -inf.
    penalty
        Weight of ½‖coefficients‖² (of the standardised features) against the sum of the losses; scikit-learn's 1/C.
        Intercepts are not penalised.
    tolerance
        The fit ends when no entry of the gradient of the mean loss exceeds it, in coordinates in which the curvature is about
        1 (by the weights of standardised features it may be some ten times as large). 1e-4 is enough for an accuracy and three
        times faster.

    Returns
    -------
    LinearProbe
        In the units of the features as given.

    Raises
    ------
    ValueError
        For labels that are no classes, a wrong number of them, only one class, a penalty that is not positive or so small
        that the fit does not settle, or features so near constant that a coefficient overflows.

    Notes
    -----
    Agrees with scikit-learn's ``LogisticRegression(C=1/penalty)`` on standardised features, also in its convention for two
    classes. Solved by L-BFGS in coordinates in which the curvature is about 1: at first by a bound (Böhning 1992), then
    measured again as the fit comes closer, each time by one Cholesky factorisation of weighted second moments. With more
    features than samples the same solution is found in the span of the samples.

    Examples
    --------
    >>> import numpy as np
    >>> probe = fit_linear_probe(np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1]))
    >>> probe.predict(np.array([[-3.0], [3.0]]))
    array([0, 1])
    """
    data, classes = observations("features", features), _class_indices(labels)
    if classes.ndim == 0 or classes.shape[-1] != data.shape[-2]:
        raise ValueError(f"`labels` must give a class to each of {data.shape[-2]} samples; got shape {classes.shape}")
    n = int(classes.max()) + 1 if n_classes is None else n_classes
    if (classes.min(axis=-1) == classes.max(axis=-1)).any() or classes.max() >= n:
        raise ValueError(f"`labels` must hold at least 2 of {n} classes; got {np.unique(classes)[:8].tolist()}")
    if not (penalty > 0 and tolerance > 0):
        raise ValueError(f"`penalty` and `tolerance` must be positive; got {penalty} and {tolerance}")
    check_broadcast("labels", classes.shape[:-1], "features", data.shape[:-2])
    unit, mean, std = unit_columns(data)
    truth = torch.nn.functional.one_hot(torch.as_tensor(classes, device=data.device), n).to(data.dtype)
    weights, intercepts = _fit_standardised(unit, truth, penalty=penalty, tolerance=tolerance)
    varies = std > 0
    coefficients = torch.where(varies, weights.mT / torch.where(varies, std, torch.ones_like(std)), 0.0)
    if not bool(torch.isfinite(coefficients).all()):
        raise ValueError("`features` must vary by more than 1e-300; got a coefficient that overflows. Scale them up")
    return LinearProbe(coefficients, intercepts - (coefficients @ mean.mT).squeeze(-1))


def _class_indices(labels: Any) -> np.ndarray:
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise ValueError(
            f"`labels` must be 0-based class indices, one per sample; got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)


def _fit_standardised(data: Tensor, truth: Tensor, *, penalty: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """Weights (..., n_features, n_classes) and intercepts (..., n_classes) for centred data."""
    n_samples, n_features = data.shape[-2:]
    if n_features > n_samples:  # the weights lie in the span of the samples
        basis, triangle = torch.linalg.qr(data.mT)
        weights, intercepts = _fit_standardised(triangle.mT, truth, penalty=penalty, tolerance=tolerance)
        return basis @ weights, intercepts
    seen = truth.amax(dim=-2) > 0
    design = torch.cat([data, torch.ones_like(data[..., :1])], dim=-1)
    shape = torch.broadcast_shapes(design.shape[:-2], truth.shape[:-2])
    weights = torch.zeros(*shape, n_features + 1, truth.shape[-1], dtype=data.dtype, device=data.device)
    curvature = torch.ones_like(design[..., 0])
    for stage in sorted({*(goal for goal in _STAGES if goal > tolerance), tolerance}, reverse=True):
        root = _curvature_root(design, curvature, seen, penalty)
        rotated = torch.linalg.solve_triangular(root, design.mT, upper=False).mT
        objective = _Objective(rotated, curvature, truth, seen)
        solution = minimise(objective, root.mT @ weights, tolerance=stage * n_samples)
        weights = torch.linalg.solve_triangular(root.mT, solution, upper=True)
        # well-fitted samples hardly bend the loss any more: measure the curvature there again
        curvature = objective.curvature(solution)
    return weights[..., :-1, :], weights[..., -1, :].masked_fill(~seen, -torch.inf)


class _Objective:
    """Penalised log-loss and gradient in coordinates u, in which the curvature is about 1.

    The penalty in these coordinates is ½‖u‖² - ¼ Σ curvature · logits², so it needs no product of its own.
    """

    def __init__(self, rotated: Tensor, curvature: Tensor, truth: Tensor, seen: Tensor) -> None:
        self._rotated, self._half, self._truth = rotated, 0.5 * curvature.unsqueeze(-1), truth
        # a class without samples has probability 0; finite, so that its product with a truth of 0 is 0
        self._absent = torch.where(seen, 0.0, -1e30).to(rotated.dtype).unsqueeze(-2)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._rotated @ u
        log_p = (logits + self._absent).log_softmax(dim=-1)
        bent = self._half * logits
        loss = -(self._truth * log_p + 0.5 * bent * logits).sum(dim=(-2, -1)) + 0.5 * (u * u).sum(dim=(-2, -1))
        return loss, self._rotated.mT @ (log_p.exp() - self._truth - bent) + u

    def curvature(self, u: Tensor) -> Tensor:
        """Bound of the curvature of each sample's loss at u, between a little and 1 (Böhning's bound, doubled)."""
        p = (self._rotated @ u + self._absent).softmax(dim=-1)
        return (2 * (p * (1 - p)).amax(dim=-1)).clamp(1e-3, 1.0)


def _curvature_root(design: Tensor, curvature: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower Cholesky factor of the curvature: half the weighted second moments plus the penalty (Böhning 1992)."""
    # Two classes share one coefficient in scikit-learn's convention, which here is split between them.
    doubled = torch.where(seen.sum(dim=-1, keepdim=True) == 2, 2 * penalty, penalty).to(design.dtype)
    if bool((doubled == doubled.flatten()[0]).all()):
        doubled = doubled.flatten()[:1]  # one factorisation for all labels
    ridge = doubled * torch.ones_like(design[..., 0, :])
    ridge[..., -1] = 0.0  # the intercept is not penalised
    moments = (0.5 * curvature.unsqueeze(-1) * design).mT @ design
    root, failed = torch.linalg.cholesky_ex(moments + torch.diag_embed(ridge))
    if bool((failed > 0).any()):
        raise ValueError(f"`penalty` must be large enough to tell dependent features apart; got {penalty}")
    return root
