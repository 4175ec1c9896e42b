"""What an analysis says: a tidy table of measured values, and what each of them means.

A :class:`Result` knows no figure and no template. Reports are made from it; its own HTML form is an escaped table.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

RESULT_FORMAT = 1

STATUSES = (
    "measured",
    "insufficient-sample",
    "below-resolution",
    "undefined",
    "incompatible",
    "not-captured",
    "not-computed",
)
COMPARISONS = ("within", "from_start", "consecutive", "between")

# One row per measured value. `run_b`/`step_b` are empty for a value of one snapshot alone ("within"). `low`/`high` cover the
# expected value at the same n, `bias` estimates how far that is above the value of the whole population; `chance` is what
# unrelated content gives, `reference` what ideal data of the same size give (isotropic data, for isotropy); `resolution` is
# the relative spacing of the stored numbers that the value was computed from. `n_kept` directions are held over steps and
# runs; `free_value` is what `free_n_kept` directions give, chosen anew for each snapshot.
COLUMN_TYPES = {
    "metric": "string",
    "comparison": "string",
    "stack": "string",
    "run_a": "string",
    "step_a": "Int64",
    "run_b": "string",
    "step_b": "Int64",
    "layer": "Int64",
    "layer_b": "Int64",
    "head": "Int64",
    "position": "string",
    "group": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "chance": "float64",
    "bias": "float64",
    "reference": "float64",
    "resolution": "float64",
    "n": "Int64",
    "n_kept": "Int64",
    "free_value": "float64",
    "free_n_kept": "Int64",
    "status": "string",
    "reason": "string",
}


@dataclass(frozen=True)
class MetricInfo:
    """What the values of one metric are, in words that a report can print.

    Attributes
    ----------
    label
        Short name for axes and table heads, such as ``"attention JS divergence"``.
    unit
        Unit of the values: ``"nats"``, ``"accuracy"``, ``"1"`` for a ratio.
    meaning
        One plain sentence: what a small and what a large value says about the model.
    bounds
        Lowest and highest possible value; ``None`` where there is none.
    """

    label: str
    unit: str
    meaning: str
    bounds: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Result:
    """A tidy table of measured values with their meaning and provenance; frozen.

    Attributes
    ----------
    title
        One line naming what was analysed.
    table
        One row per measured value with the columns of :data:`COLUMN_TYPES`, in that order. Use :attr:`frame`
        for a copy that may be changed.
    metrics
        What each name in the column ``metric`` means.
    arrays
        Named read-only arrays for what is no table: matrices, histograms, example attention.
    findings
        Plain sentences, the most important first: what the numbers say.
    notes
        Plain sentences on what limits the numbers (aligned by fraction, probe inputs from training data, ...).
    provenance
        JSON-able facts: runs, fingerprints, versions, command line.
    """

    title: str
    table: pd.DataFrame
    metrics: Mapping[str, MetricInfo]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = tidy(self.table)
        unknown = set(table["metric"].dropna()) - set(self.metrics)
        if unknown:
            raise ValueError(f"`metrics` must describe each metric of the table; missing {sorted(unknown)}")
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))
        object.__setattr__(self, "arrays", MappingProxyType({k: _frozen(v) for k, v in self.arrays.items()}))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @property
    def frame(self) -> pd.DataFrame:
        """A copy of the tidy table, one row per measured value."""
        return self.table.copy()

    def select(self, **equal: Any) -> pd.DataFrame:
        """Rows whose columns equal the given values, such as ``select(metric="svcca_similarity", layer=6)``."""
        rows = self.table
        for column, wanted in equal.items():
            if column not in COLUMN_TYPES:
                raise ValueError(f"`select` must name columns of the table; got {column!r}")
            rows = rows[(rows[column] == wanted).fillna(value=False)]
        return rows.copy()

    def to_json(self) -> str:
        """The whole result as JSON (``format`` 1); NaN becomes null, arrays become nested lists."""
        document = {
            "format": RESULT_FORMAT,
            "title": self.title,
            "findings": list(self.findings),
            "notes": list(self.notes),
            "metrics": {name: vars(info) for name, info in self.metrics.items()},
            "columns": list(COLUMN_TYPES),
            "rows": _json_rows(self.table),
            "arrays": {name: _json_safe(array.tolist()) for name, array in self.arrays.items()},
            "provenance": dict(self.provenance),
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False, default=str, indent=1)

    def _repr_html_(self) -> str:
        """An escaped table for notebooks, findings first."""
        intro = "".join(f"<li>{_escape(line)}</li>" for line in (*self.findings, *self.notes))
        body = self.table.dropna(axis="columns", how="all").to_html(
            index=False, escape=True, max_rows=60, na_rep="", float_format=lambda value: f"{value:.4g}"
        )
        return f"<h3>{_escape(self.title)}</h3><ul>{intro}</ul>{body}"


def tidy(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table with exactly the columns of :data:`COLUMN_TYPES`; what is not given is missing.

    Raises
    ------
    ValueError
        For an unknown column, comparison or status.
    """
    table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    unknown = set(table.columns) - set(COLUMN_TYPES)
    if unknown:
        raise ValueError(f"result columns must be among {list(COLUMN_TYPES)}; got {sorted(unknown)}")
    table = table.reindex(columns=list(COLUMN_TYPES)).astype(COLUMN_TYPES)
    table["status"] = table["status"].fillna("measured")
    for column, allowed in (("status", STATUSES), ("comparison", COMPARISONS)):
        wrong = set(table[column].dropna()) - set(allowed)
        if wrong:
            raise ValueError(f"`{column}` must be one of {allowed}; got {sorted(wrong)}")
    return table.reset_index(drop=True)


def merge(title: str, results: Iterable[Result], **changes: Any) -> Result:
    """One result holding the rows, arrays, findings and notes of several, in order.

    Parameters
    ----------
    title
        Title of the merged result.
    results
        At least one result.
    changes
        Fields that replace the merged ones, such as ``findings`` or ``provenance``.
    """
    parts = list(results)
    if not parts:
        raise ValueError("`results` must hold at least one result; got none")
    merged: dict[str, Any] = {
        "table": pd.concat([part.table for part in parts], ignore_index=True),
        "metrics": {name: info for part in parts for name, info in part.metrics.items()},
        "arrays": {name: array for part in parts for name, array in part.arrays.items()},
        "findings": tuple(line for part in parts for line in part.findings),
        "notes": tuple(dict.fromkeys(line for part in parts for line in part.notes)),
        "provenance": {key: value for part in parts for key, value in part.provenance.items()},
    }
    return Result(title=title, **{**merged, **changes})


def _frozen(array: Any) -> np.ndarray:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def _json_rows(table: pd.DataFrame) -> list[list[Any]]:
    return [
        [None if pd.isna(cell) else _json_safe(cell) for cell in row]
        for row in table.astype(object).itertuples(index=False, name=None)
    ]


def _json_safe(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
