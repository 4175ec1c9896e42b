"""SVCCA, CCA, PWCCA, CKA and Procrustes: by hand, laws, slow reference, degenerate input, chance beside a positive control."""

from collections.abc import Callable
from functools import partial

import metrics_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from dynprobe.metrics import (
    cca_chance_level,
    cca_similarity,
    linear_cka_similarity,
    principal_subspace,
    procrustes_similarity,
    pwcca_similarity,
    svcca_similarity,
)


def debiased_cka(x, y, **options):
    return linear_cka_similarity(x, y, debiased=True, **options)


def allowed(measure: Callable) -> Callable:
    """The measure, asked to give its value even where too few samples make it 1."""
    return partial(measure, small_sample="allow")


MEASURES: dict[str, tuple[Callable, Callable]] = {
    "svcca": (svcca_similarity, reference.svcca),
    "cca": (cca_similarity, reference.cca),
    "pwcca": (pwcca_similarity, reference.pwcca),
    "cka": (linear_cka_similarity, reference.cka),
    "cka_debiased": (debiased_cka, reference.cka_debiased),
    "procrustes": (procrustes_similarity, reference.procrustes),
}
ALL = pytest.mark.parametrize("measure", [ours for ours, _ in MEASURES.values()], ids=list(MEASURES))
seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=15)


def related(seed: int, n: int = 40, d: int = 5, d_y: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d)
    return x, x @ rng.normal(size=(d, d_y or d)) + rng.normal(size=(n, d_y or d))


# --- by hand


def test_cca_of_single_columns_is_the_absolute_correlation() -> None:
    x, y = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[-1.0], [-2.0], [-4.0], [-3.0]])
    assert cca_similarity(x, y) == pytest.approx(0.8, abs=1e-15)
    assert svcca_similarity(x, y) == pytest.approx(0.8, abs=1e-15)
    assert pwcca_similarity(x, y) == pytest.approx(0.8, abs=1e-15)
    assert procrustes_similarity(x, y) == pytest.approx(0.8, abs=1e-15)
    assert linear_cka_similarity(x, y) == pytest.approx(0.64, abs=1e-15)


def test_pwcca_weighs_the_directions_of_the_first_argument() -> None:
    # x has the orthogonal columns a (length 6) and b (length 2); y has a only in common with x, and c.
    a, b, c = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2.0
    x, y = np.stack([6 * a, 2 * b], axis=1), np.stack([a, 5 * c], axis=1)
    assert pwcca_similarity(x, y) == pytest.approx(6 / 8, abs=1e-15)
    assert pwcca_similarity(y, x) == pytest.approx(1 / 6, abs=1e-15)
    assert cca_similarity(x, y) == pytest.approx(1 / 2, abs=1e-15)


def test_svcca_keeps_the_first_directions_that_reach_the_share() -> None:
    a, b, c = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2.0
    x, y = np.stack([np.sqrt(0.98) * a, np.sqrt(0.02) * b], axis=1), np.stack([a, c], axis=1)
    assert svcca_similarity(x, y, variance=0.98) == pytest.approx(1.0, abs=1e-15)  # only a is kept of x
    assert svcca_similarity(x, y, variance=0.99) == pytest.approx(0.5, abs=1e-15)


def test_debiased_cka_by_hand() -> None:
    # two pairs of equal samples: K - diag = [[0,1],[1,0]] in blocks of 1 and -1 elsewhere
    x = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    y = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    # <K, L> = -4, sums -4: -4 + 16/6 - 4 = -16/3; of K with itself: 12 + 16/6 - 4 = 32/3
    assert debiased_cka(x, x) == pytest.approx(1.0, abs=1e-15)
    assert debiased_cka(x, y) == pytest.approx(-0.5, abs=1e-15)


# --- the slow reference


