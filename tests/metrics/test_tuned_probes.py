"""Probes that choose their penalty: against scikit-learn, laws, folds that lack a class, degenerate input."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dynprobe.metrics import fit_linear_probe
from dynprobe.metrics.tuned_probes import fit_tuned_probe


def task(seed: int, n: int, d: int, n_classes: int, n_layers: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layers of correlated features of unequal scale; the first knows less of the class. And folds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    x = np.stack(
        [
            rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
            + 0.3 * (layer + 1) * rng.normal(size=(n_classes, d))[labels]
            for layer in range(n_layers)
        ]
    )
    return x * rng.uniform(0.1, 10, d) + rng.normal(size=d), labels, rng.permutation(n) % 4


def held_out_loss(x: np.ndarray, labels: np.ndarray, folds: np.ndarray, penalty: float) -> tuple[float, float]:
    """Loss and accuracy that scikit-learn gets on the folds, features standardised by all samples."""
    z = StandardScaler().fit_transform(x)
    loss, right = 0.0, 0
    for fold in range(folds.max() + 1):
        seen = folds != fold
        model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=20_000).fit(z[seen], labels[seen])
        log_p = model.predict_log_proba(z[~seen])
        loss -= log_p[np.arange(len(log_p)), labels[~seen]].sum()
        right += (log_p.argmax(axis=1) == labels[~seen]).sum()
    return loss / len(x), right / len(x)


@pytest.mark.parametrize(("n", "d", "n_classes"), [(120, 10, 2), (120, 10, 4), (40, 90, 2), (45, 80, 3)])
def test_chooses_and_fits_as_scikit_learn_does(n: int, d: int, n_classes: int) -> None:
    x, labels, folds = task(0, n, d, n_classes)
    found = fit_tuned_probe(x, labels, folds, penalties=(1.0, 0.1, 0.01), tolerance=1e-9)
    for layer in range(len(x)):
        losses = {penalty: held_out_loss(x[layer], labels, folds, penalty) for penalty in (1.0, 0.1, 0.01)}
        chosen = 1.0
        for weaker in (0.1, 0.01):  # as long as a weaker one is better
            if losses[weaker][0] >= losses[chosen][0]:
                break
            chosen = weaker
        assert found.penalties[layer] == chosen
        assert found.log_loss[layer] == pytest.approx(losses[chosen][0], abs=1e-6)
        assert found.accuracy[layer] == pytest.approx(losses[chosen][1])
        alone = fit_linear_probe(x[layer], labels, penalty=chosen * n)
        # both end at a gradient of 1e-8 or less, in curvatures that are the penalty or more
        np.testing.assert_allclose(found.probe.coefficients[layer], alone.coefficients, atol=1e-8 / chosen * 10)
        difference = found.probe.intercepts[layer] - alone.intercepts
        mean = float(np.abs(x[layer]).max())  # which the intercept of features as given is multiplied by
        assert float(difference.max() - difference.min()) == pytest.approx(0.0, abs=1e-8 / chosen * 10 * mean * d)


def test_the_rounded_fit_predicts_the_same() -> None:
    x, labels, folds = task(1, 200, 30, 3)
    exact = fit_tuned_probe(x, labels, folds, tolerance=1e-9)
    rough = fit_tuned_probe(x, labels, folds)
    assert rough.penalties.tolist() == exact.penalties.tolist()
    np.testing.assert_allclose(rough.log_loss, exact.log_loss, rtol=0.02)
    assert (np.asarray(rough.probe.predict(x)) == np.asarray(exact.probe.predict(x))).mean() > 0.99


def test_layers_and_sets_of_labels_do_not_see_each_other() -> None:
    x, labels, folds = task(2, 90, 6, 3, n_layers=3)
    drawn = np.random.default_rng(0).permutation(labels)
    both = fit_tuned_probe(x, np.stack([labels, drawn]), folds, tolerance=1e-9)
    assert both.probe.coefficients.shape == (2, 3, 3, 6)
    assert both.accuracy.shape == both.penalties.shape == both.log_loss.shape == (2, 3)
    for number, own in enumerate((labels, drawn)):
        for layer in range(3):
            alone = fit_tuned_probe(x[layer][None], own, folds, tolerance=1e-9)
            assert alone.penalties[0] == both.penalties[number, layer]
            np.testing.assert_allclose(alone.probe.coefficients[0], both.probe.coefficients[number, layer], atol=1e-6)


def test_a_label_drawn_by_lot_is_not_read() -> None:
    x, _, folds = task(3, 400, 20, 2)
    labels = np.random.default_rng(7).permutation(400) % 2
    found = fit_tuned_probe(x, labels, folds)
    assert (np.abs(found.accuracy - 0.5) < 4 * 0.5 / np.sqrt(400)).all()
    assert (found.log_loss > np.log(2) - 0.02).all()


def test_units_and_constant_features_do_not_matter() -> None:
    x, labels, folds = task(4, 80, 5, 2)
    wide = np.concatenate([x * 1e6 + 3, np.full((2, 80, 1), 7.0)], axis=-1)
    a, b = (fit_tuned_probe(each, labels, folds, tolerance=1e-9) for each in (x, wide))
    np.testing.assert_allclose(a.probe.coefficients, 1e6 * b.probe.coefficients[..., :5], rtol=1e-5)
    assert (b.probe.coefficients[..., 5] == 0).all()
    np.testing.assert_array_equal(a.probe.predict(x), b.probe.predict(wide))


def test_a_class_that_a_fold_or_all_training_lacks() -> None:
    x, labels, folds = task(5, 60, 4, 2)
    labels = np.where(folds == 0, 2, labels)  # the third class stands in one fold alone
    found = fit_tuned_probe(x, labels, folds, n_classes=4)
    assert (found.log_loss < np.log(3)).all()
    assert (found.accuracy <= (folds != 0).mean()).all()
    assert torch.isneginf(found.probe.intercepts[:, 3]).all()
    assert set(np.unique(found.probe.predict(x))) <= {0, 1, 2}
    assert torch.isfinite(found.probe.coefficients).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(60, dtype=int)}, "`labels` must hold at least 2 of the classes; got .0."),
        ({"labels": np.arange(60) % 3, "n_classes": 2}, "`labels` must hold at least 2 of the classes"),
        ({"labels": np.arange(59) % 2}, r"`features` and `labels` must be .* got \(2, 60, 4\) and \(59,\)"),
        ({"features": np.zeros((60, 4))}, r"`features` and `labels` must be .* got \(60, 4\)"),
        ({"folds": np.zeros(60, dtype=int)}, "`folds` must give one of at least 2 folds to each of 60 samples"),
        ({"folds": np.arange(50) % 2}, r"`folds` must give .* got shape \(50,\)"),
        ({"folds": np.full(60, 0.5)}, "`labels` must be 0-based class indices"),
        ({"penalties": ()}, "`penalties` and `tolerance` must be positive; got"),
        ({"penalties": (1.0, 0.0)}, "`penalties` and `tolerance` must be positive; got"),
        ({"tolerance": 0.0}, "`penalties` and `tolerance` must be positive; got"),
    ],
)
def test_what_cannot_be_fitted(changes: dict, message: str) -> None:
    x, labels, folds = task(6, 60, 4, 2)
    arguments = {"features": x, "labels": labels, "folds": folds, **changes}
    with pytest.raises(ValueError, match=message):
        fit_tuned_probe(arguments.pop("features"), arguments.pop("labels"), arguments.pop("folds"), **arguments)
