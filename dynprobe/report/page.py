"""The HTML page: what goes where, rendered with escaping always on."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from dynprobe.report.drawing import svg_bytes
from dynprobe.report.exporting import PrintedTable, csv_text, data_uri, printed_table
from dynprobe.report.knowledge_tables import knowledge_tables
from dynprobe.report.palette import colour
from dynprobe.report.picture import Picture
from dynprobe.report.pictures import pictures
from dynprobe.report.readings import Readings, read
from dynprobe.report.sections import SECTIONS, Section
from dynprobe.report.summary import summary_rows
from dynprobe.report.table import TerminalTable
from dynprobe.report.wording import clean_text, mapping_of
from dynprobe.result import MetricInfo, Result

LONGEST_FACT = 2000


@dataclass(frozen=True)
class Figure:
    """A picture ready for the page: image, table and CSV."""

    picture: Picture
    image: str
    csv: str
    table: PrintedTable | None


@dataclass(frozen=True)
class Group:
    """The figures of one metric with how to read them; ``folded`` ones are shown on demand."""

    title: str
    info: MetricInfo | None
    shown: tuple[Figure, ...]
    folded: tuple[Figure, ...]


@dataclass(frozen=True)
class Chapter:
    """A section with its tables and its groups of figures."""

    section: Section
    tables: tuple[TerminalTable, ...]
    groups: tuple[Group, ...]


def render_html(result: Result) -> str:
    """The whole report as one HTML page that loads nothing from anywhere.

    Parameters
    ----------
    result
        Any result; its texts are taken for text, whatever they contain.

    Returns
    -------
    str
        HTML. The same result gives the same text. Its content security policy allows no request and no script
        but the one small script of the page, by hash; without scripts the page is complete.
    """
    environment = Environment(
        loader=PackageLoader("dynprobe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("report.js").render()
    readings = read(result)
    subjects = (*readings.runs, *readings.pairs)
    return environment.get_template("report.html.j2").render(
        result=result,
        script_hash=script_hash(script),
        subjects=[(name, colour(readings.inks[name].colour)) for name in subjects],
        summary=summary_rows(readings, result.metrics, subjects),
        chapters=_chapters(pictures(result), result.metrics, {"knowledge": knowledge_tables(result)}),
        gaps=_gaps(readings, result.metrics),
        facts=_run_facts(result, readings),
        more_facts=_more_facts(result),
        bounds=_bounds,
        used=[result.metrics[name] for name in result.table["metric"].dropna().unique()],
    )


def script_hash(script: str) -> str:
    """The hash by which a content security policy names an inline script.

    Examples
    --------
    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _finalize(value: Any) -> Any:
    """Everything that the template prints passes here, before it is escaped."""
    return value if hasattr(value, "__html__") else clean_text(value)


def _chapters(
    drawn: tuple[Picture, ...], metrics: Mapping[str, MetricInfo], tables: Mapping[str, tuple[TerminalTable, ...]]
) -> list[Chapter]:
    chapters = []
    for section in SECTIONS:
        own = [picture for picture in drawn if picture.section == section.key]
        names = dict.fromkeys(picture.group for picture in own)
        groups = tuple(_group(name, [p for p in own if p.group == name], metrics) for name in names)
        own_tables = tables.get(section.key, ())
        if groups or own_tables:
            chapters.append(Chapter(section, own_tables, groups))
    return chapters


def _group(name: str, drawn: list[Picture], metrics: Mapping[str, MetricInfo]) -> Group:
    info = metrics.get(name)
    title = info.label if info else name.replace("_", " ")
    shown = tuple(_figure(picture) for picture in drawn if not picture.secondary)
    folded = tuple(_figure(picture) for picture in drawn if picture.secondary)
    return Group(title[:1].upper() + title[1:], info, shown, folded)


def _figure(picture: Picture) -> Figure:
    image = data_uri(svg_bytes(picture), "image/svg+xml")
    csv = data_uri(csv_text(picture.data).encode("utf-8"), "text/csv;charset=utf-8")
    return Figure(picture, image, csv, printed_table(picture))


def _gaps(readings: Readings, metrics: Mapping[str, MetricInfo]) -> list[tuple[str, int, str, str]]:
    """What could not be measured, counted by metric, status and reason."""
    missing = readings.rows[readings.rows["value"].isna()].fillna({"reason": ""})
    columns = ("metric", "status", "reason")
    counts = Counter(missing[list(columns)].astype(str).itertuples(index=False, name=None))
    return [(metrics[metric].label, n, status, reason) for (metric, status, reason), n in counts.items()]


def _run_facts(result: Result, readings: Readings) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    runs = mapping_of(result.provenance.get("runs"))
    return [
        (
            readings.labels[str(name)],
            str(name)[:LONGEST_FACT],
            colour(readings.inks[readings.labels[str(name)]].colour),
            [(str(key)[:100], _fact(value)) for key, value in mapping_of(facts).items()],
        )
        for name, facts in runs.items()
    ]


def _more_facts(result: Result) -> list[tuple[str, str]]:
    own = {key: value for key, value in result.provenance.items() if key not in ("runs", "scalars")}
    return [(str(key)[:100], _fact(value)) for key, value in own.items()]


def _fact(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        text = ", ".join(map(str, value))
    elif isinstance(value, Mapping) and all(isinstance(item, (str, int, float)) for item in value.values()):
        text = ", ".join(f"{key} {item}" for key, item in value.items())
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, indent=1)
    return text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]}…"


def _bounds(info: MetricInfo) -> str:
    low, high = (None if end is None or pd.isna(end) else f"{end:.3g}" for end in info.bounds)
    if low is None and high is None:
        return "no bounds"
    if low is None or high is None:
        return f"{low} or more" if high is None else f"{high} or less"
    return f"from {low} to {high}"