@pytest.mark.parametrize("name", reference.CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-6)])
@pytest.mark.parametrize("measure", MEASURES)
def test_against_the_slow_reference(name: str, dtype: type, tolerance: float, measure: str) -> None:
    ours, slow = MEASURES[measure]
    ours = (
        allowed(ours) if measure in ("cca", "pwcca") else ours
    )  # some of the cases have no more samples than features
    x, y = reference.case(name, dtype)
    for first, second in ((x, y), (y, x)):
        value = ours(first, second)
        assert isinstance(value, np.float64)
        assert value == pytest.approx(slow(first, second), abs=tolerance)
    as_tensor = ours(torch.from_numpy(x), torch.from_numpy(y))
    assert isinstance(as_tensor, torch.Tensor)
    assert float(as_tensor) == pytest.approx(float(ours(x, y)), abs=1e-14)


@pytest.mark.parametrize("name", reference.FLOAT64_CASES)
@pytest.mark.parametrize("measure", MEASURES)
def test_extreme_scales_against_the_slow_reference(name: str, measure: str) -> None:
    ours, slow = MEASURES[measure]
    x, y = reference.case(name)
    assert ours(x, y) == pytest.approx(slow(x, y), abs=1e-10)


@pytest.mark.parametrize("name", ["identical", "rotated_scaled"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@ALL
def test_one_for_what_is_the_same(name: str, dtype: type, tolerance: float, measure: Callable) -> None:
    assert measure(*reference.case(name, dtype)) == pytest.approx(1.0, abs=tolerance)


# --- laws


@ALL
@given(seed=seeds)
@few
def test_unchanged_by_rotation_shift_and_scale(measure: Callable, seed: int) -> None:
    x, y = related(seed)
    turn = ortho_group.rvs(5, random_state=np.random.default_rng(seed))
    expected = measure(x, y)
    if measure is not pwcca_similarity:  # its weights are sums over single features of the base
        assert measure(3.7 * x @ turn + 11.0, y) == pytest.approx(expected, abs=1e-10)
    assert measure(x, 0.01 * y @ turn - 5.0) == pytest.approx(expected, abs=1e-10)
    order = np.random.default_rng(seed).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(expected, abs=1e-10)


@ALL
@given(seed=seeds)
@few
def test_in_range_and_symmetric(measure: Callable, seed: int) -> None:
    x, y = related(seed, d_y=3)
    forth, back = measure(x, y), measure(y, x)
    assert (-1 if measure is debiased_cka else 0) <= forth <= 1
    if measure is not pwcca_similarity:
        assert forth == pytest.approx(back, abs=1e-12)


@given(seed=seeds)
@few
def test_full_cca_is_unchanged_by_invertible_maps(seed: int) -> None:
    x, y = related(seed)
    stretch = np.diag([1.0, 1.0, 1.0, 1.0, 1e3])
    assert cca_similarity(x @ stretch, y) == pytest.approx(cca_similarity(x, y), abs=1e-9)
    assert pwcca_similarity(x, y @ stretch) == pytest.approx(pwcca_similarity(x, y), abs=1e-9)


@pytest.mark.parametrize("measure", [svcca_similarity, linear_cka_similarity, debiased_cka, procrustes_similarity])
def test_the_others_are_changed_by_stretching_one_feature(measure: Callable) -> None:
    x, y = related(0)
    assert abs(measure(x @ np.diag([1.0, 1.0, 1.0, 1.0, 1e3]), y) - measure(x, y)) > 0.01


def test_pwcca_is_not_symmetric() -> None:
    x, y = reference.case("well")
    assert abs(pwcca_similarity(x, y) - pwcca_similarity(y, x)) > 1e-4


@ALL
def test_shuffled_rows_lower_it(measure: Callable) -> None:
    x, y = related(0, n=200)
    assert measure(x, np.random.default_rng(1).permutation(y)) < measure(x, y) - 0.2


@ALL
def test_a_batch_is_its_members(measure: Callable) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 3, 50, 8))
    x[1] = x[1, :, :2] @ rng.normal(size=(2, 8))  # fewer directions than the others
    y[2, :, 4:] *= 1e-3
    y = y + 0.5 * x
    found = measure(x, y)
    assert found.shape == (3,)
    assert found == pytest.approx([measure(a, b) for a, b in zip(x, y, strict=True)], abs=1e-12)
    grid = measure(x[:, None], y[None])
    assert grid.shape == (3, 3)
    assert grid[1, 2] == pytest.approx(measure(x[1], y[2]), abs=1e-12)


