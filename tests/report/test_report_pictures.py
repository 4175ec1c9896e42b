"""Which figures a result gives, as data."""

import numpy as np
import pytest

from dynprobe.report import pictures
from dynprobe.report.picture import HEATMAP_COLUMNS, LINE_COLUMNS
from dynprobe.report.sections import SECTIONS


def one(drawn, group, title):
    (picture,) = [p for p in drawn if p.group == group and p.title == title]
    return picture


def test_every_section_has_pictures_in_order(drawn):
    order = [section.key for section in SECTIONS]
    places = [order.index(picture.section) for picture in drawn]
    assert places == sorted(places)
    elsewhere = {order.index("knowledge")}  # of runs with probe tasks, in test_report_knowledge.py
    assert set(places) == set(range(len(order))) - elsewhere


def test_keys_are_unique_and_plain(drawn):
    keys = [picture.key for picture in drawn]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("-", "").isalnum() for key in keys)


def test_columns_are_the_promised_ones(drawn):
    for picture in drawn:
        wanted = LINE_COLUMNS if picture.kind == "lines" else HEATMAP_COLUMNS
        assert tuple(picture.data.columns) == wanted


def test_a_heat_map_holds_the_values_of_the_table(drawn, two_runs):
    picture = one(drawn, "linear_cka_similarity", "Linear CKA similarity, seed 1, against the start")
    rows = two_runs.select(metric="linear_cka_similarity", comparison="from_start", run_a="seed 1")
    wanted = {(row.step_a, row.layer): row.value for row in rows.itertuples()}
    assert {(row.x, row.y): row.value for row in picture.data.itertuples()} == wanted
    assert picture.darker_is_lower


def test_maps_of_one_comparison_share_a_colour_scale(drawn):
    maps = [p for p in drawn if p.group == "attention_js_divergence" and p.title.endswith("against the start")]
    assert len(maps) == 2
    assert maps[0].limits == maps[1].limits
    assert maps[0].limits == (0.0, max(p.data["value"].max() for p in maps))


def test_the_later_step_counts_whichever_way_round_it_is_written(build):
    def turned(row):
        if row["comparison"] == "from_start":
            row["step_a"], row["step_b"] = row["step_b"], row["step_a"]
        return row

    straight, other = (
        pictures(build.result(layers=2, heads=1, steps=(0, 5), change=change)) for change in (None, turned)
    )
    assert [p.key for p in straight] == [p.key for p in other]
    for left, right in zip(straight, other, strict=True):
        assert left.data.equals(right.data)


def test_lines_over_layers_are_of_the_last_step_with_interval_and_chance(drawn):
    picture = one(drawn, "linear_cka_similarity", "Linear CKA similarity, against the start, by layer")
    assert list(picture.inks) == ["seed 1, step 800", "seed 2, step 800"]
    assert len(picture.data) == 12
    assert picture.data["chance"].eq(0.11).all()
    assert (picture.data["low"] < picture.data["value"]).all()


def test_isotropy_stands_beside_what_isotropic_data_of_the_same_size_give(drawn):
    picture = one(drawn, "isoscore", "IsoScore, by layer")
    assert picture.reference_kind == "isotropic"
    assert picture.data["reference"].eq(0.56).all()
    assert picture.alt.endswith("Isotropic data of the same size: 0.560.")
    other = one(drawn, "linear_cka_similarity", "Linear CKA similarity, against the start, by layer")
    assert other.reference_kind == "reference"
    assert other.data["reference"].isna().all()
    assert "same size" not in other.alt


def test_values_of_one_snapshot_show_first_and_last_step(drawn):
    picture = one(drawn, "isoscore", "IsoScore, by layer")
    assert list(picture.inks) == [f"seed {run}, step {step}" for run in (1, 2) for step in (800, 0)]
    assert [ink.dash for ink in picture.inks.values()] == [0, 1, 0, 1]


