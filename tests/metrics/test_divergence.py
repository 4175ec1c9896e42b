"""Jensen–Shannon and symmetric Kullback–Leibler divergence."""

import math

import metrics_reference as reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import jensenshannon

from dynprobe.metrics import divergence as module
from dynprobe.metrics import js_divergence, symmetric_kl_divergence

law = settings(deadline=None, max_examples=30)
weights = arrays.arrays(np.float64, st.tuples(st.just(3), st.integers(1, 6)), elements=st.floats(0, 1e6)).filter(
    lambda rows: bool((rows.sum(axis=1) > 0).all())
)
logits = arrays.arrays(np.float64, (2, 4), elements=st.floats(-50, 50))


# --- by hand


def test_js_by_hand() -> None:
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): JS = 1/2 ln(4/3) + 1/4 ln(2/3) + 1/4 ln 2
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert js_divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(expected, abs=1e-16)
    assert js_divergence(np.array([1.0, 0.0]), np.array([0.0, 3.0])) == math.log(2)
    assert js_divergence(np.array([0.2, 0.8]), np.array([1.0, 4.0])) == 0.0


def test_symmetric_kl_by_hand() -> None:
    # softmax (1, 0) gives p = e/(1+e); the divergence from its mirror image is 2 (2p - 1)
    p = math.e / (1 + math.e)
    assert symmetric_kl_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(
        2 * (2 * p - 1), abs=1e-15
    )
    assert symmetric_kl_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(0.9242343, abs=5e-8)


# --- laws


@given(p=weights, seed=st.integers(0, 2**32 - 1))
@law
def test_js_is_a_bounded_symmetric_divergence(p: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(p.shape[1]), size=3)
    value = js_divergence(p, q)
    assert np.all((value >= 0) & (value <= math.log(2)))
    np.testing.assert_array_equal(value, js_divergence(q, p))
    np.testing.assert_array_equal(js_divergence(p, p), 0.0)
    order = rng.permutation(p.shape[1])
    assert js_divergence(p[:, order], q[:, order]) == pytest.approx(value, abs=1e-14)
    assert js_divergence(7.3 * p, q) == pytest.approx(value, abs=1e-14)


@given(seed=st.integers(0, 2**32 - 1))
@law
def test_the_root_of_js_obeys_the_triangle_inequality(seed: int) -> None:
    p, q, r = np.random.default_rng(seed).dirichlet(np.full(4, 0.3), size=3)
    ends = math.sqrt(js_divergence(p, r))
    assert ends <= math.sqrt(js_divergence(p, q)) + math.sqrt(js_divergence(q, r)) + 1e-15


def test_js_depends_on_which_outcome_is_which() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.6, 0.3, 0.1])
    assert js_divergence(p[::-1], q) > 10 * js_divergence(p, q)


@given(values=logits, shift=st.floats(-100, 100))
@law
def test_symmetric_kl_is_symmetric_and_ignores_a_common_shift(values: np.ndarray, shift: float) -> None:
    a, b = values
    value = symmetric_kl_divergence(a, b)
    assert value >= 0
    assert symmetric_kl_divergence(b, a) == pytest.approx(value, rel=1e-12, abs=1e-26)
    assert symmetric_kl_divergence(a, a + shift) == pytest.approx(0.0, abs=1e-24)
    # the shift itself rounds the logits at 1e-14
    assert symmetric_kl_divergence(a + shift, b) == pytest.approx(value, rel=1e-11, abs=1e-11)


def test_symmetric_kl_grows_with_the_square_of_a_small_change() -> None:
    rng = np.random.default_rng(0)
    a, change = rng.normal(size=(2, 5))
    ratio = symmetric_kl_divergence(a, a + 1e-4 * change) / symmetric_kl_divergence(a, a + 1e-5 * change)
    assert ratio == pytest.approx(100, rel=1e-3)
    assert symmetric_kl_divergence(2 * a, 2 * a + change) != pytest.approx(
        symmetric_kl_divergence(a, a + change), rel=1e-3
    )


# --- the slow reference


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_js_of_near_rows_keeps_its_digits(step: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(128), size=20)
    q = p * (1 + step * rng.normal(size=p.shape))
    value = js_divergence(p, q)
    slow = np.array([reference.js(a, b) for a, b in zip(p, q, strict=True)])
    # p - q is known to eps p, which is eps / step of itself; extended precision itself loses its eps over step squared
    extended = float(np.finfo(np.longdouble).eps)
    assert value == pytest.approx(slow, rel=10 * (2.2e-16 / step + extended / step**2))


def test_js_of_rows_a_ten_thousandth_apart_is_exact_to_1e_8() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(48, 0.3), size=6)
    p[:, :5] = 0.0  # masked keys
    q = p * (1 + 1e-4 * rng.normal(size=p.shape))
    slow = np.array([reference.js_exact(a, b) for a, b in zip(p, q, strict=True)])
    assert js_divergence(p, q) == pytest.approx(slow, rel=1e-8)
    for scale in (1e-300, 1e300):
        assert js_divergence(scale * p, q / scale) == pytest.approx(slow, rel=1e-8)


