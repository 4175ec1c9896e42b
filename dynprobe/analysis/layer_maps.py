"""Layer by layer maps: every layer of one snapshot against every layer of another."""

from collections.abc import Iterable, Sequence

import numpy as np

from dynprobe.analysis.moments import Moment, Pair, last_pairs
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import Subspace, subspace_correlations
from dynprobe.metrics.workers import in_parallel


def corner_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that get a map: each run's end against its start, and end against end."""
    return [pair for pair in last_pairs(pairs) if pair.comparison in ("from_start", "between")]


def layer_maps(pairs: Iterable[Pair], states: Representations) -> dict[str, np.ndarray]:
    """SVCCA similarity of every pair of layers, for some pairs of snapshots; depths and widths may differ.

    Parameters
    ----------
    pairs
        Snapshots.
    states
        Their hidden states.

    Returns
    -------
    dict
        ``svcca_layers:RUN@STEP|RUN@STEP`` (``STACK of RUN`` for encoder and decoder) to an array (layers of the first,
        layers of the second), NaN where a layer was not captured or has no variance.
    """
    prefix = "" if states.stack == "model" else f"{states.stack} of "
    return {
        f"svcca_layers:{prefix}{pair.a.name}@{pair.a.step}|{prefix}{pair.b.name}@{pair.b.step}": _map(pair, states)
        for pair in pairs
    }


def _map(pair: Pair, states: Representations) -> np.ndarray:
    columns = {layer: _subspace(states, pair.b, layer) for layer in pair.b.snapshot.layers(states.stack)}
    layers = pair.a.snapshot.layers(states.stack)
    values = np.full((max(layers) + 1, max(columns) + 1), np.nan)

    def of_layer(layer: int) -> dict[int, float]:
        row = _subspace(states, pair.a, layer)
        return {
            layer_b: float(subspace_correlations(row, column).mean())
            for layer_b, column in columns.items()
            if row is not None and column is not None
        }

    for layer, found in zip(layers, in_parallel(of_layer, layers), strict=True):
        for layer_b, value in found.items():
            values[layer, layer_b] = value
    return values


def _subspace(states: Representations, moment: Moment, layer: int) -> Subspace | None:
    try:
        return states.subspace(moment, layer)
    except ValueError:
        return None
