"""The cases of metrics.py: each measure, a plain way to the same number, and how far either is from the truth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.distance import jensenshannon
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dynprobe import metrics

FEW_ROWS = 2048  # for what needs rows x rows matrices
PENALTY, TOLERANCE = 1.0, 1e-6


@dataclass(frozen=True)
class Case:
    """Two ways to one number, both called without arguments; `error` judges what either returned."""

    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    error: Callable[[Any], float]
    error_of: str = "absolute"


class Data:
    """Two representations with a power-law spectrum, two rogue directions, a large mean and shared signal; float32."""

    def __init__(self, rows: int, width: int) -> None:
        rng = np.random.default_rng(0)
        scale = np.arange(1, width + 1) ** -0.57
        scale[:2] *= 4.0
        shared = rng.normal(size=(rows, width))
        sides = []
        for _ in range(2):
            signal = 0.8 * shared + 0.6 * rng.normal(size=(rows, width))
            rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
            sides.append(((signal * scale) @ rotation + 3.0 * rng.normal(size=width)).astype(np.float32))
        self.x, self.y = sides
        self._labels = shared[:, : min(24, width)]

    def product(self) -> None:
        """One fp32 product, width x rows x width, by which everything else is measured."""
        side = torch.from_numpy(self.x)
        side.mT @ side

    def labels(self, n_classes: int) -> np.ndarray:
        """Classes that a linear probe finds, though not all of them."""
        rng = np.random.default_rng(n_classes)
        scores = self._labels @ rng.normal(size=(self._labels.shape[1], n_classes))
        return (scores + 2.0 * rng.gumbel(size=scores.shape)).argmax(axis=1)


def centred(x: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Columns of mean 0."""
    wide = x.astype(np.float64)
    return (wide - wide.mean(axis=0)).astype(dtype)


def unit(x: np.ndarray) -> np.ndarray:
    """Centred, of Frobenius norm 1."""
    side = centred(x)
    return side / np.linalg.norm(side)


def against(exact: Callable[[], Any], *, relative: bool = False) -> Callable[[Any], float]:
    """Largest distance from the exact value, which is computed once and only when it is asked for."""
    exact = cache(exact)

    def error(value: Any) -> float:
        truth = np.asarray(exact())
        distance = np.abs(np.asarray(value) - truth)
        return float((distance / np.abs(truth) if relative else distance).max())

    return error


# --- canonical correlations


def exact_variates(x: np.ndarray, variance: float = 1.0) -> np.ndarray:
    """Float64: QR, then SVD of R, no second moments."""
    q, r = np.linalg.qr(centred(x))
    u, s, _ = np.linalg.svd(r)
    share = np.cumsum(s**2) / np.sum(s**2)
    return q @ u[:, : min(int(np.searchsorted(share, variance)) + 1, len(s))] if variance < 1 else q @ u


def mean_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine between two spaces given by orthonormal columns."""
    return float(np.linalg.svd(a.T @ b, compute_uv=False).mean())


def two_svds(x: np.ndarray, y: np.ndarray) -> float:
    """SVCCA as most published code computes it, in float32."""
    kept = []
    for side in (x, y):
        u, s, _ = np.linalg.svd(side - side.mean(axis=0), full_matrices=False)
        kept.append(u[:, : int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.99)) + 1])
    return mean_correlation(*kept)


def qr_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """PWCCA by its definition from QR and SVD in float64."""
    side = centred(x)
    left, correlations, _ = np.linalg.svd(np.linalg.qr(side)[0].T @ np.linalg.qr(centred(y))[0])
    weights = np.abs((np.linalg.qr(side)[0] @ left).T @ side).sum(axis=1)
    return float(weights @ correlations / weights.sum())


def svcca(data: Data) -> Case:
    """One pair, 99 % of the variance kept."""
    x, y = data.x, data.y
    exact = against(lambda: mean_correlation(exact_variates(x, 0.99), exact_variates(y, 0.99)))
    return Case("NumPy: SVD of both, CCA", lambda: metrics.svcca_similarity(x, y), lambda: two_svds(x, y), exact)


def svcca_by_grid(data: Data) -> Case:
    """One pair, by the engine for many: products in float32."""
    x, y = data.x, data.y
    exact = against(lambda: mean_correlation(exact_variates(x, 0.99), exact_variates(y, 0.99)))
    ours = lambda: float(metrics.svcca_grid([x], [y]).similarity[0, 0])  # noqa: E731 - one expression
    return Case("NumPy: SVD of both, CCA", ours, lambda: two_svds(x, y), exact)


def cca(data: Data) -> Case:
    """One pair, nothing cut."""
    x, y = data.x, data.y

    def theirs() -> float:
        return mean_correlation(np.linalg.qr(centred(x))[0], np.linalg.qr(centred(y))[0])

    exact = against(lambda: mean_correlation(exact_variates(x), exact_variates(y)))
    return Case("NumPy float64: QR, SVD", lambda: metrics.cca_similarity(x, y), theirs, exact)


def pwcca(data: Data) -> Case:
    """One pair, weights of x."""
    x, y = data.x, data.y

    def exact() -> float:
        a, side = exact_variates(x), centred(x)
        left, correlations, _ = np.linalg.svd(a.T @ exact_variates(y))
        weights = np.abs((a @ left).T @ side).sum(axis=1)
        return float(weights @ correlations / weights.sum())

    return Case(
        "NumPy float64: QR, SVD",
        lambda: metrics.pwcca_similarity(x, y),
        lambda: qr_pwcca(x, y),
        against(exact),
    )


# --- kernels and rotations


def feature_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA from width x width products, float64."""
    a, b = centred(x), centred(y)
    return float(np.sum((a.T @ b) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b))


