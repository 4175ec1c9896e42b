"""The result type: tidy, frozen, escaped, JSON that round-trips."""

import json

import numpy as np
import pytest

from dynprobe.result import COLUMN_TYPES, MetricInfo, Result, merge, tidy

INFO = {"js": MetricInfo("JS <b>", "nats", "how far attention moved", (0.0, None))}


def make(value=0.5, **more):
    return Result(title="a <script>", table=tidy([{"metric": "js", "layer": 1, "value": value}]), metrics=INFO, **more)


def test_table_has_every_column_and_a_status():
    frame = make().frame
    assert list(frame.columns) == list(COLUMN_TYPES)
    assert frame["status"].tolist() == ["measured"]


def test_changing_the_frame_leaves_the_result():
    result = make()
    copy = result.frame
    copy.loc[0, "value"] = 9.0
    assert result.frame["value"].tolist() == [0.5]


def test_arrays_are_read_only_copies():
    source = np.zeros(2)
    result = make(arrays={"x": source})
    source[0] = 1
    assert result.arrays["x"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        result.arrays["x"][0] = 1


def test_json_has_null_for_nan():
    document = json.loads(make(value=float("nan"), arrays={"x": np.array([np.inf, 1.0])}).to_json())
    row = dict(zip(document["columns"], document["rows"][0], strict=True))
    assert row["value"] is None
    assert document["arrays"]["x"] == [None, 1.0]
    assert document["format"] == 1


def test_html_is_escaped():
    html = make(findings=("<img>",))._repr_html_()
    assert "<script>" not in html
    assert "<img>" not in html
    assert "&lt;script&gt;" in html


def test_select_takes_only_columns():
    assert len(make().select(metric="js", layer=1)) == 1
    assert len(make().select(layer=2)) == 0
    with pytest.raises(ValueError, match="must name columns of the table; got 'colour'"):
        make().select(colour=1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"metric": "js", "colour": 1}, "columns must be among"),
        ({"metric": "js", "status": "fine"}, "`status` must be one of"),
        ({"metric": "js", "comparison": "sideways"}, "`comparison` must be one of"),
    ],
)
def test_wrong_rows_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        tidy([row])


def test_undescribed_metric_is_refused():
    with pytest.raises(ValueError, match="must describe each metric"):
        Result(title="t", table=tidy([{"metric": "cka"}]), metrics=INFO)


def test_merge_keeps_order_and_joins_notes_once():
    one, two = make(0.1, notes=("n",), findings=("f1",)), make(0.2, notes=("n",), findings=("f2",))
    merged = merge("both", [one, two])
    assert merged.frame["value"].tolist() == [0.1, 0.2]
    assert merged.notes == ("n",)
    assert merged.findings == ("f1", "f2")
    with pytest.raises(ValueError, match="at least one result"):
        merge("none", [])
