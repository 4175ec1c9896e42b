"""Rogue dimensions: planted ones are found, isotropic clouds have none, shares and cosine terms add up."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from dynprobe.metrics import RogueDimensions, mean_cosine, rogue_dimensions


def named(x: np.ndarray, **options: float) -> list[int]:
    return np.asarray(rogue_dimensions(x, **options).index).tolist()


def cloud(seed: int, n: int = 300, d: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_by_hand() -> None:
    # variances 1, 0, 0, 0; means 0, 3, 0, 0: mean squared length 10
    x = np.array([[1.0, 3.0, 0.0, 0.0], [-1.0, 3.0, 0.0, 0.0]])
    found = rogue_dimensions(np.repeat(x, 50, axis=0))
    assert found.index.tolist() == [0, 1]
    assert found.n_features == 4
    assert found.share == pytest.approx(10 / 13, abs=1e-15)
    assert found.variance_share == pytest.approx([1.0, 0.0], abs=1e-15)
    assert found.offset_share == pytest.approx([0.0, 0.9], abs=1e-15)
    assert found.mean_share == pytest.approx([0.0, 1.0], abs=1e-15)
    # of the 99 others 49 have the same first entry, which adds 1/10, and 50 the other; the second always adds 9/10
    assert found.cosine == pytest.approx([(49 - 50) / 990, 0.9], abs=1e-14)


@pytest.mark.parametrize(("n", "d"), [(2, 2), (2, 384), (3, 8), (10, 2), (10, 768), (500, 32)])
@pytest.mark.parametrize("offset", [0.0, 0.5, 100.0])
def test_isotropic_clouds_have_none(n: int, d: int, offset: float) -> None:
    """About the origin, and about a mean that points anywhere: one in a million each, by the rule."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        assert named(rng.normal(size=(n, d)) + offset * rng.normal(size=d)) == []


def test_chance_is_the_quantile_of_the_share_of_one_feature() -> None:
    """With the chance raised to what can be counted, isotropic clouds are named as often as the rule says."""
    n, d, level = 12, 16, 0.05
    rng = np.random.default_rng(0)
    variances = rng.normal(size=(4000, n, d)).var(axis=1)
    shares = (variances / variances.sum(axis=1, keepdims=True)).max(axis=1)
    limit = beta.isf(level / d, (n - 1) / 2, (n - 1) * (d - 1) / 2)
    # the union bound is an upper limit, close to exact at this level: four standard errors of 4000 draws
    assert level * 0.7 < np.mean(shares > limit) < level + 4 * np.sqrt(level / 4000)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("d", [16, 64, 768])
def test_planted_dimensions_are_found(seed: int, d: int) -> None:
    x = cloud(seed, d=d)
    x[:, 3] *= 8.0
    assert named(x) == [3]
    if d > 16:  # of 16 features two cannot both have so large a share
        x[:, 7] *= 12.0
        assert named(x) == [7, 3]
    y = cloud(seed, d=d)
    y[:, 5] += 2.0 * np.sqrt(d)  # a constant that makes four fifths of the length of every vector
    found = rogue_dimensions(y)
    assert found.index.tolist() == [5]
    assert found.offset_share[0] == pytest.approx(0.8, abs=0.05)
    assert found.cosine[0] == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("d", [64, 200])
def test_ten_times_the_variance_of_the_others_is_the_border(d: int) -> None:
    data = cloud(0, d=d)
    even = np.linalg.qr(data - data.mean(axis=0))[0]
    for ratio, expected in ((9.99, []), (10.01, [0])):
        assert named(even * np.sqrt([ratio, *[1] * (d - 1)])) == expected


def test_the_terms_of_the_cosine_add_up() -> None:
    x = cloud(0, n=40, d=12) * np.geomspace(1, 10, 12) + 2
    found = rogue_dimensions(x, share=1e-9)
    terms = 0.0
    for column in range(12):
        unit = (x / np.linalg.norm(x, axis=1, keepdims=True))[:, column]
        terms += (np.outer(unit, unit).sum() - (unit**2).sum()) / (40 * 39)
    assert terms == pytest.approx(mean_cosine(x), abs=1e-12)
    for index, cosine in zip(found.index, found.cosine, strict=True):
        unit = (x / np.linalg.norm(x, axis=1, keepdims=True))[:, index]
        assert cosine == pytest.approx((np.outer(unit, unit).sum() - (unit**2).sum()) / (40 * 39), abs=1e-12)


def test_unchanged_by_scale_and_order_and_sorted() -> None:
    x = cloud(0) * np.where(np.isin(np.arange(64), [4, 9, 30]), [[9.0]], 1.0)
    x[:, 9] *= 2
    found = rogue_dimensions(x)
    assert set(found.index.tolist()) == {4, 9, 30}
    assert found.index[0] == 9
    assert (np.diff(np.maximum(found.variance_share, found.offset_share)) <= 0).all()
    for other in (1e-200 * x, 1e150 * x, -x, x[::-1]):
        again = rogue_dimensions(other)
        np.testing.assert_array_equal(again.index, found.index)
        assert again.variance_share == pytest.approx(found.variance_share, abs=1e-12)
        assert again.cosine == pytest.approx(found.cosine, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_short_numbers(dtype: type) -> None:
    x = cloud(0)
    x[:, 3] *= 8.0
    found, exact = rogue_dimensions(x.astype(dtype)), rogue_dimensions(x)
    np.testing.assert_array_equal(found.index, exact.index)
    assert found.variance_share == pytest.approx(exact.variance_share, abs=4 * float(np.finfo(dtype).eps))


def test_a_larger_share_names_fewer() -> None:
    x = cloud(0)
    x[:, 3] *= 8.0  # half of all variance
    assert named(x, share=0.3) == [3]
    assert named(x, share=0.9) == []


def test_tensors_stay_tensors_and_the_answer_is_frozen() -> None:
    x = torch.from_numpy(cloud(0) * np.where(np.arange(64) == 3, 9.0, 1.0))
    found = rogue_dimensions(x)
    assert isinstance(found, RogueDimensions)
    assert isinstance(found.index, torch.Tensor)
    assert found.cosine.dtype == torch.float64
    with pytest.raises(AttributeError):
        found.share = 0.1


def test_complaints() -> None:
    x = cloud(0)
    with pytest.raises(ValueError, match=r"`x` must be \(n_samples, n_features\) with at least 2 features; got shape"):
        rogue_dimensions(np.stack([x, x]))
    with pytest.raises(ValueError, match="at least 2 features; got shape"):
        rogue_dimensions(x[:, :1])
    with pytest.raises(ValueError, match="with at least 2 samples"):
        rogue_dimensions(x[:1])
    with pytest.raises(ValueError, match="`x` must hold no zero vector"):
        rogue_dimensions(np.vstack([x, np.zeros(64)]))
    with pytest.raises(ValueError, match="`x` must vary; got samples that are all equal"):
        rogue_dimensions(np.ones((5, 3)))
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\); got"):
            rogue_dimensions(x, share=share)
