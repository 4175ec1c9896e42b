"""Isotropy measures: by hand, laws, slow reference, degenerate input."""

from collections.abc import Callable

import metrics_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from dynprobe.metrics import (
    dimension_correlation,
    dimension_std,
    effective_rank,
    explained_variance_ratio,
    isoscore,
    isotropic_reference,
    mean_cosine,
    participation_ratio,
)
from dynprobe.metrics.isotropy import mean_absolute_correlation

law = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
NUMBERS = [participation_ratio, effective_rank, isoscore]
EVERY = [*NUMBERS, explained_variance_ratio, dimension_std, dimension_correlation, mean_cosine]


def cloud(*variances: float) -> np.ndarray:
    """Two vectors on each axis: a cloud whose covariance has these eigenvalues, up to a common factor."""
    half = np.diag(np.sqrt(variances))
    return np.concatenate([half, -half])


# --- by hand


def test_two_eigenvalues_by_hand() -> None:
    x = cloud(2.0, 1.0)
    assert explained_variance_ratio(x) == pytest.approx([2 / 3, 1 / 3], abs=1e-15)
    assert participation_ratio(x) == pytest.approx(9 / 5, abs=1e-15)
    assert isoscore(x) == pytest.approx(0.8, abs=1e-15)
    assert effective_rank(x) == pytest.approx(3 / 2 ** (2 / 3), abs=1e-14)
    assert isoscore(cloud(4.0, 1.0, 1.0)) == pytest.approx(0.5, abs=1e-15)


def test_the_ends_of_the_scale() -> None:
    line = np.outer(np.arange(10.0), [1.0, 2.0, -3.0])
    assert isoscore(line) == pytest.approx(0.0, abs=1e-15)
    assert participation_ratio(line) == pytest.approx(1.0, abs=1e-14)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-12)
    even = cloud(1.0, 1.0, 1.0, 1.0)
    assert isoscore(even) == pytest.approx(1.0, abs=1e-15)
    assert participation_ratio(even) == pytest.approx(4.0, abs=1e-14)
    assert effective_rank(even) == pytest.approx(4.0, abs=1e-13)


def test_uncentred_shares_are_mostly_the_mean() -> None:
    x = cloud(1.0, 1.0) + np.array([10.0, 0.0])
    # squared lengths along the axes: 4 · 100 + 2 against 2
    assert explained_variance_ratio(x, center=False) == pytest.approx([402 / 404, 2 / 404], abs=1e-14)
    assert explained_variance_ratio(x) == pytest.approx([0.5, 0.5], abs=1e-14)


def test_standard_deviation_is_the_biased_one() -> None:
    assert dimension_std(np.array([[1.0, 5.0], [3.0, 5.0]])) == pytest.approx([1.0, 0.0], abs=0.0)


def test_correlation_by_hand() -> None:
    x = np.array([[1.0, 2.0, 0.0, 7.0], [2.0, 4.0, 1.0, 7.0], [3.0, 6.0, 0.0, 7.0], [4.0, 8.0, 1.0, 7.0]])
    found = dimension_correlation(x)
    assert found[0] == pytest.approx([1.0, 1.0, 0.4472135955, 0.0], abs=1e-10)
    assert found[3] == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=0.0)


def test_cosine_by_hand() -> None:
    assert mean_cosine(np.array([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]])) == pytest.approx(1 / 3, abs=1e-15)
    assert mean_cosine(np.array([[1.0, 0.0], [-3.0, 0.0]])) == -1.0


# --- laws


@pytest.mark.parametrize("measure", NUMBERS)
@given(seed=seeds)
@law
def test_numbers_ignore_rotation_shift_and_scale_but_not_stretching(measure: Callable, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 5)) * rng.uniform(0.2, 2.0, 5)
    value = measure(x)
    turned = -3.0 * x @ ortho_group.rvs(5, random_state=rng) + 100.0
    assert measure(turned) == pytest.approx(value, rel=1e-10)
    assert measure(x * np.array([100.0, 1, 1, 1, 1])) < value - 1e-3


@given(seed=seeds)
@law
def test_ranges_and_relations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 12)), int(rng.integers(2, 12))
    x = rng.normal(size=(n, d)) * 10.0 ** rng.integers(-8, 8, size=d)
    shares = explained_variance_ratio(x)
    assert shares.shape == (min(n, d),)
    assert np.all(np.diff(shares) <= 0)
    assert np.all((shares >= 0) & (shares <= 1 + 1e-15))
    assert shares.sum() == pytest.approx(1.0, abs=1e-14)
    assert 1 <= participation_ratio(x) <= effective_rank(x) + 1e-9 <= min(n - 1, d) + 1e-8
    assert isoscore(x) == pytest.approx((participation_ratio(x) - 1) / (d - 1), abs=1e-14)
    assert -1 / (n - 1) <= mean_cosine(x) <= 1


