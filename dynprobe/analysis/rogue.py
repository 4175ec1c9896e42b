"""Which dimensions carry more than their share, in words: they can make hidden states look alike that are not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynprobe.analysis.moments import Moment
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import rogue_dimensions

# Enough to see a dimension that holds several percent of the variance.
MAX_TOKENS = 4096
_MAX_NAMED = 5


@dataclass
class _Seen:
    """Where one dimension was seen, and the most that it held."""

    layers: list[int]
    share: float


def rogue_note(moment: Moment, states: Representations, layers: Sequence[int]) -> str | None:
    """One sentence naming the rogue dimensions of a snapshot, or ``None``.

    Parameters
    ----------
    moment
        Which snapshot.
    states
        Its hidden states.
    layers
        Layers to look at.

    Examples
    --------
    >>> rogue_note(moment, states, range(7))  # doctest: +SKIP
    'seed-1 at step 0: dimension 99 (layers 1 to 6, up to 6 %) holds more than its share of ...'
    """
    seen: dict[int, _Seen] = {}
    for layer in layers:
        try:
            found = rogue_dimensions(states.first_rows(moment, layer, MAX_TOKENS).astype(np.float32))
        except ValueError:  # a layer without variance has no shares
            continue
        for index, variance, offset in zip(found.index, found.variance_share, found.offset_share, strict=True):
            one = seen.setdefault(int(index), _Seen([], 0.0))
            one.layers.append(layer)
            one.share = max(one.share, float(variance), float(offset))
    if not seen:
        return None
    largest = sorted(seen.items(), key=lambda item: -item[1].share)
    named = ", ".join(f"{index} ({_layers(one.layers)}, up to {one.share:.0%})" for index, one in largest[:_MAX_NAMED])
    more = f" and {len(largest) - _MAX_NAMED} others" if len(largest) > _MAX_NAMED else ""
    return (
        f"{moment.name} at step {moment.step}: dimensions {named}{more} hold more than their share of the variance or of the "
        "mean, so that CKA and cosines mostly see these; --standardize (standardize=True) takes their weight."
    )


def _layers(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    return "layers " + ", ".join(str(number) for number in numbers)
