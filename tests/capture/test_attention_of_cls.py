"""Attention of [CLS] alone is compared row by row, beside what all rows say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from dynprobe.analysis import attention_js, compare, pairs_from_start
from dynprobe.capture.settings import CaptureSettings
from dynprobe.run import open_run

Make = Callable[..., Path]


def test_divergence_of_the_row_of_cls(make_run: Make) -> None:
    asked = {"attention": "all", "attention_dtype": "float32"}
    whole = open_run(make_run("whole", settings=CaptureSettings(**asked)))
    rows = open_run(make_run("rows", settings=CaptureSettings(**asked, attention_rows="cls")))
    found = attention_js(pairs_from_start(rows)).frame
    assert set(found["position"]) == {"cls"}
    of_layer = found[(found["layer"] == 2) & found["head"].isna() & (found["step_a"] == 6)]
    pairs = zip(whole[0].attentions(2), whole[6].attentions(2), strict=True)
    expected = [
        np.mean([jensenshannon(p.astype(float), q.astype(float)) ** 2 for p, q in zip(a[:, 0], b[:, 0], strict=True)])
        for a, b in pairs
    ]
    assert of_layer["value"].item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert of_layer["n"].item() == 40


def test_one_run_with_all_rows_and_one_with_cls(make_run: Make) -> None:
    whole = open_run(make_run("all"))
    rows = open_run(make_run("cls", settings=CaptureSettings(attention_rows="cls")))
    result = compare(whole, rows).frame
    between = result[(result["metric"] == "attention_js_divergence") & (result["run_a"] != result["run_b"])]
    assert (between["status"] == "not-captured").all()
    assert between["reason"].str.contains("but that of").all()
