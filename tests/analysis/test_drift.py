"""Drift of a run that is still going on: the numbers that `compare` gives later, and none that it would not give."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dynprobe.analysis import attention_js, compare, hidden_state_similarity, isotropy, moments, pairs_from_start
from dynprobe.analysis.drift import Drift
from dynprobe.errors import RunFormatError, StepNotFoundError
from dynprobe.run import Run

Make = Callable[..., Run]
METRICS = ("attention_js_divergence", "svcca_similarity", "isoscore", "cls_std_mean")


def analysed(run: Run) -> pd.DataFrame:
    """What the analyses that `compare` calls say of a run against its own start."""
    pairs = pairs_from_start(run)
    attention, similarity = attention_js(pairs), hidden_state_similarity(pairs, metrics=METRICS[1:2])
    return pd.concat([part.table for part in (attention, similarity, isotropy(moments(run), metrics=METRICS[2:]))])


def compared(run: Run, step: int, table: pd.DataFrame | None = None) -> dict[str, float]:
    """The measured values of a table by the names that drift uses."""
    table = analysed(run) if table is None else table
    rows = table[(table["run_a"] == run.name) & (table["step_a"] == step) & (table["status"] == "measured")]
    rows = rows[rows["comparison"].isin(["from_start", "within"]) & rows["head"].isna()]
    found = {}
    for row in rows.itertuples():
        stand_in = None if row.metric in METRICS[:2] else run[step].pooled_kinds(row.stack)[0]
        if stand_in is None or row.position == stand_in:
            stack = "" if row.stack == "model" else f"{row.stack}_"
            kind = f"{row.position}_" if row.metric == METRICS[0] and isinstance(row.position, str) else ""
            name = f"dynprobe/{row.metric}/{stack}{kind}layer_{row.layer}"
            assert name not in found
            found[name] = float(row.value)
    return found


def layers_of(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if not name.endswith("mean")}


@pytest.mark.parametrize(
    ("recipe", "n_numbers"),
    [
        # attention of 2 blocks, SVCCA of 3 layers, IsoScore of 2 ([CLS] does not vary in the embeddings), deviations of 3
        ({}, 2 + 3 + 2 + 3),
        ({"causal": True, "pooled": ("last", "mean")}, 2 + 3 + 3 + 3),
        ({"stacks": ("encoder", "decoder")}, 2 * 10 + 2),
        ({"attention": False}, 3 + 2 + 3),
        ({"hidden": False}, 2 + 2 + 3),
        ({"pooled": ()}, 2 + 3),
        ({"n_virtual": 3}, 10),
        pytest.param({"d_model": 160, "n_examples": 400, "lengths": (5, 9)}, 10, marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_that_compare_gives(recipe: dict[str, Any], n_numbers: int, make_run: Make) -> None:
    run = make_run(**recipe, steps=(0, 6))
    drift = Drift(run.path)
    expected = compared(run, 6)
    for _ in range(2):
        numbers = layers_of(drift(6))
        assert numbers == expected, "to the last bit"
        assert len(numbers) == n_numbers
        assert all(type(value) is float and math.isfinite(value) for value in numbers.values())


def test_compare_itself_says_the_same(make_run: Make) -> None:
    run = make_run(n_layers=1)
    table = compare(run, run, metrics=METRICS).table
    assert layers_of(Drift(run.path)(6)) == compared(run, 6, table)


def test_of_the_start_there_is_isotropy_alone(make_run: Make) -> None:
    run = make_run()
    numbers = layers_of(Drift(run.path)(0))
    assert numbers == compared(run, 0)
    assert {name.split("/")[1] for name in numbers} == {"isoscore", "cls_std_mean"}


def test_the_start_is_the_first_snapshot_there_is(make_run: Make) -> None:
    run = make_run(steps=(4, 6))
    assert layers_of(Drift(run.path)(6)) == compared(run, 6)
    assert "dynprobe/svcca_similarity/layer_1" not in Drift(run.path)(4)


def test_snapshots_that_come_while_the_run_goes_on(make_run: Make) -> None:
    whole = make_run("whole")
    growing = make_run("growing", steps=(0, 2))
    drift = Drift(growing.path)
    before = drift(2)
    last = whole.path / "snapshots" / "step-00000006.h5"
    (growing.path / "snapshots" / last.name).write_bytes(last.read_bytes())
    assert drift(6) == Drift(whole.path)(6)
    assert drift(2) == before


def test_means_are_over_the_blocks(make_run: Make) -> None:
    numbers = Drift(make_run(stacks=("encoder", "decoder")).path)(6)
    assert sum(name.endswith("mean") for name in numbers) == 2 * 4 + 1
    for metric, place in (("svcca_similarity", "encoder_"), ("attention_js_divergence", "decoder_cross_")):
        own = [numbers[f"dynprobe/{metric}/{place}layer_{layer}"] for layer in (1, 2)]
        assert numbers[f"dynprobe/{metric}/{place}mean"] == np.mean(own)


def test_what_float16_cannot_show_is_left_out_and_so_is_its_mean(make_run: Make) -> None:
    drift = Drift(make_run(drift=1e-5).path)
    numbers = drift(2)
    assert not [name for name in numbers if "attention" in name]
    assert "below-resolution: below" in drift.left_out["dynprobe/attention_js_divergence/layer_1"]
    assert numbers["dynprobe/svcca_similarity/layer_1"] > 0.99, "similarity has no such floor"
    finer = Drift(make_run("finer", drift=1e-5, dtype=np.float32).path)(2)
    assert 0 < finer["dynprobe/attention_js_divergence/mean"] < 1e-8


def test_what_the_sample_is_too_small_for_is_left_out(make_run: Make) -> None:
    run = make_run(n_examples=20, d_model=12, lengths=(3, 7))
    drift = Drift(run.path)
    numbers = drift(6)
    assert layers_of(numbers) == compared(run, 6)
    assert {name.split("/")[1] for name in numbers} == {"attention_js_divergence"}
    assert "20 examples; at least 30 are needed" in drift.left_out["dynprobe/isoscore/layer_1"]
    reason = drift.left_out["dynprobe/svcca_similarity/layer_1"]
    assert re.match(r"insufficient-sample: \d+ tokens for 1\d directions; at least 1\d0 tokens are needed", reason)


def test_layers_that_do_not_vary_are_left_out(make_run: Make) -> None:
    drift = Drift(make_run().path)
    assert "dynprobe/isoscore/layer_0" not in drift(6)
    assert drift.left_out["dynprobe/isoscore/layer_0"].startswith("undefined: ")
    assert "dynprobe/isoscore/mean" in drift(6), "the embeddings are no block"


def test_a_step_without_snapshot_and_a_folder_without_run_are_refused(make_run: Make, tmp_path: Path) -> None:
    with pytest.raises(StepNotFoundError, match="`step` must be one of"):
        Drift(make_run().path)(3)
    with pytest.raises(RunFormatError, match="must be a run directory"):
        Drift(tmp_path / "nowhere")(0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux for the open files")
def test_files_are_closed_again(make_run: Make) -> None:
    """The run directory may be replaced, and the number of open files does not grow with the training."""
    run, folder = make_run(n_layers=1), Path("/proc/self/fd")
    Drift(run.path)(6)
    targets = [str(entry.readlink()) for entry in folder.iterdir() if entry.is_symlink()]
    assert not [target for target in targets if target.startswith(str(run.path))]
