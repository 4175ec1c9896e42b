"""Tables of the isotropy that cells kept: one row per vector of each training, and [CLS] layer by layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.experiments.isotropy_readings import STD_QUANTILES, map_matrix
from dynprobe.experiments.results import Results, cells_of

# Names of the vectors: what a normalisation of the classifier's input is given, and what it returns.
GIVEN, RETURNED = "pooler_output", "classifier_input"


def isotropy_frame(results: Results) -> pd.DataFrame:
    """One row per training, end of it and vector.

    Parameters
    ----------
    results
        Of an experiment with ``isotropy: true``.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``arm``, ``seed``; ``tuned``, whether after the training or before it; ``vector``, :data:`GIVEN` or
        :data:`RETURNED`; ``n``, ``d``; ``share_1`` to ``share_3``, the cumulated explained variance, and ``uncentred_1`` to
        ``uncentred_3``; ``correlation``, ``isoscore``; ``std``, the quantiles of the standard deviations as an array.
        Trainings of which nothing was captured have no rows.
    """
    rows = []
    for result, snapshots in _measured(results):
        for tuned, found in snapshots:
            rows += [
                {**_names(result), "tuned": tuned, "vector": vector, **_row(found[vector])}
                for vector in (GIVEN, RETURNED)
                if found[vector] is not None
            ]
    return pd.DataFrame(rows)


def layer_frame(results: Results) -> pd.DataFrame:
    """One row per training, end of it and layer: isotropy of [CLS] or what stands for it; columns as :func:`isotropy_frame`."""
    rows = []
    for result, snapshots in _measured(results):
        for tuned, found in snapshots:
            rows += [
                {**_names(result), "tuned": tuned, "layer": int(layer), **_row(table)}
                for layer, table in found["layers"].items()
                if table is not None
            ]
    return pd.DataFrame(rows)


def change_frame(results: Results) -> pd.DataFrame:
    """One row per training: how far the layer before the classifier moves the correlations after training.

    Columns ``largest`` and ``of_rounding`` as :func:`~dynprobe.experiments.isotropy_readings.correlation_change`.
    """
    rows = [
        {**_names(result), **snapshots[-1][1]["correlation_change"]}
        for result, snapshots in _measured(results)
        if snapshots[-1][1]["correlation_change"] is not None
    ]
    return pd.DataFrame(rows, columns=["model", "arm", "seed", "largest", "of_rounding"])


def cold_starts(results: Results, model: str) -> dict[str, np.ndarray]:
    """Curves of :func:`~dynprobe.experiments.isotropy_readings.cold_start` over the seeds of a model, (n_seeds, n_steps)."""
    found: dict[int, Mapping[str, Any]] = {}
    for result in cells_of(results):
        curve = result["stages"][-1].get("isotropy", {}).get("cold_start")
        if result["model"] == model and curve is not None:
            found.setdefault(result["seed"], curve)
    names = [name for name, value in next(iter(found.values()), {}).items() if isinstance(value, list)]
    return {name: np.array([curve[name] for curve in found.values()], dtype=float) for name in names}


def correlation_maps(results: Results, model: str, arm: str) -> dict[bool, np.ndarray]:
    """Maps of the absolute correlations that one seed of an arm kept: before training (False) and after it (True)."""
    for result in cells_of(results):
        kept = result["stages"][-1].get("isotropy", {}).get("maps")
        if kept and (result["model"], result["arm"]) == (model, arm):
            steps = sorted(kept, key=int)
            last = max(result["stages"][-1]["isotropy"]["steps"], key=int)
            return {step == last: map_matrix(kept[step]) for step in steps}
    return {}


def std_quantiles(frame: pd.DataFrame) -> np.ndarray:
    """Standard deviations of the rows of an :func:`isotropy_frame`, over the median of each: (n_rows, n_quantiles)."""
    table = np.array([list(std) for std in frame["std"]], dtype=float).reshape(-1, len(STD_QUANTILES))
    middle = table[:, [STD_QUANTILES.index(0.5)]]
    return np.divide(table, middle, out=np.full_like(table, np.nan), where=middle > 0)


def _measured(results: Results) -> Iterator[tuple[Mapping[str, Any], list[tuple[bool, Mapping[str, Any]]]]]:
    """Each captured training with its first and its last snapshot, and whether it is the last."""
    for result in cells_of(results):
        steps = result["stages"][-1].get("isotropy", {}).get("steps", {})
        if steps:
            order = sorted(steps, key=int)
            yield result, [(False, steps[order[0]]), (True, steps[order[-1]])]


def _names(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("model", "arm", "seed")}


def _row(table: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: table[name] for name in ("n", "d", "correlation", "isoscore", "std")}
    shares = {f"share_{rank + 1}": value for rank, value in enumerate(table["shares"])}
    return {**own, **shares, **{f"uncentred_{rank + 1}": value for rank, value in enumerate(table["shares_uncentred"])}}
