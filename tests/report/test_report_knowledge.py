"""Pictures and tables of probes of other tasks, from a made-up result."""

from itertools import product

import pytest

from dynprobe.report import knowledge_tables, pictures, terminal_tables
from dynprobe.report.sections import section_of
from dynprobe.result import MetricInfo, Result

NAMES = ("by_layer", "accuracy", "change", "difference")
INFO = {
    f"knowledge_{name}": MetricInfo(name.replace("_", " "), "accuracy", "Says something.", (-1.0, 1.0))
    for name in NAMES
}
RUNS, STEPS, TASKS = ("a", "b"), (0, 10, 50), ("wic", "subj", "wic, 10 % of the training examples")


def values(value: float, **more: object) -> dict[str, object]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 100, "stack": "model", **more}


@pytest.fixture(scope="module")
def result() -> Result:
    rows = []
    for run, step, task in product(RUNS, STEPS, TASKS):
        here = {"comparison": "within", "run_a": run, "step_a": step, "group": task, "chance": 0.5}
        for kind, layer in product(("first", "mean"), (0, 1)):
            place = {"position": kind, "layer": layer, "reference": 0.55}
            rows.append({"metric": "knowledge_by_layer", **here, **place, **values(0.6 + 0.1 * layer)})
        for position, reference in (("last layer", 0.52), ("best layer", 0.58)):
            where = {"position": position, "reference": reference, "reason": "layer 1, first token"}
            rows.append({"metric": "knowledge_accuracy", **here, **where, **values(0.7 - step / 500)})
            if step:
                change = {"comparison": "from_start", "run_a": run, "step_a": step, "run_b": run, "step_b": 0}
                said = {"position": position, "group": task, "reason": "degraded (layer 1, first token)"}
                rows.append({"metric": "knowledge_change", **change, **said, **values(-step / 500)})
    between = {"comparison": "between", "run_a": "a", "step_a": 50, "run_b": "b", "step_b": 50, "group": "wic"}
    rows.append(
        {"metric": "knowledge_difference", **between, "position": "last layer", "reason": "layer 1", **values(0.0)}
    )
    refused = {
        "comparison": "within",
        "run_a": "b",
        "step_a": 0,
        "group": "odd",
        "status": "undefined",
        "reason": "one class",
    }
    rows.append({"metric": "knowledge_accuracy", **refused})
    return Result("Knowledge", rows, INFO)  # type: ignore[arg-type]


def test_one_chart_by_layer_and_one_by_step_for_each_task(result: Result) -> None:
    drawn = pictures(result)
    assert {picture.section for picture in drawn} == {"knowledge"} == {section_of(name) for name in INFO}
    shown = [picture for picture in drawn if not picture.secondary]
    assert [picture.title for picture in shown] == [
        "Accuracy, wic, by step",
        "Accuracy, subj, by step",
        "By layer, first token, wic, by layer",
        "By layer, first token, subj, by layer",
    ]
    folded = [picture.title for picture in drawn if picture.secondary]
    assert "Accuracy, wic, 10 % of the training examples, by step" in folded
    assert "By layer, mean over tokens, wic, by layer" in folded
    by_step, by_layer = shown[0], shown[2]
    assert list(by_step.inks) == ["a, last layer", "a, best layer", "b, last layer", "b, best layer"]
    assert (
        by_step.inks["a, last layer"].colour
        == by_step.inks["a, best layer"].colour
        == by_layer.inks["a, step 50"].colour
    )
    assert set(by_step.data["reference"]) == {0.58}  # the higher of the two
    assert by_step.data["x"].unique().tolist() == [0, 10, 50]
    assert list(by_layer.inks) == ["a, step 50", "a, step 0", "b, step 50", "b, step 0"]
    assert "Random weights: 0.550." in by_layer.alt


def test_terminal_tables(result: Result) -> None:
    first, second, between = knowledge_tables(result)
    assert first.title == "a: accuracy of linear probes on other tasks"
    assert first.columns == ("task", "probe", "step 0", "step 50", "chance", "random", "change", "verdict")
    ends = ("0.700", "0.600")
    assert first.rows[0] == (
        "wic", "last layer", *ends, "0.500", "0.520", "-0.100 [-0.150, -0.0500]", "degraded",
    )  # fmt: skip
    assert second.rows[-1] == ("odd", "", "undefined: one class", "", "", "", "", "")
    assert between.rows == (("wic", "last layer", "0 [-0.0500, 0.0500]", "layer 1"),)
    summary = next(table for table in terminal_tables(result) if table.title == "Summary")
    measures = [row[0] for row in summary.rows]
    assert "accuracy, last layer, wic; random weights: 0.520" in measures
    assert not any(measure.startswith("by layer") for measure in measures)


def test_one_snapshot_has_no_change(result: Result) -> None:
    start = result.frame[(result.frame["step_a"] == 0) & (result.frame["run_a"] == "a")]
    (table,) = knowledge_tables(Result("Start", start, INFO))
    assert table.columns == ("task", "probe", "step 0", "chance", "random")
    assert not any("by step" in picture.title for picture in pictures(Result("Start", start, INFO)))
    assert knowledge_tables(Result("Nothing", start[:0], INFO)) == ()
