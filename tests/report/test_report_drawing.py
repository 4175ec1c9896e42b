"""Pictures drawn: the same bytes, no global state, every awkward shape."""

import io
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from dynprobe.report import draw, pictures
from dynprobe.report.draw_heatmap import _ticks
from dynprobe.report.draw_lines import REFERENCE
from dynprobe.report.drawing import png_bytes, svg_bytes
from dynprobe.report.palette import colour, colour_map


def _luminance(rgb):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_same_bytes_twice_whatever_the_user_has_set(drawn):
    for picture in (drawn[0], drawn[12]):
        first = svg_bytes(picture)
        with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None}):
            assert svg_bytes(picture) == first
    assert png_bytes(drawn[0]) == png_bytes(drawn[0])


def test_drawing_leaves_the_settings_alone_and_opens_no_pyplot_figure(drawn):
    before = dict(mpl.rcParams)
    figure = draw(drawn[0])
    assert isinstance(figure, Figure)
    assert dict(mpl.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_a_figure_for_a_notebook_has_its_title_and_can_be_saved(drawn):
    picture, buffer = drawn[0], io.BytesIO()
    figure = draw(picture)
    assert (figure.axes[0].get_title() if picture.kind == "lines" else figure.get_suptitle()) == picture.title
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_svg_has_no_script_no_text_and_no_address_to_fetch(drawn):
    for picture in drawn[::12]:
        root = ElementTree.fromstring(svg_bytes(picture))
        tags = {element.tag.split("}")[-1] for element in root.iter()}
        assert not tags & {"script", "text", "foreignObject"}
        for element in root.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png"))


def test_hatches_where_nothing_was_measured(drawn):
    for title in ("SVCCA similarity, against the start, by layer", "SVCCA similarity, seed 1, against the start"):
        (picture,) = [p for p in drawn if p.title == title]
        (legend,) = draw(picture).legends
        assert "not measured: insufficient-sample" in [text.get_text() for text in legend.get_texts()]


def dotted(figure):
    """Limits of the vertical axis, and the heights of the dotted lines of references."""
    (axes,) = figure.axes
    lines = [line for line in axes.get_lines() if line.get_color() == REFERENCE["color"]]
    return axes.get_ylim(), [float(height) for line in lines for height in line.get_ydata()]


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("reference", "name", "inside"),
    [
        (0.56, "isotropic: 0.560", True),
        (-0.05, "isotropic: -0.0500", True),
        (5.0, "isotropic: 5.00 ↑", False),
        (-5.0, "isotropic: -5.00 ↓", False),
    ],
)
def test_a_reference_is_a_dotted_line_or_a_number_when_it_is_far(build, reference, name, inside):
    def change(row):
        return row | {"reference": reference} if row["metric"] == "isoscore" else row

    picture = next(p for p in pictures(build.result(heads=1, change=change)) if p.group == "isoscore")
    figure, plain = draw(picture), draw(replace(picture, data=picture.data.assign(reference=np.nan)))
    assert name in legend_of(figure)
    assert not any("isotropic" in text for text in legend_of(plain))
    limits, heights = dotted(figure)
    if inside:
        assert set(heights) == {reference}
        assert limits[0] < reference < limits[1]
    else:
        assert heights == []
        assert limits == dotted(plain)[0], "what cannot be shown moves nothing"


SHAPES = {
    "one run": {"runs": ("only",)},
    "one layer": {"layers": 1, "heads": 1},
    "one step": {"steps": (0,)},
    "one of everything": {"runs": ("only",), "layers": 1, "heads": 1, "steps": (0,)},
    "nothing measured": {"change": lambda row: row | {"status": "not-captured", "value": None}},
    "all the same": {"change": lambda row: row | {"value": 0.5, "low": 0.5, "high": 0.5, "chance": None}},
    "tiny": {"change": lambda row: row | {"value": 1e-9, "low": None, "high": None}},
    "huge": {"change": lambda row: row | {"value": -1e12, "low": None, "high": None}},
    "odd names": {"runs": ("_hidden $x^", "漢字\x00\u202eعربي $")},
}


QUICK_SHAPES = ("one of everything", "nothing measured", "odd names")


@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=[] if s in QUICK_SHAPES else [pytest.mark.slow]) for s in SHAPES]
)
def test_every_shape_can_be_drawn(build, shape):
    given = {"heads": 2, "layers": 2, "steps": (0, 5), **SHAPES[shape]}
    different = {(p.kind, p.x_label): p for p in pictures(build.result(**given))}
    assert different
    for picture in different.values():
        assert svg_bytes(picture).startswith(b"<?xml")
        assert picture.alt


def test_a_legend_shows_names_that_matplotlib_would_hide_or_typeset(build):
    result = build.result(runs=("_hidden", "$x^2$"), layers=1, heads=1, steps=(0,))
    picture = next(p for p in pictures(result) if p.group == "accuracy")
    (legend,) = draw(picture).legends
    assert [text.get_text() for text in legend.get_texts()] == ["_hidden", "$x^2$"]


def test_ticks_never_crowd():
    for count in (1, 13, 14, 15, 100, 200):
        assert 1 <= len(_ticks(count)) <= 14


def test_colours_of_runs_differ_and_read_on_white():
    assert len({colour(number) for number in range(8)}) == 8
    for number in range(3):  # two runs and their pair
        rgb = np.array(mpl.colors.to_rgb(colour(number)))
        assert 1.05 / (_luminance(rgb) + 0.05) >= 3.0  # WCAG 1.4.11, graphical objects


def test_the_heat_map_scale_gets_darker_all_the_way():
    shades = np.asarray(colour_map(reverse=False).colors)[::16]
    assert (np.diff([_luminance(shade) for shade in shades]) < 0).all()
    reverse = np.asarray(colour_map(reverse=True).colors)
    assert np.array_equal(reverse, np.asarray(colour_map(reverse=False).colors)[::-1])


def test_the_title_of_a_line_chart_stands_clear_of_its_legend(drawn):
    figure = draw(next(picture for picture in drawn if picture.kind == "lines"))
    figure.canvas.draw()
    (legend,) = figure.legends
    title = figure.axes[0].title.get_window_extent()
    assert not title.overlaps(legend.get_window_extent())
