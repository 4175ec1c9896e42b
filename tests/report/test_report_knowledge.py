"""Pictures and tables of probes of other tasks, from a made-up result."""

from itertools import product

import pytest

from dynprobe.report import knowledge_tables, pictures, render_html, terminal_tables
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
    assert terminal_tables(result)[-3:] == (first, second, between)


def test_the_summary_has_one_line_per_task_with_start_end_and_verdict(result: Result) -> None:
    summary = terminal_tables(result)[0]
    assert summary.columns == ("measure", "a", "b", "a against b")
    ends = "0.700 → 0.600, degraded"
    assert summary.rows == (
        ("accuracy on other tasks, last layer, wic; random weights: 0.520", ends, ends, "0 [-0.0500, 0.0500]"),
        ("accuracy on other tasks, last layer, subj; random weights: 0.520", ends, ends, ""),
        ("accuracy on other tasks, last layer, odd", "", "undefined: one class", ""),
    )


def test_the_summary_of_what_cannot_be_told(result: Result) -> None:
    frame = result.frame
    said = "cannot tell; smallest detectable change 0.0283; not clearly above a random encoder at step 0"
    frame.loc[frame["metric"] == "knowledge_change", "reason"] = f"{said} (layer 1, first token)"
    told = Result("Knowledge", frame, INFO)
    cells = {row[1] for row in terminal_tables(told)[0].rows[:2]}
    assert cells == {"0.700 → 0.600, cannot tell; not clearly above a random encoder at step 0"}
    assert {row[-1] for row in knowledge_tables(told)[0].rows} == {said}
    only = Result("Changes", frame[frame["metric"] == "knowledge_change"], INFO)
    assert terminal_tables(only)[0].rows[0][1].startswith("-0.100 [-0.150, -0.0500], cannot tell")


def test_a_part_of_the_training_examples_alone_is_summed_up(result: Result) -> None:
    frame = result.frame
    part = Result("Part", frame[frame["group"].str.contains(",").fillna(value=False)], INFO)
    assert [row[0] for row in terminal_tables(part)[0].rows] == [
        "accuracy on other tasks, last layer, wic; random weights: 0.520"
    ]


def test_selectivity_has_a_table_of_its_own(result: Result) -> None:
    info = INFO | {"knowledge_selectivity": MetricInfo("selectivity", "accuracy", "Says something.", (-1.0, 1.0))}
    where = {
        "metric": "knowledge_selectivity",
        "comparison": "within",
        "run_a": "a",
        "group": "wic",
        "position": "last layer",
    }
    rows = [{**where, "step_a": step, **values(0.2)} for step in (0, 50)]
    table = knowledge_tables(Result("Selectivity", rows, info))[-1]  # type: ignore[arg-type]
    assert table.title == "a: selectivity, the accuracy above that on labels drawn by lot for words"
    assert table.columns == ("task", "probe", "step 0", "step 50")
    assert table.rows == (("wic", "last layer", "0.200 [0.150, 0.250]", "0.200 [0.150, 0.250]"),)


def test_the_page_has_the_verdicts(result: Result) -> None:
    frame = result.frame
    kept = frame[frame["group"].isin(["wic"]) & ~frame["metric"].eq("knowledge_by_layer")].copy()
    said = "cannot tell; smallest detectable change 0.0283"
    kept.loc[kept["metric"].eq("knowledge_change") & kept["run_a"].eq("b"), "reason"] = f"{said} (layer 1)"
    html = render_html(Result("Knowledge", kept, INFO))
    for label, words in (("a", "degraded"), ("b", said)):
        _, _, after = html.partition(f"{label}: accuracy of linear probes on other tasks")
        own = after.partition("</table>")[0]
        for cell in ("wic", "last layer", "best layer", "verdict", "-0.100 [-0.150, -0.0500]", words):
            assert f"<bdi>{cell}</bdi>" in own
    assert "chosen for each snapshot on held-out folds of the training examples" in html
    assert 'href="#knowledge"' in html


def test_one_snapshot_has_no_change(result: Result) -> None:
    start = result.frame[(result.frame["step_a"] == 0) & (result.frame["run_a"] == "a")]
    (table,) = knowledge_tables(Result("Start", start, INFO))
    assert table.columns == ("task", "probe", "step 0", "chance", "random")
    assert not any("by step" in picture.title for picture in pictures(Result("Start", start, INFO)))
    assert knowledge_tables(Result("Nothing", start[:0], INFO)) == ()
