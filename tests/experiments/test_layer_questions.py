"""Distances of trainings layer by layer, and the questions about them, on results made by rule."""

import importlib.util
import math
from functools import partial
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dynprobe.errors import DynprobeError
from dynprobe.experiments.layer_distances import (
    ATTENTION,
    HIDDEN,
    at_the_end,
    distance_frame,
    floors_of,
    over_training,
    profile,
)
from dynprobe.experiments.layer_questions import (
    answer,
    arms_against_seeds,
    last_against_others,
    later_against_first,
    layer_trend,
    lower_than_attention,
    start_against_seeds,
)

STEPS = (0, 1, 10)
STUDY = Path(__file__).parent.parent.parent / "analyses" / "learning_dynamics" / "study.py"


def rows(sizes: dict[int, float], steps: list[tuple[int, int, float]]) -> dict[str, list[Any]]:
    """Values of each layer, so far apart as its size times what is given for each pair of steps."""
    found: list[tuple[Any, ...]] = []
    for step_a, step_b, share in steps:
        for layer, size in {0: 0.0, **sizes}.items():
            distance = size * share
            if layer:
                place = ("attention_js_divergence", "model", None, layer, step_a, step_b)
                found.append((*place, distance, 0.9 * distance, 1.1 * distance, None, 64, None, "measured"))
            for metric in ("svcca_similarity", "linear_cka_similarity"):
                value, kept = 1 - 2 * distance, 30 if metric.startswith("svcca") else None
                place = (metric, "model", None, layer, step_a, step_b)
                found.append((*place, value, value - 0.01, 1.0, 0.1, 3000, kept, "measured"))
    where = ["metric", "stack", "position", "layer", "step_a", "step_b"]
    names = [*where, "value", "low", "high", "chance", "n", "n_kept", "status"]
    return {name: list(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


def results(
    arms: tuple[str, ...] = ("one", "two"), *, n_seeds: int = 3, n_layers: int = 6, model: str = "m", apart: float = 0.5
) -> list[dict[str, Any]]:
    """Every layer moves by its number, a seed by a little more than the one before; two seeds are `apart` as far as that."""
    sizes = {layer: 0.01 * layer for layer in range(1, n_layers + 1)}
    lines: list[dict[str, Any]] = [cell(model, arm, seed) for arm in arms for seed in range(n_seeds)]
    common = {"model": model, "probe_task": "subj", "n_examples": 12}

    def line(kind: str, a: tuple[str, int], b: tuple[str, int], steps: list[tuple[int, int, float]]) -> None:
        places = {"arm_a": a[0], "seed_a": a[1], "arm_b": b[0], "seed_b": b[1]}
        floors = {"attention_js_divergence": {"1": 1e-7 * (1 + a[1])}, "svcca_similarity": {"0": 2e-7}}
        more = {"floors": floors} if kind == "start" else {}
        lines.append({"pair": kind, **common, **places, "rows": rows(sizes, steps), **more})

    def far(seed: int) -> float:
        return 1.0 + 0.1 * seed

    for a in [(arm, seed) for arm in arms for seed in range(n_seeds)]:
        line("start", a, a, [(1, 0, 0.1 * far(a[1])), (10, 0, far(a[1]))])
        line("end", a, a, [(10, 0, far(a[1])), (10, 1, 0.9 * far(a[1]))])
    for arm in arms:
        for one, other in combinations(range(n_seeds), 2):
            line("seeds", (arm, one), (arm, other), [(10, 10, apart * (far(one) + far(other)) / 2)])
    for one_arm, other_arm in combinations(arms, 2):
        for seed in range(n_seeds):
            line("arms", (one_arm, seed), (other_arm, seed), [(10, 10, 3 * apart * far(seed))])
    return lines


def cell(model: str, arm: str, seed: int) -> dict[str, Any]:
    stage = {
        "setup": {"task": arm, "train_examples": 40, "max_steps": 10, "batch_size": 4, "learning_rate": 1e-3},
        "scores": {"test_accuracy": 0.7, "eval_accuracy": 0.7, "kept_step": 10},
        "majority": 0.5,
        "n_test": 100,
        "seconds": 1.0,
    }
    return {"model": model, "arm": arm, "seed": seed, "stages": [stage], "versions": {"dynprobe": "0"}}


def test_distances_are_those_of_last_snapshots_in_blocks() -> None:
    frame = distance_frame(results())
    ends = at_the_end(frame)
    assert set(ends["pair"]) == {"start", "seeds", "arms"}
    assert set(ends["step_a"]) == {10}
    attention, hidden = (profile(ends, "start", measure) for measure in (ATTENTION, HIDDEN))
    assert list(attention.columns) == [1, 2, 3, 4, 5, 6]
    assert attention.loc["two"].tolist() == pytest.approx([0.011 * layer for layer in range(1, 7)])
    assert hidden.to_numpy() == pytest.approx(2 * attention.to_numpy())
    assert profile(ends, "arms", ATTENTION).loc["one and two", 1] == pytest.approx(0.0165)
    assert profile(ends, "start", HIDDEN, values="examples").to_numpy() == pytest.approx(0.01)
    assert profile(ends, "start", ATTENTION, values="examples").loc["one", 2] == pytest.approx(0.1 * 0.022)


def test_what_was_not_measured_is_left_out() -> None:
    lines = results(n_seeds=1)
    (first,) = [line for line in lines if line.get("pair") == "start" and line["arm_a"] == "one"]
    first["rows"]["value"] = [None] * len(first["rows"]["value"])
    assert profile(at_the_end(distance_frame(lines)), "start", HIDDEN).index.tolist() == ["two"]
    assert distance_frame([cell("m", "one", 0)]).empty


def test_over_the_training_the_reference_is_at_zero() -> None:
    frame = distance_frame(results())
    steps, values = over_training(frame, "start", ATTENTION)[2]
    assert (tuple(steps), values.shape) == (STEPS, (6, 3))
    assert values[0] == pytest.approx([0, 0.002, 0.02])
    steps, values = over_training(frame, "end", HIDDEN)[1]
    assert tuple(steps) == STEPS
    assert values[0] == pytest.approx([0.02, 0.018, 0])


def test_floors_are_the_largest_of_a_model() -> None:
    floors = floors_of([*results(), *results(model="other", n_seeds=4)], "m")
    assert floors == {ATTENTION: {1: pytest.approx(3e-7)}, HIDDEN: {0: 2e-7}}


def test_ratios_of_layers_are_as_they_were_made() -> None:
    ends = at_the_end(distance_frame(results()))
    assert np.exp(last_against_others(ends, ATTENTION)).tolist() == pytest.approx([5.5 / 2.5] * 2)
    assert np.exp(later_against_first(ends, HIDDEN)).tolist() == pytest.approx([4.5 / 1.5] * 2)
    assert lower_than_attention(ends).tolist() == pytest.approx([0, 0])
    assert np.exp(start_against_seeds(ends, HIDDEN)).tolist() == pytest.approx([2, 2])
    assert np.exp(arms_against_seeds(ends, ATTENTION)).to_dict() == {"one and two": pytest.approx(3)}
    alone = at_the_end(distance_frame(results(("one",), n_layers=1)))
    assert last_against_others(alone, ATTENTION).empty
    assert arms_against_seeds(alone, ATTENTION).empty


def test_an_answer_leaves_one_seed_out_at_a_time() -> None:
    ends = at_the_end(distance_frame(results()))

    def mean_of_one(frame: Any) -> Any:
        return profile(frame, "start", ATTENTION)[1]

    found = answer(mean_of_one, ends)  # of a mean, the jackknife is Student's interval: 0.01, 0.011 and 0.012
    assert found.value == pytest.approx(0.011)
    assert found.high - found.value == pytest.approx(4.302653 * 0.001 / math.sqrt(3), rel=1e-5)
    assert found.by_arm == {"one": pytest.approx(0.011), "two": pytest.approx(0.011)}


def test_pairs_of_seeds_need_three_seeds_for_an_interval() -> None:
    question = partial(start_against_seeds, measure=ATTENTION)
    two, one = (answer(question, at_the_end(distance_frame(results(n_seeds=n)))) for n in (2, 1))
    assert math.exp(two.value) == pytest.approx(2)
    assert (math.isnan(two.low), math.isnan(two.p)) == (True, True)
    assert (math.isnan(one.value), one.by_arm) == (True, {})


def test_a_trend_is_judged_by_permuting_layers_within_data_sets() -> None:
    growing = layer_trend(at_the_end(distance_frame(results())), ATTENTION)
    assert (growing.value, growing.lowest, growing.highest) == pytest.approx((1, 1, 1))
    assert growing.p < 0.001  # 2 / 720² in truth
    assert growing.p < 0.05
    two_layers = layer_trend(at_the_end(distance_frame(results(n_layers=2))), ATTENTION)
    assert two_layers.p == pytest.approx(0.5, abs=0.02)  # both data sets grow, or both fall
    lines = results()
    for line in lines:
        if "pair" in line:
            line["rows"]["layer"] = [7 - layer if layer else 0 for layer in line["rows"]["layer"]]
    falling = layer_trend(at_the_end(distance_frame(lines)), HIDDEN)
    assert falling.value == pytest.approx(-1)
    assert falling.p < 0.05
    assert math.isnan(layer_trend(at_the_end(distance_frame(results(n_layers=1))), ATTENTION).value)


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learning_dynamics", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_results_say(study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(study, "save_panels", lambda path, panels: drawn.append(len(panels)))
    lines = [*results(("one", "two", "three")), *results(("one",), n_seeds=2, n_layers=2, model="small")]
    said = study.render(lines, tmp_path)
    assert drawn == [4, 8]
    assert said["probe"] == "12 examples of `subj`"
    assert (
        "* **m**: The change of attention grows from layer to layer: Spearman's ρ of layer and distance 1.00"
        in said["holds"]
    )
    assert "**small**: Seeds differ less than fine-tuned from pretrained, in attention: " in said["open"]
    assert "2.00×; as claimed in 1 of 1 data sets, too few seeds for a test." in said["open"]
    assert "**small**: Data sets differ more than seeds, in attention: not measured." in said["open"]
    assert said["n_claims"] == "9 or 7"
    assert "| attention, from the start | 0 | 10 | 100 | 9 of 9 |" in said["course"]
    assert "| 2 | 0.022 | 0.011 | 0.033 | 0.0022 | – |" in said["layers"]
    with pytest.raises(DynprobeError, match="must hold comparisons of trainings"):
        study.render([cell("m", "one", 0)], tmp_path)
