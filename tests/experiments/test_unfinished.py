"""The table of an experiment that is not finished."""

from typing import Any

import pytest

from dynprobe.experiments.experiment import parse_experiment
from dynprobe.experiments.tables import arm_table, last_stages, score_frame
from dynprobe.experiments.unfinished import table_of_finished
from tests.experiments.test_tables import result

ASKED = parse_experiment(
    {
        "name": "e",
        "models": {"m": {"model": "x"}, "n": {"model": "y"}},
        "training": {"task": "wic"},
        "arms": {"standard": {}, "a": {}, "b": {}},
        "seeds": 3,
    }
)


def finished(**seeds: int) -> list[dict[str, Any]]:
    """Results by `model_arm`: those of so many seeds."""
    return [
        result(name.partition("_")[2], seed, 0.6 + 0.01 * seed, model=name.partition("_")[0])
        for name, n in seeds.items()
        for seed in range(n)
    ]


def test_what_is_whole_has_the_usual_table() -> None:
    results = finished(m_standard=3, m_a=3, m_b=3, n_standard=3, n_a=3, n_b=3)
    usual = arm_table(last_stages(score_frame(results)))
    assert table_of_finished(ASKED, results).equals(usual)


def test_arms_are_compared_where_their_partners_are_finished() -> None:
    table = table_of_finished(ASKED, finished(m_standard=2, m_a=3, m_b=2, n_b=2)).set_index(["model", "arm"])
    assert list(table.index) == [("m", "standard"), ("m", "a"), ("m", "b"), ("n", "b")]
    assert table["n"].tolist() == [2, 3, 2, 2]
    assert table["difference"].notna().tolist() == [False, False, True, False]
    assert table.loc[("m", "a"), "mean"] == pytest.approx(0.61)
