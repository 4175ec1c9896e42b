"""How sure a number is: bootstrap and jackknife intervals, proportions, and the level that chance alone reaches."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.linalg import hadamard
from scipy.special import betaln, ndtri, stdtrit
from torch import Tensor

from dynprobe.metrics._arrays import Array, like
from dynprobe.metrics._options import check_level
from dynprobe.metrics.subspace import Subspace, mean_correlation

_MAX_ELEMENTS = 2**24  # of one block of bootstrap values or means
_NODES = 4096  # of the integral over the chance correlations


def bootstrap_interval(
    values: Array, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of the mean over the first axis.

    Parameters
    ----------
    values
        Shape (n, ...): one value, or one array of values, per independent unit (an example, never a token).
    level
        Probability that the interval covers, in (0, 1).
    n_resamples
        Number of resamples.
    seed
        Decides the resamples; all columns share them.

    Returns
    -------
    tuple of Array
        Low and high, each of shape (...), between the smallest and the largest value. With one unit both are that value.

    Raises
    ------
    ValueError
        Without values, for non-finite ones, no resamples, or a level outside (0, 1).

    Notes
    -----
    Resamples are multinomial counts, so that all columns are resampled by one matrix product. Efron (1979). Percentile
    intervals are a little short below about 30 units.

    Examples
    --------
    >>> import numpy as np
    >>> [float(end) for end in bootstrap_interval(np.array([2.0, 2.0, 2.0]))]
    [2.0, 2.0]
    """
    check_level(level)
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be at least 1; got {n_resamples}")
    data = _to_numpy(values)
    if data.ndim == 0 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(f"`values` must hold at least one finite value per unit; got shape {data.shape}")
    scale = np.ldexp(1.0, int(np.frexp(np.abs(data).max(initial=0.0))[1]) - 1)  # sums of huge values would overflow
    n, flat = len(data), data.reshape(len(data), -1) / scale
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    ends = np.empty((2, flat.shape[1]))
    width = max(1, _MAX_ELEMENTS // max(n, n_resamples))
    for start in range(0, flat.shape[1], width):
        block = flat[:, start : start + width]
        centre = block.mean(axis=0)  # what is resampled is small beside a large common value
        means = centre + counts @ (block - centre) / n
        quantiles = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        ends[:, start : start + width] = np.clip(quantiles, block.min(axis=0), block.max(axis=0))
    low, high = ends.reshape(2, *data.shape[1:]) * scale
    return _like(low, values), _like(high, values)


def jackknife_interval(
    estimate: Array | float, leave_out_estimates: Array | Sequence[float], *, level: float = 0.95
) -> tuple[Array, Array]:
    """Interval of a statistic from its values with one group of examples left out at a time.

    Parameters
    ----------
    estimate
        The statistic of all data, (...) or a number.
    leave_out_estimates
        (..., n_groups): its value without each group, for at least two groups of about equal size.
    level
        Probability that the interval covers, in (0, 1).

    Returns
    -------
    tuple of Array
        Low and high, each (...): estimate ± t · standard error, with one degree of freedom less than groups.

    Raises
    ------
    ValueError
        For fewer than two groups, non-finite values, shapes that do not fit, or a level outside (0, 1).

    Notes
    -----
    Variance (g - 1)/g · Σ (θ_i - mean θ)². Suited to smooth statistics whose bootstrap would count examples twice and so
    inflate them; for others see :func:`half_sample_interval`. Not clipped to the range of the statistic. Tukey (1958); Shao
    and Wu (1989) for groups.

    Examples
    --------
    >>> tuple(float(end) for end in jackknife_interval(0.5, [0.5, 0.5, 0.5]))
    (0.5, 0.5)
    """
    check_level(level)
    left_out, value = _to_numpy(leave_out_estimates), _to_numpy(estimate)
    g = left_out.shape[-1] if left_out.ndim else 0
    if g < 2 or not np.isfinite(left_out).all() or not np.isfinite(value).all():
        raise ValueError(
            f"`leave_out_estimates` must hold a finite value for each of at least 2 groups; got {g} groups"
        )
    if value.ndim and value.shape != left_out.shape[:-1]:
        raise ValueError(
            "`leave_out_estimates` must have the axes of `estimate` and one for the groups; "
            f"got shapes {left_out.shape} and {value.shape}"
        )
    centred = left_out - left_out.mean(axis=-1, keepdims=True)
    margin = stdtrit(g - 1, (1 + level) / 2) * np.sqrt((g - 1) / g * np.square(centred).sum(axis=-1))
    low, high = np.asarray(value - margin), np.asarray(value + margin)
    return _like(low, estimate, leave_out_estimates), _like(high, estimate, leave_out_estimates)


def balanced_half_samples(n_groups: int) -> np.ndarray:
    """Which groups of data belong to each half: every two groups are as often together as apart.

    Parameters
    ----------
    n_groups
        Number of groups: 4, 8, 16, ...

    Returns
    -------
    ndarray
        (n_groups - 1, n_groups) of bool, half of each row ``True``.

    Raises
    ------
    ValueError
        For any other number.

    Notes
    -----
    Rows of a Hadamard matrix but for the first, with alternating signs. McCarthy (1969), "Pseudo-replication: half samples".

    Examples
    --------
    >>> balanced_half_samples(4).sum(axis=1).tolist()
    [2, 2, 2]
    """
    if n_groups < 4 or n_groups & (n_groups - 1):
        raise ValueError(f"`n_groups` must be a power of two, at least 4; got {n_groups}")
    signs = hadamard(n_groups)[1:] * (-1) ** np.arange(n_groups - 1)[:, None]
    return np.asarray(signs > 0)


def half_sample_interval(
    estimate: float, half_sample_estimates: Array | Sequence[float], *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a statistic from its values on balanced halves of the data.

    Parameters
    ----------
    estimate
        The statistic of all data.
    half_sample_estimates
        Its values on the halves of :func:`balanced_half_samples`.
    level
        Probability that the interval covers the expected value of the statistic at the same number of data.

    Returns
    -------
    tuple of float
        Low and high: estimate ± t · standard deviation of the halves' values, with one degree of freedom less than halves.

    Raises
    ------
    ValueError
        For fewer than three halves, non-finite values, or a level outside (0, 1).

    Notes
    -----
    A half differs from the whole by as much as the whole from another sample. So a statistic that is not smooth, such as
    SVCCA where two directions at the cut nearly tie, varies over the halves as it does over samples; leaving out small groups
    and scaling up exaggerates it. Not clipped to the range of the statistic. McCarthy (1969); Shao and Tu (1995), "The
    Jackknife and Bootstrap", section 6.2.

    Examples
    --------
    >>> half_sample_interval(0.5, [0.6, 0.6, 0.6])
    (0.5, 0.5)
    """
    check_level(level)
    halves = _halves(estimate, half_sample_estimates)
    margin = float(stdtrit(len(halves) - 1, (1 + level) / 2) * halves.std(ddof=1))
    return estimate - margin, estimate + margin


def half_sample_bias(estimate: float, half_sample_estimates: Array | Sequence[float]) -> float:
    """How far a statistic lies above its value for the whole population, from its values on balanced halves of the data.

    Parameters
    ----------
    estimate
        The statistic of all data.
    half_sample_estimates
        Its values on the halves of :func:`balanced_half_samples`.

    Returns
    -------
    float
        Mean of the halves minus the estimate: exact where the bias falls as one over the number of data, as that of
        canonical correlations nearly does.

    Raises
    ------
    ValueError
        For fewer than three halves, or non-finite values.

    Examples
    --------
    >>> half_sample_bias(0.5, [0.75, 0.75, 0.75])
    0.25
    """
    return float(_halves(estimate, half_sample_estimates).mean() - estimate)


def _halves(estimate: float, estimates: Array | Sequence[float]) -> np.ndarray:
    if not math.isfinite(estimate):
        raise ValueError(f"`estimate` must be finite; got {estimate}")
    halves = _to_numpy(estimates)
    if halves.ndim != 1 or len(halves) < 3 or not np.isfinite(halves).all():
        raise ValueError(
            f"`half_sample_estimates` must hold a finite value for each of at least 3 halves; got shape {halves.shape}"
        )
    return halves


def wilson_interval(successes: Array | int, n: Array | int, *, level: float = 0.95) -> tuple[Array, Array]:
    """Wilson score interval of a proportion, such as an accuracy.

    Parameters
    ----------
    successes
        Number of successes, 0 to n; a number or (...).
    n
        Number of trials, at least 1; broadcasts.
    level
        Probability that the interval covers, in (0, 1).

    Returns
    -------
    tuple of Array
        Low and high, each (...), in [0, 1].

    Raises
    ------
    ValueError
        For impossible counts or a level outside (0, 1).

    Notes
    -----
    Wilson (1927). Does not collapse at 0 or n successes.

    Examples
    --------
    >>> [round(float(end), 4) for end in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    check_level(level)
    hits, trials = _to_numpy(successes), _to_numpy(n)
    if not ((trials >= 1) & (hits >= 0) & (hits <= trials) & np.isfinite(trials)).all():
        raise ValueError(f"`successes` must be between 0 and n, and n at least 1; got {successes} of {n}")
    z = float(ndtri((1 + level) / 2))
    p, relative = hits / trials, z * z / trials
    centre = (p + relative / 2) / (1 + relative)
    margin = np.sqrt(relative * (p * (1 - p) + relative / 4)) / (1 + relative)
    low = np.where(hits == 0, 0.0, np.maximum(centre - margin, 0.0))
    high = np.where(hits == trials, 1.0, np.minimum(centre + margin, 1.0))
    return _like(low, successes, n), _like(high, successes, n)


def cca_chance_level(k_x: int, k_y: int, n: int) -> float:
    """Mean canonical correlation of unrelated data: the level that CCA and SVCCA reach by chance alone.

    Parameters
    ----------
    k_x, k_y
        Number of directions on each side.
    n
        Number of independent samples. Tokens of one text are not independent: the true level is higher.

    Returns
    -------
    float
        In (0, 1]; 1 when n - 1 <= max(k_x, k_y), where every data set matches every other.

    Raises
    ------
    ValueError
        For counts below 1.

    Notes
    -----
    For independent Gaussian data the squared correlations have the mean max(k_x, k_y) / (n - 1) exactly, and in large samples
    the density of Wachter (1980), over which the correlation is integrated here (0.549 at 768 directions and 2000 samples).
    With one direction on a side it is the exact mean of the root of a beta variable; from three on the density is within 1 %.
    :func:`svcca_chance_level` measures the level of real data instead.

    Examples
    --------
    >>> round(cca_chance_level(768, 768, 2000), 3)
    0.549
    """
    if min(k_x, k_y, n) < 1:
        raise ValueError(f"counts must be at least 1; got k_x={k_x}, k_y={k_y}, n={n}")
    small, large, rows = min(k_x, k_y), max(k_x, k_y), n - 1
    if rows <= large:
        return 1.0
    if small == 1:
        return math.exp(betaln((large + 1) / 2, (rows - large) / 2) - betaln(large / 2, (rows - large) / 2))
    a, b = small / rows, large / rows
    middle, radius = a + b - 2 * a * b, 2 * math.sqrt(a * b * (1 - a) * (1 - b))
    angle = (np.arange(_NODES) + 0.5) * math.pi / _NODES
    squared = np.clip(middle + radius * np.cos(angle), np.finfo(np.float64).tiny, 1.0)
    # density of the squared correlations; the correlations that are exactly 1 come on top when both sides overlap by force
    rest = np.maximum(1 - squared, np.finfo(np.float64).tiny)
    mean = (radius * np.sin(angle)) ** 2 / (2 * a * np.sqrt(squared) * rest)
    return min(1.0, float(mean.mean()) + max(0.0, (a + b - 1) / a))


def svcca_chance_level(a: Subspace, b: Subspace, *, shifts: Sequence[int]) -> Array:
    """SVCCA between two representations whose rows were misaligned: what similar spectra alone give.

    Parameters
    ----------
    a, b
        Subspaces of the same samples.
    shifts
        Numbers of rows by which the rows of `b` are rolled, each measured once. Roll by whole examples, so that neighbouring
        tokens stay together.

    Returns
    -------
    Array
        Shape (..., n_shifts), in [0, 1].

    Raises
    ------
    ValueError
        Without shifts, or for one that does not misalign the rows.

    Notes
    -----
    Rolling rows leaves each side's factorisation as it is, so a level costs one product of the kept directions.

    Examples
    --------
    >>> import numpy as np
    >>> from dynprobe.metrics import principal_subspace
    >>> line = principal_subspace(np.array([[1.0], [0.0], [-1.0], [0.0]]))
    >>> [round(float(level), 12) for level in svcca_chance_level(line, line, shifts=[1, 2])]
    [0.0, 1.0]
    """
    if len(shifts) == 0 or any(shift % a.n_samples == 0 for shift in shifts):
        raise ValueError(
            f"`shifts` must misalign the rows, each by 1 to {a.n_samples - 1} rows; got {list(shifts)[:5]}"
        )
    variates = torch.as_tensor(b.variates)
    rolled = (replace(b, variates=variates.roll(int(shift), dims=-2)) for shift in shifts)
    return like(torch.stack([mean_correlation(a, other) for other in rolled], dim=-1), a.variates, b.variates)


def _to_numpy(values: Array | Sequence[float] | float) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _like(value: np.ndarray, *inputs: object) -> Array:
    """`value` as a tensor beside the first input that is one, else as it is."""
    for given in inputs:
        if isinstance(given, Tensor):
            return torch.as_tensor(value, dtype=torch.float64, device=given.device)
    return value[()]
