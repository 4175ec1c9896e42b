"""What probes of other tasks say of a training, in sentences."""

from collections.abc import Iterator

import pandas as pd

from dynprobe.analysis.knowledge import (
    CHANCE,
    DEGRADED,
    IMPROVED,
    RANDOM,
    UNCLEAR,
    detectable_change,
    nothing_known,
    retained,
    verdict,
)
from dynprobe.analysis.phrasing import both, number, with_interval


def knowledge_findings(
    table: pd.DataFrame, names: tuple[str, ...], *, margin: float, level: float = 0.95
) -> tuple[str, ...]:
    """Sentences on what each run's training did to the tasks that the pretrained encoder was probed for.

    Parameters
    ----------
    table
        Table of a result with rows of the probe suite.
    names
        Names of the runs.
    margin
        Largest change in accuracy that counts as none.
    level
        Confidence level of the intervals.

    Returns
    -------
    tuple of str
        One for each run and task with a snapshot of step 0, and one for each task and pair of runs: those of all training
        examples, or of the largest share of them that was fitted. Without such rows, none.
    """
    rows = table[table["status"].eq("measured").fillna(value=False) & table["group"].notna()]
    rows = rows.assign(task=rows["group"].str.split(",").str[0])  # no name of a task holds a comma
    accuracies, changes, differences = (
        _largest_share(rows[rows["metric"] == f"knowledge_{what}"]) for what in ("accuracy", "change", "difference")
    )
    return (*_changes(changes, accuracies, names, margin=margin, level=level), *_differences(differences, accuracies))


def _largest_share(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each task that come first: fractions are in falling order."""
    return rows[rows["group"] == rows.groupby(["run_a", "task"])["group"].transform("first")]


def _changes(
    changes: pd.DataFrame, accuracies: pd.DataFrame, names: tuple[str, ...], *, margin: float, level: float
) -> Iterator[str]:
    for name in names:
        own = changes[changes["run_a"] == name]
        last = own[own["step_a"] == own["step_a"].max()]
        for (stack, task), rows in last.groupby(["stack", "task"], sort=False):
            parts = []
            for row, where in _places(rows):
                there = _where(accuracies, run_a=name, stack=stack, task=task, position=row["position"])
                start, end = (_where(there, step_a=row[step]) for step in ("step_b", "step_a"))
                values = "" if start.empty or end.empty else f"{both(start.iloc[0], end.iloc[0])}, "
                floor = _floor(row)
                said = _of_nothing(row, margin, floor) if floor else _verdict(row, margin, level)
                parts.append(f"at the {where} {said}: {values}{_points(row)}")
            yield f"{name}{_of(stack)}, step {row['step_a']}, task {task}: {'; '.join(parts)} (n = {row['n']} test examples)."


def _verdict(row: pd.Series, margin: float, level: float) -> str:
    said = verdict(row["low"], row["high"], margin=margin)
    if said == UNCLEAR:
        least = detectable_change(row["low"], row["high"], level=level)
        return f"it cannot be told whether what pretraining knew was kept (smallest detectable change {number(least)})"
    return f"what pretraining knew is {({IMPROVED: 'improved', DEGRADED: 'degraded'}).get(said, retained(margin))}"


def _floor(row: pd.Series) -> str | None:
    """What the pretrained encoder is not clearly above, by the remark on the change; ``None`` where it knew something."""
    return next((floor for floor in (CHANCE, RANDOM) if nothing_known(floor) in str(row["reason"])), None)


def _of_nothing(row: pd.Series, margin: float, floor: str) -> str:
    """Where the pretrained encoder is not clearly above what knows nothing, there is nothing to be kept or lost."""
    better = verdict(row["low"], row["high"], margin=margin) == IMPROVED
    now = ", and now it is read better" if better else ""
    return f"pretraining knew nothing clearly above {floor}{now}"


def _differences(differences: pd.DataFrame, accuracies: pd.DataFrame) -> Iterator[str]:
    for (_, stack, task), rows in differences.groupby(["run_b", "stack", "task"], sort=False):
        parts = []
        for row, where in _places(rows):
            clear = row["low"] > 0 or row["high"] < 0
            word = "better" if row["value"] > 0 else "worse"
            told = f"{word} from {row['run_a']}" if clear else "from neither run clearly better"
            ends = [
                _where(accuracies, run_a=row[f"run_{x}"], step_a=row[f"step_{x}"], stack=stack, task=task)
                for x in ("a", "b")
            ]
            low = _at_chance([_where(own, position=row["position"]) for own in ends])
            parts.append(f"at the {where} {told}: {_points(row)}{low}")
        yield (
            f"At the end the task {task}{_of(stack)} is read by linear probes, {row['run_a']} against {row['run_b']}, "
            f"{'; '.join(parts)}."
        )


def _at_chance(ends: list[pd.DataFrame]) -> str:
    """That neither of two accuracies is above the commonest class, where it is so."""
    if any(own.empty or own["low"].iloc[0] > own["chance"].iloc[0] for own in ends):
        return ""
    return " (neither is clearly above the commonest class)"


def _places(rows: pd.DataFrame) -> list[tuple[pd.Series, str]]:
    """The rows of the last and of the best layer with their words; the best one only where it is another."""
    found = [rows.iloc[i] for i in range(len(rows))]
    if len(found) == 2 and found[0]["reason"] == found[1]["reason"]:
        return [(found[0], "last layer, also the best,")]
    return [(row, str(row["position"])) for row in found]


def _points(row: pd.Series) -> str:
    """A difference with its interval and sign."""
    return f"difference {'+' if row['value'] > 0 else ''}{with_interval(row)}"


def _where(rows: pd.DataFrame, **equal: object) -> pd.DataFrame:
    for column, wanted in equal.items():
        rows = rows[(rows[column] == wanted).fillna(value=False)]
    return rows


def _of(stack: object) -> str:
    return "" if stack == "model" else f" ({stack})"
