"""Debiased CKA from products of rows with each other, against the metric on the same rows."""

import numpy as np
import pytest
import torch

from dynprobe.metrics import linear_cka_similarity
from dynprobe.metrics.kernels import Kernel, hsic, kernel_of, self_hsic

# Products of float32 rows, summed in float64; measured 1e-8.
FLOAT32 = 1e-7
FLOAT64 = 1e-10
GROUPS = [0, 50, 120, 121, 300]
CHOICES = [[1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]]


def clouds(dtype: type, *, n: int = 300, widths: tuple[int, int] = (150, 130)) -> list[np.ndarray]:
    """Related representations with falling spectra, rogue directions and large means."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, max(widths)))
    scale = np.r_[30.0, 20.0, np.arange(3, max(widths) + 1) ** -0.5]
    return [
        ((shared[:, :width] + rng.normal(size=(n, width))) * scale[:width] + 5 * rng.normal(size=width)).astype(dtype)
        for width in widths
    ]


def cka(a: Kernel, b: Kernel, chosen: torch.Tensor) -> np.ndarray:
    return (hsic(a, b, chosen) / (self_hsic(a, chosen) * self_hsic(b, chosen)).sqrt()).numpy()


@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float64, FLOAT64), (np.float32, FLOAT32), (np.float16, FLOAT32)])
@pytest.mark.parametrize("widths", [(150, 130), (150, 20), (400, 350)])
def test_equals_the_metric_on_the_rows_of_each_choice(dtype: type, accuracy: float, widths: tuple[int, int]) -> None:
    x, y = clouds(dtype, widths=widths)
    a, b = (kernel_of(side, GROUPS) for side in (x, y))
    found = cka(a, b, torch.tensor(CHOICES, dtype=torch.float64))
    for value, chosen in zip(found, CHOICES, strict=True):
        rows = np.concatenate([np.arange(*GROUPS[g : g + 2]) for g in np.flatnonzero(chosen)])
        assert abs(value - float(linear_cka_similarity(x[rows], y[rows], debiased=True))) < accuracy


@pytest.mark.parametrize("shift", [1, 120, 299])
def test_rolled_is_the_kernel_of_rolled_rows(shift: int) -> None:
    x, y = clouds(np.float64)
    a, b = (kernel_of(side, GROUPS) for side in (x, y))
    whole = torch.ones(1, 1, dtype=torch.float64)
    expected = float(linear_cka_similarity(x, np.roll(y, shift, axis=0), debiased=True))
    assert abs(float(cka(a.ungrouped(), b.rolled(shift), whole)[0]) - expected) < FLOAT64


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**40, 2.0**60])
def test_size_does_not_matter(factor: float) -> None:
    x, y = clouds(np.float32)
    chosen = torch.tensor(CHOICES, dtype=torch.float64)
    near, far, other = (kernel_of(side, GROUPS) for side in (x, x * np.float32(factor), y))
    np.testing.assert_allclose(cka(far, other, chosen), cka(near, other, chosen), atol=1e-12)


def test_one_row_apart_and_too_few_rows_have_no_similarity_structure() -> None:
    x = np.zeros((300, 150), dtype=np.float32)
    x[17] = np.random.default_rng(0).normal(size=150)
    assert torch.isnan(self_hsic(kernel_of(x, [0, 300]), torch.ones(1, 1, dtype=torch.float64))).all()
    few = kernel_of(clouds(np.float32)[0], [0, 3, 300])
    assert self_hsic(few, torch.eye(2, dtype=torch.float64)).isnan().tolist() == [True, False]


def test_rows_that_are_not_finite_are_refused() -> None:
    x = clouds(np.float32, n=2500)[0]
    x[2400, 3] = np.nan  # beyond the first block of rows
    with pytest.raises(ValueError, match="must be finite; got NaN or Inf"):
        kernel_of(x, [0, 2500])
