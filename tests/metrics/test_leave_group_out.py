"""SVCCA without each group of rows, against factoring the kept rows anew."""

import metrics_reference as reference
import numpy as np
import pytest
import torch

from dynprobe.metrics import (
    jackknife_interval,
    principal_subspace,
    subspace_correlations,
    svcca_leave_group_out,
    svcca_similarity,
)


def refactored(x: np.ndarray, y: np.ndarray, groups: np.ndarray, variance: float) -> np.ndarray:
    kept = [(x[groups != g], y[groups != g]) for g in np.unique(groups)]
    return np.array([svcca_similarity(a, b, variance=variance, small_sample="allow") for a, b in kept])


@pytest.mark.parametrize("name", [*reference.CASES, *reference.FLOAT64_CASES])
@pytest.mark.parametrize("variance", [0.9, 0.99, 1.0])
def test_against_factoring_again(name: str, variance: float) -> None:
    x, y = reference.case(name)
    groups = np.arange(len(x)) * 5 // len(x) * 10  # names need not be consecutive
    found = svcca_leave_group_out(x, y, groups, variance=variance)
    assert found == pytest.approx(refactored(x, y, groups, variance), abs=1e-9)


@pytest.mark.parametrize("name", ["rank_deficient", "large_mean", "n_less_than_d", "two_rogue_dimensions"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("variance", [0.99, 1.0])
def test_rank_is_judged_at_the_precision_given(name: str, dtype: type, variance: float) -> None:
    x, y = reference.case(name, dtype)
    groups = np.arange(len(x)) * 5 // len(x)
    found = svcca_leave_group_out(x, y, groups, variance=variance)
    assert found == pytest.approx(refactored(x, y, groups, variance), abs=1e-9)


def test_a_given_number_of_directions_is_held() -> None:
    x, y = reference.case("well")
    groups = np.arange(len(x)) * 4 // len(x)
    found = svcca_leave_group_out(x, y, groups, n_kept=(5, 3))
    for group, value in enumerate(found):
        a = principal_subspace(x[groups != group], n_kept=5)
        b = principal_subspace(y[groups != group], n_kept=3)
        assert value == pytest.approx(float(subspace_correlations(a, b).mean()), abs=1e-9)


def test_by_hand() -> None:
    # without the last pair of rows y is x; without the first pair it is orthogonal to x
    x = np.array([[1.0], [-1.0], [0.0], [0.0], [1.0], [-1.0]])
    y = np.array([[1.0], [-1.0], [2.0], [-2.0], [0.0], [0.0]])
    found = svcca_leave_group_out(x, y, np.array([0, 0, 1, 1, 2, 2]))
    assert found == pytest.approx([0.0, 2 / np.sqrt(4 * 2), 2 / np.sqrt(2 * 10)], abs=1e-15)


def test_a_group_that_holds_nearly_all_variance() -> None:
    """The other groups must not be drowned by the difference of large sums."""
    x, y = reference.case("well")
    groups = np.arange(len(x)) % 3
    x[groups == 1] *= 1e7
    assert svcca_leave_group_out(x, y, groups) == pytest.approx(refactored(x, y, groups, 0.99), abs=1e-9)


def test_batches_and_kinds() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 40, 6))
    y[1, :, 2:] = 0.0
    groups = np.arange(40) % 4
    found = svcca_leave_group_out(x, y, groups)
    assert found.shape == (3, 4)
    assert found[1] == pytest.approx(svcca_leave_group_out(x[1], y[1], groups), abs=1e-12)
    tensor = svcca_leave_group_out(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(groups))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy() == pytest.approx(found, abs=1e-13)
    grid = svcca_leave_group_out(x[:, None], y[None], groups)
    assert grid[1, 2] == pytest.approx(svcca_leave_group_out(x[1], y[2], groups), abs=1e-12)


def test_equal_representations_stay_equal() -> None:
    x, _ = reference.case("well")
    assert svcca_leave_group_out(x, 2 * x - 1, np.arange(len(x)) % 7) == pytest.approx(np.ones(7), abs=1e-12)


def test_the_interval_holds_the_value_of_much_more_data() -> None:
    """A positive control: the jackknife interval of 300 rows holds the value of 30 000."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30_000, 4))
    y = x + rng.normal(size=(30_000, 4))
    truth = svcca_similarity(x, y)
    hits = 0
    for start in range(0, 30_000, 300):
        a, b = x[start : start + 300], y[start : start + 300]
        low, high = jackknife_interval(svcca_similarity(a, b), svcca_leave_group_out(a, b, np.arange(300) % 10))
        hits += low <= truth <= high
    # 95 of 100 expected; four standard errors are 9, and a small sample biases the value upwards by a part of one
    assert hits >= 84


def test_complaints() -> None:
    x, y = reference.case("well")
    n = len(x)
    with pytest.raises(ValueError, match=r"at least 2 groups .* with 1 group\(s\)"):
        svcca_leave_group_out(x, y, np.zeros(n, dtype=int))
    with pytest.raises(ValueError, match="to each of 150 rows; got shape"):
        svcca_leave_group_out(x, y, np.arange(n - 1) % 3)
    with pytest.raises(ValueError, match="`variance` must be a share"):
        svcca_leave_group_out(x, y, np.arange(n) % 3, variance=0.0)
    flat = np.zeros((n, 2))
    flat[:10] = np.random.default_rng(0).normal(size=(10, 2))
    for variance in (0.99, 1.0):
        with pytest.raises(ValueError, match="`x` must vary"):
            svcca_leave_group_out(flat, y, np.arange(n) // 10, variance=variance)
