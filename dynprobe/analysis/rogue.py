"""Which dimensions carry more than their share, in words: they can make hidden states look alike that are not."""

from collections.abc import Mapping, Sequence
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


def rogue_notes(moments: Sequence[Moment], states: Representations) -> list[str]:
    """Sentences naming the rogue dimensions of some snapshots; one that holds none but those named before is passed over.

    Parameters
    ----------
    moments
        Which snapshots, in the order of the sentences.
    states
        Their hidden states.

    Examples
    --------
    >>> rogue_notes([start, end], states)  # doctest: +SKIP
    ['seed-1 at step 0: dimension 99 (layers 1 to 6, up to 6 %) holds more than its share of ...']
    """
    notes: list[str] = []
    named: set[int] = set()
    for moment in moments:
        seen = _rogue_dimensions(moment, states)
        if not set(seen) <= named:
            notes.append(_sentence(moment, seen))
            named |= set(seen)
    return notes


def _rogue_dimensions(moment: Moment, states: Representations) -> dict[int, _Seen]:
    seen: dict[int, _Seen] = {}
    for layer in moment.snapshot.layers(states.stack):
        rows = states.first_rows(moment, layer, MAX_TOKENS).astype(np.float32)
        try:
            found = rogue_dimensions(rows[rows.any(axis=1)])  # a zero vector has no direction
        except ValueError:  # a layer without variance has no shares, nor has NaN
            continue
        for index, variance, offset in zip(found.index, found.variance_share, found.offset_share, strict=True):
            one = seen.setdefault(int(index), _Seen([], 0.0))
            one.layers.append(layer)
            one.share = max(one.share, float(variance), float(offset))
    return seen


def _sentence(moment: Moment, seen: Mapping[int, _Seen]) -> str:
    largest = sorted(seen.items(), key=lambda item: -item[1].share)
    named = ", ".join(f"{index} ({_layers(one.layers)}, up to {one.share:.0%})" for index, one in largest[:_MAX_NAMED])
    more = f" and {len(largest) - _MAX_NAMED} others" if len(largest) > _MAX_NAMED else ""
    return (
        f"{moment.name} at step {moment.step}: more than their share of the variance or of the mean lies in the dimensions "
        f"{named}{more}. CKA and cosines weigh by it; --standardize (standardize=True) gives every dimension the same weight."
    )


def _layers(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    return "layers " + ", ".join(str(number) for number in numbers)
