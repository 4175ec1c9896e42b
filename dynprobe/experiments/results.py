"""The results of an experiment: one mapping for each cell and each comparison, kept as lines of JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynprobe.capture.manifest import versions
from dynprobe.errors import DynprobeError
from dynprobe.experiments.cell_work import write_whole

RESULTS = "results.jsonl"

# What :func:`~dynprobe.experiments.grid.run_experiment` returns and :func:`read_results` reads.
Results = Sequence[Mapping[str, Any]]


def cells_of(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results of trainings."""
    return [result for result in results if "pair" not in result]


def pairs_of(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results of comparisons."""
    return [result for result in results if "pair" in result]


def cells_by_model(results: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The results of trainings of each model, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in cells_of(results):
        found.setdefault(result["model"], []).append(result)
    return found


def write_results(path: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Write results, one line of JSON each, with the versions of the libraries that made them: all of them or none."""
    lines = [json.dumps({"versions": versions(), **result}) for result in results]
    write_whole(path, "\n".join(lines) + "\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_results` wrote.

    Raises
    ------
    DynprobeError
        When the file is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DynprobeError(f"{path}: must be the results of an experiment, one line of JSON each; {error}") from error
