"""Attention and hidden states of two trainings, or of the snapshots of one, compared layer by layer."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dynprobe.analysis.attention import attention_js
from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.rounding import rounding_floors
from dynprobe.analysis.similarity import hidden_state_similarity
from dynprobe.errors import DynprobeError, UsageError
from dynprobe.experiments.cell_work import RESULT, read_json, run_folder, write_json
from dynprobe.experiments.comparisons import Comparison
from dynprobe.run import Run, open_run

# What is kept of each measured value; see dynprobe.result.COLUMN_TYPES.
_COLUMNS = (
    "metric", "stack", "position", "layer", "step_a", "step_b", "value", "low", "high", "chance", "n", "n_kept", "status",
)  # fmt: skip
_DIGITS = 7  # similarities near 1 are distances near 0


def run_comparison(
    comparison: Comparison, folder: Path, cells: tuple[Path, Path], *, n_threads: int | None = None
) -> dict[str, Any]:
    """Compare the last trainings of two cells, unless an earlier call did.

    Parameters
    ----------
    comparison
        What to compare.
    folder
        Folder of its own for ``result.json``.
    cells
        Folders of the two cells, which are done.
    n_threads
        Threads of torch; by default as many as it has.

    Returns
    -------
    dict
        ``pair`` (the kind), ``model``, ``arm_a``, ``seed_a``, ``arm_b``, ``seed_b``; ``probe_task`` and ``n_examples``, the
        task whose examples they were measured on, and how many; ``rows``, column to values as in a
        :class:`~dynprobe.result.Result`, of layers, not of heads; for ``start`` also ``floors``, as
        :func:`~dynprobe.analysis.rounding.rounding_floors` gives them for the last snapshot. Of SVCCA as many directions are
        kept as the start of `a` needs.

    Raises
    ------
    UsageError
        When the two were not measured on the same examples.
    DynprobeError
        When a run directory is missing or damaged.
    """
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    done = folder / RESULT
    if done.is_file():
        return read_json(done)
    a, b = comparison.a, comparison.b
    runs = [_open(place, len(cell.stages) - 1) for place, cell in zip(cells, (a, b), strict=True)]
    _require_same_examples(comparison, runs)
    result: dict[str, Any] = {"pair": comparison.kind, "model": a.model}
    result |= {"arm_a": a.arm, "seed_a": a.seed, "arm_b": b.arm, "seed_b": b.seed}
    result |= {"probe_task": a.measure.probe_task or a.stages[-1].task, "n_examples": runs[0].probe_set.n_examples}
    try:
        result["rows"] = _rows(comparison.kind, runs[0], runs[1])
        if comparison.kind == "start":
            result["floors"] = rounding_floors(Moment(runs[0], "a", runs[0].steps[-1]))
    finally:
        for run in runs:
            for snapshot in run:
                snapshot.close()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(done, result)
    return result


def _open(cell: Path, stage: int) -> Run:
    place = run_folder(cell, stage)
    if not place.is_dir():
        raise DynprobeError(
            f"{place}: must be the run directory of a finished cell; got none. Remove {cell} to have it made again"
        )
    return open_run(place)


def _require_same_examples(comparison: Comparison, runs: list[Run]) -> None:
    first, second = (run.probe_set for run in runs)
    if first.fingerprint != second.fingerprint:
        raise UsageError(
            f"{comparison.label}: must be measured on the same examples; got {first.n_examples} and {second.n_examples} "
            "others. Name a `probe_task` under `measure`, and give both the same `max_length`"
        )


def _rows(kind: str, run_a: Run, run_b: Run) -> dict[str, list[Any]]:
    """Values of all layers, column by column."""
    asked = _pairs(kind, run_a, run_b)
    tables = [attention_js(asked).table, hidden_state_similarity(asked, kept_as=_moment(run_a, "a", 0)).table]
    found = pd.concat([table[table["head"].isna()] for table in tables])
    return {column: [_plain(value) for value in found[column]] for column in _COLUMNS}


def _pairs(kind: str, run_a: Run, run_b: Run) -> list[Pair]:
    """Later snapshot first; called so that no layer by layer maps are made of them."""
    steps, last = run_a.steps, _moment(run_a, "a", -1)
    if kind == "start":
        found = [(Moment(run_a, "a", step), _moment(run_a, "a", 0)) for step in steps[1:]]
    elif kind == "end":
        found = [(last, Moment(run_a, "a", step)) for step in steps[:-1]]
    else:
        found = [(last, _moment(run_b, "b", -1))]
    return [Pair("consecutive", a, b) for a, b in found]


def _moment(run: Run, name: str, place: int) -> Moment:
    return Moment(run, name, run.steps[place])


def _plain(value: Any) -> Any:
    """A JSON value: no number for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        return value
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else int(value)
