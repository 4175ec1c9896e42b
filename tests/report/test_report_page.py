"""The HTML page: complete, self-contained, and inert whatever the result contains."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from dynprobe.report import pictures, render_html
from dynprobe.report.exporting import csv_text, printed_table
from dynprobe.report.palette import colour
from dynprobe.result import MetricInfo

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "attribute": "\"><img src=x onerror=alert(1)> ' onload='alert(1)",
    "style": "</style><style>@import url(https://evil.example/x.css)</style>",
    "template": "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "controls": "a\x00b\x1b[31m\u202egnp.exe\ud800",
    "long": "long " * 2_000,
    "formula": "=HYPERLINK(\"https://evil.example\")",
}  # fmt: skip


class Page(HTMLParser):
    """All tags with their attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self._in = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts.append(data)
        elif self._in != "style":
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_inert(page):
    assert len(page.of("script")) == 1
    assert len(page.of("style")) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert tag not in {"iframe", "object", "embed", "link", "base", "form", "svg"}
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "data:text/csv;", "#"))


def policy(page):
    (content,) = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    return dict(part.strip().split(" ", 1) for part in content.split(";"))


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page)


def test_the_page_is_inert_and_small_enough(page, parsed):
    assert_inert(parsed)
    assert len(page.encode()) < 4_000_000


def test_the_policy_allows_the_script_by_its_hash_and_nothing_else(parsed):
    (script,) = parsed.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy(parsed) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_same_page_twice(build):
    result = build.result(table=build.few_rows)
    assert render_html(result) == render_html(result)


def test_findings_stand_before_notes_before_figures(page, two_runs):
    places = [page.index(line) for line in (*two_runs.findings, *two_runs.notes)]
    assert places == sorted(places)
    assert places[-1] < page.index("<figure")


def test_every_figure_has_alt_text_numbers_and_csv(parsed, drawn):
    drawn = drawn
    images = [image for image in parsed.of("img") if image["src"].startswith("data:image/svg+xml")]
    assert sorted(image["alt"] for image in images) == sorted(picture.alt for picture in drawn)
    assert all(any(char.isdigit() for char in image["alt"]) for image in parsed.of("img") if image in images)
    assert sorted(a["download"] for a in parsed.of("a") if "download" in a) == sorted(f"{p.key}.csv" for p in drawn)


def test_links_within_the_page_lead_somewhere(parsed):
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = [a["href"][1:] for a in parsed.of("a") if a["href"].startswith("#")]
    assert targets
    assert set(targets) <= set(ids)


def test_the_csv_of_the_page_is_the_data(parsed, drawn):
    links = {a["download"]: a["href"] for a in parsed.of("a") if "download" in a}
    for picture in drawn:
        content = base64.b64decode(links[f"{picture.key}.csv"].partition("base64,")[2])
        table = pd.read_csv(io.BytesIO(content), dtype={"reason": "string"}, keep_default_na=False, na_values=[""])
        for column in picture.data.columns:
            left, right = table[column].tolist(), picture.data[column].tolist()
            same = [(pd.isna(x) and pd.isna(y)) or x == y for x, y in zip(left, right, strict=True)]
            assert all(same), (picture.key, column)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_quoted(start):
    text = csv_text(pd.DataFrame({"run": [f"{start}1+1"], "value": [-1.5]}))
    cells = pd.read_csv(io.StringIO(text), dtype=str).iloc[0]
    assert cells["run"][0] in "'\ufffd"
    assert cells["value"] == "-1.5"


def test_statuses_are_words_with_reasons_never_numbers(page):
    assert "12345" not in page
    assert "insufficient-sample: needs 768 examples; got 256" in page
    assert "the value is not a finite number" in page
    assert not re.search(r">\s*(nan|NaN|inf|None|&lt;NA&gt;)\s*<", page)


def test_the_printed_table_holds_status_and_interval(drawn):
    (picture,) = [p for p in drawn if p.title == "SVCCA similarity, against the start, by layer"]
    table = printed_table(picture)
    assert table.columns == ("layer", "seed 1, step 800", "seed 2, step 800")
    assert table.rows[2][1] == "insufficient-sample: needs 768 examples; got 256"
    assert table.rows[5] == ("5", "0.450 [0.430, 0.470]", "0.642 [0.622, 0.662]")


