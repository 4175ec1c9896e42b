"""The factored form of a representation: what is kept, and that it serves as well as the data."""

import metrics_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprobe.metrics import Subspace, principal_subspace, subspace_correlations, svcca_similarity


def test_by_hand() -> None:
    # columns of lengths 3 and 4 about the means 1 and -1: 9 + 16 = 25, so one direction holds 64 %
    a, b = np.array([[1, 1, -1, -1], [1, -1, 1, -1]]) / 2.0
    x = np.stack([3 * a + 1, 4 * b - 1], axis=1)
    one, both = principal_subspace(x, variance=0.64), principal_subspace(x, variance=0.65)
    assert (int(one.n_kept), int(both.n_kept)) == (1, 2)
    assert both.singular_values == pytest.approx([4.0, 3.0], abs=1e-14)
    assert both.mean == pytest.approx([1.0, -1.0], abs=1e-15)
    assert np.abs(both.variates[:, 0]) == pytest.approx(np.abs(b), abs=1e-14)
    assert (both.n_samples, both.n_features) == (4, 2)


@pytest.mark.parametrize("name", [*reference.CASES, *reference.FLOAT64_CASES])
@pytest.mark.parametrize("variance", [0.9, 0.99, 0.9995])
def test_against_the_slow_reference(name: str, variance: float) -> None:
    x, y = reference.case(name)
    a, b = principal_subspace(x, variance=variance), principal_subspace(y, variance=variance)
    slow = reference.correlations(x, y, variance)
    assert subspace_correlations(a, b) == pytest.approx(slow, abs=1e-10)
    eye = np.eye(int(a.n_kept))
    assert a.variates.T @ a.variates == pytest.approx(eye, abs=1e-10)
    assert a.loadings.T @ a.loadings == pytest.approx(eye, abs=1e-10)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_all_directions_give_the_data_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(int(rng.integers(2, 12)), int(rng.integers(1, 12)))) + 3.0) * 10.0 ** rng.integers(-30, 30)
    found = principal_subspace(x, variance=1.0)
    again = found.mean + found.variates * found.singular_values @ found.loadings.T
    assert again == pytest.approx(x, abs=1e-12 * np.abs(x).max())
    assert np.all(np.diff(found.singular_values) <= 0)


def test_a_number_of_directions_is_kept_exactly_up_to_the_rank() -> None:
    x = np.random.default_rng(0).normal(size=(30, 3)) @ np.random.default_rng(1).normal(size=(3, 9))
    assert int(principal_subspace(x, n_kept=2).n_kept) == 2
    assert int(principal_subspace(x, n_kept=9).n_kept) == 3
    assert int(principal_subspace(x.astype(np.float32), variance=1.0).n_kept) == 3


def test_ties_at_the_cut_are_kept_whole_in_both_ways_of_factoring() -> None:
    x = np.concatenate([np.eye(6), -np.eye(6)])  # six equal directions
    assert int(principal_subspace(x, variance=0.1).n_kept) == 6
    assert int(principal_subspace(x, variance=0.9999).n_kept) == 6
    assert int(principal_subspace(x * np.array([2, 2, 1, 1, 1, 1]), variance=0.6).n_kept) == 2
    assert int(principal_subspace(x * np.array([2, 2, 1, 1, 1, 1]), variance=0.7).n_kept) == 6


def test_the_kind_of_the_input_is_kept() -> None:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for given_x, kind in ((x, np.ndarray), (torch.from_numpy(x), torch.Tensor)):
        found = principal_subspace(given_x)
        assert isinstance(found.variates, kind)
        assert isinstance(subspace_correlations(found, found), kind)
        assert str(found.variates.dtype).endswith("float64")
        narrow = found.in_float32()
        assert str(narrow.variates.dtype).endswith("float32")
        # products of float32 orthonormal columns of 20 entries
        assert np.asarray(subspace_correlations(narrow, found)) == pytest.approx(np.ones(4), abs=20 * 1.2e-7)


def test_batches_hold_their_own_numbers_of_directions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40, 6))
    x[1, :, 2:] = 0.0
    found = principal_subspace(x)
    assert found.n_kept.tolist() == [6, 2]
    assert found.variates.shape == (2, 40, 6)
    assert not found.variates[1, :, 2:].any()
    assert subspace_correlations(found, found)[1] == pytest.approx([1, 1, 0, 0, 0, 0], abs=1e-12)


def test_correlations_are_descending_and_in_range_and_make_svcca() -> None:
    x, y = reference.case("well")
    found = subspace_correlations(principal_subspace(x), principal_subspace(y))
    assert np.all(np.diff(found) <= 0)
    assert 0 <= found.min() <= found.max() <= 1
    assert found.mean() == pytest.approx(svcca_similarity(x, y), abs=1e-15)


def test_it_is_frozen() -> None:
    found = principal_subspace(np.eye(3))
    with pytest.raises(AttributeError, match="cannot assign"):
        found.n_kept = 3  # type: ignore[misc]
    assert isinstance(found, Subspace)


def test_singular_values_beyond_float64() -> None:
    x = np.random.default_rng(0).choice([-1.7e308, 1.7e308], size=(20, 3))
    with pytest.raises(ValueError, match="`x` must be far below 1e308; got entries whose singular values overflow"):
        principal_subspace(x)


def test_complaints() -> None:
    x = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(ValueError, match="`x` must vary"):
        principal_subspace(np.ones((5, 2)))
    with pytest.raises(ValueError, match="`n_kept` must be at least 1; got 0"):
        principal_subspace(x, n_kept=0)
    with pytest.raises(ValueError, match="`variance` must be a share"):
        principal_subspace(x, variance=1.5)
    with pytest.raises(ValueError, match="at least 2 samples"):
        principal_subspace(x[:1])
    with pytest.raises(ValueError, match="`a` and `b` must hold the same samples; got 20 and 19"):
        subspace_correlations(principal_subspace(x), principal_subspace(x[1:]))


def test_variation_below_the_rounding_of_float64_is_none() -> None:
    x = np.full((10, 3), 0.1)
    x[::2] = np.nextafter(0.1, 1.0)
    with pytest.raises(ValueError, match="`x` must vary"):
        principal_subspace(x)
