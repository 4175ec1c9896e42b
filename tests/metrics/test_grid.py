"""The grid engine: every solver, on any blocks, gives the SVCCA of each pair."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprobe.metrics import svcca_similarity
from dynprobe.metrics.grid import mean_correlation_of, svcca_grid


def clouds(n: int, widths: tuple[int, ...], *, seed: int = 0, mean: float = 0.0) -> list[np.ndarray]:
    """Representations that share a signal, with falling spectra."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, max(widths)))
    return [
        ((shared[:, :d] + rng.normal(size=(n, d))) * np.arange(1, d + 1) ** -0.6)
        @ np.linalg.qr(rng.normal(size=(d, d)))[0]
        + mean
        for d in widths
    ]


def one_by_one(x: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    return np.array([[svcca_similarity(a.astype(float), b.astype(float)) for b in y] for a in x])


@pytest.mark.parametrize("solver", ["auto", "svd", "eigh", "polar"])
@pytest.mark.parametrize("block_rows", [37, 2048])
def test_equals_the_pairs_one_by_one(solver: str, block_rows: int) -> None:
    x, y = clouds(300, (20, 31)), clouds(300, (25, 20, 8), seed=1, mean=5.0)
    expected = one_by_one(x, y)
    grid = svcca_grid(x, y, solver=solver, block_rows=block_rows)
    np.testing.assert_allclose(grid.similarity, expected, atol=1e-6 if solver == "polar" else 1e-10)
    single = svcca_grid([a.astype(np.float32) for a in x], [b.astype(np.float32) for b in y], solver=solver)
    np.testing.assert_allclose(single.similarity, expected, atol=2e-6)
    assert (grid.mean_square <= grid.similarity + 1e-12).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="`device` must be one that is there"):
        svcca_grid(clouds(50, (5,)), device="cuda")


def test_a_representation_with_itself_and_turned() -> None:
    (x,) = clouds(200, (12,))
    turned = 3.0 * x @ np.linalg.qr(np.random.default_rng(5).normal(size=(12, 12)))[0] + 7.0
    grid = svcca_grid([x, turned])
    np.testing.assert_allclose(grid.similarity, 1.0, atol=1e-10)
    np.testing.assert_allclose(grid.mean_square, 1.0, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: np.hstack([x, x[:, :3], np.ones((len(x), 2))]),  # duplicated and constant columns
        lambda x: x @ np.ones((x.shape[1], 1)) @ np.ones((1, 6)),  # rank 1
        lambda x: 1e-12 * x,
        lambda x: x + 1e5,
        lambda x: x[:, :1],
    ],
)
def test_degenerate_representations(make: object) -> None:
    (x, y) = clouds(150, (10, 9))
    strange = make(x)  # type: ignore[operator]
    np.testing.assert_allclose(svcca_grid([strange], [y]).similarity, one_by_one([strange], [y]), atol=1e-9)


def test_fewer_samples_than_features() -> None:
    x, y = clouds(20, (40, 33))
    np.testing.assert_allclose(svcca_grid([x], [y]).similarity, one_by_one([x], [y]), atol=1e-9)


@given(n=st.integers(12, 60), block=st.integers(1, 80), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_blocks_do_not_matter(n: int, block: int, seed: int) -> None:
    x = clouds(n, (4, 3), seed=seed)
    whole = svcca_grid(x, block_rows=10_000)
    np.testing.assert_allclose(svcca_grid(x, block_rows=block).similarity, whole.similarity, atol=1e-9)
    np.testing.assert_allclose(whole.similarity, whole.similarity.T, atol=1e-10)


def test_rows_are_read_block_by_block() -> None:
    class OnDisk:
        """Gives rows when sliced, and remembers how many at most."""

        most = 0

        def __init__(self, data: np.ndarray) -> None:
            self._data, self.shape = data, data.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            part = self._data[rows]
            OnDisk.most = max(OnDisk.most, len(part))
            return part

    x, y = clouds(500, (7, 9))
    grid = svcca_grid([OnDisk(x)], [OnDisk(y)], block_rows=64)
    assert OnDisk.most == 64
    np.testing.assert_allclose(grid.similarity, one_by_one([x], [y]), atol=1e-10)


def test_the_number_of_threads_is_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        svcca_grid(clouds(50, (5, 6, 7)))
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="must vary"):
            svcca_grid([np.ones((10, 3)), np.ones((10, 3))])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_half_precision_is_read_as_it_is_stored() -> None:
    x, y = (a.astype(np.float16) for a in clouds(300, (20, 15)))
    np.testing.assert_allclose(svcca_grid([x], [y]).similarity, one_by_one([x], [y]), atol=2e-6)


