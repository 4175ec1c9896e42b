"""Linear probes whose penalty is chosen on held-out parts of their own training examples, many representations at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynprobe.metrics._arrays import Array, observations, symmetric_product, unit_columns
from dynprobe.metrics._lbfgs import minimise
from dynprobe.metrics.probes import LinearProbe, _class_indices

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_BLOCK = 2**22  # entries of the representations that are fitted together
_LEAST_CURVATURE = 1e-3
_NEVER = -1e30
_ROUNDED = 1e-5  # tolerance from which on float32 is exact enough
_LOOSER = 10.0  # on the way to the penalty than for the fit that is kept


@dataclass(frozen=True)
class TunedProbe:
    """Linear probes and the penalties that were chosen for them.

    Attributes
    ----------
    probe
        Fitted on all training examples with the chosen penalties; (...) are the axes of the labels and of the features.
    penalties
        (...) chosen penalty per training example.
    accuracy
        (...) share of the training examples that the probes of the other folds label correctly, at that penalty.
    log_loss
        (...) their mean negative log-likelihood in nats.
    """

    probe: LinearProbe
    penalties: np.ndarray
    accuracy: np.ndarray
    log_loss: np.ndarray


@dataclass(frozen=True)
class _Coordinates:
    """Standardised features in the directions of their own variance, in which the curvature is nearly diagonal."""

    values: Tensor
    back: Tensor
    mean: Tensor
    inverse_std: Tensor


def fit_tuned_probe(
    features: Array,
    labels: Array,
    folds: Array,
    *,
    penalties: Sequence[float] = PENALTIES,
    n_classes: int | None = None,
    tolerance: float = 1e-5,
) -> TunedProbe:
    """Fit multinomial logistic regression with the L2 penalty that predicts held-out folds of the training examples best.

    Parameters
    ----------
    features
        Shape (n_layers, n_samples, n_features).
    labels
        Shape (n_samples,), or (n_sets, n_samples) for several sets of labels of the same samples: classes, 0-based integers.
    folds
        Shape (n_samples,): fold of each sample, 0-based integers. Samples that belong together share a fold.
    penalties
        Candidates, each per training example: as :func:`fit_linear_probe` takes them, divided by the number of samples.
        Tried from the strongest on, as long as a weaker one predicts better.
    n_classes
        Number of classes; by default the largest label plus one.
    tolerance
        As for :func:`fit_linear_probe`; ten times as large while the penalty is chosen. From 1e-5 on float32 is used.

    Returns
    -------
    TunedProbe
        With axes (n_layers,), or (n_sets, n_layers). Features are standardised by all training samples, also for the folds.

    Raises
    ------
    ValueError
        For labels or folds that do not fit the samples, fewer than two folds, one class only, or no positive penalties.

    Notes
    -----
    All folds, sets of labels and the fit on everything share one matrix product per step. In the principal directions of the
    features the curvature of the loss is nearly diagonal, so that its diagonal, measured again for each penalty, is all the
    scaling that L-BFGS needs, and each penalty starts where the last one ended. The chosen penalty is the one with the least
    held-out loss, the stronger of two that are equal; only its fit on everything is then brought to the tolerance.

    Examples
    --------
    >>> x = np.array([[[-3.0], [-1.0], [-2.0], [2.0], [1.0], [3.0]]])
    >>> found = fit_tuned_probe(x, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2]))
    >>> float(found.accuracy[0]), found.probe.predict(np.array([[-1.5], [1.5]])).tolist()
    (1.0, [[0, 1]])
    """
    data = observations("features", features)
    classes, parts = _class_indices(labels), _class_indices(folds)
    n = data.shape[-2]
    if data.ndim != 3 or classes.ndim not in (1, 2) or classes.shape[-1] != n:
        raise ValueError(
            f"`features` and `labels` must be (n_layers, n_samples, n_features) and (..., n_samples); "
            f"got {tuple(data.shape)} and {classes.shape}"
        )
    if parts.shape != (n,) or parts.max() < 1:
        raise ValueError(f"`folds` must give one of at least 2 folds to each of {n} samples; got shape {parts.shape}")
    sets = np.atleast_2d(classes)
    if (sets.min(axis=1) == sets.max(axis=1)).any() or (n_classes is not None and sets.max() >= n_classes):
        raise ValueError(f"`labels` must hold at least 2 of the classes; got {np.unique(sets)[:8].tolist()}")
    candidates = sorted(map(float, penalties), reverse=True)
    if not candidates or not candidates[-1] > 0 or not tolerance > 0:
        raise ValueError(f"`penalties` and `tolerance` must be positive; got {candidates} and {tolerance}")
    narrow = data.new_empty(0, dtype=torch.float32 if tolerance >= _ROUNDED else data.dtype)
    jobs = _Jobs.of(sets, parts, int(sets.max()) + 1 if n_classes is None else n_classes, narrow)
    height = max(1, _BLOCK // (n * min(data.shape[-2:])))
    blocks = [
        _fit_block(_coordinates(data[i : i + height], narrow.dtype), jobs, candidates, tolerance * n)
        for i in range(0, len(data), height)
    ]
    weights, intercepts, *scores = (torch.cat(values, dim=1) for values in zip(*blocks, strict=True))
    if classes.ndim == 1:
        weights, intercepts, *scores = (value[0] for value in (weights, intercepts, *scores))
    penalty, accuracy, loss = (value.cpu().numpy() for value in scores)
    return TunedProbe(LinearProbe(weights, intercepts), penalty, accuracy, loss)


def _coordinates(features: Tensor, dtype: torch.dtype) -> _Coordinates:
    unit, mean, std = unit_columns(features)
    unit = unit.to(dtype)
    inverse = torch.where(std > 0, 1 / torch.where(std > 0, std, torch.ones_like(std)), 0.0)
    if features.shape[-1] > features.shape[-2]:  # the weights lie in the span of the samples
        basis, triangle = torch.linalg.qr(unit.mT)
        small, turned = triangle.mT, basis
    else:
        small, turned = unit, None
    directions = torch.linalg.eigh(symmetric_product(small)).eigenvectors
    back = directions if turned is None else turned @ directions
    return _Coordinates(small @ directions, back.to(features.dtype), mean, inverse)


@dataclass(frozen=True)
class _Jobs:
    """What is fitted at once: each set of labels on all samples and without each fold.

    Attributes
    ----------
    truth
        (n_sets, 1, n_classes, n_samples) one-hot labels.
    mask
        (n_folds + 1, 1, n_samples) whether a job sees a sample; the last job sees all.
    absent
        (n_sets, n_folds + 1, n_classes, 1) 0, or a large negative number for a class that a job never sees.
    folds
        (n_samples,) fold of each sample.
    """

    truth: Tensor
    mask: Tensor
    absent: Tensor
    folds: Tensor

    @classmethod
    def of(cls, labels: np.ndarray, folds: np.ndarray, n_classes: int, like: Tensor) -> "_Jobs":
        parts, classes = (torch.as_tensor(values, device=like.device) for values in (folds, labels))
        truth = torch.nn.functional.one_hot(classes, n_classes).mT.unsqueeze(1).to(like.dtype)
        jobs = torch.arange(int(folds.max()) + 2, device=like.device)
        mask = (parts != jobs[:, None, None]).to(like.dtype)
        seen = (truth * mask).sum(dim=-1, keepdim=True) > 0
        return cls(truth, mask, torch.where(seen, 0.0, _NEVER).to(like.dtype), parts)

    def whole(self) -> "_Jobs":
        """The job of each set that sees all samples."""
        return _Jobs(self.truth, self.mask[-1:], self.absent[:, -1:], self.folds)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of sets, of jobs in each, and of classes."""
        n_sets, n_jobs, n_classes, _ = self.absent.shape
        return n_sets, n_jobs, n_classes