def test_directions_tied_at_the_cut_are_kept_whole() -> None:
    """Four equal directions: which of them a decomposition puts last is arbitrary, so a rotation must not matter."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(60, 4))
    basis, y = np.linalg.qr(data - data.mean(axis=0))[0], rng.normal(size=(60, 4))
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 2e-6)):
        turned = [(basis @ ortho_group.rvs(4, random_state=seed)).astype(dtype) for seed in range(5)]
        values = [svcca_similarity(x, y, variance=0.6) for x in turned]
        assert np.ptp(values) <= tolerance
        assert len({int(principal_subspace(x, variance=0.6).n_kept) for x in turned} - {4}) == 0


@pytest.mark.parametrize(("n", "d"), [(200, 32), (33, 32), (32, 32)])
@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.9995])
def test_an_isotropic_cloud_is_its_rotation_in_float32(n: int, d: int, variance: float) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(n, d))
    even = np.linalg.qr(data - data.mean(axis=0))[0][:, : min(d, n - 1)]
    turn = ortho_group.rvs(even.shape[1], random_state=1)
    x, y = even.astype(np.float32), (7 * even @ turn).astype(np.float32)
    assert int(principal_subspace(x, variance=variance).n_kept) == even.shape[1]
    assert allowed(svcca_similarity)(x, y, variance=variance) == pytest.approx(1.0, abs=1e-6)


def test_directions_beyond_the_plain_cut_are_tied_with_the_last_one() -> None:
    """With a mean of 1e5 standard deviations float32 tells variances apart only to about a hundredth."""
    more = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(60, 200)), int(rng.integers(5, 40))
        x = (rng.normal(size=(n, d)) * rng.uniform(0.3, 2, d) + 1e5 * rng.normal(size=d)).astype(np.float32)
        values = np.linalg.svd(reference.orthonormal(x.astype(np.float64), None)[1], compute_uv=False)
        plain = int(np.argmax(np.cumsum(values**2) / np.sum(values**2) >= 0.99))
        k = int(principal_subspace(x).n_kept)
        # entries are off by spacing / √12, which spreads k equal singular values over 4 √k of it: 1.15 √k spacing
        spacing = float(np.finfo(np.float32).eps) * np.sqrt(np.mean((x / np.abs(x).max()) ** 2.0))
        assert values[k - 1] >= values[plain] - 1.5 * spacing * np.sqrt(min(n, d))
        more += k > plain + 1
    assert more < 15  # most clouds have no tie


# --- degenerate input


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("measure", MEASURES)
def test_short_numbers_are_measured_as_they_were_given(measure: str, dtype: torch.dtype) -> None:
    ours, slow = MEASURES[measure]
    x, y = (torch.from_numpy(4 * side).to(dtype) for side in related(0, n=80, d_y=4))
    expected = slow(x.double().numpy(), y.double().numpy())
    assert float(ours(x, y)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("scale", [1e-322, 1e308])
@ALL
def test_the_ends_of_float64(measure: Callable, scale: float) -> None:
    x = np.random.default_rng(0).integers(-1, 2, size=(20, 3)) * scale
    y = np.random.default_rng(1).normal(size=(20, 3))
    assert measure(x, y) == pytest.approx(measure(x / scale, y), abs=1e-10)
    assert measure(y, x) == pytest.approx(measure(y, x / scale), abs=1e-10)


@ALL
def test_constant_samples_are_undefined(measure: Callable) -> None:
    x, y = related(0)
    with pytest.raises(ValueError, match="`y` must vary; got samples that are all equal"):
        measure(x, np.full_like(y, 0.1))
    with pytest.raises(ValueError, match="`x` must vary"):
        measure(np.zeros_like(x), y)


@ALL
def test_complaints_about_shape_and_content(measure: Callable) -> None:
    x, y = related(0)
    with pytest.raises(ValueError, match="must hold the same samples, row by row; got 40 and 39 rows"):
        measure(x, y[1:])
    with pytest.raises(ValueError, match=r"`x` must be \(..., n_samples, n_features\)"):
        measure(x[:, 0], y)
    with pytest.raises(ValueError, match="leading axes that broadcast"):
        measure(np.stack([x, x]), np.stack([y, y, y]))
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[3, 1] = bad
        with pytest.raises(ValueError, match="`x` must be finite; got NaN or Inf"):
            measure(broken, y)
    with pytest.raises(TypeError, match="`x` must be an array or tensor of numbers"):
        measure(np.array([["a", "b"]]), y)
    with pytest.raises(TypeError, match="`x` must hold real numbers"):
        measure(x > 0, y)


@pytest.mark.parametrize("variance", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_outside_its_range(variance: float) -> None:
    with pytest.raises(ValueError, match=r"`variance` must be a share in \(0, 1\]"):
        svcca_similarity(*related(0), variance=variance)


def test_debiased_cka_needs_four_samples_and_a_structure() -> None:
    x, y = related(0, n=3)
    with pytest.raises(ValueError, match="at least 4 samples; got 3"):
        debiased_cka(x, y)
    alone = np.zeros((10, 2))
    alone[0] = 1.0
    with pytest.raises(ValueError, match="`x` must have similarity structure"):
        debiased_cka(alone, related(0, n=10)[1])


def test_half_precision_keeps_its_rank() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 20))
    assert cca_similarity(x.astype(np.float16), x) == pytest.approx(1.0, abs=1e-3)


def test_half_precision_tensors_are_taken() -> None:
    x, y = (torch.from_numpy(side) for side in related(0))
    assert float(svcca_similarity(x.bfloat16(), y.bfloat16())) == pytest.approx(float(svcca_similarity(x, y)), abs=0.02)


@ALL
def test_inputs_and_global_state_are_left_alone(measure: Callable) -> None:
    x, y = related(0)
    copies = x.copy(), y.copy()
    before = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1].copy()
    measure(x, y)
    np.testing.assert_array_equal((x, y), copies)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


# --- both directions of PWCCA


@given(seed=seeds)
@few
def test_pwcca_in_both_directions(seed: int) -> None:
    x, y = related(seed, d_y=3)
    forth, back = pwcca_similarity(x, y), pwcca_similarity(y, x)
    assert pwcca_similarity(x, y, base="y") == pytest.approx(back, abs=1e-12)
    assert pwcca_similarity(x, y, base="mean") == pytest.approx((forth + back) / 2, abs=1e-12)


def test_pwcca_by_hand_in_both_directions() -> None:
    a, b, c = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2.0
    x, y = np.stack([6 * a, 2 * b], axis=1), np.stack([a, 5 * c], axis=1)
    assert pwcca_similarity(x, y, base="y") == pytest.approx(1 / 6, abs=1e-15)
    assert pwcca_similarity(x, y, base="mean") == pytest.approx((6 / 8 + 1 / 6) / 2, abs=1e-15)


def test_words_that_are_no_option() -> None:
    x, y = related(0)
    with pytest.raises(ValueError, match="`base` must be one of 'x', 'y', 'mean'; got 'z'"):
        pwcca_similarity(x, y, base="z")
    for measure in (svcca_similarity, cca_similarity, pwcca_similarity):
        with pytest.raises(ValueError, match="`small_sample` must be one of 'refuse', 'allow'; got 'warn'"):
            measure(x, y, small_sample="warn")


def test_full_cca_sees_directions_of_little_variance() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 2))
    a, b = np.linalg.qr(data - data.mean(axis=0))[0].T
    x = np.stack([a, 1e-9 * b], axis=1)
    assert cca_similarity(x, b[:, None]) == pytest.approx(1.0, abs=1e-6)  # 1e-9 known to 1e-16
    assert svcca_similarity(x, b[:, None]) == pytest.approx(0.0, abs=1e-12)


# --- too few samples

CANONICAL = pytest.mark.parametrize("measure", [svcca_similarity, cca_similarity, pwcca_similarity])


@CANONICAL
@pytest.mark.parametrize(("n", "d"), [(20, 19), (20, 20), (20, 30), (2, 1)])
def test_as_many_directions_as_samples_are_refused(measure: Callable, n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(n, d)), rng.normal(size=(n, 1))
    wide = wide - wide.mean(axis=0)
    wide = np.linalg.svd(wide, full_matrices=False)[0]  # all directions alike, so that SVCCA keeps them all
    k = min(n - 1, d)
    wide = wide[:, :k]
    message = f"must have more samples than directions, at least two more; got {n} samples and {k} directions"
    with pytest.raises(ValueError, match=f"`x` {message}"):
        measure(wide, narrow)
    if n > 2:
        with pytest.raises(ValueError, match=f"`y` {message}, so that every canonical correlation is 1 whatever"):
            measure(narrow, wide)
    assert measure(wide, narrow, small_sample="allow") == pytest.approx(1.0, abs=1e-12)
    assert measure(narrow, wide, small_sample="allow") == pytest.approx(1.0, abs=1e-12)


def test_what_to_do_about_too_few_samples() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 12, 12))
    for measure, remedy in ((cca_similarity, "svcca_similarity"), (pwcca_similarity, "svcca_similarity")):
        with pytest.raises(ValueError, match=f'Take more rows, {remedy}, or small_sample="allow"'):
            measure(x, y)
    with pytest.raises(ValueError, match='Take more rows, a smaller `variance`, or small_sample="allow"'):
        svcca_similarity(x, y, variance=1.0)
    assert 0 < svcca_similarity(x, y, variance=0.5) < 1


@CANONICAL
def test_two_samples_more_than_directions_are_enough(measure: Callable) -> None:
    rng = np.random.default_rng(0)
    assert measure(*rng.normal(size=(2, 20, 18))) < 1 - 1e-3


@CANONICAL
def test_the_rank_counts_and_not_the_width(measure: Callable) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 40)), rng.normal(size=(30, 40))[:, :2]
    assert 0 < measure(x, y) < 1
    assert measure(np.repeat(y, 30, axis=1), y) == pytest.approx(1.0, abs=1e-12)  # sixty features that say two things


@CANONICAL
def test_one_member_of_a_batch_is_enough_to_refuse(measure: Callable) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 16, 16)), rng.normal(size=(16, 2))
    x[:2] = x[:2, :, :2] @ rng.normal(size=(2, 2, 16))
    assert measure(x[:2], y).shape == (2,)
    x[2] = np.linalg.qr(x[2] - x[2].mean(axis=0))[0]
    for order in ([0, 1, 2], [2, 0, 1]):
        with pytest.raises(ValueError, match="`x` must have more samples than directions"):
            measure(x[order], y)


# --- standardised features

STANDARDIZED = pytest.mark.parametrize(
    "measure", [svcca_similarity, linear_cka_similarity, debiased_cka, procrustes_similarity]
)


@STANDARDIZED
@given(seed=seeds)
@few
def test_standardized_is_the_measure_of_z_scores(measure: Callable, seed: int) -> None:
    x, y = related(seed, d_y=3)
    a, b = ((side - side.mean(axis=0)) / side.std(axis=0) for side in (x, y))
    expected = pytest.approx(measure(a, b), abs=1e-10)
    assert measure(x, y, standardize=True) == expected
    scales = np.random.default_rng(seed).uniform(0.1, 10, 5) * [1, -1, 1e6, 1e-6, -1]
    assert measure(x * scales + 3 * scales, y, standardize=True) == expected
    # a feature that does not vary has no say
    assert measure(np.insert(x, 2, 0.1, axis=1), y, standardize=True) == expected


@STANDARDIZED
def test_standardized_is_changed_by_rotation(measure: Callable) -> None:
    x, y = related(0)
    x = x * [1, 1, 1, 1, 30]
    turn = ortho_group.rvs(5, random_state=0)
    assert abs(measure(x @ turn, y, standardize=True) - measure(x, y, standardize=True)) > 1e-3


@STANDARDIZED
def test_standardized_takes_the_weight_of_a_rogue_dimension(measure: Callable) -> None:
    """Two clouds without relation, but for one shared feature of a hundred times the spread of the others."""
    x, y = (side * ([4] + [1] * 15) for side in reference.case("rogue_dimension"))
    assert measure(x, y) > 0.99
    assert measure(x, y, standardize=True) < 0.5


@STANDARDIZED
@pytest.mark.parametrize("name", ["rank_deficient", "large_mean", "tiny_scale", "duplicated_and_constant_columns"])
def test_standardized_in_float32(measure: Callable, name: str) -> None:
    x, y = reference.case(name, np.float32)
    exact = reference.case(name)
    # Entries are rounded by half a spacing, in units of the standard deviation of their feature ...
    sizes = [
        np.abs(side).max(axis=0) / np.maximum(side.std(axis=0), 1e-12 * np.abs(side).max(axis=0)) for side in exact
    ]
    rounding = np.finfo(np.float32).eps / 2 * max(size[size < 1e6].max() for size in sizes)
    # ... and the directions that SVCCA keeps have at least 0.01 / n_features of the variance, so that they turn by more.
    turn = 2 * np.sqrt(100 * max(x.shape[1], y.shape[1])) if measure is svcca_similarity else 4
    assert measure(x, y, standardize=True) == pytest.approx(
        measure(*exact, standardize=True), abs=float(turn * rounding)
    )


@STANDARDIZED
def test_standardized_batches_and_extremes(measure: Callable) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 3, 50, 6)) * np.geomspace(1, 100, 6) + 5
    y = y + 0.5 * x
    found = measure(x, y, standardize=True)
    expected = [measure(a, b, standardize=True) for a, b in zip(x, y, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)
    for scale in (1e-300, 1e300):
        assert measure(x * scale, y, standardize=True) == pytest.approx(found, abs=1e-10)
    with pytest.raises(ValueError, match="`y` must vary; got samples that are all equal"):
        measure(x[0], np.full_like(y[0], 0.1), standardize=True)


# --- chance beside a positive control


def test_chance_and_positive_control() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 200, 12))
    mixed = x @ ortho_group.rvs(12, random_state=0)
    level = cca_chance_level(12, 12, 200)
    # the mean of 20 values of standard deviation below 0.02
    for measure in (svcca_similarity, cca_similarity, pwcca_similarity):
        assert float(np.mean(measure(x, y))) == pytest.approx(level, abs=0.02)
        assert measure(x, mixed) == pytest.approx(np.ones(20), abs=1e-12)
    unrelated, same = debiased_cka(x, y), debiased_cka(x, mixed)
    assert abs(unrelated.mean()) < 4 * unrelated.std() / np.sqrt(20)
    assert same == pytest.approx(np.ones(20), abs=1e-12)
    assert linear_cka_similarity(x, y).min() > 0.03  # the plain estimate is biased upwards: about 12 / 200