@given(seed=seeds)
@law
def test_correlation_ignores_shift_and_scale_of_each_dimension(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 4))
    value = dimension_correlation(x)
    scale = 10.0 ** rng.integers(-3, 4, size=4)
    assert dimension_correlation(x * scale + scale) == pytest.approx(value, abs=1e-10)
    flipped = dimension_correlation(x * np.array([-1, 1, 1, 1]))
    assert flipped[0, 1:] == pytest.approx(-value[0, 1:], abs=1e-14)
    np.testing.assert_array_equal(value, value.T)


def test_cosine_is_not_centred() -> None:
    x = np.random.default_rng(0).normal(size=(50, 5))
    assert abs(mean_cosine(x)) < 0.1
    assert mean_cosine(x + 20.0) > 0.95


# --- the slow reference


@pytest.mark.parametrize("name", reference.CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-10)])
def test_against_the_slow_reference(name: str, dtype: type, tolerance: float) -> None:
    x = reference.case(name, dtype)[0]
    wide = x.astype(np.float64)
    squares = np.linalg.svd(reference.orthonormal(wide, None)[1], compute_uv=False) ** 2
    shares = squares / squares.sum()
    assert explained_variance_ratio(x) == pytest.approx(shares, abs=tolerance)
    assert participation_ratio(x) == pytest.approx(1 / (shares**2).sum(), rel=tolerance)
    held = shares[shares > 0]
    assert effective_rank(x) == pytest.approx(np.exp(-(held * np.log(held)).sum()), rel=tolerance)
    assert dimension_std(x) == pytest.approx(wide.std(axis=0), rel=1e-9, abs=1e-15 * np.abs(wide).max())
    assert isoscore(x) == pytest.approx(reference.isoscore(wide / np.abs(wide).max()), abs=1e-8)


def test_correlation_and_cosine_against_numpy() -> None:
    x = reference.case("well")[0] + 3.0
    assert dimension_correlation(x) == pytest.approx(np.corrcoef(x.T), abs=1e-13)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert mean_cosine(x) == pytest.approx(cosines[~np.eye(len(x), dtype=bool)].mean(), abs=1e-13)


# --- batches, kinds, degenerate input


@pytest.mark.parametrize("measure", EVERY)
@pytest.mark.parametrize("shape", [(2, 3, 12, 5), (2, 3, 4, 9)])
def test_a_batch_is_its_members(measure: Callable, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    found = measure(x)
    assert found.dtype == np.float64
    assert found[1, 2] == pytest.approx(measure(x[1, 2]), abs=1e-13)
    tensor = measure(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy() == pytest.approx(found, abs=1e-14)


@pytest.mark.parametrize("scale", [1e-150, 1e-12, 1e150])
@pytest.mark.parametrize("measure", EVERY)
def test_extreme_scales(measure: Callable, scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4))
    expected = measure(x) * (scale if measure is dimension_std else 1.0)
    assert measure(scale * x) == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_large_means() -> None:
    x = np.random.default_rng(0).integers(-50, 50, size=(200, 4)) / 64.0  # exact beside the mean
    for measure in (*NUMBERS, explained_variance_ratio, dimension_std, dimension_correlation):
        assert measure(x + 2.0**30) == pytest.approx(measure(x), rel=1e-10)


@pytest.mark.parametrize("shape", [(20, 2), (30, 63), (40, 200), (2, 30, 130)])
def test_mean_correlation_is_that_of_the_matrix(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    x[..., 1] = x[..., 0] - 3.0
    d = shape[-1]
    expected = (np.abs(dimension_correlation(x)).sum(axis=(-2, -1)) - d) / (d * (d - 1))
    assert mean_absolute_correlation(x) == pytest.approx(expected, rel=1e-12)


def test_mean_correlation_needs_two_dimensions() -> None:
    with pytest.raises(ValueError, match="at least 2 features for a correlation; got 1"):
        mean_absolute_correlation(np.arange(5.0)[:, None])


def test_dead_dimensions() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 3))
    x[:, 1] = 0.1
    assert dimension_std(x)[1] == 0.0
    assert not dimension_correlation(x)[1, [0, 2]].any()
    assert participation_ratio(x) < 2.0


@pytest.mark.parametrize("measure", [*NUMBERS, explained_variance_ratio])
def test_equal_vectors_are_undefined(measure: Callable) -> None:
    with pytest.raises(ValueError, match="`x` must vary; got samples that are all equal"):
        measure(np.full((5, 3), 0.1))


