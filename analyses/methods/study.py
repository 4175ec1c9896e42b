"""Every training method beside standard training, paired by seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.cli.study import study_command
from dynprobe.experiments.results import Results
from dynprobe.experiments.statements import p_words
from dynprobe.experiments.tables import arm_table, interval, markdown, points, score_frame, versions_of
from dynprobe.report.panels import differences, list_height, save_panels

MARGIN = 0.02
RELEASED = "-released"
_SURE = 0.05  # largest p, corrected
_WORDS = {
    "better": "better",
    "better, alone": "better by its own interval, not after correction for their number",
    "non-inferior": f"non-inferior within {100 * MARGIN:g} points",
    "worse": f"worse, perhaps by less than {100 * MARGIN:g} points",
    "inferior": "inferior",
    "inferior, alone": "inferior by its own interval, not after correction for their number",
    "cannot tell": "cannot be told from an inferior one",
}


def render(results: Results, figures: Path) -> dict[str, str]:
    """Figures, and what stands at the places of the template."""
    frame = score_frame(results)
    table = arm_table(frame, reference="standard", margin=MARGIN)
    setup = results[0]["stages"][0]["setup"]
    _draw(table, figures / "differences.png")
    few = table[table["n"] < 5]
    limit = (
        f"With {few['n'].min()} seeds ({', '.join(few['model'].unique())}) only large effects can be told."
        if len(few)
        else ""
    )
    return {
        "task": setup["task"],
        "n_train": str(setup["train_examples"]),
        "n_test": " or ".join(map(str, sorted(frame["n_test"].unique()))),
        "findings": _findings(table),
        "figures": "![Difference of each method from standard training, with its interval](figures/differences.png)",
        "margin": f"{100 * MARGIN:g}",
        "tables": "\n\n".join(_table(str(model), part) for model, part in table.groupby("model", sort=False)),
        "costs": _costs(results),
        "released": _released(frame),
        "minilm_limit": limit,
        "lengths": ", ".join(f"{steps} steps, {model}" for model, steps in _lengths(results).items()),
        "versions": versions_of(results),
        "n_cells": str(len(results)),
    }


def _lengths(results: Results) -> dict[str, int]:
    """Optimizer steps of the trainings of each model."""
    return {result["model"]: result["stages"][0]["setup"]["max_steps"] for result in results}


def _findings(table: pd.DataFrame) -> str:
    """For each model, which methods got which verdict."""
    lines = []
    for model, part in table.groupby("model", sort=False):
        part = part[~part["arm"].str.endswith(RELEASED)]
        words = part.apply(_word, axis=1)
        standard = part[part["arm"] == "standard"].iloc[0]
        lines.append(f"* **{model}** ({standard['n']} seeds, standard training {points(standard['mean'])}):")
        for word, said in _WORDS.items():
            named = part[words == word]
            if len(named):
                gaps = (f"{row.arm} ({points(row.difference, sign=True)})" for row in named.itertuples())
                lines.append(f"  {said}: {', '.join(gaps)}.")
    return "\n".join(lines)


def _word(row: pd.Series) -> str | None:
    """The verdict, as far as it stands among all methods of a model."""
    sure = row["p"] < _SURE
    if row["verdict"] in ("better", "inferior"):
        return str(row["verdict"]) if sure else f"{row['verdict']}, alone"
    if row["verdict"] == "cannot tell" and sure:
        return "worse"
    return row["verdict"] if isinstance(row["verdict"], str) else None


def _table(model: str, part: pd.DataFrame) -> str:
    header = ["method", "seeds", "mean", "sd", "median", "difference [95 %]", "p", "verdict"]
    rows = []
    for row in part.to_dict("records"):
        p = row["p"]
        rows.append(
            [
                row["arm"], str(row["n"]), points(row["mean"]), points(row["sd"]), points(row["median"]),
                interval(row["difference"], row["low"], row["high"]),
                "–" if p != p else p_words(p),
                row["verdict"] if isinstance(row["verdict"], str) else "–",
            ]
        )  # fmt: skip
    return f"**{model}**\n\n{markdown(header, rows)}"


def _costs(results: Results) -> str:
    """Passes per batch, the regulariser and the share of dropout in it, by method."""
    rows = []
    for arm in dict.fromkeys(result["arm"] for result in results):
        curves = [result["stages"][0]["training"] for result in results if result["arm"] == arm]
        forward, backward = (1 + _mean(curves, name, absent=0.0) for name in ("extra_forwards", "extra_backwards"))
        regulariser, shares = _mean(curves, "regulariser"), _values(curves, "dropout_share")
        passes = (f"{forward + 2 * backward:.2f}", f"{(forward + 2 * backward) / 3:.2f}")
        rows.append(
            [
                arm,
                f"{forward:.2f}",
                f"{backward:.2f}",
                passes[1],
                _short(regulariser),
                points(float(np.median(shares))) if shares else "–",
            ]
        )
    header = ["method", "forward", "backward", "of standard", "regulariser", "dropout alone, %"]
    return (
        markdown(header, rows)
        + "\n\n*Of standard*: (forward + 2 backward) / 3, a backward pass counted as two forward ones. *Dropout alone*: the "
        "divergence of two passes without the noise over that of the two with it, median over the steps at which it was "
        "measured; each is of dropout masks of its own, so that single ones scatter about it."
    )


def _mean(curves: Sequence[Mapping[str, Any]], name: str, *, absent: float = float("nan")) -> float:
    values = _values(curves, name)
    return float(np.mean(values)) if values else absent


def _values(curves: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value for curve in curves for value in curve.get(name, []) if value is not None]


def _short(value: float) -> str:
    return "–" if value != value else f"{value:.3g}"


def _released(frame: pd.DataFrame) -> str:
    """The published code beside the method as its paper defines it, paired by seed."""
    rows = []
    for model, part in frame.groupby("model", sort=False):
        for arm in dict.fromkeys(part["arm"]):
            own = arm.removesuffix(RELEASED)
            if own != arm:
                both = part[part["arm"].isin((own, arm))]
                (row,) = arm_table(both, reference=own, margin=MARGIN).query("arm == @arm").to_dict("records")
                gap = interval(row["difference"], row["low"], row["high"])
                rows.append([f"{own} ({model})", gap, row["verdict"]])
    return markdown(["method", "released − right, points [95 %]", "verdict"], rows)


def _draw(table: pd.DataFrame, path: Path) -> None:
    compared = table.dropna(subset=["difference"])
    panels = [
        differences(
            {row.arm: (100 * row.difference, 100 * row.low, 100 * row.high) for row in part.itertuples()},
            title=f"{model}, {part['n'].max()} seeds",
            x_label="accuracy, points above standard",
            margin=100 * MARGIN,
        )
        for model, part in compared.groupby("model", sort=False)
    ]
    save_panels(path, panels, height=list_height(compared.groupby("model").size().max()))


if __name__ == "__main__":
    study_command(__file__, render)()
