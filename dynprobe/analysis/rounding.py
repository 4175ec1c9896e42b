"""What rounding to the stored type alone can cause, layer by layer: no distance below it means anything."""

import numpy as np

from dynprobe.analysis.attention import METRIC as ATTENTION
from dynprobe.analysis.attention import movement_of
from dynprobe.analysis.attention_rows import LayerReader
from dynprobe.analysis.catalog import SIMILARITY
from dynprobe.analysis.causality import is_causal
from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import svcca_similarity

_SVCCA = SIMILARITY[0]


def rounding_floors(moment: Moment, *, stack: str = "model", seed: int = 0) -> dict[str, dict[str, float]]:
    """Distances that two captures of the same snapshot could show because numbers are stored with few digits.

    Parameters
    ----------
    moment
        The snapshot.
    stack
        Which stack.
    seed
        Of the rounding errors that are drawn.

    Returns
    -------
    dict
        ``attention_js_divergence``: block to divergence in nats of attention that differs by one unit in the last place
        everywhere. ``svcca_similarity``: layer to 1 - similarity of the hidden states and themselves with errors of up to one
        unit in the last place, uniform and independent. Without what was not captured, and layers that do not vary.

    Examples
    --------
    >>> rounding_floors(Moment(run, run.name, 0))["attention_js_divergence"]["1"]  # doctest: +SKIP
    1.3e-07
    """
    snapshot, same = moment.snapshot, Pair("between", moment, moment)
    floors: dict[str, dict[str, float]] = {ATTENTION: {}, _SVCCA: {}}
    for layer in snapshot.attention_layers(stack):
        read = LayerReader(stack, "self", layer, specials=False)
        found = movement_of(read, same, snapshot.n_heads(stack, "self"), causal=is_causal(moment, stack))
        if len(found.values):
            floors[ATTENTION][str(layer)] = float(found.floor.mean())
    if not snapshot.layers(stack):
        return floors
    rng, tokens = np.random.default_rng(seed), Representations([moment], stack, specials=False)
    for layer in snapshot.layers(stack):
        states = tokens.first_rows(moment, layer, tokens.n_rows)
        errors = rng.uniform(-1.0, 1.0, states.shape) * np.spacing(np.abs(states)).astype(np.float64)
        try:
            similarity = svcca_similarity(states.astype(np.float64), states + errors)
        except ValueError:  # a layer that does not vary, or has fewer rows than directions
            continue
        floors[_SVCCA][str(layer)] = max(0.0, 1.0 - float(similarity))
    return floors
