"""SVCCA and CKA from sums over blocks and groups of rows, against the metrics on the same rows."""

import numpy as np
import pytest
import torch

from dynprobe.metrics import linear_cka_similarity, svcca_similarity
from dynprobe.metrics.from_sums import self_hsic, unbiased_hsic, variate_products, whiten
from dynprobe.metrics.rows import Prepared, Rolled, Rows, prepare, standardised
from dynprobe.metrics.sums import cross_sums, pooled, side_sums

BLOCK = 100
# Products of float32 blocks without the strongest directions, summed in float64; measured 2e-9.
FLOAT32 = 1e-7
FLOAT64 = 1e-10


def clouds(n: int, d: int, e: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Related representations with falling spectra, two rogue directions and large means."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, max(d, e)))

    def side(width: int, mean: float) -> np.ndarray:
        scale = np.arange(1, width + 1) ** -0.57
        scale[:2] *= 8
        turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
        return ((shared[:, :width] + rng.normal(size=(n, width))) * scale) @ turned + mean * rng.normal(size=width)

    return side(d, 5.0), side(e, 2.0)


def agreement(x: Rows, y: Rows, groups: list[int], chosen: list[int] | None) -> tuple[float, float]:
    """SVCCA and debiased CKA of some groups of rows."""
    a, b = (prepare(side, block_rows=BLOCK) for side in (x, y))
    sums = [pooled(side_sums(side, groups, block_rows=BLOCK), groups=chosen) for side in (a, b)]
    cross = pooled(cross_sums(a, b, groups, block_rows=BLOCK), groups=chosen)
    n = float(sums[0].n)
    kept = [whiten(side, n, own.total, own.products, variance=0.99) for side, own in zip((a, b), sums, strict=True)]
    products = variate_products(a, b, cross.products, n, *kept)
    shared = unbiased_hsic(a, b, *sums, cross)
    own = self_hsic(a, sums[0]) * self_hsic(b, sums[1])
    return float(torch.linalg.svdvals(products).mean()), float(shared / own.sqrt())


@pytest.mark.parametrize(
    ("n", "d", "e", "dtype", "accuracy"),
    [
        (400, 20, 30, np.float64, FLOAT64),
        (1500, 200, 150, np.float32, FLOAT32),
        (1500, 200, 150, np.float16, FLOAT32),
        (1500, 200, 30, np.float32, FLOAT32),  # one side in float32, the narrow one in float64
        (90, 200, 150, np.float64, FLOAT64),
        (90, 200, 150, np.float32, FLOAT32),
        (90, 200, 40, np.float32, FLOAT32),
    ],
)
@pytest.mark.parametrize("chosen", [None, [0, 2, 3]])
def test_equals_the_metrics(n: int, d: int, e: int, dtype: type, accuracy: float, chosen: list[int] | None) -> None:
    x, y = (side.astype(dtype) for side in clouds(n, d, e))
    groups = [0, n // 5, n // 2, n - 20, n]
    rows = np.arange(n) if chosen is None else np.concatenate([np.arange(groups[g], groups[g + 1]) for g in chosen])
    svcca, cka = agreement(x, y, groups, chosen)
    expected = svcca_similarity(x[rows], y[rows], small_sample="allow")
    assert abs(svcca - float(expected)) < accuracy
    assert abs(cka - float(linear_cka_similarity(x[rows], y[rows], debiased=True))) < accuracy


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**-40, 2.0**40, 2.0**60])
def test_size_does_not_matter(factor: float) -> None:
    x, y = (side.astype(np.float32) for side in clouds(600, 160, 130))
    expected = agreement(x, y, [0, 600], None)
    assert agreement(x * np.float32(factor), y, [0, 600], None) == pytest.approx(expected, abs=1e-12)


def test_rogue_directions_do_not_cost_the_small_ones_their_digits() -> None:
    """Each of two directions 300 times as strong as the next, a mean of 100: plain float32 products lose all but 3 digits."""
    rng = np.random.default_rng(0)
    n, d = 3000, 140
    shared = rng.normal(size=(n, d))
    scale = np.concatenate([[300.0, 200.0], np.ones(d - 2)])
    turned = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x, y = (((shared + 0.5 * rng.normal(size=(n, d))) * scale @ turned + 100).astype(np.float32) for _ in range(2))

    def mean_correlation(a: Prepared, b: Prepared) -> float:
        sums = [pooled(side_sums(side, [0, n])) for side in (a, b)]
        kept = [
            whiten(side, n, own.total, own.products, variance=0.9, n_kept=100)
            for side, own in zip((a, b), sums, strict=True)
        ]
        products = variate_products(a, b, pooled(cross_sums(a, b, [0, n])).products, n, *kept)
        return float(torch.linalg.svdvals(products[:100, :100]).mean())

    exact = mean_correlation(*(prepare(side.astype(np.float64)) for side in (x, y)))
    assert abs(mean_correlation(prepare(x), prepare(y)) - exact) < FLOAT32


@pytest.mark.parametrize("shift", [0, 1, 37, 99, 250])
def test_rolled_rows(shift: int) -> None:
    data = np.arange(200).reshape(100, 2)
    for given in (data, torch.from_numpy(data)):
        rolled = Rolled(given, shift)
        parts = [np.asarray(rolled[start : start + 7]) for start in range(0, 100, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), np.roll(data, shift, axis=0))


def test_prepared_rows_are_the_same_held_rolled_and_read_again() -> None:
    x, _ = clouds(500, 150, 10)
    read = prepare(x.astype(np.float32))
    held = read.held()
    assert read.block(3, 9).equal(held.block(3, 9))
    assert held.released().stored is None
    assert held.n_bytes == held.stored.nbytes
    for shift in (5, 123):
        torch.testing.assert_close(read.rolled(shift).block(100, 200), held.rolled(shift).block(100, 200))


def test_standardised_rows() -> None:
    x, _ = clouds(300, 12, 5)
    x[:, 3] = 7.25  # does not vary
    x[:, 4] = x[:, 4] * 1e-3 + 1e4
    whole = np.asarray(standardised(x, block_rows=64)[0:300])
    expected = (x - x.mean(axis=0)) / np.where(np.arange(12) == 3, np.inf, x.std(axis=0))
    np.testing.assert_allclose(whole, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((300, 5), np.nan), "must be finite"),
        (np.where(np.arange(300)[:, None] == 299, np.inf, np.eye(300, 140)).astype(np.float32), "must be finite"),
        (np.ones((300, 5)), "must vary"),
    ],
)
def test_bad_rows_are_named(x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreement(x, x, [0, 150, 300], None)


def test_features_far_from_zero_keep_their_variance_when_standardised() -> None:
    """As float16 stores them: a mean of 300 with 30 distinct values around it."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 5)) + np.array([0, 0, 0, 300, 2000])).astype(np.float16)
    whole = np.asarray(standardised(x)[0:400])
    expected = x.astype(float)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


@pytest.mark.parametrize("width", [12, 150])
def test_one_row_apart_from_equal_ones_has_no_similarity_structure(width: int) -> None:
    x = np.zeros((600, width), dtype=np.float32)
    x[17] = np.random.default_rng(0).normal(size=width)
    ready = prepare(x)
    assert torch.isnan(self_hsic(ready, pooled(side_sums(ready, [0, 600]))))
    x[400:, 0] = 1.0
    ready = prepare(x)
    assert float(self_hsic(ready, pooled(side_sums(ready, [0, 600])))) > 0
