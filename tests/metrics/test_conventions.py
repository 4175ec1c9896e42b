"""SVCCA and PWCCA as published tools give them: their printed numbers, other routes to them, laws, degenerate input."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import metrics_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import fractional_matrix_power, subspace_angles
from scipy.stats import ortho_group

from dynprobe.metrics import (
    cca_similarity,
    linear_cka_similarity,
    procrustes_similarity,
    pwcca_similarity,
    svcca_similarity,
)
from dynprobe.metrics.conventions import anatome_pwcca, anatome_svcca, google_cca, google_pwcca, google_svcca

CASES = ("identical", "independent", "same_width", "well")
DEFINITION: dict[str, Callable] = {
    "svcca": svcca_similarity,
    "cca": cca_similarity,
    "pwcca_x": pwcca_similarity,
    "pwcca_y": partial(pwcca_similarity, base="y"),
    "cka": linear_cka_similarity,
    "cka_debiased": partial(linear_cka_similarity, debiased=True),
    "procrustes": procrustes_similarity,
}
PUBLISHED: dict[str, Callable] = {
    "google_svcca": partial(svcca_similarity, conventions="google"),
    "google_svcca_leading": partial(google_svcca, average="leading"),
    "google_svcca_singular": partial(google_svcca, cut="singular-values"),
    "google_svcca_singular_leading": partial(google_svcca, cut="singular-values", average="leading"),
    "google_cca": google_cca,
    "google_cca_leading": partial(google_cca, average="leading"),
    "google_pwcca": partial(pwcca_similarity, conventions="google"),
    "anatome_svcca": partial(svcca_similarity, conventions="anatome"),
    "anatome_pwcca": partial(pwcca_similarity, conventions="anatome"),
}
seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=15)
ALL = pytest.mark.parametrize("measure", PUBLISHED.values(), ids=list(PUBLISHED))


def golden(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Inputs, and the values of a float64 reference and of the tools themselves; a tool that failed has none."""
    with np.load(Path(__file__).with_name("data") / f"{name}.npz") as stored:
        x = stored["x"]
        return x, stored.get("y", x), json.loads(str(stored["golden"]))


