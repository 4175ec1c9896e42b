"""SVCCA on balanced halves of the rows, against factoring the rows of each half anew."""

import metrics_reference as reference
import numpy as np
import pytest
import torch

from dynprobe.metrics import (
    balanced_half_samples,
    half_sample_bias,
    half_sample_interval,
    principal_subspace,
    subspace_correlations,
    svcca_half_samples,
    svcca_similarity,
)


def refactored(x: np.ndarray, y: np.ndarray, groups: np.ndarray, variance: float) -> np.ndarray:
    _, column = np.unique(groups, return_inverse=True)
    rows = [half[column] for half in balanced_half_samples(int(column.max()) + 1)]
    return np.array([svcca_similarity(x[i], y[i], variance=variance, small_sample="allow") for i in rows])


@pytest.mark.parametrize("name", [*reference.CASES, *reference.FLOAT64_CASES])
@pytest.mark.parametrize("variance", [0.9, 0.99, 1.0])
def test_against_factoring_again(name: str, variance: float) -> None:
    x, y = reference.case(name)
    groups = np.arange(len(x)) * 8 // len(x) * 10  # names need not be consecutive
    found = svcca_half_samples(x, y, groups, variance=variance)
    assert found == pytest.approx(refactored(x, y, groups, variance), abs=1e-9)


@pytest.mark.parametrize("name", ["rank_deficient", "large_mean", "n_less_than_d", "two_rogue_dimensions"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("variance", [0.99, 1.0])
def test_rank_is_judged_at_the_precision_given(name: str, dtype: type, variance: float) -> None:
    x, y = reference.case(name, dtype)
    groups = np.arange(len(x)) * 8 // len(x)
    found = svcca_half_samples(x, y, groups, variance=variance)
    assert found == pytest.approx(refactored(x, y, groups, variance), abs=1e-9)


def test_a_given_number_of_directions_is_held() -> None:
    x, y = reference.case("well")
    groups = np.arange(len(x)) * 4 // len(x)
    found = svcca_half_samples(x, y, groups, n_kept=(5, 3))
    for half, value in zip(balanced_half_samples(4), found, strict=True):
        rows = half[groups]
        a = principal_subspace(x[rows], n_kept=5)
        b = principal_subspace(y[rows], n_kept=3)
        assert value == pytest.approx(float(subspace_correlations(a, b).mean()), abs=1e-9)


def test_by_hand() -> None:
    # y is x on the rows of the first two groups and orthogonal to it on those of the last two
    x = np.array([[1.0], [-1.0], [2.0], [-2.0], [1.0], [-1.0], [0.0], [0.0]])
    y = np.array([[1.0], [-1.0], [2.0], [-2.0], [0.0], [0.0], [1.0], [-1.0]])
    groups = np.arange(8) // 2
    found = svcca_half_samples(x, y, groups)
    for half, value in zip(balanced_half_samples(4), found, strict=True):
        rows = half[groups]
        product = float(x[rows, 0] @ y[rows, 0])
        assert value == pytest.approx(abs(product) / np.linalg.norm(x[rows]) / np.linalg.norm(y[rows]), abs=1e-15)
    assert found.min() < 1e-15 or found.max() > 1 - 1e-15


def test_a_group_that_holds_nearly_all_variance() -> None:
    """The other groups must not be drowned by the difference of large sums."""
    x, y = reference.case("well")
    groups = np.arange(len(x)) % 4
    x[groups == 1] *= 1e7
    assert svcca_half_samples(x, y, groups) == pytest.approx(refactored(x, y, groups, 0.99), abs=1e-9)


def test_batches_and_kinds() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 40, 6))
    y[1, :, 2:] = 0.0
    groups = np.arange(40) % 4
    found = svcca_half_samples(x, y, groups)
    assert found.shape == (3, 3)
    assert found[1] == pytest.approx(svcca_half_samples(x[1], y[1], groups), abs=1e-12)
    tensor = svcca_half_samples(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(groups))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy() == pytest.approx(found, abs=1e-13)
    grid = svcca_half_samples(x[:, None], y[None], groups)
    assert grid[1, 2] == pytest.approx(svcca_half_samples(x[1], y[2], groups), abs=1e-12)