def near_rows(step: float, dtype: type, *, n_rows: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Rows like attention, a few keys of which get nothing, and others that differ by `step` of each entry."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.full(128, 0.5), size=n_rows)
    p[:, :5] = 0.0
    return p.astype(dtype), (p * (1 + step * rng.normal(size=p.shape))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("beside", ["alone", "beside_a_far_row"])
def test_js_of_near_rows_against_rational_arithmetic(step: float, dtype: type, beside: str) -> None:
    p, q = near_rows(step, dtype)
    if beside == "beside_a_far_row":  # the block is then computed by logarithms, not by the series
        p, q = (np.concatenate([side, np.eye(2, 128, k=3 * i, dtype=dtype)]) for i, side in enumerate((p, q)))
    exact = np.array([reference.js_exact(a, b) for a, b in zip(p[:8], q[:8], strict=True)])
    # normalising rounds p and q by half an eps each; that is eps / step of their difference, which enters squared
    assert js_divergence(p, q)[:8] == pytest.approx(exact, rel=8 * 2.2e-16 / step, abs=0.0)
    assert js_divergence(p, q)[:8] == pytest.approx(exact, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("largest", [1e-9, 1e-5, 1e-3, 0.02, 0.1, 0.1249, 0.1251, 0.5, 1 - 1e-9])
def test_js_whatever_the_largest_ratio_of_the_block(largest: float) -> None:
    # p = (1 + r, 1 - r) / 2 against its mirror image: JS = phi(r) of that r
    p = np.array([1 + largest, 1 - largest]) / 2
    given = (np.longdouble(p[0]) - np.longdouble(p[1])) / (np.longdouble(p[0]) + np.longdouble(p[1]))
    phi = ((1 + given) * np.log1p(given) + (1 - given) * np.log1p(-given)) / 2
    extended = float(np.finfo(np.longdouble).eps)
    assert js_divergence(p, p[::-1]) == pytest.approx(float(phi), rel=8 * (2.2e-16 + extended / largest), abs=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_js_takes_the_numbers_as_they_were_given(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    p, q = (torch.from_numpy(100 * rng.dirichlet(np.ones(16), size=4)).to(dtype) + 1 for _ in range(2))
    slow = [reference.js(a, b) for a, b in zip(p.double().numpy(), q.double().numpy(), strict=True)]
    assert js_divergence(p, q).tolist() == pytest.approx(slow, abs=1e-14)


def test_js_against_scipy() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(32, 0.1), size=(2, 50))
    p[:, :3] = q[:, 2:5] = 0.0
    assert js_divergence(p, q) == pytest.approx(jensenshannon(p, q, axis=1) ** 2, abs=1e-14)


@pytest.mark.parametrize("step", [10.0, 1.0, 1e-3, 1e-6])
def test_symmetric_kl_of_near_logits_keeps_its_digits(step: float) -> None:
    rng = np.random.default_rng(0)
    a = 5 * rng.normal(size=(30, 7))
    b = a + step * rng.normal(size=a.shape)
    slow = [reference.symmetric_kl(x, y) for x, y in zip(a, b, strict=True)]
    # the logits' differences are exact; extended precision loses its eps of the logits over the step
    extended = float(np.finfo(np.longdouble).eps)
    assert symmetric_kl_divergence(a, b) == pytest.approx(np.array(slow), rel=1e-13 + 1e3 * extended / step)


def test_a_common_shift_costs_no_digits() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-300, 300, size=(20, 5)) / 2.0**6
    b = a + rng.integers(-5, 5, size=a.shape) / 2.0**30
    # all of these numbers are exact, also 64 higher
    assert symmetric_kl_divergence(a, b + 64.0) == pytest.approx(symmetric_kl_divergence(a, b), rel=1e-12, abs=0.0)


# --- batches, kinds, degenerate input


@pytest.mark.parametrize("divergence", [js_divergence, symmetric_kl_divergence])
def test_leading_axes_broadcast_and_the_kind_is_kept(divergence) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), size=(2, 3)), rng.dirichlet(np.ones(5), size=(1, 3))
    value = divergence(p, q)
    assert value.shape == (2, 3)
    assert value.dtype == np.float64
    assert value[1, 2] == divergence(p[1, 2], q[0, 2])
    tensor = divergence(torch.from_numpy(p).float(), torch.from_numpy(q).float())
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy() == pytest.approx(divergence(p.astype(np.float32), q.astype(np.float32)), abs=1e-16)
    with pytest.raises(ValueError, match="leading axes that broadcast"):
        divergence(p, rng.dirichlet(np.ones(5), size=(2, 2)))


@given(
    leading=st.lists(st.integers(0, 5), max_size=4), n_outcomes=st.integers(1, 4), limit=st.integers(1, 40)
)  # fmt: skip
@law
def test_js_does_not_depend_on_the_blocks(leading: list[int], n_outcomes: int, limit: int) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(n_outcomes), size=(2, *leading))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", limit)
        value = js_divergence(p, q)
    assert value.shape == tuple(leading)
    # in a block with a far row the others are computed by logarithms
    np.testing.assert_allclose(value, js_divergence(p, q), rtol=1e-12, atol=1e-16)


