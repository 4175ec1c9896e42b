"""Isotropy that a cell keeps: by hand, what a rescaling leaves alone, how IsoBN's statistics start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynprobe.experiments.experiment import parse_experiment
from dynprobe.experiments.grid import run_experiment
from dynprobe.experiments.isotropy_readings import (
    MAP_SIZE,
    STD_QUANTILES,
    cold_start,
    correlation_change,
    correlation_map,
    isotropy_table,
    map_matrix,
)
from dynprobe.experiments.isotropy_tables import (
    GIVEN,
    RETURNED,
    change_frame,
    cold_starts,
    correlation_maps,
    isotropy_frame,
    layer_frame,
    std_quantiles,
)


def cloud(n: int = 60, d: int = 6, *, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + mean


class TestTable:
    def test_by_hand(self) -> None:
        x = np.array([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]])
        table = isotropy_table(x)
        assert (table["n"], table["d"], table["correlation"]) == (4, 2, 0.0)
        assert table["shares"] == [0.8, 1.0]
        assert (table["std"][0], table["std"][-1], len(table["std"])) == (1.0, 2.0, len(STD_QUANTILES))
        assert table["isoscore"] == pytest.approx((25 / 17 - 1) / 1, rel=1e-3)

    def test_only_the_uncentred_shares_see_the_mean(self) -> None:
        here, there = isotropy_table(cloud()), isotropy_table(cloud(mean=100.0))
        same = ("shares", "correlation", "isoscore", "std")
        assert {name: here[name] for name in same} == {name: there[name] for name in same}
        assert here["shares_uncentred"][0] < 0.9 < there["shares_uncentred"][0]

    def test_a_dead_dimension_has_no_correlation(self) -> None:
        x = np.column_stack([cloud(d=2), np.full(60, 3.0)])
        assert isotropy_table(x)["correlation"] == isotropy_table(x[:, :2])["correlation"] > 0
        assert isotropy_table(np.column_stack([x[:, 0], x[:, 2]]))["correlation"] == 0.0

    def test_equal_vectors(self) -> None:
        with pytest.raises(ValueError, match="must"):
            isotropy_table(np.ones((5, 3)))


class TestCorrelationChange:
    @pytest.mark.parametrize("kind", [np.float16, np.float32])
    @pytest.mark.parametrize("mean", [0.0, 3.0])
    def test_what_rescales_and_shifts_moves_no_more_than_rounding_may(self, kind: type, mean: float) -> None:
        x = cloud(mean=mean)
        scaled = x * np.array([0.01, 0.3, 1.0, 2.0, 7.0, 100.0]) - mean
        change = correlation_change(x.astype(kind), scaled.astype(kind))
        assert 0 < change["largest"] < 0.1
        assert 0 < change["of_rounding"] <= 1

    def test_what_mixes_dimensions_a_little_is_found(self) -> None:
        x = cloud()
        mixed = x.copy()
        mixed[:, 0] += 0.1 * mixed[:, 1]
        change = correlation_change(x.astype(np.float16), mixed.astype(np.float16))
        assert change["of_rounding"] > 1

    def test_the_sign_does_not_matter_and_dead_dimensions_are_left_out(self) -> None:
        x = cloud()
        assert correlation_change(x, x * [1, -1, 1, 1, -1, 1])["of_rounding"] <= 1
        x[:, 2] = 5.0
        other = x.copy()
        other[:, 2] = cloud()[:, 2]
        assert correlation_change(x, other) == {"largest": 0.0, "of_rounding": 0.0}
        assert correlation_change(x[:, 2:3], x[:, 2:3]) == {"largest": 0.0, "of_rounding": 0.0}


class TestMap:
    def test_groups_stand_together_and_the_matrix_comes_back(self) -> None:
        rng = np.random.default_rng(0)
        two = rng.normal(size=(200, 2))
        x = np.column_stack([two[:, place % 2] + 0.1 * rng.normal(size=200) for place in range(10)])
        kept = correlation_map(x)
        groups = [dimension % 2 for dimension in kept["dimensions"]]
        assert groups in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)
        wanted = np.abs(np.corrcoef(x[:, kept["dimensions"]], rowvar=False))
        assert np.abs(map_matrix(kept) - wanted).max() <= 0.005 + 1e-12

    def test_of_many_dimensions_a_part_is_kept(self) -> None:
        kept = correlation_map(cloud(n=100, d=90))
        assert len(set(kept["dimensions"])) == MAP_SIZE
        assert len(kept["hundredths"]) == MAP_SIZE * (MAP_SIZE - 1) // 2

    def test_nothing_to_show(self) -> None:
        assert correlation_map(np.ones((5, 3))) == {"dimensions": [], "hundredths": []}
        assert map_matrix({"dimensions": [], "hundredths": []}).shape == (0, 0)


class TestColdStart:
    def test_of_always_the_same_batch_the_released_correlation_is_too_large_by_a_known_factor(self) -> None:
        x = cloud(n=40, d=20)
        found = cold_start(x, batch_size=40, seed=0, n_steps=60)
        rho = np.abs(np.corrcoef(x, rowvar=False))
        pairs = np.triu_indices(20, k=1)
        for step in (1, 5, 20, 60):
            weight = 1 - 0.95**step
            assert found["saturated_released"][step - 1] == pytest.approx((rho[pairs] >= weight).mean(), rel=1e-3)
            clipped = np.minimum(rho / weight, 1) ** 2
            assert found["group_share_released"][step - 1] == pytest.approx(clipped.mean(), rel=1e-3)
            assert found["group_share"][step - 1] == pytest.approx((rho**2).mean(), rel=1e-3)
        assert found["saturated_released"][0] > found["saturated_released"][-1]
        assert set(found["saturated"]) == {0.0}
        assert found["factor_change"][-1] < found["factor_change"][0]

    def test_small_batches_and_fewer_vectors_than_a_batch(self) -> None:
        found = cold_start(cloud(n=10), batch_size=16, seed=0, n_steps=3)
        assert (found["batch_size"], found["momentum"], len(found["saturated"])) == (10, 0.05, 3)
        one, other = (cold_start(cloud(), batch_size=8, seed=seed, n_steps=9) for seed in (1, 2))
        assert one == cold_start(cloud(), batch_size=8, seed=1, n_steps=9)
        assert one != other


def test_a_cell_keeps_tables_of_what_was_captured(saved_model: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {
        "name": "e",
        "models": {"small": {"model": str(saved_model)}},
        "training": {
            "task": "wic", "max_steps": 2, "batch_size": 4, "evaluations": 1, "learning_rate": 1e-3, "max_length": 16,
            "train_examples": 24, "validation_examples": 16, "test_examples": 16,
        },
        "arms": {
            "isobn": {"methods": "isobn"},
            "isobn-released": {"methods": {"isobn": {"as_released": True}}, "capture": False},
        },
        "seeds": [3],
    }  # fmt: skip
    asked = parse_experiment({**words, "measure": {"isotropy": True}})
    found, released = run_experiment(asked, tmp_path)
    assert "isotropy" not in released["stages"][0]
    kept = found["stages"][0]["isotropy"]
    assert kept["steps"].keys() == kept["maps"].keys() == {"0", "2"}
    assert kept["steps"]["0"]["layers"]["0"] is None, "[CLS] is the same everywhere before the first block"
    assert kept["cold_start"]["batch_size"] == 4

    frame = isotropy_frame([found, released])
    tables = {(row.tuned, row.vector): row for row in frame.itertuples()}
    assert len(frame) == 4
    assert tables[False, GIVEN].std == tables[False, RETURNED].std, "the identity before the first batch"
    assert tables[True, GIVEN].std != tables[True, RETURNED].std
    (change,) = change_frame([found, released]).to_dict("records")
    assert 0 < change["of_rounding"] <= 1
    assert set(layer_frame([found])["layer"]) == {1, 2}
    assert std_quantiles(frame).shape == (4, len(STD_QUANTILES))
    assert cold_starts([found], "small")["saturated"].shape == (1, 100)
    assert cold_starts([found], "another") == {}
    assert set(correlation_maps([found], "small", "isobn")) == {False, True}
    assert correlation_maps([released], "small", "isobn-released") == {}


def test_who_does_not_ask_for_it_has_the_cells_of_before() -> None:
    words: dict[str, Any] = {
        "name": "e",
        "models": {"m": {"model": "x"}},
        "training": {"task": "wic"},
        "arms": {"a": {}},
    }
    plain, without, asked = (
        parse_experiment({**words, **more}).cells[0].key
        for more in ({}, {"measure": {"isotropy": False}}, {"measure": {"isotropy": True}})
    )
    assert plain == without != asked
