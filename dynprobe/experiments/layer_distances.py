"""How far attention and hidden states are from each other in each layer: distances of the trainings of an experiment."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dynprobe.experiments.results import Results
from dynprobe.experiments.tables import pair_frame

ATTENTION, HIDDEN, HIDDEN_CKA = "attention", "hidden states", "hidden states, CKA"
_MEASURES = {"attention_js_divergence": ATTENTION, "svcca_similarity": HIDDEN, "linear_cka_similarity": HIDDEN_CKA}


def distance_frame(results: Results) -> pd.DataFrame:
    """Distances of all compared trainings, one row per pair of snapshots and layer.

    Parameters
    ----------
    results
        Of an experiment whose ``measure`` asks for ``pairs``.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`~dynprobe.experiments.tables.pair_frame` that say what was compared; ``arms``, the data set or
        both; ``measure``; ``distance``, the JS divergence in nats, or 1 - similarity; ``examples``, half the width of its 95 %
        interval over the examples of the probe set. What could not be measured is left out, what is below the resolution of the
        stored numbers is not. Decoders and cross-attention are left out.
    """
    frame = pair_frame(results)
    if frame.empty:
        return frame.assign(arms="", measure="", distance=0.0, examples=0.0)
    frame = frame[frame["value"].notna() & (frame["stack"] == "model") & frame["position"].isna()]
    value, low, high = (frame[name].astype(float) for name in ("value", "low", "high"))
    measure = frame["metric"].map(_MEASURES)
    both = frame["arm_a"] + " and " + frame["arm_b"]
    return frame.assign(
        arms=frame["arm_a"].where(frame["arm_a"] == frame["arm_b"], both),
        measure=measure,
        distance=value.where(measure == ATTENTION, 1.0 - value),
        examples=((high - low) / 2).where(
            measure == ATTENTION, value - low
        ),  # of similarities, the other end may be cut off
    ).drop(columns=["metric", "stack", "position", "value", "low", "high"])


def at_the_end(frame: pd.DataFrame) -> pd.DataFrame:
    """Distances of last snapshots alone: from the start, between seeds, between data sets."""
    last = frame.groupby(["model", "arm_a", "seed_a"])["step_a"].transform("max")
    return frame[(frame["step_a"] == last) & (frame["pair"] != "end")]


def profile(frame: pd.DataFrame, pair: str, measure: str, *, values: str = "distance") -> pd.DataFrame:
    """Mean over the seeds: one row per data set (or pair of data sets), one column per block, from layer 1 up.

    Parameters
    ----------
    frame
        Of one model, as :func:`at_the_end` gives it.
    pair
        ``"start"``, ``"seeds"`` or ``"arms"``.
    measure
        :data:`ATTENTION`, :data:`HIDDEN` or :data:`HIDDEN_CKA`.
    values
        The column to take.
    """
    rows = frame[(frame["pair"] == pair) & (frame["measure"] == measure) & (frame["layer"] > 0)]
    found = rows.pivot_table(index="arms", columns="layer", values=values, sort=False)
    return found[sorted(found.columns)]


def floors_of(results: Results, model: str) -> dict[str, dict[int, float]]:
    """Measure to layer to the distance that rounding to the stored type can cause: the largest of all trainings of a model."""
    found: dict[str, dict[int, float]] = {ATTENTION: {}, HIDDEN: {}}
    for result in results:
        if result.get("pair") == "start" and result["model"] == model:
            floors: Mapping[str, Mapping[str, float]] = result["floors"]
            for metric, by_layer in floors.items():
                own = found[_MEASURES[metric]]
                for layer, floor in by_layer.items():
                    own[int(layer)] = max(own.get(int(layer), 0.0), floor)
    return found


def thirds(layers: list[int]) -> tuple[list[int], list[int], list[int]]:
    """First, middle and last layers. Of two layers none is in the middle; one alone is there.

    Examples
    --------
    >>> thirds([1, 2, 3, 4, 5, 6])
    ([1, 2], [3, 4], [5, 6])
    >>> thirds([1, 2])
    ([1], [], [2])
    """
    n = max(1, round(len(layers) / 3)) if len(layers) > 1 else 0
    return layers[:n], layers[n : len(layers) - n], layers[len(layers) - n :]


def over_training(frame: pd.DataFrame, pair: str, measure: str) -> dict[int, tuple[list[int], np.ndarray]]:
    """Layer to the steps and (n_trainings, n_steps) distances of each snapshot from the first or the last.

    Parameters
    ----------
    frame
        Of one model, as :func:`distance_frame` gives it.
    pair
        ``"start"`` or ``"end"``.
    measure
        As for :func:`profile`.

    Returns
    -------
    dict
        Layers from 1 up. The snapshot that is the reference itself is at distance 0.
    """
    step = "step_a" if pair == "start" else "step_b"
    rows = frame[(frame["pair"] == pair) & (frame["measure"] == measure) & (frame["layer"] > 0)]
    found = {}
    for layer, own in rows.groupby("layer"):
        table = own.pivot_table(index=["arm_a", "seed_a"], columns=step, values="distance")
        table[0 if pair == "start" else int(own["step_a"].max())] = 0.0
        table = table[sorted(table.columns)]
        found[int(str(layer))] = ([int(at) for at in table.columns], table.to_numpy())
    return found