def test_a_run_has_one_colour_everywhere(drawn):
    for picture in drawn:
        for series, ink in picture.inks.items():
            wanted = 2 if "against" in series else int(series.split()[1].rstrip(",")) - 1
            assert ink.colour == wanted


def test_positions_are_not_mixed(drawn):
    titles = [p.title for p in drawn if p.group == "cls_std_mean"]
    words = ("first token", "mean over tokens", "last token")
    assert titles == [f"Spread of pooled vectors, {position}, by layer" for position in words]


def test_heads_at_the_last_step(drawn):
    picture = one(drawn, "attention_js_divergence", "Attention JS divergence, seed 2, against the start, step 800")
    assert picture.section == "heads"
    assert (picture.data["x"].nunique(), picture.data["y"].nunique()) == (12, 6)


def test_a_metric_nobody_knows_is_drawn(drawn):
    picture = one(drawn, "my_own_metric", "My own metric, by step")
    assert picture.section == "other"
    assert picture.value_label == "my own metric (furlongs)"


def test_no_number_survives_without_the_status_measured(drawn):
    picture = one(drawn, "svcca_similarity", "SVCCA similarity, against the start, by layer")
    hidden = picture.data[picture.data["x"] == 2]
    assert set(hidden["status"]) == {"insufficient-sample"}
    assert hidden[["value", "low", "high"]].isna().all(axis=None)
    assert not any((p.data["value"] == 12345.0).any() for p in drawn)
    assert "1 layer not measured (insufficient-sample)" in picture.alt


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_undefined(build, wrong):
    result = build.result(layers=1, heads=1, steps=(0, 5), change=lambda row: row | {"value": wrong})
    for picture in pictures(result):
        if picture.group in build.metrics:
            assert set(picture.data["status"]) == {"undefined"}
            assert picture.data["value"].isna().all()


def test_layer_maps_find_their_snapshots_even_in_awkward_names(build):
    names = ("a@1|b@2", "c:d|e")
    result = build.result(runs=names, table=[], steps=(0, 7))
    titles = [p.title for p in pictures(result) if p.section == "layer-map"]
    assert titles == [f"{name}, step 0 against {name}, step 7" for name in names]


def test_other_matrices_are_drawn_and_other_arrays_are_not(build):
    arrays = {
        "confusion": np.eye(3),
        "histogram": np.arange(4.0),
        "large": np.zeros((500, 2)),
        "words": np.array([["a"]]),
    }
    drawn = [p for p in pictures(build.result(table=[], arrays=arrays)) if p.group == "arrays"]
    assert [p.title for p in drawn] == ["confusion"]
    assert drawn[0].data["value"].tolist() == np.eye(3).ravel().tolist()


def test_alt_text_names_extremes_with_their_place(drawn):
    picture = one(drawn, "linear_cka_similarity", "Linear CKA similarity, seed 1, against the start")
    assert picture.alt == (
        "Heat map of linear CKA similarity, 6 layers by 5 steps. "
        "Highest 0.997 at layer 0, step 50; lowest 0.450 at layer 5, step 800."
    )


def test_losses_and_scores_come_from_the_log(drawn):
    titles = [p.title for p in drawn if p.group == "trainer log"]
    assert titles == ["Loss during training", "Evaluation accuracy during training"]
    assert list(drawn[0].inks) == ["seed 1, training", "seed 1, evaluation", "seed 2, training", "seed 2, evaluation"]


ODD_LOGS = (
    None,
    "text",
    [1, None],
    [{"step": "x", "loss": 1}],
    [{"step": 1, "loss": "NaN"}],
    [{"loss": 1.0}],
    [{"step": 1, "loss": float("nan")}],
)


@pytest.mark.parametrize("log", ODD_LOGS, ids=repr)
def test_a_log_of_another_form_is_passed_over(build, log):
    result = build.result(table=[], arrays={}, provenance={"scalars": {"seed 1": log}})
    assert pictures(result) == ()


def test_nothing_measured_gives_no_picture(build):
    assert pictures(build.result(table=[], arrays={}, provenance={})) == ()
