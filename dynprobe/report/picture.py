"""Picture: one figure as plain data, before anything is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import pandas as pd

LINE_COLUMNS = ("series", "x", "value", "low", "high", "chance", "reference", "status", "reason")
HEATMAP_COLUMNS = ("x", "y", "value", "status", "reason")


class Ink(NamedTuple):
    """How a series is drawn: the number of its colour and of its dash pattern."""

    colour: int
    dash: int = 0


@dataclass(frozen=True)
class Picture:
    """One figure as data: what it shows, in numbers and in words; frozen.

    Attributes
    ----------
    key
        Name of the picture in its report: letters, digits, ``-``; also the file name of its CSV.
    section
        Section of the report, one of :data:`dynprobe.report.sections.SECTIONS`.
    group
        Metric or subject within the section; pictures of one group stand under one heading.
    title
        One line.
    alt
        What the figure shows, in numbers, for those who do not see it.
    kind
        ``"lines"`` (value over layers or steps) or ``"heatmap"``.
    data
        One row per point or cell: the columns :data:`LINE_COLUMNS` or :data:`HEATMAP_COLUMNS`. What was not
        measured has no value but a status and a reason.
    x_label, y_label, value_label
        Axis labels; ``value_label`` includes the unit.
    limits
        Lowest and highest value of the colour scale of a heat map; shared by the pictures of one group.
    darker_is_lower
        True where a low value means more change (a similarity), so that dark always means changed.
    inks
        Colour and dash of each series; a run has the same colour in every picture.
    secondary
        True for a picture that a page may fold away.
    reference_kind
        What the column ``reference`` is the value of: ``"isotropic"`` data of the same size, a model of ``"random weights"``,
        or any ``"reference"``.
    """

    key: str
    section: str
    group: str
    title: str
    alt: str
    kind: Literal["lines", "heatmap"]
    data: pd.DataFrame
    x_label: str
    y_label: str
    value_label: str
    limits: tuple[float, float] | None = None
    darker_is_lower: bool = False
    inks: Mapping[str, Ink] = field(default_factory=dict)
    secondary: bool = False
    reference_kind: str = "reference"

    def __post_init__(self) -> None:
        object.__setattr__(self, "inks", MappingProxyType(dict(self.inks)))