def related(seed: int, n: int = 60, d: int = 5, d_y: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + 0.3 * rng.normal(size=d)
    return x, x @ rng.normal(size=(d, d_y or d)) + rng.normal(size=(n, d_y or d))


# --- stored numbers


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("key", DEFINITION)
def test_the_definition_on_the_stored_cases(name: str, key: str) -> None:
    x, y, expected = golden(name)
    assert DEFINITION[key](x, y) == pytest.approx(expected[key], abs=1e-10)
    short = DEFINITION[key](x.astype(np.float32), y.astype(np.float32))
    assert short == pytest.approx(expected[key], abs=2e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("key", PUBLISHED)
def test_what_the_tools_print(name: str, key: str) -> None:
    x, y, expected = golden(name)
    if key not in expected:
        assert (name, key) == ("well", "google_pwcca")  # 24 features against 18: the tool stops
        with pytest.raises(
            ValueError, match=r"`x` must not be wider than `y` for google's PWCCA.*got 24 and 18 features"
        ):
            PUBLISHED[key](x, y)
        return
    # condition numbers below 1e3, so that 16 digits less the square of that are left
    assert PUBLISHED[key](x, y) == pytest.approx(expected[key], abs=1e-10)
    short = PUBLISHED[key](x.astype(np.float32), y.astype(np.float32))
    assert short == pytest.approx(expected[key], abs=2e-6)


def test_the_conventions_differ_where_they_should() -> None:
    x, y, expected = golden("same_width")
    assert abs(expected["svcca"] - expected["anatome_svcca"]) > 5e-3
    assert abs(expected["pwcca_x"] - expected["google_pwcca"]) > 2e-2
    assert abs(expected["pwcca_x"] - expected["anatome_pwcca"]) > 2e-2
    assert 1e-10 < abs(svcca_similarity(x, y, conventions="google") - expected["svcca"]) < 1e-7  # epsilon alone
    assert golden("independent")[2]["google_svcca_leading"] - golden("independent")[2]["svcca"] > 1e-2


# --- other routes to the same numbers

EPSILON = 1e-10


def slow_covariances(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    joint, d = np.cov(x.T, y.T), x.shape[1]
    first, second = np.abs(joint[:d, :d]).max(), np.abs(joint[d:, d:]).max()
    a, b = joint[:d, :d] / first + EPSILON * np.eye(d), joint[d:, d:] / second + EPSILON * np.eye(y.shape[1])
    return a, joint[:d, d:] / np.sqrt(first * second), b


def slow_google_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whitened by Cholesky factors, of which correlations do not depend."""
    a, cross, b = slow_covariances(x, y)
    half = np.linalg.solve(np.linalg.cholesky(a), cross)
    return np.linalg.svd(np.linalg.solve(np.linalg.cholesky(b), half.T), compute_uv=False)


def slow_cut(x: np.ndarray, variance: float, power: int) -> np.ndarray:
    values, axes = np.linalg.eigh(np.cov(x.T))
    values, axes = values[::-1].clip(0) ** (power / 2), axes[:, ::-1]
    return x @ axes[:, : int(np.argmax(np.cumsum(values) >= variance * values.sum())) + 1]


@given(seed=seeds)
@few
def test_google_by_another_route(seed: int) -> None:
    x, y = related(seed, d_y=7)
    rho = slow_google_correlations(x, y)
    assert google_cca(x, y) == pytest.approx(rho.mean(), abs=1e-10)
    for cut, power in (("variance", 2), ("singular-values", 1)):
        rho = slow_google_correlations(slow_cut(x, 0.9, power), slow_cut(y, 0.9, power))
        assert google_svcca(x, y, variance=0.9, cut=cut) == pytest.approx(rho.mean(), abs=1e-10)
        n = next(i for i in range(1, len(rho) + 1) if rho[:i].sum() >= 0.98 * rho.sum())
        found = google_svcca(x, y, variance=0.9, cut=cut, average="leading")
        assert found == pytest.approx(rho[:n].mean(), abs=1e-10)


@given(seed=seeds)
@few
def test_google_pwcca_by_another_route(seed: int) -> None:
    x, y = related(seed, d_y=7)
    a, cross, b = slow_covariances(x, y)
    left, rho, _ = np.linalg.svd(fractional_matrix_power(a, -0.5) @ cross @ fractional_matrix_power(b, -0.5))
    directions = (x - x.mean(axis=0)) @ left + x.mean(axis=0)
    weights = np.abs(np.linalg.qr(directions)[0].T @ x).sum(axis=1)
    assert google_pwcca(x, y) == pytest.approx(weights @ rho / weights.sum(), abs=1e-9)


@given(seed=seeds, shift=st.floats(-3, 3))
@few
def test_anatome_svcca_by_another_route(seed: int, shift: float) -> None:
    x, y = related(seed, d_y=7)
    x = x + shift
    kept = []
    for side in (x, y):
        values, axes = np.linalg.eigh(side.T @ side)
        values, axes = np.sqrt(values[::-1]), axes[:, ::-1]
        reduced = side @ axes[:, : int((np.cumsum(values) / values.sum() < 0.9).sum())]
        kept.append(reduced - reduced.mean(axis=0))
    expected = np.cos(subspace_angles(*kept)).sum() / min(side.shape[1] for side in kept)
    assert anatome_svcca(x, y, variance=0.9) == pytest.approx(expected, abs=1e-10)


def test_anatome_keeps_one_direction_fewer_and_counts_the_mean_as_one() -> None:
    a, b, c = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2.0
    x, y = np.stack([6 * a, 3 * c, b], axis=1), np.stack([a, b + 5.0], axis=1)
    # Of x, 6 and 3 of 10 are kept, a and c. Of y, the second has length sqrt(101) beside 1, which is 0.91: it alone is kept.
    assert anatome_svcca(x, y, variance=0.92) == pytest.approx(0.0, abs=1e-14)
    # The definition keeps a and c of x, by 36 and 9 of 46, and both of y.
    assert svcca_similarity(x, y, variance=0.92) == pytest.approx(0.5, abs=1e-14)
    # At 0.89 of x only a is kept: c, which reaches the share, is not. Of y2 the first, c, is.
    y2 = np.stack([5 * c, a], axis=1)
    assert anatome_svcca(x, y2, variance=0.89) == pytest.approx(0.0, abs=1e-14)
    assert svcca_similarity(x, y2, variance=0.89) == pytest.approx(1.0, abs=1e-14)


# --- laws


@ALL
@given(seed=seeds)
@few
def test_between_nought_and_one_and_unchanged_by_scale_and_order(measure: Callable, seed: int) -> None:
    x, y = related(seed)
    value = measure(x, y)
    assert 0 <= value <= 1
    assert measure(3.7 * x, 0.01 * y) == pytest.approx(value, abs=1e-9)
    order = np.random.default_rng(seed).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(value, abs=1e-9)


@given(seed=seeds)
@few
def test_the_leading_mean_is_never_lower(seed: int) -> None:
    x, y = related(seed, d=9, d_y=6)
    for measure in (google_svcca, google_cca):
        assert measure(x, y, average="leading") >= measure(x, y)


def test_only_the_means_of_anatome_and_of_google_pwcca_move_with_a_constant() -> None:
    x, y = related(0)
    for key, measure in PUBLISHED.items():
        moved = abs(measure(x + 2.0, y) - measure(x, y))
        if key in ("google_pwcca", "anatome_svcca", "anatome_pwcca"):
            assert moved > 1e-4
        else:
            assert moved < 1e-9


@ALL
def test_a_batch_is_its_members_in_any_order(measure: Callable) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 4, 60, 6)) * np.geomspace(1, 0.05, 6)
    x[1] *= np.geomspace(1, 0.2, 6)  # fewer directions than the others
    y = y + 0.5 * x
    single = [measure(a, b) for a, b in zip(x, y, strict=True)]
    assert measure(x, y) == pytest.approx(single, abs=1e-11)
    assert measure(x[[2, 0, 3, 1]], y[[2, 0, 3, 1]]) == pytest.approx([single[i] for i in (2, 0, 3, 1)], abs=1e-11)
    grid = measure(x[:, None], y[None])
    assert grid.shape == (4, 4)
    assert grid[1, 2] == pytest.approx(measure(x[1], y[2]), abs=1e-11)


@ALL
def test_tensors_give_tensors_and_input_is_left_alone(measure: Callable) -> None:
    x, y = related(0)
    copies = x.copy(), y.copy()
    value = measure(x, y)
    assert isinstance(value, np.float64)
    np.testing.assert_array_equal((x, y), copies)
    found = measure(torch.from_numpy(x), torch.from_numpy(y))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(value), abs=1e-12)


def test_chance_and_positive_control() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 400, 8))
    for measure in PUBLISHED.values():
        assert measure(x, x) == pytest.approx(1.0, abs=1e-8)
        assert measure(x, y) < 0.3


# --- degenerate input


@pytest.mark.parametrize("name", ["rank_deficient", "duplicated_and_constant_columns"])
def test_where_googles_cca_does_not_converge(name: str) -> None:
    x, y = reference.case(name)
    x, y = (x, y) if x.shape[1] <= y.shape[1] else (y, x)
    with pytest.raises(
        ValueError, match="`x` must be far from rank-deficient for google's CCA, which does not converge"
    ):
        google_cca(x, y)
    assert google_svcca(x, y) == pytest.approx(svcca_similarity(x, y), abs=1e-8)
    assert np.isfinite(anatome_svcca(x, y))
    with pytest.raises(ValueError, match="`x` must have full rank for anatome's CCA"):
        anatome_pwcca(x, y)


def test_a_constant_feature_is_left_out_by_googles_cca_and_stops_its_pwcca() -> None:
    x, y = related(0)
    wider = np.insert(x, 2, 7.0, axis=1)
    assert google_cca(wider, y) == pytest.approx(google_cca(x, y), abs=1e-12)
    assert google_cca(y, wider, average="leading") == pytest.approx(google_cca(y, x, average="leading"), abs=1e-12)
    with pytest.raises(ValueError, match=r"`y` must have no feature below 1e-10 of the largest variance.*got 1"):
        google_pwcca(x, wider)


def test_data_far_from_the_origin_leave_anatome_nothing() -> None:
    x, y = related(0)
    with pytest.raises(
        ValueError, match=r"`y` must spread over several directions for anatome's SVCCA.*got a first one"
    ):
        anatome_svcca(x, y + 1e5)
    assert np.isfinite(google_svcca(x, y + 1e5))


@pytest.mark.parametrize("seed", range(5))
def test_a_direction_that_centring_takes_away_stops_anatome(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(50, 2))
    a, b = np.linalg.qr(data - data.mean(axis=0))[0].T
    # lengths 3 (all mean), 2 and 0.1: the first two are kept at 0.97, and centring leaves rounding of the first
    x = np.stack([np.full(50, 3 / np.sqrt(50)), 2 * a, 0.1 * b], axis=1) @ ortho_group.rvs(3, random_state=rng)
    with pytest.raises(
        ValueError, match="`x` must have full rank for anatome's CCA, which divides by its singular values"
    ):
        anatome_svcca(x, data, variance=0.97)


@ALL
def test_too_few_samples_are_refused(measure: Callable) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 13, 12))
    x, y = (np.linalg.qr(side - side.mean(axis=0))[0] for side in (x, y))
    options = {}
    if "svcca" in str(measure):  # one feature more, small and constant, is what anatome's rule takes away
        x, y = (np.hstack([side, np.full((13, 1), 1e-3)]) for side in (x, y))
        options = {"variance": 0.9999}
    with pytest.raises(
        ValueError, match=r"`x` must have more samples than directions.*got 13 samples and 12 directions"
    ):
        measure(x, y, **options)
    assert measure(x, y, **options, small_sample="allow") == pytest.approx(1.0, abs=1e-8)


@ALL
def test_complaints_about_content(measure: Callable) -> None:
    x, y = related(0)
    with pytest.raises(ValueError, match="must hold the same samples, row by row; got 60 and 59 rows"):
        measure(x, y[1:])
    with pytest.raises(ValueError, match="`y` must vary; got samples that are all equal"):
        measure(x, np.full_like(y, 0.1))
    with pytest.raises(ValueError, match="`x` must be finite; got NaN or Inf"):
        measure(np.where(x == x.max(), np.nan, x), y)


def test_options_that_contradict_or_do_not_exist() -> None:
    x, y = related(0)
    for measure in (svcca_similarity, pwcca_similarity):
        with pytest.raises(
            ValueError, match="`conventions` must be one of 'definition', 'google', 'anatome'; got 'resi'"
        ):
            measure(x, y, conventions="resi")
    with pytest.raises(ValueError, match="`standardize` must be left out with the convention of google; got True"):
        svcca_similarity(x, y, conventions="google", standardize=True)
    with pytest.raises(ValueError, match=r'`base` must be "x" with the convention of anatome; got \'mean\'. Swap'):
        pwcca_similarity(x, y, conventions="anatome", base="mean")
    with pytest.raises(ValueError, match="`cut` must be one of 'variance', 'singular-values'; got 's'"):
        google_svcca(x, y, cut="s")
    with pytest.raises(ValueError, match="`average` must be one of 'all', 'leading'; got 'mean'"):
        google_cca(x, y, average="mean")
    for measure in (google_svcca, anatome_svcca):
        with pytest.raises(ValueError, match=r"`variance` must be a share in \(0, 1\]; got 0.0"):
            measure(x, y, variance=0.0)
