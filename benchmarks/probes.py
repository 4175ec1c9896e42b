"""Linear probes of all layers with the penalty chosen on folds, beside scikit-learn's LogisticRegressionCV.

Run: python benchmarks/probes.py [--rows 1000 --width 768 --layers 6 --classes 2 3 8 --repeats 3 --threads 1]. Both sides choose
among the same penalties on the same folds, at the same tolerance, and run in one process, in turn; ratios are medians.
"""

import argparse
import statistics
import warnings

import numpy as np
import torch
from metrics import describe_machine, seconds
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dynprobe.metrics.tuned_probes import PENALTIES, fit_tuned_probe

TOLERANCE = 1e-4
N_FOLDS = 5


def layers(rows: int, width: int, n_layers: int, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with a spectrum like that of hidden states, which know more of the class from layer to layer; labels; folds."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % n_classes
    spectrum = np.arange(1, width + 1) ** -0.5
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    x = np.empty((n_layers, rows, width))
    for layer in range(n_layers):
        centres = rng.normal(size=(n_classes, width)) * (0.1 + 0.1 * layer)
        x[layer] = (spectrum * (rng.normal(size=(rows, width)) + centres[labels])) @ turn
    return x, labels, rng.permutation(rows) % N_FOLDS


def theirs(x: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[tuple[float, float]]:
    """Chosen penalty of each layer and the largest entry of the gradient there."""
    parts = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(N_FOLDS)]
    inverse = [1 / (penalty * len(labels)) for penalty in PENALTIES]
    options = {"cv": parts, "scoring": "neg_log_loss", "tol": TOLERANCE, "max_iter": 10_000}
    found = []
    for layer in x:
        z = StandardScaler().fit_transform(layer)
        model = LogisticRegressionCV(Cs=inverse, **options).fit(z, labels)
        penalty = 1 / (float(np.ravel(model.C_)[0]) * len(labels))
        found.append((penalty, largest_gradient(z, labels, model.coef_, model.intercept_, penalty)))
    return found


def ours(x: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[tuple[float, float]]:
    """As :func:`theirs`."""
    fitted, found = fit_tuned_probe(x, labels, folds, tolerance=TOLERANCE), []
    for layer, penalty, coefficients, intercepts in zip(
        x, fitted.penalties, fitted.probe.coefficients.numpy(), fitted.probe.intercepts.numpy(), strict=True
    ):
        scaler = StandardScaler().fit(layer)
        weights, shifts = coefficients * scaler.scale_, intercepts + coefficients @ scaler.mean_
        if len(weights) == 2:
            weights, shifts = weights[1:] - weights[:1], shifts[1:] - shifts[:1]
        found.append((float(penalty), largest_gradient(scaler.transform(layer), labels, weights, shifts, penalty)))
    return found


def largest_gradient(
    z: np.ndarray, labels: np.ndarray, weights: np.ndarray, shifts: np.ndarray, penalty: float
) -> float:
    """Largest entry of the gradient of the mean penalised loss by the coefficients of standardised features."""
    logits = z @ weights.T + shifts
    logits = np.concatenate([np.zeros_like(logits), logits], axis=1) if len(weights) == 1 else logits
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = p / p.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[labels]
    residual = residual[:, 1:] if len(weights) == 1 else residual
    return float(np.abs(residual.T @ z / len(z) + penalty * weights).max())


def main() -> None:
    """Time both sides for each number of classes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 1000), ("width", 768), ("layers", 6), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 3, 8])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", FutureWarning)  # of names that scikit-learn is about to change
    print("\n".join(f"{key}: {value}" for key, value in describe_machine().items()))
    print(
        "\n| classes | times as fast | range | seconds | theirs | same penalty | gradient | theirs |\n|" + " --- |" * 8
    )
    with threadpool_limits(limits=options.threads):
        for n_classes in options.classes:
            data = layers(options.rows, options.width, options.layers, n_classes)
            a, b = ours(*data), theirs(*data)
            same = sum(abs(x[0] / y[0] - 1) < 1e-6 for x, y in zip(a, b, strict=True))
            pairs = [
                (seconds(lambda: fit_tuned_probe(*data, tolerance=TOLERANCE)), seconds(lambda: theirs(*data)))  # noqa: B023
                for _ in range(options.repeats)
            ]
            speeds = [slow / fast for fast, slow in pairs]
            mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
            print(
                f"| {n_classes} | {statistics.median(speeds):.1f} | {min(speeds):.1f}-{max(speeds):.1f} | {mine:.2f} | "
                f"{other:.2f} | {same} of {len(a)} | {max(x[1] for x in a):.0e} | {max(y[1] for y in b):.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