def test_unrelated_data_reach_only_the_chance_level() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 10)), rng.normal(size=(4000, 10))
    related = svcca_grid([x], [x + 0.1 * y]).similarity[0, 0]
    assert svcca_grid([x], [y]).similarity[0, 0] < 0.06
    assert related > 0.98


@pytest.mark.parametrize("solver", ["eigh", "polar"])
def test_solvers_agree_on_products_of_bases(solver: str) -> None:
    rng = np.random.default_rng(0)
    bases = [torch.from_numpy(np.linalg.qr(rng.normal(size=(50, k)))[0]) for k in (8, 13)]
    cross = torch.stack([bases[0].mT @ bases[1], bases[0].mT @ bases[1].flip(0)])
    got = mean_correlation_of(cross, solver=solver)
    np.testing.assert_allclose(got, torch.linalg.svdvals(cross).mean(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ([], None, {}, "`x` must hold at least one representation"),
        ([np.eye(4)[:, :2]], [], {}, "`y` must hold at least one representation"),
        (
            [np.zeros((3, 2))],
            [np.zeros((4, 2))],
            {},
            r"of the same samples, row by row; got 3 in `x\[0\]` and 4 in `y\[0\]`",
        ),
        (
            [np.zeros((3, 2)), np.zeros(3)],
            None,
            {},
            r"`x\[1\]` must be an array \(n_samples, n_features\); got shape \(3,\)",
        ),
        ([[[1.0], [2.0]]], None, {}, r"`x\[0\]` must be an array .* got a list"),
        ([np.zeros((1, 2))], None, {}, r"`x\[0\]` must have at least 2 samples; got 1"),
        ([np.eye(9)[:, :3]], [np.ones((9, 2))], {}, r"`y\[0\]` must vary"),
        ([np.eye(4)[:, :2]], None, {"block_rows": 0}, "`block_rows` must be a number of rows, at least 1; got 0"),
        ([np.eye(4)[:, :2]], None, {"device": "meta"}, "`device` must be one that is there"),
        ([np.ones((4, 2))], None, {}, "must vary"),
        ([np.full((4, 2), np.nan)], None, {}, "must be finite"),
        ([np.eye(4)], None, {"solver": "qr"}, "`solver` must be one of"),
        ([np.eye(4)], None, {"variance": 1.0}, "at most 0.999 for a grid"),
        ([np.eye(4)], None, {"variance": 0.0}, "share in"),
        ([np.eye(4)], None, {}, "more samples than kept directions, at least two more; got 4 samples and 3 directions"),
        ([np.eye(4)], None, {"solver": "svd"}, "more samples than kept directions"),
        ([np.ones((9, 3))], None, {"solver": "svd"}, "must vary"),
        ([np.full((9, 3), np.inf)], None, {"solver": "svd"}, "must be finite"),
        ([np.eye(4)], None, {"device": "nowhere"}, "`device` must be one that is there, such as 'cpu'; got 'nowhere'"),
    ],
)
def test_bad_input_is_named(
    x: list[np.ndarray], y: list[np.ndarray] | None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        svcca_grid(x, y, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("strange", [np.eye(4, 2) * 1j, np.eye(4, 2) > 0, np.array([["a"], ["b"]]), torch.eye(4) > 0])
def test_what_is_no_real_number_is_refused(strange: object) -> None:
    with pytest.raises(TypeError, match=r"`x\[0\]` must hold real numbers"):
        svcca_grid([strange])  # type: ignore[list-item]


def test_rows_in_any_layout(tmp_path: Path) -> None:
    x, y = clouds(200, (9, 7))
    expected = one_by_one([x], [y])
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for same in (mapped, x.astype(">f8"), np.asfortranarray(x), torch.from_numpy(x).requires_grad_()):
        np.testing.assert_allclose(svcca_grid([same], iter([y])).similarity, expected, atol=1e-10)
    np.testing.assert_allclose(
        svcca_grid(np.stack([x, x]), torch.from_numpy(y)[None]).similarity, np.tile(expected, (2, 1))
    )