def test_a_table_too_large_to_print_is_left_to_the_csv(build):
    result = build.result(table=[], provenance={}, arrays={"large": np.zeros((60, 60))})
    (picture,) = pictures(result)
    assert printed_table(picture) is None


def test_runs_have_the_colour_of_their_figures_in_the_summary(parsed):
    chips = [a["style"] for a in parsed.of("span") if a.get("class") == "chip"]
    assert chips[:3] == [f"background: {colour(number)}" for number in range(3)]


def test_meaning_unit_and_bounds_are_told(page, build):
    for info in build.metrics.values():
        assert info.meaning in page
    assert "Unit: nats; from 0 to 0.693." in page
    assert "Unit: furlongs; no bounds." in page
    assert "No unit; from 0 to 1." in page
    assert "Unit: dimensions; 1 or more." in page


def test_provenance_is_printed(page):
    for fact in (
        "bert-base-uncased",
        "2025-01-02T03:04:05Z",
        "dynprobe compare a b",
        "torch 2.13, transformers 5.23",
        "0, 50, 100, 200, 400, 800",
    ):
        assert fact in page


QUICK_HOSTILE = ("script", "attribute", "controls")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK_HOSTILE else [pytest.mark.slow]) for n in HOSTILE]
)
def test_hostile_text_in_every_field_is_inert(build, name):
    text = HOSTILE[name]

    cell = text.replace("\ud800", "")  # which a table cannot hold
    runs = (cell + " 1", cell + " 2")
    words = {"position": cell, "group": cell, "stack": cell, "metric": cell, "reason": cell, "run_a": runs[0]}
    pair = {"comparison": "between", "run_b": runs[1], "step_a": 5, "step_b": 5, "value": 0.5}
    table = [
        words | pair | {"layer": 0},
        words | pair | {"layer": 1, "status": "undefined"},
        words | pair | {"layer": 0, "step_a": 6, "step_b": 6, "stack": "another"},
        words | pair | {"layer": 0, "head": 0},
        words | {"comparison": "within", "step_a": 5, "value": 1.0},
    ]
    entry = {"step": 1, "loss": 0.5, f"eval_{text}": 0.5, text: text}
    result = build.result(
        table=table,
        title=text,
        metrics={cell: MetricInfo(text, text, text)},
        arrays={text: [[1.0]], f"svcca_layers:{runs[0]}@0|{runs[1]}@5": [[0.5]]},
        findings=(text,),
        notes=(text,),
        provenance={
            "runs": {run: {text: text, "list": [text]} for run in runs},
            "scalars": {runs[0]: [entry]},
            text: {text: text},
        },
    )
    html = render_html(result)
    page = Page(html)
    assert_inert(page)
    assert len(page.of("img")) == 1 + len(pictures(result))
    assert html.encode("utf-8")
    assert not set(html) & set("\x00\x1b\u202e")
    assert "evil.example/x.css" not in "".join(page.scripts)
    assert len(html) < 4_000_000


EMPTY = {"table": [], "arrays": {}, "provenance": {}, "findings": (), "notes": ()}
SMALL = {"runs": ("only",), "layers": 1, "heads": 1, "steps": (0,)}


@pytest.mark.parametrize("shape", [EMPTY, SMALL], ids=["empty", "small"])
def test_bare_results_have_a_page(build, shape):
    html = render_html(build.result(**shape))
    assert_inert(Page(html))
    assert ("Nothing was measured" in html) == (shape.get("table") == [])


def test_what_was_not_measured_is_counted(build):
    result = build.result(
        table=[
            {"metric": "accuracy", "run_a": "a", "status": "not-captured", "reason": "no labels", "step_a": s}
            for s in (1, 2)
        ],
        arrays={},
        provenance={},
    )
    text = " ".join("".join(Page(render_html(result)).text).split())
    assert "accuracy2not-capturedno labels" in text.replace(" accuracy", "accuracy")
