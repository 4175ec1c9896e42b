"""Linear probes: by hand, agreement with scikit-learn, laws, degenerate input, chance beside a positive control."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from dynprobe.metrics import LinearProbe, fit_linear_probe


def task(seed: int, n: int, d: int, n_classes: int, strength: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of unequal scale, which know something of the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    x = (
        rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
        + strength * rng.normal(size=(n_classes, d))[labels]
    )
    return x * rng.uniform(0.1, 10, d) + rng.normal(size=d), labels


def test_one_feature_by_hand() -> None:
    """Standardised features ±1, two classes apart: the slope w solves  4 / (1 + exp w) = penalty · w."""
    x, labels = np.array([[3.0], [3.0], [7.0], [7.0]]), np.array([0, 0, 1, 1])
    w = 1.0
    for _ in range(50):
        w -= (4 / (1 + np.exp(w)) - w) / (-4 * np.exp(w) / (1 + np.exp(w)) ** 2 - 1)
    probe = fit_linear_probe(x, labels, tolerance=1e-12)
    slope = float(probe.coefficients[1, 0] - probe.coefficients[0, 0])
    assert slope == pytest.approx(w / 2, abs=1e-10)  # per unit of x, whose standard deviation is 2
    assert probe.predict(np.array([[4.9], [5.1]])).tolist() == [0, 1]
    assert probe.log_loss(x, labels) == pytest.approx(np.log1p(np.exp(-w)), abs=1e-10)
    assert probe.accuracy(x, labels) == 1.0


@pytest.mark.parametrize(
    ("n", "d", "n_classes", "penalty"),
    [
        (120, 10, 2, 1.0),
        (120, 10, 4, 1.0),
        (200, 12, 3, 0.01),
        (60, 6, 2, 30.0),
        (40, 90, 2, 1.0),
        (45, 80, 3, 0.1),
        (150, 8, 5, 1.0),
        (150, 8, 5, 100.0),
        (120, 10, 2, 0.01),
    ],
)
def test_agrees_with_scikit_learn(n: int, d: int, n_classes: int, penalty: float) -> None:
    x, labels = task(0, n, d, n_classes)
    other, other_labels = task(0, n, d, n_classes, strength=0.5)
    scaler = StandardScaler().fit(x)
    slow = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=20_000).fit(scaler.transform(x), labels)
    probe = fit_linear_probe(x, labels, penalty=penalty)
    weights, intercepts = probe.coefficients.numpy() * scaler.scale_, probe.intercepts.numpy()
    if n_classes == 2:
        weights, intercepts = weights[1:] - weights[:1], intercepts[1:] - intercepts[:1]
        intercepts = intercepts + (weights / scaler.scale_) @ scaler.mean_
    else:
        intercepts = intercepts + (weights / scaler.scale_) @ scaler.mean_
        intercepts = intercepts - intercepts.mean() + slow.intercept_.mean()
    # the sum of the losses is `penalty` convex and its gradient below 1e-8 n; scikit-learn stops where its loss stops falling
    tolerance = 1e-4 * max(1.0, 0.1 / penalty)
    assert weights == pytest.approx(slow.coef_, abs=tolerance)
    assert intercepts == pytest.approx(slow.intercept_, abs=tolerance)
    np.testing.assert_array_equal(probe.predict(other), slow.predict(scaler.transform(other)))
    assert probe.accuracy(other, other_labels) == slow.score(scaler.transform(other), other_labels)
    expected = log_loss(other_labels, slow.predict_proba(scaler.transform(other)))
    assert probe.log_loss(other, other_labels) == pytest.approx(expected, rel=1e-3)


@given(seed=st.integers(0, 2**32 - 1), n_classes=st.integers(2, 5))
@settings(deadline=None, max_examples=10)
def test_the_gradient_vanishes_and_units_do_not_matter(seed: int, n_classes: int) -> None:
    x, labels = task(seed, 30, 6, n_classes)
    probe = fit_linear_probe(x, labels)
    unit, std = (x - x.mean(axis=0)) / x.std(axis=0), x.std(axis=0)
    p = torch.softmax(torch.as_tensor(probe.logits(x)), dim=-1).numpy()
    weights = probe.coefficients.numpy() * std
    gradient = unit.T @ (p - np.eye(n_classes)[labels]) + (2.0 if n_classes == 2 else 1.0) * weights.T
    # below 1e-8 n in coordinates in which the curvature is about 1; back in weights times its root, at most sqrt(n / 2 · d)
    assert np.abs(gradient).max() < 1e-8 * 30 * np.sqrt(15 * 6)
    scale, shift = 10.0 ** np.arange(-3.0, 3.0), np.arange(6.0)
    moved = fit_linear_probe(x * scale + shift, labels)
    assert moved.logits(x * scale + shift) == pytest.approx(probe.logits(x), abs=1e-6)


def hard_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    rare, halves, thirds = (np.arange(300) < 3).astype(int), np.arange(300) % 2, np.arange(300) % 3
    noise = rng.normal(size=(300, 12))
    collinear = noise[:, :1] + 1e-6 * rng.normal(size=(300, 12))
    collinear[:, 0] += thirds
    return {
        "imbalanced": (noise, rare),
        "imbalanced and separable": (noise + 5 * rare[:, None], rare),
        "separable": (noise + 9 * np.eye(12)[thirds], thirds),
        "collinear": (collinear, thirds),
        "heavy tails": (rng.standard_t(1.5, size=(300, 12)), thirds),
        "duplicated and constant": (np.hstack([noise[:, :2]] * 3 + [np.full((300, 2), 0.1)]), halves),
        "fewer samples than features": (rng.normal(size=(40, 120)), halves[:40]),
    }


@pytest.mark.parametrize("penalty", [1e-4, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", hard_cases())
def test_hard_cases_settle(name: str, penalty: float) -> None:
    x, labels = hard_cases()[name]
    n_classes = int(labels.max()) + 1
    probe = fit_linear_probe(x, labels, penalty=penalty)
    std = np.where(np.ptp(x, axis=0) > 1e-12, x.std(axis=0), 1.0)
    p = torch.softmax(torch.as_tensor(probe.logits(x)), dim=-1).numpy()
    shrunk = (2.0 if n_classes == 2 else 1.0) * penalty * probe.coefficients.numpy() * std
    gradient = ((x - x.mean(axis=0)) / std).T @ (p - np.eye(n_classes)[labels]) + shrunk.T
    # below 1e-8 n per entry in coordinates in which the curvature is about 1; back in weights times a root of the curvature,
    # at most sqrt(n d / 2 + 2 penalty) long, and as many entries
    n, d = x.shape
    assert np.abs(gradient).max() < 1e-8 * n * np.sqrt(n * d / 2 + 2 * penalty) * np.sqrt(d)
    assert np.abs(p.sum(axis=0) - np.bincount(labels)).max() < 1e-8 * n * np.sqrt(n * (d + 1))


def test_a_fit_that_does_not_settle_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynprobe.metrics._lbfgs._MAX_ITERATIONS", 2)
    with pytest.raises(ValueError, match="`penalty` must be large enough for the fit to settle; got none in 2 steps"):
        fit_linear_probe(*task(0, 60, 5, 3))


def test_stronger_penalties_shrink_but_spare_the_intercept() -> None:
    x, labels = task(0, 99, 5, 3)
    labels[:30] = 0
    weak, strong = fit_linear_probe(x, labels, penalty=0.1), fit_linear_probe(x, labels, penalty=1e6)
    assert strong.coefficients.norm() < 1e-3 * weak.coefficients.norm()
    shares = np.bincount(labels) / 99
    assert strong.log_loss(x, labels) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-3)


def test_a_batch_is_its_members() -> None:
    rng = np.random.default_rng(0)
    _, labels = task(0, 60, 7, 3)
    x = rng.normal(size=(2, 3, 60, 7)) * 10.0 ** rng.integers(-3, 4, size=(2, 3, 1, 1))
    x[1, 2, :, 0] += labels
    together = fit_linear_probe(x, labels)
    alone = fit_linear_probe(x[1, 2], labels)
    assert together.coefficients.shape == (2, 3, 3, 7)
    assert together.predict(x).shape == (2, 3, 60)
    assert together.accuracy(x, labels)[1, 2] == alone.accuracy(x[1, 2], labels)
    assert together.log_loss(x, labels)[1, 2] == pytest.approx(alone.log_loss(x[1, 2], labels), abs=1e-7)
    folds = np.stack([labels, labels[::-1]])[:, None]
    several = fit_linear_probe(x, folds)
    assert several.logits(x)[0] == pytest.approx(together.logits(x)[0], abs=1e-5)


def test_the_kind_of_the_features_is_kept() -> None:
    x, labels = task(0, 30, 4, 2)
    probe = fit_linear_probe(torch.from_numpy(x).float(), torch.from_numpy(labels))
    assert isinstance(probe.predict(torch.from_numpy(x)), torch.Tensor)
    assert isinstance(probe.accuracy(torch.from_numpy(x), labels), torch.Tensor)
    assert isinstance(probe.predict(x), np.ndarray)
    assert isinstance(probe.log_loss(x, labels), np.float64)
    with pytest.raises(AttributeError, match="cannot assign"):
        probe.intercepts = probe.intercepts  # type: ignore[misc]
    assert isinstance(probe, LinearProbe)


def test_constant_duplicated_and_extreme_columns() -> None:
    x, labels = task(0, 50, 4, 2)
    plain = fit_linear_probe(x, labels)
    padded = np.hstack([x, np.full((50, 1), 0.1)])
    probe = fit_linear_probe(padded, labels)
    assert not probe.coefficients[:, 4].any()
    assert probe.logits(padded) == pytest.approx(plain.logits(x), abs=1e-6)
    tiny = fit_linear_probe(x * np.array([1e-150, 1e150, 1.0, 1.0]), labels)
    assert tiny.logits(x * np.array([1e-150, 1e150, 1.0, 1.0])) == pytest.approx(plain.logits(x), abs=1e-6)
    doubled = fit_linear_probe(np.hstack([x, x]), labels)
    assert doubled.coefficients[:, :4] == pytest.approx(doubled.coefficients[:, 4:], abs=1e-6)
    nothing = fit_linear_probe(np.ones((6, 2)), np.array([0, 0, 1, 1, 1, 1]))
    assert nothing.log_loss(np.ones((3, 2)), np.array([0, 1, 1])) == pytest.approx(
        np.log(3) - 2 / 3 * np.log(2), abs=1e-6
    )


def test_a_class_without_samples_is_never_predicted() -> None:
    x, labels = task(0, 40, 5, 2)
    two, four = fit_linear_probe(x, labels), fit_linear_probe(x, 2 * labels, n_classes=4)
    assert not four.coefficients[[1, 3]].any()
    assert four.intercepts[[1, 3]].tolist() == [-np.inf, -np.inf]
    np.testing.assert_array_equal(four.predict(x), 2 * two.predict(x))
    assert four.log_loss(x, 2 * labels) == pytest.approx(two.log_loss(x, labels), abs=1e-6)
    assert four.log_loss(x, np.full(40, 3)) == np.inf
    assert four.accuracy(x, np.full(40, 3)) == 0.0


def test_complaints() -> None:
    x, labels = task(0, 20, 3, 2)
    for bad, words in (
        (labels[1:], "`labels` must give a class to each of 20 samples"),
        (np.zeros(20, dtype=int), "`labels` must hold at least 2 of 1 classes"),
        (labels - 1, "`labels` must be 0-based class indices"),
        (labels + 0.5, "`labels` must be 0-based class indices"),
        (np.int64(1), "`labels` must give a class to each"),
    ):
        with pytest.raises(ValueError, match=words):
            fit_linear_probe(x, bad)
    with pytest.raises(ValueError, match="at least 2 of 2 classes; got"):
        fit_linear_probe(x, labels + 1, n_classes=2)
    for penalty in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`penalty` and `tolerance` must be positive"):
            fit_linear_probe(x, labels, penalty=penalty)
    with pytest.raises(ValueError, match="leading axes that broadcast"):
        fit_linear_probe(np.stack([x, x]), np.stack([labels, labels, labels]))
    with pytest.raises(ValueError, match="large enough to tell dependent features apart"):
        fit_linear_probe(np.hstack([x, x]), labels, penalty=1e-300)
    with pytest.raises(ValueError, match="`features` must vary by more than 1e-300"):
        fit_linear_probe(x * 1e-310, labels)
    probe = fit_linear_probe(x, labels)
    with pytest.raises(ValueError, match="`features` must have the 3 columns that the probe was fitted on; got 2"):
        probe.predict(x[:, :2])
    with pytest.raises(ValueError, match="`labels` must give one of 2 classes to each of 20 samples"):
        probe.log_loss(x, labels + 1)
    with pytest.raises(ValueError, match="`labels` must give one of 2 classes to each of 20 samples"):
        probe.accuracy(x, labels[:1])


def test_chance_beside_a_positive_control() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size=1200)
    x = rng.normal(size=(2, 1200, 8))
    x[1, :, :4] += 3 * np.eye(4)[labels]
    probe = fit_linear_probe(x[:, :600], labels[:600])
    noise, signal = probe.accuracy(x[:, 600:], labels[600:])
    # four standard errors of 600 trials at one in four
    assert noise == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 600))
    assert signal > 0.9