def textbook_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA from rows x rows Gram matrices, float64."""
    k, m = (side @ side.T for side in (centred(x), centred(y)))
    return float((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))


def textbook_debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (2012), equation 5, from rows x rows Gram matrices, float64."""
    k, m = (side @ side.T for side in (centred(x), centred(y)))
    n = len(k)
    for gram in (k, m):
        np.fill_diagonal(gram, 0.0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        cross = a.sum(axis=0) @ b.sum(axis=0)
        return float((a * b).sum() + a.sum() * b.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * cross)

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def cka(data: Data) -> Case:
    """All rows."""
    x, y = data.x, data.y
    return Case(
        "NumPy float64: three products",
        lambda: metrics.linear_cka_similarity(x, y),
        lambda: feature_cka(x, y),
        against(lambda: feature_cka(x, y)),
    )


def cka_few(data: Data) -> Case:
    """So few rows that a rows x rows matrix is no burden."""
    x, y = data.x[:FEW_ROWS], data.y[:FEW_ROWS]
    return Case(
        "NumPy float64: rows x rows",
        lambda: metrics.linear_cka_similarity(x, y),
        lambda: textbook_cka(x, y),
        against(lambda: feature_cka(x, y)),
    )


def cka_debiased(data: Data) -> Case:
    """The unbiased estimate, from few rows."""
    x, y = data.x[:FEW_ROWS], data.y[:FEW_ROWS]
    return Case(
        "NumPy float64: rows x rows",
        lambda: metrics.linear_cka_similarity(x, y, debiased=True),
        lambda: textbook_debiased_cka(x, y),
        against(lambda: textbook_debiased_cka(x, y)),
    )


def exact_procrustes(x: np.ndarray, y: np.ndarray) -> Callable[[Any], float]:
    """Nuclear norm by SVD of the product in float64."""
    return against(lambda: np.linalg.svd(unit(x).T @ unit(y), compute_uv=False).sum())


def procrustes_disparity(data: Data) -> Case:
    """Beside the function that also rotates one side onto the other."""
    x, y = data.x, data.y
    return Case(
        "scipy.spatial.procrustes",
        lambda: metrics.procrustes_similarity(x, y),
        lambda: np.sqrt(1 - procrustes(x, y)[2]),
        exact_procrustes(x, y),
    )


def procrustes_orthogonal(data: Data) -> Case:
    """Beside the function that gives the rotation and the nuclear norm."""
    x, y = data.x, data.y
    return Case(
        "scipy orthogonal_procrustes",
        lambda: metrics.procrustes_similarity(x, y),
        lambda: orthogonal_procrustes(unit(x), unit(y))[1],
        exact_procrustes(x, y),
    )


# --- attention


def attention(n_examples: int, step: float | None, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 12 heads, 128 queries and keys, that differ by `step` of each entry, or altogether."""
    rng = np.random.default_rng(0)

    def softmax() -> np.ndarray:
        weights = np.exp(2 * rng.normal(size=(n_examples, 12, 128, 128)))
        return weights / weights.sum(axis=-1, keepdims=True)

    p = softmax()
    q = softmax() if step is None else p * (1 + step * rng.normal(size=p.shape))
    return p.astype(dtype), q.astype(dtype)


def extended_js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """In extended precision: where rows are near by the series in (p - q) / (p + q), else by logarithms."""
    a, b = (side.astype(np.longdouble) for side in (p, q))
    a, b = (side / side.sum(axis=-1, keepdims=True) for side in (a, b))
    ratio = (a - b) / (a + b)
    if np.abs(ratio).max() < 0.1:
        series = sum(ratio ** (2 * k) / np.longdouble(2 * k * (2 * k - 1)) for k in range(1, 12))
        return ((a + b) / 2 * series).sum(axis=-1).astype(np.float64)
    return ((a * np.log1p(ratio) + b * np.log1p(-ratio)) / 2).sum(axis=-1).astype(np.float64)


def js(data: Data, step: float | None, dtype: type) -> Case:
    """One divergence per query."""
    p, q = attention(max(1, len(data.x) // 512), step, dtype)
    return Case(
        "scipy jensenshannon squared",
        lambda: metrics.js_divergence(p, q),
        lambda: jensenshannon(p, q, axis=-1) ** 2,
        lambda value: against(lambda: extended_js(p[:1], q[:1]), relative=True)(value[:1]),
        "relative",
    )


# --- one cloud of vectors


def pca_isoscore(x: np.ndarray) -> float:
    """The published recipe, from the variances of scikit-learn's PCA."""
    variances = PCA().fit(x).explained_variance_.astype(np.float64)
    n = len(variances)
    defect = np.linalg.norm(np.sqrt(n) * variances / np.linalg.norm(variances) - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    return float(((n - defect**2 * (n - np.sqrt(n))) ** 2 - n) / (n * (n - 1)))


def exact_variances(x: np.ndarray) -> np.ndarray:
    """Squared singular values by QR and SVD, without second moments."""
    return np.linalg.svd(np.linalg.qr(centred(x))[1], compute_uv=False) ** 2


def isoscore(data: Data) -> Case:
    """Beside the published recipe."""

    def exact() -> float:
        variances = exact_variances(data.x)
        return float((variances.sum() ** 2 / (variances**2).sum() - 1) / (len(variances) - 1))

    return Case(
        "scikit-learn PCA, float32",
        lambda: metrics.isoscore(data.x),
        lambda: pca_isoscore(data.x),
        against(exact),
    )


def explained_variance(data: Data, dtype: type) -> Case:
    """Beside PCA in the type given, or in float64."""
    return Case(
        f"scikit-learn PCA, {dtype.__name__}",
        lambda: metrics.explained_variance_ratio(data.x),
        lambda: PCA().fit(data.x.astype(dtype)).explained_variance_ratio_,
        against(lambda: exact_variances(data.x) / exact_variances(data.x).sum()),
    )


def correlation(data: Data) -> Case:
    """All pairs of dimensions."""
    return Case(
        "NumPy corrcoef",
        lambda: metrics.dimension_correlation(data.x),
        lambda: np.corrcoef(data.x, rowvar=False),
        against(lambda: np.corrcoef(data.x.astype(np.longdouble), rowvar=False, dtype=np.float64)),
    )


# --- probes


def probe(data: Data, n_classes: int) -> Case:
    """Standardise and fit; ours to a tenth of the tolerance, since its gradient is measured in other coordinates."""
    x, labels = data.x, data.labels(n_classes)

    def ours() -> metrics.LinearProbe:
        return metrics.fit_linear_probe(x, labels, penalty=PENALTY, tolerance=TOLERANCE / 10)

    def theirs() -> Any:
        scaler = StandardScaler()
        model = LogisticRegression(C=1 / PENALTY, tol=TOLERANCE, max_iter=10_000)
        return model.fit(scaler.fit_transform(x.astype(np.float64)), labels)

    def error(fitted: Any) -> float:
        standard = StandardScaler().fit_transform(x.astype(np.float64))
        if isinstance(fitted, LogisticRegression):
            weights, logits = fitted.coef_, standard @ fitted.coef_.T + fitted.intercept_
        else:
            weights, logits = fitted.coefficients.numpy() * x.astype(np.float64).std(axis=0), fitted.logits(x)
        if n_classes == 2 and len(weights) == 2:  # one coefficient stands for the difference of two
            weights, logits = weights[1:] - weights[:1], logits[:, 1:] - logits[:, :1]
        return largest_gradient(standard, labels, weights, logits)

    return Case("scikit-learn, L-BFGS", ours, theirs, error, "gradient")


def largest_gradient(x: np.ndarray, labels: np.ndarray, weights: np.ndarray, logits: np.ndarray) -> float:
    """Largest entry of the gradient of the mean penalised log-loss, by coefficients of standardised features."""
    if len(weights) == 1:
        wrong = 1 / (1 + np.exp(-logits)) - labels[:, None]
    else:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        wrong = shifted / shifted.sum(axis=1, keepdims=True) - np.eye(len(weights))[labels]
    return float(np.abs(wrong.T @ x + PENALTY * weights).max() / len(x))


CASES: dict[str, Callable[[Data], Case]] = {
    "svcca": svcca,
    "svcca by grid": svcca_by_grid,
    "pwcca": pwcca,
    "cca": cca,
    "cka": cka,
    "cka 2048 rows": cka_few,
    "cka debiased 2048 rows": cka_debiased,
    "procrustes": procrustes_disparity,
    "procrustes norm": procrustes_orthogonal,
    "js near": lambda data: js(data, 1e-4, np.float64),
    "js far": lambda data: js(data, None, np.float64),
    "js near float32": lambda data: js(data, 1e-4, np.float32),
    "isoscore": isoscore,
    "explained variance": lambda data: explained_variance(data, np.float32),
    "explained variance float64": lambda data: explained_variance(data, np.float64),
    "dimension correlation": correlation,
    "probe 2 classes": lambda data: probe(data, 2),
    "probe 8 classes": lambda data: probe(data, 8),
}
