"""What the arrays of a snapshot must look like, checked when a file is opened: axes, kinds of number, matching sizes."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from dynprobe.errors import RunFormatError
from dynprobe.storage.layout import probe_path
from dynprobe.storage.ledger import run_of
from dynprobe.storage.reader import FileReader

# Pattern of a name, number of axes, kinds of number. A name that fits none is of a later version and not read.
_SHAPES: tuple[tuple[str, int, str], ...] = (
    (r"main/\w+/(hidden_states|value_norms)/\d+", 2, "f"),
    (r"main/\w+/pooled/\w+/\d+", 2, "f"),
    (r"[\w-]+\.(train|test)/(random-)?\w+/pooled/\w+/\d+", 2, "f"),
    (r"main/\w+/\w+_attention/\d+", 1, "f"),
    (r"main/\w+/index/hidden_rows", 2, "iu"),
    (r"main/\w+/index/attention_examples", 1, "iu"),
    (r"main/outputs/(logits|token_logits|pooler_output|classifier_input)", 2, "f"),
    (r"main/outputs/nll", 1, "f"),
    (r"main/outputs/\w+_offsets", 1, "iu"),
    (r"parameters/names", 1, "u"),
    (r"parameters/(distance|norm)", 1, "f"),
)
_KINDS = {"f": "floating-point numbers", "iu": "integers", "u": "bytes"}


def require_snapshot(file: FileReader) -> None:
    """Check that a file is a snapshot and that its arrays have the axes and types of one.

    Raises
    ------
    RunFormatError
        Naming the first array that has not.
    """
    if file.meta.get("kind") != "snapshot" or type(file.meta.get("step")) is not int:
        raise RunFormatError(f"{file.path}: must be a snapshot; got {file.meta.get('kind')!r:.40}")
    if not isinstance(file.meta.get("model", {}), dict):
        raise RunFormatError(f"{file.path}: `model` must be a JSON object; got {file.meta['model']!r:.40}")
    for name in file.names:
        for pattern, n_axes, kinds in _SHAPES:
            if re.fullmatch(pattern, name):
                _require(file, name, n_axes, kinds)
    for name in file.names:
        if "/hidden_states/" in name:
            rows = f"{name.split('/hidden_states/')[0]}/index/hidden_rows"
            if rows in file and file.shape(rows) != (file.shape(name)[0], 2):
                raise RunFormatError(f"{file.path}: `{rows}` must name example and position of each row of `{name}`")


def require_inside(rows: np.ndarray, path: Path, stack: str) -> np.ndarray:
    """Indices of examples, or pairs of example and position, that must lie inside the probe set of a snapshot's run.

    Raises
    ------
    RunFormatError
        When one does not.
    """
    probe = probe_path(run_of(path))
    limits = _limits(probe, probe.stat().st_mtime_ns) if probe.is_file() else {}
    limit = limits.get(stack) or limits.get("")
    columns = (rows if rows.ndim == 2 else rows[:, np.newaxis]).astype(object if rows.dtype == np.uint64 else np.int64)
    if len(rows) and (columns.min() < 0 or (limit and (columns >= np.array(limit[: columns.shape[1]])).any())):
        raise RunFormatError(
            f"{path}: examples and positions must lie inside the probe set, {limit}; got {columns.max(0)}"
        )
    return rows


def require_examples(vectors: np.ndarray, path: Path, probe: str) -> np.ndarray:
    """Vectors of a snapshot that must be as many as the probe set of its run has examples.

    Parameters
    ----------
    vectors
        One row per example.
    path
        The snapshot file.
    probe
        Name of the probe set.

    Raises
    ------
    RunFormatError
        When they are more or fewer, or there is no such probe set.
    """
    file = probe_path(run_of(path), probe)
    n_examples = _limits(file, file.stat().st_mtime_ns).get("", (0,))[0] if file.is_file() else 0
    if len(vectors) != n_examples:
        raise RunFormatError(
            f"{path}: must hold one vector for each of the {n_examples} examples of {file.name}; got {len(vectors)}"
        )
    return vectors


def require_offsets(offsets: np.ndarray, n_rows: int, path: Path) -> np.ndarray:
    """First rows of the examples, which must ascend from 0 to the number of rows.

    Raises
    ------
    RunFormatError
        When they do not.
    """
    if not (len(offsets) and offsets[0] == 0 and offsets[-1] == n_rows and (offsets[1:] >= offsets[:-1]).all()):
        raise RunFormatError(f"{path}: offsets must ascend from 0 to the number of rows, {n_rows}; got {offsets[:4]} …")
    return offsets


def _require(file: FileReader, name: str, n_axes: int, kinds: str) -> None:
    shape, dtype = file.shape(name), np.dtype(file.facts(name)["dtype"])
    if len(shape) != n_axes or dtype.kind not in kinds:
        raise RunFormatError(
            f"{file.path}: `{name}` must hold {_KINDS[kinds]} on {n_axes} axis(es); got {dtype} of shape {shape}"
        )


@lru_cache(maxsize=64)
def _limits(probe: Path, _mtime: int) -> Mapping[str, tuple[int, ...]]:
    """Number of examples and of positions of each stack; under the empty name those of a stack without masks."""
    with FileReader(probe) as file:
        shapes = {name.removeprefix("real/"): file.shape(name) for name in file.names if name.startswith("real/")}
        inputs = [file.shape(name)[:1] for name in file.names if name.startswith("inputs/")]
        return {**shapes, **({"": min(inputs)} if inputs else {})}