@pytest.mark.parametrize("measure", EVERY)
def test_complaints(measure: Callable) -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        measure(np.ones((1, 3)))
    with pytest.raises(ValueError, match="`x` must be finite"):
        measure(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_other_undefined_values() -> None:
    with pytest.raises(ValueError, match="at least 2 features for an IsoScore; got 1"):
        isoscore(np.array([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="`x` must hold no zero vector"):
        mean_cosine(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="`x` must not be all zero"):
        explained_variance_ratio(np.zeros((3, 2)), center=False)


# --- chance beside a positive control


def test_random_clouds_are_near_isotropic_and_a_rogue_dimension_shows() -> None:
    x = np.random.default_rng(0).normal(size=(4000, 8))
    # the mean square of a sample correlation is 1/n, so IsoScore is about 1 - d/n
    assert isoscore(x) == pytest.approx(1.0, abs=4 * 8 / 4000)
    x[:, 0] *= 100.0
    assert isoscore(x) < 0.01
    assert explained_variance_ratio(x)[0] > 0.99


# --- what isotropic data of the same size give


def simulated(n: int, d: int, draws: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([n, d])
    clouds = (rng.normal(size=(n, d)) for _ in range(draws))
    off = ~np.eye(d, dtype=bool)
    rows = [
        {
            "isoscore": isoscore(x),
            "effective_rank": effective_rank(x),
            "participation_ratio": participation_ratio(x),
            "first_share": explained_variance_ratio(x)[0],
            "mean_cosine": mean_cosine(x),
            "mean_correlation": np.abs(dimension_correlation(x))[off].mean(),
        }
        for x in clouds
    ]
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("n", "d", "draws", "ranks", "share"),
    [
        (30, 2, 1000, 5e-3, 0.02),
        (30, 8, 1000, 5e-3, 0.02),
        (30, 40, 500, 5e-3, 0.02),
        (60, 31, 300, 5e-3, 0.02),
        (101, 100, 100, 1e-3, 3e-3),
        (150, 300, 50, 1e-3, 3e-3),
        (500, 384, 10, 1e-3, 3e-3),
    ],
)
def test_the_reference_is_the_simulated_mean(n: int, d: int, draws: int, ranks: float, share: float) -> None:
    exact = {"mean_cosine": 0.0, "mean_correlation": 0.0, "first_share": share}
    reference = isotropic_reference(n, d)._asdict()
    for name, values in simulated(n, d, draws).items():
        error = values.std(ddof=1) / np.sqrt(draws)
        # what the documentation promises, and four standard errors of the simulation
        assert abs(reference[name] - values.mean()) <= exact.get(name, ranks) * reference[name] + 4 * error, name


def test_a_reference_that_can_be_worked_out() -> None:
    # 499 degrees of freedom and 384 dimensions: (499 · 384 + 2) / 884 = 216.76
    found = isotropic_reference(500, 384)
    assert found.participation_ratio == pytest.approx(191618 / 884, rel=1e-15)
    assert found.isoscore == pytest.approx(0.5633, abs=5e-5)
    # two vectors have one difference: all variance on one line, every correlation 1 or -1
    two = isotropic_reference(2, 7)
    assert two[:4] == pytest.approx((0.0, 1.0, 1.0, 1.0), abs=1e-15)
    assert two.mean_correlation == pytest.approx(1.0, abs=1e-14)
    # four vectors: r is uniform, so that |r| is 1/2 on average
    assert isotropic_reference(4, 3).mean_correlation == pytest.approx(0.5, abs=1e-14)


@given(n=st.integers(2, 3000), d=st.integers(2, 3000))
@law
def test_references_lie_in_the_range_of_their_measures(n: int, d: int) -> None:
    found = isotropic_reference(n, d)
    highest = min(n - 1, d)
    assert 0 <= found.isoscore <= 1
    assert 1 <= found.participation_ratio <= highest
    assert 1 <= found.effective_rank <= highest
    assert 1 / highest <= found.first_share <= 1
    assert found.mean_cosine == 0
    assert 0 < found.mean_correlation <= 1 + 1e-12
    assert isotropic_reference(2 * n, d).isoscore >= found.isoscore


def test_many_samples_come_near_the_ideal() -> None:
    found = isotropic_reference(10**8, 100)
    assert found.isoscore == pytest.approx(1.0, abs=1e-5)
    assert found.effective_rank == pytest.approx(100.0, rel=1e-5)
    assert found.first_share == pytest.approx(0.01, rel=1e-2)
    assert found.mean_correlation == pytest.approx(np.sqrt(2 / np.pi / 10**8), rel=1e-7)


def test_a_reference_needs_two_of_each() -> None:
    with pytest.raises(ValueError, match="`n_samples` must be at least 2; got 1"):
        isotropic_reference(1, 5)
    with pytest.raises(ValueError, match="`n_features` must be at least 2; got 1"):
        isotropic_reference(5, 1)