def test_js_broadcasts_without_a_copy_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spy(name: str, rows: torch.Tensor) -> torch.Tensor:
        sizes.append(rows.numel())
        return normalised(name, rows)

    normalised = module._normalised
    monkeypatch.setattr(module, "_normalised", spy)
    monkeypatch.setattr(module, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(8), size=(6, 1, 10)), rng.dirichlet(np.ones(8), size=(5, 1))
    value = js_divergence(p, q)
    assert max(sizes) <= 64
    assert sum(sizes) == 2 * 6 * 5 * 10 * 8
    each = [[js_divergence(a[0], b) for b in q] for a in p]
    assert value == pytest.approx(np.array(each), rel=1e-13)


def test_js_on_two_threads_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 256)
    p, q = (torch.from_numpy(side) for side in near_rows(1e-3, np.float64, n_rows=40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = js_divergence(p, q)
        torch.set_num_threads(2)
        assert torch.equal(js_divergence(p, q), expected)
        with torch.inference_mode():
            assert torch.equal(js_divergence(p * 1.0, q), expected)
        with pytest.raises(ValueError, match="`q` must be finite"):
            js_divergence(p, q.index_fill(0, torch.tensor([33]), torch.inf))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_js_of_extreme_rows() -> None:
    assert js_divergence(np.array([1e308, 1e308, 1e308]), np.array([1.0, 1.0, 1.0])) == 0.0
    assert js_divergence(np.array([5e-324, 0.0]), np.array([1.0, 0.0])) == 0.0
    assert js_divergence(np.array([3.0]), np.array([1.0])) == 0.0
    half = np.array([0.1, 0.9], dtype=np.float16)  # 0.09998 + 0.8999 is not 1
    assert js_divergence(half, half.astype(np.float64)) == 0.0


def test_symmetric_kl_of_extreme_logits() -> None:
    sure, opposite = np.array([1e4, 0.0, -1e4]), np.array([-1e4, 0.0, 1e4])
    assert symmetric_kl_divergence(sure, opposite) == pytest.approx(4e4, rel=1e-15)
    assert symmetric_kl_divergence(sure, sure + 1e9) == 0.0
    with pytest.raises(ValueError, match="got logits whose divergence overflows"):
        symmetric_kl_divergence(np.array([1.7e308, -1.7e308]), np.array([-1.7e308, 1.7e308]))


def test_js_complaints() -> None:
    good = np.array([[0.5, 0.5], [0.5, 0.5]])
    for bad, words in (
        ([[0.5, 0.5], [0.0, 0.0]], "`q` must hold distributions; got a row that sums to zero"),
        ([[0.5, 0.5], [1.1, -0.1]], "`q` must hold probabilities, 0 or more; got -0.1"),
        ([[0.5, 0.5], [np.nan, 1.0]], "`q` must be finite"),
        ([[0.5, 0.5], [np.inf, 1.0]], "`q` must be finite"),
        ([[0.5, 0.5], [np.inf, -np.inf]], "`q` must be finite"),
        ([[0.5, 0.5], [1.0, -1e-200]], "`q` must hold probabilities, 0 or more; got -1e-200"),
        ([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], "same number of outcomes; got 2 and 3"),
        (0.5, "`q` must have at least one outcome"),
        (np.zeros((2, 0)), "`q` must have at least one outcome"),
    ):
        with pytest.raises(ValueError, match=words):
            js_divergence(good, np.array(bad))


def test_js_reads_any_layout() -> None:
    p, q = near_rows(1e-2, np.float64)
    packed = np.zeros(p.shape, dtype=[("flag", "u1"), ("value", "f8")])  # strides that are no multiple of 8 bytes
    packed["value"] = p
    fixed = p.copy()
    fixed.flags.writeable = False
    for other in (packed["value"], fixed, p[::-1, ::-1][::-1, ::-1], p.astype(">f8"), p.tolist(), torch.from_numpy(p)):
        np.testing.assert_array_equal(np.asarray(js_divergence(other, q)), js_divergence(p, q))
    with pytest.raises(TypeError, match=r"`p` must hold real numbers; got torch\.bool"):
        js_divergence(torch.ones(2, 2, dtype=torch.bool), q)


def test_symmetric_kl_complaints() -> None:
    with pytest.raises(ValueError, match="same number of classes, at least 2"):
        symmetric_kl_divergence(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="same number of classes"):
        symmetric_kl_divergence(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="`p_logits` must be finite"):
        symmetric_kl_divergence(np.array([-np.inf, 0.0]), np.zeros(2))


# --- chance beside a positive control


def test_unrelated_attention_is_far_and_a_small_change_is_near() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(64), size=(2, 200))
    near = js_divergence(p, p * np.exp(0.1 * rng.normal(size=p.shape)))
    assert near.max() < 0.005 < 0.1 < js_divergence(p, q).min()
