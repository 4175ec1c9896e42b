"""Tables over seeds and arms, and pages made of results."""

from typing import Any

import pytest
from scipy.stats import ttest_ind

from dynprobe.errors import DynprobeError
from dynprobe.experiments.readings import weights_moved
from dynprobe.experiments.rendering import fill
from dynprobe.experiments.tables import (
    OTHER_TASK,
    arm_table,
    interval,
    last_stages,
    markdown,
    points,
    score_frame,
    versions_of,
)


def result(
    arm: str, seed: int, *scores: float, task: str = "wic", model: str = "m", n_test: int = 100
) -> dict[str, Any]:
    stages = [
        {
            "setup": {"task": task},
            "scores": {"test_accuracy": score, "eval_accuracy": score},
            "majority": 0.5,
            "n_test": n_test,
            "seconds": 1.0,
        }
        for score in scores
    ]
    return {"model": model, "arm": arm, "seed": seed, "stages": stages}


def test_differences_are_paired_by_seed() -> None:
    results = [result("standard", seed, 0.0, 0.6 + 0.1 * seed) for seed in range(3)]
    results += [result("other", seed, 0.0, 0.7 + 0.1 * seed) for seed in (2, 0, 1)]
    table = arm_table(last_stages(score_frame(results)), margin=0.05).set_index("arm")
    assert table.loc["other", "difference"] == pytest.approx(0.1)
    assert table.loc["other", "verdict"] == "better"
    assert table.loc["standard", "mean"] == pytest.approx(0.7)
    assert table.loc["standard", "failed"] == 0.0
    turned = arm_table(last_stages(score_frame(results)), reference="other").set_index("arm")
    assert turned.loc["standard", "verdict"] == "inferior"


def test_after_an_earlier_training_nothing_is_paired() -> None:
    scores = {"standard": (0.50, 0.60, 0.70, 0.80), "chain": (0.55, 0.66, 0.74, 0.85)}
    results = [result("standard", seed, score) for seed, score in enumerate(scores["standard"])]
    results += [result("chain", seed, 0.0, score) for seed, score in enumerate(scores["chain"])]
    row = arm_table(last_stages(score_frame(results))).set_index("arm").loc["chain"]
    assert not row["paired"]
    assert row["p"] == pytest.approx(ttest_ind(scores["chain"], scores["standard"], equal_var=False).pvalue, rel=1e-9)


def test_a_mean_squared_error_has_no_step() -> None:
    measured = result("a", 0, 0.5)
    measured["stages"][0]["scores"] = {"test_mean_squared_error": 0.5, "eval_mean_squared_error": 0.5}
    assert score_frame([measured, result("b", 0, 0.5)])["resolution"].tolist() == [0.0, 0.01]


def test_p_values_are_corrected_within_a_model() -> None:
    gaps = {"a": (0.05, 0.06, 0.04, 0.05), "b": (0.01, -0.01, 0.02, 0.0)}
    results = [result("standard", seed, 0.5 + 0.02 * seed) for seed in range(4)]
    results += [result(arm, seed, 0.5 + 0.02 * seed + gap) for arm, own in gaps.items() for seed, gap in enumerate(own)]
    both = arm_table(score_frame(results)).set_index("arm")
    alone = arm_table(score_frame([r for r in results if r["arm"] != "b"])).set_index("arm")
    assert both.loc["a", "p"] == pytest.approx(2 * alone.loc["a", "p"])


def test_other_examples_are_not_compared() -> None:
    results = [result("standard", seed, 0.6) for seed in range(2)] + [
        result("x", seed, 0.9, task="hyp") for seed in range(2)
    ]
    assert arm_table(score_frame(results))["verdict"].tolist()[1] == OTHER_TASK
    results[2:] = [result("x", seed, 0.9, n_test=50) for seed in range(2)]
    assert arm_table(score_frame(results))["verdict"].tolist()[1] == OTHER_TASK


def test_seeds_without_a_partner_are_refused() -> None:
    frame = score_frame([result("standard", 0, 0.6), result("x", 0, 0.6), result("x", 1, 0.6)])
    with pytest.raises(DynprobeError, match=r"arm x: must have been trained with seeds .* got \[1\] besides"):
        arm_table(frame)
    with pytest.raises(DynprobeError, match="must have the arm 'y' to compare with; got standard, x"):
        arm_table(frame, reference="y")


def test_one_seed_gives_a_mean_and_no_verdict() -> None:
    table = arm_table(score_frame([result("standard", 0, 0.6), result("x", 0, 0.7)]))
    assert "verdict" not in table.columns
    assert table["mean"].tolist() == [0.6, 0.7]


def test_other_versions_are_named() -> None:
    made = [{"versions": {"torch": version, "numpy": "2"}} for version in ("2.6", "2.6", "2.13")]
    assert versions_of(made[:2]) == "torch 2.6, numpy 2"
    assert versions_of(made) == "torch 2.6, numpy 2; or with torch 2.13, numpy 2"


def test_numbers_in_words() -> None:
    assert points(float("nan")) == "–"
    assert interval(float("nan"), 0.0, 0.0) == "–"
    assert interval(-0.012, -0.02, 0.0) == "-1.2 [-2.0, +0.0]"
    assert markdown(["a", "b"], [["x|y", "1"]]).splitlines()[-1] == r"| x\|y | 1 |"


def test_a_page_has_a_value_for_each_place_and_a_place_for_each_value() -> None:
    assert fill("{{ a }} and {{b}}", {"a": "{{ b }}", "b": "2"}) == "{{ b }} and 2"
    with pytest.raises(DynprobeError, match=r"without value \['a'\], unused \['c'\]"):
        fill("{{ a }}", {"c": "1"})


def test_weights_of_blocks_in_order() -> None:
    changes = {f"bert.encoder.layer.{n}.w": (1.0, 2.0) for n in (10, 1, 0)}
    found = weights_moved({**changes, "classifier.w": (3.0, 3.0), "wte.embedding": (0.0, 1.0), "zero": (0.0, 0.0)})
    assert list(found) == ["block_1", "block_2", "block_11", "other", "embeddings"]
    assert found["other"] == 1.0
    assert weights_moved({"t.h.3.a": (3.0, 9.0), "t.h.3.b": (4.0, 0.0)}, relative=False) == {"block_4": 5.0}
