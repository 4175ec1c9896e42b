"""Reports into files, tables for a terminal, and texts made safe."""

import json
import os
from pathlib import Path

import pytest

from dynprobe.errors import UsageError
from dynprobe.report import render_html, terminal_tables, write_json, write_report
from dynprobe.report.phrases import picture_key
from dynprobe.report.wording import clean_text, format_number, run_labels, short_label


@pytest.fixture
def small(build):
    return build.result(table=build.few_rows[:1], arrays={}, provenance={})


def test_the_report_is_the_page(small, tmp_path):
    path = write_report(small, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_html(small)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_json_is_the_whole_result(two_runs, tmp_path):
    path = write_json(two_runs, str(tmp_path / "result.json"))
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(two_runs.to_json())


def test_json_survives_a_lone_surrogate(build, tmp_path):
    path = write_json(build.result(title="a\ud800b"), tmp_path / "result.json")
    assert json.loads(path.read_text(encoding="utf-8"))["title"] == "a\ud800b"


@pytest.mark.parametrize("write", [write_report, write_json])
def test_an_existing_file_is_kept(small, tmp_path, write):
    path = tmp_path / "mine"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="mine exists: pass --force or choose another name"):
        write(small, path)
    assert path.read_text(encoding="utf-8") == "precious"
    write(small, path, force=True)
    assert path.read_text(encoding="utf-8") != "precious"


def test_a_missing_folder_is_named(small, tmp_path):
    with pytest.raises(
        UsageError, match=r"`path` must be in a folder that exists; got .*report\.html.*Make the folder"
    ):
        write_report(small, tmp_path / "none" / "report.html")


def test_a_folder_is_no_file(small, tmp_path):
    with pytest.raises(UsageError, match="`path` must name a file; got the folder"):
        write_report(small, tmp_path, force=True)


def test_a_failure_on_the_way_leaves_the_old_file_and_no_other(small, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"`path` must be a file that can be written; got .*No space left on device"):
        write_report(small, path, force=True)
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_terminal_tables_show_layers_at_the_last_step(two_runs):
    tables = {table.title: table for table in terminal_tables(two_runs)}
    assert tables["Summary"].columns == ("measure", "seed 1", "seed 2", "seed 1 against seed 2")
    table = tables["seed 1, against the start, at step 800"]
    assert table.columns == ("layer", "attention JS divergence (nats)", "SVCCA similarity", "linear CKA similarity")
    assert table.rows[2] == ("2", "0.0800", "insufficient-sample", "0.863")
    assert table.rows[3][1] == "undefined"
    assert "seed 1 against seed 2, at step 800" in tables


def test_the_summary_names_the_layer_that_changed_most(two_runs):
    rows = {row[0]: row[1:] for row in terminal_tables(two_runs)[0].rows}
    cells = rows["linear CKA similarity, lowest layer, since the start"]
    assert cells[:2] == ("0.450 [0.430, 0.470], layer 5", "0.642 [0.622, 0.662], layer 5")
    assert rows["accuracy"][0] == "0.500 → 0.840 [0.810, 0.870]"


def test_the_summary_says_what_isotropic_data_of_the_same_size_give(two_runs):
    measures = [row[0] for row in terminal_tables(two_runs)[0].rows]
    assert "IsoScore, last layer; isotropic: 0.560" in measures
    assert sum("isotropic" in measure for measure in measures) == 2
    assert "IsoScore, last layer; isotropic: 0.560" in render_html(two_runs)


def test_terminal_tables_are_rectangular_text_without_control_characters(build):
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e"
    result = build.result(
        runs=(hostile, "b"), change=lambda row: row | {"group": hostile, "status": "undefined", "reason": hostile}
    )
    tables = terminal_tables(result)
    assert tables
    for table in tables:
        for row in (table.columns, *table.rows):
            assert len(row) == len(table.columns)
        text = "".join((table.title, *table.columns, *(cell for row in table.rows for cell in row)))
        assert not set(text) & set("\x1b\x07\u202e\n")


def test_no_rows_no_tables(build):
    assert terminal_tables(build.result(table=[])) == ()


def test_names_that_look_alike_when_shortened_get_labels_of_their_own():
    names = ["x" * 50 + str(number) + "y" * 50 for number in range(3)] + ["", "\x00", "\ufffd"]
    labels = run_labels(names)
    assert len(set(labels.values())) == len(names)
    assert all(0 < len(label) <= 32 for label in labels.values())


def test_a_label_of_a_huge_name_keeps_both_ends():
    label = short_label("a" * 10_000 + "z")
    assert (label[0], label[-1], len(label)) == ("a", "z", 32)


def test_clean_text_keeps_other_scripts():
    assert clean_text("漢字 é عربي 😀\n") == "漢字 é عربي 😀\n"
    assert clean_text("\ud800\x7f\u2066") == "\ufffd" * 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9996, "1.00"), (99.96, "100"), (-0.01234, "-0.0123"), (1234.5, "1234"), (1e7, "1.00e+07"), (float("inf"), "undefined")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert format_number(value) == text


def test_keys_never_collide_by_joining():
    assert picture_key("a", "b-c") != picture_key("a-b", "c")


def test_the_template_names_no_address():
    import dynprobe.report

    folder = Path(dynprobe.report.__file__).parent / "templates"
    for file in folder.iterdir():
        assert "://" not in file.read_text(encoding="utf-8")
