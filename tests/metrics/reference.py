"""Slow float64 definitions, written from the papers without the library, and the data on which both are compared."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from scipy.stats import ortho_group

Pair = tuple[np.ndarray, np.ndarray]


def orthonormal(x: np.ndarray, variance: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal directions of the centred data (QR, then an SVD of R), up to a share of variance or to full rank."""
    centred = np.asarray(x, dtype=np.float64)
    centred = centred / np.abs(centred).max()
    centred = centred - centred.mean(axis=0)
    centred = centred - centred.mean(axis=0)
    q, r = np.linalg.qr(centred)
    u, s, _ = np.linalg.svd(r, full_matrices=False)
    # the rank that the data had before they were rounded to the type given
    eps = np.finfo(x.dtype).eps
    k = int((s > max(x.shape) * eps * s[0]).sum())
    if variance is not None:
        k = min(k, int(np.argmax(np.cumsum(s**2) / np.sum(s**2) >= variance)) + 1)
    return q @ u[:, :k], centred


def correlations(x: np.ndarray, y: np.ndarray, variance: float | None = None) -> np.ndarray:
    return np.clip(np.linalg.svd(orthonormal(x, variance)[0].T @ orthonormal(y, variance)[0], compute_uv=False), 0, 1)


def svcca(x: np.ndarray, y: np.ndarray) -> float:
    return float(correlations(x, y, 0.99).mean())


def cca(x: np.ndarray, y: np.ndarray) -> float:
    return float(correlations(x, y).mean())


def pwcca(x: np.ndarray, y: np.ndarray) -> float:
    u, centred = orthonormal(x, None)
    v, _ = orthonormal(y, None)
    left, rho, _ = np.linalg.svd(u.T @ v, full_matrices=False)
    variates = u @ left
    weights = np.array([sum(abs(h @ neuron) for neuron in centred.T) for h in variates.T])
    return float((weights * rho).sum() / weights.sum())


def cka(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (_gram(side, centre=True) for side in (x, y))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def cka_debiased(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (2012), equation 5, term by term from n × n Gram matrices."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        return np.trace(k @ m) + k.sum() * m.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (k @ m).sum()

    a, b = (_gram(side, centre=True) for side in (x, y))
    return float(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))


def procrustes(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (orthonormal(side, None)[1] for side in (x, y))
    return float(np.linalg.svd(a.T @ b, compute_uv=False).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def _gram(x: np.ndarray, *, centre: bool) -> np.ndarray:
    side = orthonormal(x, None)[1] if centre else np.asarray(x, dtype=np.float64)
    return side @ side.T


def js(p: np.ndarray, q: np.ndarray) -> float:
    """In extended precision, from the definition by two Kullback–Leibler divergences."""
    p, q = (np.asarray(side, dtype=np.longdouble) for side in (p, q))
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    total = np.longdouble(0)
    for side in (p, q):
        held = side > 0
        total += (side[held] * np.log(side[held] / m[held])).sum() / 2
    return float(total)


def js_exact(p: np.ndarray, q: np.ndarray) -> float:
    """In rational arithmetic, for rows that are close: Σ s/2 φ(r) with φ(r) = Σ r^2k / (2k (2k - 1)), r = (p - q) / s."""
    a, b = ([Fraction(float(entry)) for entry in side] for side in (p, q))
    a, b = ([entry / sum(side) for entry in side] for side in (a, b))
    total = Fraction(0)
    for first, second in zip(a, b, strict=True):
        if first + second:
            squared = float((first - second) / (first + second)) ** 2
            # the next term is below squared^3 of the first; only the difference itself needs exact arithmetic
            total += (first + second) / 2 * Fraction(squared / 2 + squared**2 / 12 + squared**3 / 30)
    return float(total)


def symmetric_kl(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(side, dtype=np.longdouble) for side in (a, b))
    log_p, log_q = (side - side.max() - np.log(np.exp(side - side.max()).sum()) for side in (a, b))
    return float(((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum())


def isoscore(x: np.ndarray) -> float:
    """The published recipe: distance of the normalised variances from all ones, rescaled to [0, 1]."""
    variances = np.linalg.eigvalsh(np.cov(x.T))
    n = len(variances)
    unit = np.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(unit - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    return float(((n - defect**2 * (n - np.sqrt(n))) ** 2 - n) / (n * (n - 1)))


def _related(rng: np.random.Generator, n: int, d_x: int, d_y: int) -> Pair:
    shared = rng.normal(size=(n, 6))
    x = shared @ rng.normal(size=(6, d_x)) + 0.5 * rng.normal(size=(n, d_x))
    return x, shared @ rng.normal(size=(6, d_y)) + 0.7 * rng.normal(size=(n, d_y))


def _rank_deficient(rng: np.random.Generator) -> Pair:
    x, y = _related(rng, 120, 5, 4)
    return x @ rng.normal(size=(5, 16)), y @ rng.normal(size=(4, 12))


def _duplicated_and_constant(rng: np.random.Generator) -> Pair:
    x, y = _related(rng, 120, 8, 8)
    return np.hstack([x, x[:, :3], np.full((120, 2), 0.1)]), np.hstack([np.full((120, 1), -7.3), y, y[:, 2:5]])


def _rotated(rng: np.random.Generator) -> Pair:
    x, _ = _related(rng, 120, 10, 10)
    return x, 37.5 * x @ ortho_group.rvs(10, random_state=rng) - 4.0


def _mean(size: float) -> Callable[[np.random.Generator], Pair]:
    def case(rng: np.random.Generator) -> Pair:
        x, y = _related(rng, 120, 10, 7)
        return x + size, y - size * rng.normal(size=7)

    return case


def _rogue(rng: np.random.Generator) -> Pair:
    x, y = rng.normal(size=(2, 120, 16))
    x[:, 0] = y[:, 0] = 20 + 30 * rng.normal(size=120)
    return x, y


def _two_rogues(rng: np.random.Generator) -> Pair:
    x, y = _rogue(rng)
    x[:, 1], y[:, 2] = -50 + 12 * rng.normal(size=(2, 120))
    return x, y


def _scaled(scale: float) -> Callable[[np.random.Generator], Pair]:
    def case(rng: np.random.Generator) -> Pair:
        x, y = _related(rng, 100, 9, 7)
        return scale * x, scale * y

    return case


CASES: dict[str, Callable[[np.random.Generator], Pair]] = {
    "well": lambda rng: _related(rng, 150, 12, 9),
    "independent": lambda rng: tuple(rng.normal(size=(2, 150, 10))),
    "identical": lambda rng: (_related(rng, 100, 10, 10)[0],) * 2,
    "rotated_scaled": _rotated,
    "rank_deficient": _rank_deficient,
    "duplicated_and_constant_columns": _duplicated_and_constant,
    "n_less_than_d": lambda rng: _related(rng, 30, 48, 40),
    "tiny_scale": _scaled(1e-12),
    "large_mean": _mean(1e3),
    "larger_mean": _mean(1e5),
    "rogue_dimension": _rogue,
    "two_rogue_dimensions": _two_rogues,
    "n_equals_d": lambda rng: _related(rng, 24, 24, 24),
}
FLOAT64_CASES = {"tiniest_scale": _scaled(1e-150), "huge_scale": _scaled(1e150)}


def case(name: str, dtype: type = np.float64) -> Pair:
    """Two representations, rounded to a type."""
    x, y = (CASES | FLOAT64_CASES)[name](np.random.default_rng(7))
    return x.astype(dtype), y.astype(dtype)