class _Objective:
    """Penalised log-loss of all jobs, in coordinates scaled so that the curvature is about 1.

    Weights are (n_layers, n_sets * n_jobs, n_columns, n_coordinates): all jobs are the rows of one matrix.
    """

    def __init__(self, design: Tensor, jobs: _Jobs, penalty: Tensor) -> None:
        self._design, self._jobs, self._penalty = design, jobs, penalty
        # Two classes share one coefficient: the second against the first.
        self.n_columns = 1 if jobs.shape[2] == 2 else jobs.shape[2]
        self.scale = torch.ones((), dtype=design.dtype, device=design.device)

    def rescale(self, weights: Tensor) -> None:
        """Scale each coordinate by its curvature at some weights."""
        p = self.log_p(weights).exp()[..., -self.n_columns :, :]
        bend = (p * (1 - p)).clamp(min=_LEAST_CURVATURE) * self._jobs.mask
        self.scale = (self._gathered(bend, self._design.square()) + self._penalty).rsqrt()

    def log_p(self, weights: Tensor) -> Tensor:
        """(n_layers, n_sets, n_jobs, n_classes, n_samples) log-probabilities."""
        logits = weights.flatten(1, 2) @ self._design.mT
        logits = logits.reshape(len(logits), *self._jobs.shape[:2], self.n_columns, -1)
        if self.n_columns == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=-2)
        return (logits + self._jobs.absent).log_softmax(dim=-2)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        weights = u * self.scale
        log_p = self.log_p(weights)
        penalty = self._penalty * weights
        fit = -(self._jobs.truth * log_p * self._jobs.mask).sum(dim=(-2, -1)).flatten(1)
        residual = ((log_p.exp() - self._jobs.truth) * self._jobs.mask)[..., -self.n_columns :, :]
        gradient = self._gathered(residual, self._design) + penalty
        return fit + 0.5 * (penalty * weights).sum(dim=(-2, -1)), gradient * self.scale

    def _gathered(self, values: Tensor, design: Tensor) -> Tensor:
        """Sums over the samples of values times coordinates, in the shape of the weights."""
        product = values.flatten(1, 3) @ design
        return product.reshape(len(design), -1, self.n_columns, design.shape[2])