def test_equal_representations_stay_equal() -> None:
    x, _ = reference.case("well")
    assert svcca_half_samples(x, 2 * x - 1, np.arange(len(x)) % 8) == pytest.approx(np.ones(7), abs=1e-12)


def test_the_interval_covers_the_expected_value_at_the_same_size() -> None:
    """Texts of related tokens, as many independent samples as it takes; `benchmarks/coverage.py` has the large form.

    The share of 400 samples is within 4 standard errors (0.044) of 0.95. A control: with half the width it is not.
    """
    rng = np.random.default_rng(0)
    n_samples, n_texts, n_tokens, d = 400, 64, 4, 8
    texts = rng.normal(size=(3, n_samples, n_texts, 1, d)) * 0.3**0.5
    shared, own_x, own_y = (texts + rng.normal(size=(3, n_samples, n_texts, n_tokens, d)) * 0.7**0.5).reshape(
        3, n_samples, n_texts * n_tokens, d
    )
    scale = np.arange(1, d + 1) ** -0.6
    x, y = (shared + 0.3 * own_x) * scale, (shared + 0.7 * own_y) * scale
    kept = [principal_subspace(side, n_kept=7) for side in (x, y)]
    values = np.asarray(subspace_correlations(*kept)).mean(axis=-1)
    groups = np.repeat(np.arange(n_texts) * 8 // n_texts, n_tokens)
    halves = svcca_half_samples(x, y, groups, n_kept=(7, 7))
    ends = np.array([half_sample_interval(value, own) for value, own in zip(values, halves, strict=True)])
    covered = (ends[:, 0] <= values.mean()) & (values.mean() <= ends[:, 1])
    assert 0.906 < covered.mean() < 0.994
    middle, width = ends.mean(axis=1), np.ptp(ends, axis=1)
    assert (abs(middle - values.mean()) < width / 4).mean() < 0.906


def test_bias_is_told_from_halves() -> None:
    """Few rows overestimate; the halves tell by how much, on average over samples."""
    rng = np.random.default_rng(1)
    d = 10
    x = rng.normal(size=(200, 128, d))
    y = x + 3 * rng.normal(size=x.shape)
    values = np.asarray(svcca_similarity(x, y, variance=1.0))
    halves = svcca_half_samples(x, y, np.arange(128) % 8, n_kept=(d, d))
    told = np.array([half_sample_bias(v, own) for v, own in zip(values, halves, strict=True)])
    true = values.mean() - 1 / np.sqrt(10)  # correlation of each direction: 1 / sqrt(1 + 9)
    assert true > 0.01
    assert abs(told.mean() - true) < 0.5 * true


def test_complaints() -> None:
    x, y = reference.case("well")
    n = len(x)
    for n_groups in (1, 3, 5):
        with pytest.raises(ValueError, match=rf"4, 8 or 16 groups .* with {n_groups} group\(s\)"):
            svcca_half_samples(x, y, np.arange(n) % n_groups)
    with pytest.raises(ValueError, match="to each of 150 rows; got shape"):
        svcca_half_samples(x, y, np.arange(n - 1) % 4)
    with pytest.raises(ValueError, match="`variance` must be a share"):
        svcca_half_samples(x, y, np.arange(n) % 4, variance=0.0)
    flat = np.zeros((n, 2))
    flat[:10] = np.random.default_rng(0).normal(size=(10, 2))
    for variance in (0.99, 1.0):
        with pytest.raises(ValueError, match="`x` must vary"):
            svcca_half_samples(flat, y, np.arange(n) * 8 // n, variance=variance)
    for n_kept in ((0, 3), 3, (1,)):
        with pytest.raises(ValueError, match="`n_kept` must be two numbers of directions"):
            svcca_half_samples(x, y, np.arange(n) % 4, n_kept=n_kept)
    with pytest.raises(ValueError, match="`estimate` must be finite; got nan"):
        half_sample_interval(float("nan"), [0.1, 0.2, 0.3])
    for halves in ([0.1, 0.2], [0.1, 0.2, np.nan]):
        with pytest.raises(ValueError, match="finite value for each of at least 3 halves"):
            half_sample_bias(0.5, halves)
    for number in (0, 2, 6, 12):
        with pytest.raises(ValueError, match="power of two, at least 4"):
            balanced_half_samples(number)
