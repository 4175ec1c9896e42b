"""Attention of one layer as distributions, ready to be compared: special tokens out or in, rows sum to one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dynprobe.analysis.causality import informative
from dynprobe.analysis.moments import Moment
from dynprobe.run import Ragged

# A query that gives less than this to the keys that are kept says nothing about how it divides it.
MIN_MASS = 1e-6
# Both starts and both snapshots of the pair in hand; more would only cost memory.
_REMEMBERED = 4


@dataclass(frozen=True)
class Bundle:
    """Attention rows of all examples with the same number of keys.

    Attributes
    ----------
    probabilities
        (n_rows, n_keys) float64, each row summing to one; ordered by example, head, query.
    known
        (n_rows,) whether the row had enough mass on the kept keys.
    floor
        (n_rows,) divergence in nats that rounding to the stored type alone can cause.
    starts
        First row of each example and head: n_heads per example.
    owners
        Index of each example among those that were asked for.
    """

    probabilities: np.ndarray
    known: np.ndarray
    floor: np.ndarray
    starts: np.ndarray
    owners: tuple[int, ...]


class LayerReader:
    """Reads one layer of any snapshot and remembers the last few: step 0 is compared with every other step.

    Parameters
    ----------
    stack, kind, layer
        Which attention.
    specials
        Whether special tokens are kept as queries and keys.
    """

    def __init__(self, stack: str, kind: str, layer: int, *, specials: bool) -> None:
        self.stack, self._kind, self._layer, self._specials = stack, kind, layer, specials
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._read)

    def __call__(self, moment: Moment, examples: tuple[int, ...], *, causal: bool) -> list[Bundle]:
        """Attention rows of some probe examples, grouped by number of keys so that few large calls do the work.

        Where `causal`, queries with one key to attend to are left out. Examples of which no query or no key is left are
        left out as well.
        """
        return self._remembered(moment, examples, causal=causal)

    def _read(self, moment: Moment, examples: tuple[int, ...], *, causal: bool) -> list[Bundle]:
        attention = moment.snapshot.attentions(self._layer, self.stack, self._kind)
        stored = {int(example): row for row, example in enumerate(moment.snapshot.attention_examples(self.stack))}
        groups: dict[int, list[_Block]] = {}
        for owner, example in enumerate(examples):
            row = stored[example]
            n_query, n_key = (int(length) for length in attention.lengths[row])
            queries = np.arange(1) if self._kind == "cls" else self._kept(moment, self.stack, example, n_query)
            keys = self._kept(moment, "encoder" if self._kind == "cross" else self.stack, example, n_key)
            if causal:
                queries = informative(queries, keys, n_virtual=n_key - n_query)
            if queries.size and keys.size:
                groups.setdefault(len(keys), []).append(_Block(owner, row, queries, keys))
        return [_bundle(attention, blocks) for blocks in groups.values()]

    def _kept(self, moment: Moment, stack: str, example: int, n_stored: int) -> np.ndarray:
        """Indices into the stored positions of an example. Virtual keys precede the tokens and are always kept."""
        probe = moment.run.probe_set
        if self._specials or stack not in probe.special or stack not in probe.real:
            return np.arange(n_stored)
        special = probe.special[stack][example][probe.real[stack][example]]
        n_virtual = n_stored - len(special)
        return np.concatenate([np.arange(n_virtual), n_virtual + np.flatnonzero(~special)])


@dataclass(frozen=True)
class _Block:
    """Which part of a stored block is kept."""

    owner: int
    row: int
    queries: np.ndarray
    keys: np.ndarray


def _bundle(attention: Ragged, blocks: Sequence[_Block]) -> Bundle:
    parts = [_cut(attention[block.row], block) for block in blocks]
    stored = np.concatenate(parts)
    probabilities = stored.astype(np.float64)
    mass = probabilities.sum(axis=1)
    known = mass >= MIN_MASS
    floor = _rounding_floor(probabilities, mass, np.finfo(stored.dtype))
    probabilities /= np.where(known, mass, 1.0)[:, None]
    probabilities[~known] = 1.0 / probabilities.shape[1]
    per_head = np.repeat([len(block.queries) for block in blocks], attention.n_heads)
    starts = np.concatenate([[0], np.cumsum(per_head)[:-1]])
    return Bundle(probabilities, known, floor, starts, tuple(block.owner for block in blocks))


def _cut(stored: np.ndarray, block: _Block) -> np.ndarray:
    if (len(block.queries), len(block.keys)) != stored.shape[1:]:
        stored = stored[:, block.queries[:, None], block.keys]
    return stored.reshape(-1, len(block.keys))


def _rounding_floor(probabilities: np.ndarray, mass: np.ndarray, info: np.finfo) -> np.ndarray:
    """JS divergence of two rows that differ by one unit in the last place everywhere: sum of difference² / p, over 8.

    Two stored numbers are off by half a unit each at most, and JS is quadratic in a small difference. For float16 this
    is 1.2e-7 nats, more where small probabilities fall below the normal range.
    """
    unit = np.maximum(probabilities * float(info.eps), float(info.smallest_subnormal))
    terms = unit * unit / np.maximum(probabilities, unit)
    terms[probabilities == 0] = 0
    return terms.sum(axis=1) / np.maximum(mass, MIN_MASS) / 8