def _fit_block(
    coordinates: _Coordinates, jobs: _Jobs, penalties: Sequence[float], tolerance: float
) -> tuple[Tensor, ...]:
    """Coefficients, intercepts, chosen penalty, held-out accuracy and loss, each (n_sets, n_layers, ...)."""
    values = coordinates.values
    design = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
    penalised = torch.ones_like(design[0, 0])
    penalised[-1] = 0.0  # the intercept is not
    n_sets, n_jobs, _ = jobs.shape
    shape = (len(design), n_sets * n_jobs, _Objective(design, jobs, penalised).n_columns, design.shape[2])
    weights = design.new_zeros(shape)
    best = design.new_full((len(design), n_sets), torch.inf, dtype=torch.float64)
    found = [weights.unflatten(1, (n_sets, n_jobs))[:, :, -1], best, best]
    for penalty in penalties:
        objective = _Objective(design, jobs, penalty * len(jobs.folds) * penalised)
        objective.rescale(weights)
        weights = objective.scale * minimise(objective, weights / objective.scale, tolerance=_LOOSER * tolerance)
        accuracy, loss = _held_out(objective.log_p(weights), jobs)
        better = loss < best
        if not bool(better.any()):
            break
        best = torch.where(better, loss, best)
        now = (
            weights.unflatten(1, (n_sets, n_jobs))[:, :, -1],
            torch.full_like(loss, penalty, dtype=torch.float64),
            accuracy,
        )
        found = [
            torch.where(better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old)
            for new, old in zip(now, found, strict=True)
        ]
    whole = jobs.whole()
    chosen = (found[1] * len(jobs.folds)).to(design.dtype)[..., None, None] * penalised
    final = _Objective(design, whole, chosen)
    final.rescale(found[0])
    kept = final.scale * minimise(final, found[0] / final.scale, tolerance=tolerance)
    coefficients, intercepts = _in_units(kept.to(coordinates.back.dtype), coordinates, jobs.absent[:, -1, :, 0])
    return coefficients, intercepts, found[1].mT, found[2].mT, best.mT


def _held_out(log_p: Tensor, jobs: _Jobs) -> tuple[Tensor, Tensor]:
    """(n_layers, n_sets) accuracy and mean loss of each sample in the job that did not see it."""
    chosen = jobs.folds.expand(*log_p.shape[:2], 1, log_p.shape[3], -1)
    own = log_p.gather(2, chosen).squeeze(2)
    truth = jobs.truth[:, 0]
    right = own.argmax(dim=-2) == truth.argmax(dim=-2)
    # a class that the other folds do not have is missed by any penalty: it says nothing on which to choose
    known = own.masked_fill(own < 0.5 * _NEVER, 0.0)
    return right.double().mean(dim=-1), -(truth * known).sum(dim=-2).double().mean(dim=-1)


def _in_units(weights: Tensor, coordinates: _Coordinates, absent: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (n_sets, n_layers, n_classes, n_features) and intercepts, for features as they were given."""
    if weights.shape[-2] == 1:
        weights = torch.cat([-weights / 2, weights / 2], dim=-2)
    coefficients = weights[..., :-1] @ coordinates.back.mT.unsqueeze(1) * coordinates.inverse_std.unsqueeze(1)
    intercepts = weights[..., -1] - (coefficients @ coordinates.mean.mT.unsqueeze(1)).squeeze(-1)
    return coefficients.transpose(0, 1), intercepts.masked_fill(absent < 0, -torch.inf).transpose(0, 1)
