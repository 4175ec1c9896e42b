"""Layer by layer maps: every layer of one snapshot against every layer of another."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dynprobe.analysis.moments import Moment, Pair, last_pairs
from dynprobe.metrics.grid import Factored, grid_of


def corner_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that get a map: each run's end against its start, and end against end."""
    return [pair for pair in last_pairs(pairs) if pair.comparison in ("from_start", "between")]


def layer_maps(
    pairs: Iterable[Pair], stack: str, factors: Mapping[Moment, Mapping[int, Factored | None]]
) -> dict[str, np.ndarray]:
    """SVCCA similarity of every pair of layers, for some pairs of snapshots; depths and widths may differ.

    Parameters
    ----------
    pairs
        Snapshots.
    stack
        Which stack.
    factors
        Kept directions of each layer of each snapshot; ``None`` for a layer without variance or with too few tokens.

    Returns
    -------
    dict
        ``svcca_layers:RUN@STEP|RUN@STEP`` (``STACK of RUN`` for encoder and decoder) to an array (layers of the first,
        layers of the second), NaN where a layer was not captured, has no variance or too few tokens. Without a map that
        would be nothing but NaN.
    """
    prefix = "" if stack == "model" else f"{stack} of "
    maps = {
        f"svcca_layers:{prefix}{pair.a.name}@{pair.a.step}|{prefix}{pair.b.name}@{pair.b.step}": _map(
            factors[pair.a], factors[pair.b]
        )
        for pair in pairs
    }
    return {name: values for name, values in maps.items() if not np.isnan(values).all()}


def _map(rows: Mapping[int, Factored | None], columns: Mapping[int, Factored | None]) -> np.ndarray:
    values = np.full((max(rows) + 1, max(columns) + 1), np.nan)
    left, right = ({layer: found for layer, found in side.items() if found is not None} for side in (rows, columns))
    if left and right:
        values[np.ix_(list(left), list(right))] = grid_of(list(left.values()), list(right.values())).similarity
    return values
