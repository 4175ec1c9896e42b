"""Rows of a result from probes that were fitted: accuracies, changes since step 0, differences between runs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dynprobe.analysis.knowledge import (
    CHANCE,
    RANDOM,
    UNCLEAR,
    accuracy_interval,
    change_interval,
    detectable_change,
    nothing_known,
    verdict,
)
from dynprobe.analysis.phrasing import number
from dynprobe.analysis.probe_fits import Answers, Place, best_of, last_of
from dynprobe.analysis.probe_labels import group_name
from dynprobe.analysis.probe_readings import Plan, Reading, by_place

LAST, BEST = "last layer", "best layer"
_KINDS = {"first": "first token", "last": "last token", "mean": "mean over tokens"}

Row = dict[str, Any]


def accuracy_rows(reading: Reading, plan: Plan) -> Iterator[Row]:
    """Accuracy of one snapshot on one task at every layer, at the last and at the best layer, and selectivity there."""
    labels = reading.labels
    for fraction, found in reading.fits.items():
        common = {
            **reading.moment.columns(), "group": group_name(reading.task, fraction), "chance": labels.chance,
            "n": len(labels.test),
        }  # fmt: skip
        random = reading.random.get(fraction, ())
        baseline = by_place(random)
        for each in found:
            where = {"position": each.place.kind, "layer": each.place.layer, "stack": each.place.stack}
            reference = baseline[each.place].right.mean() if each.place in baseline else np.nan
            yield {
                "metric": "knowledge_by_layer",
                **common,
                **where,
                "reference": reference,
                **_value(each, reading, plan),
            }
        for stack, position, each in _chosen(found):
            others = {(s, p): other for s, p, other in _chosen(random)}
            reference = others[stack, position].right.mean() if (stack, position) in others else np.nan
            where = {"position": position, "stack": stack, "reason": place_words(each.place)}
            yield {
                "metric": "knowledge_accuracy",
                **common,
                **where,
                "reference": reference,
                **_value(each, reading, plan),
            }
            if each.control is not None:
                yield {
                    **common, **where, "metric": "knowledge_selectivity", "chance": np.nan,
                    **_difference(each.control[None], each.right[:1], reading, plan),
                }  # fmt: skip


def change_rows(readings: Sequence[Reading], plan: Plan) -> Iterator[Row]:
    """Change of every later snapshot since step 0 at the last and at the best layer, with a verdict."""
    starts = {(r.moment.name, r.task): r for r in reversed(readings)}
    for reading in readings:
        start = starts[reading.moment.name, reading.task]
        if start is reading:
            continue
        common = {
            "metric": "knowledge_change", "comparison": "from_start", "run_a": reading.moment.name,
            "step_a": reading.moment.step, "run_b": start.moment.name, "step_b": start.moment.step,
        }  # fmt: skip
        if start.moment.step != 0:
            reason = f"the pretrained encoder is not known: the first snapshot is of step {start.moment.step}"
            yield {**common, "group": reading.task, "status": "not-captured", "reason": reason}
            continue
        yield from _compared(reading, start, common, plan)


def difference_rows(readings: Sequence[Reading], plan: Plan) -> Iterator[Row]:
    """The first run against each other one, at their last snapshots, at the last and at the best layer."""
    ends = {(r.task, r.moment.name): r for r in readings}
    for task in dict.fromkeys(reading.task for reading in readings):
        first, *others = (reading for (name, _), reading in ends.items() if name == task)
        for other in others:
            common = {
                "metric": "knowledge_difference", "comparison": "between", "run_a": first.moment.name,
                "step_a": first.moment.step, "run_b": other.moment.name, "step_b": other.moment.step,
            }  # fmt: skip
            if first.labels.fingerprint != other.labels.fingerprint:
                reason = "the runs have different examples of the same probe task"
                yield {**common, "group": task, "status": "incompatible", "reason": reason}
                continue
            yield from _compared(first, other, common, plan)


def _compared(after: Reading, before: Reading, common: Row, plan: Plan) -> Iterator[Row]:
    """The first reading minus the second on the same test examples, for each fraction and place."""
    for fraction, found in after.fits.items():
        there, random = (
            {(stack, position): each for stack, position, each in _chosen(own.get(fraction, ()))}
            for own in (before.fits, before.random)
        )
        for stack, position, each in _chosen(found):
            if (stack, position) not in there:
                continue
            other = there[stack, position]
            row = {
                **common, "group": group_name(after.task, fraction), "stack": stack, "position": position,
                "n": len(after.labels.test), **_difference(other.right, each.right, after, plan),
            }  # fmt: skip
            floor = _floor(other, random.get((stack, position)), before, plan)
            yield {**row, "reason": _remark(row, other.place, each.place, plan, floor=floor)}


def _floor(start: Answers, random: Answers | None, reading: Reading, plan: Plan) -> str | None:
    """What the pretrained encoder is not clearly above: the commonest class, or the same architecture with random weights."""
    groups, level = reading.labels.test_groups, plan.level
    if accuracy_interval(start.right, groups, level=level)[0] <= reading.labels.chance:
        return CHANCE
    if random is not None and change_interval(random.right, start.right, groups, level=level)[0] <= 0:
        return RANDOM
    return None


def _remark(row: Row, before: Place, after: Place, plan: Plan, *, floor: str | None) -> str:
    """Places and verdict in words: what a table of numbers has no column for."""
    if before == after:
        places = place_words(after)
    elif row["comparison"] == "between":
        places = f"{row['run_a']}: {place_words(after)}; {row['run_b']}: {place_words(before)}"
    else:
        places = f"{place_words(before)} → {place_words(after)}"
    if row["comparison"] == "between":
        return places
    said = verdict(row["low"], row["high"], margin=plan.margin)
    if said == UNCLEAR:
        least = detectable_change(row["low"], row["high"], level=plan.level)
        said += f"; smallest detectable change {number(least)}"
    if floor is not None:
        said += f"; {nothing_known(floor)}"
    return f"{said} ({places})"


def _chosen(found: Sequence[Answers]) -> Iterator[tuple[str, str, Answers]]:
    """Stack, position and answers of the last and the best place of each stack."""
    for stack in dict.fromkeys(each.place.stack for each in found):
        own = [each for each in found if each.place.stack == stack]
        yield stack, LAST, last_of(own)
        yield stack, BEST, best_of(own)


def _value(each: Answers, reading: Reading, plan: Plan) -> Row:
    low, high = accuracy_interval(each.right, reading.labels.test_groups, level=plan.level)
    return {"value": float(each.right.mean()), "low": low, "high": high}


def _difference(before: np.ndarray, after: np.ndarray, reading: Reading, plan: Plan) -> Row:
    low, high = change_interval(before, after, reading.labels.test_groups, level=plan.level)
    return {"value": float(after.mean() - before.mean()), "low": low, "high": high}


def place_words(place: Place) -> str:
    """A layer and kind of pooled vector in words.

    Examples
    --------
    >>> place_words(Place("model", "first", 6))
    'layer 6, first token'
    """
    return f"layer {place.layer}, {_KINDS.get(place.kind, place.kind)}"
