"""Hidden states of snapshots on the tokens that all of them have, read from disk block by block."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynprobe.analysis.moments import Moment
from dynprobe.metrics.rows import Prepared, Rows, prepare, standardised
from dynprobe.run import Snapshot

# Prepared rows of one layer are held in memory up to this size; larger ones are read again for each comparison.
MAX_HELD_BYTES = 2**25
# Groups of examples from which halves are made; the fewer where there are too few examples.
N_GROUPS = (8, 4)


@dataclass(frozen=True)
class StoredStates:
    """Hidden states of chosen tokens of one layer, as stored; rows are read when they are sliced.

    Attributes
    ----------
    snapshot, layer, stack
        Where they lie.
    index
        (n_rows,) ascending stored rows that are used.
    """

    snapshot: Snapshot
    layer: int
    stack: str
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tokens and d_model."""
        return len(self.index), self.snapshot.d_model(self.layer, self.stack)

    def __getitem__(self, rows: slice) -> np.ndarray:
        index = self.index[rows]
        if len(index) == 0:
            return np.empty((0, self.shape[1]), dtype=np.float32)
        first, last = int(index[0]), int(index[-1]) + 1
        block = self.snapshot.hidden_states(self.layer, self.stack, rows=slice(first, last))
        return block if last - first == len(index) else block[index - first]


class Representations:
    """Hidden states of one stack of several snapshots, row by row the same tokens.

    Parameters
    ----------
    moments
        Snapshots; tokens that one of them lacks are left out of all.
    stack
        Which stack.
    specials
        Whether special tokens are kept.
    standardize
        Whether every feature is centred and divided by its standard deviation, which takes the weight of rogue dimensions.

    Attributes
    ----------
    rows
        (n_rows, 2) example and position of each token.
    n_unshared
        Number of tokens that some snapshots lack.
    """

    def __init__(self, moments: Sequence[Moment], stack: str, *, specials: bool, standardize: bool = False) -> None:
        self.stack, self._standardize = stack, standardize
        stored = {moment: moment.snapshot.hidden_rows(stack).astype(np.int64) for moment in moments}
        common = _shared_rows(list(stored.values()))
        self.n_unshared = max(len(rows) for rows in stored.values()) - len(common)
        probe = moments[0].run.probe_set
        if not specials and stack in probe.special:
            common = common[~probe.special[stack][common[:, 0], common[:, 1]]]
        self.rows = common
        self._index = {moment: np.searchsorted(_codes(rows), _codes(common)) for moment, rows in stored.items()}
        runs = list(dict.fromkeys(moment.name for moment in moments))
        self._in_order = sorted(moments, key=lambda moment: (runs.index(moment.name), moment.step))
        self._starts = np.unique(common[:, 0], return_index=True)[1]

    @property
    def n_rows(self) -> int:
        """Number of tokens."""
        return len(self.rows)

    @property
    def d_model(self) -> int:
        """Width of the widest layer."""
        firsts = {moment.name: moment for moment in self._in_order}.values()
        return max(m.snapshot.d_model(m.snapshot.layers(self.stack)[0], self.stack) for m in firsts)

    @property
    def n_examples(self) -> int:
        """Number of examples with a token."""
        return len(self._starts)

    def states(self, moment: Moment, layer: int) -> Rows:
        """Hidden states as they are compared, read when they are sliced."""
        stored = self._stored(moment, layer)
        return standardised(stored) if self._standardize else stored

    def prepared(self, moment: Moment, layer: int) -> Prepared:
        """Hidden states ready for products; held in memory when they are small."""
        found = prepare(self.states(moment, layer))
        return found.held() if found.n_bytes <= MAX_HELD_BYTES else found

    def empty(self, moment: Moment, layer: int) -> Prepared:
        """As many rows of zeros, in place of hidden states that cannot be used."""
        return prepare(np.zeros((self.n_rows, self._stored(moment, layer).shape[1]), dtype=np.float16))

    def first_rows(self, moment: Moment, layer: int, n: int) -> np.ndarray:
        """(n, d_model) hidden states of the first tokens, as stored and never standardised."""
        return self._stored(moment, layer)[0:n]

    def _stored(self, moment: Moment, layer: int) -> StoredStates:
        return StoredStates(moment.snapshot, layer, self.stack, self._index[moment])

    def reference(self, moment: Moment, layer: int) -> Moment:
        """The first snapshot whose layer is as wide: the start of the first run, if the runs are of one size."""
        width = moment.snapshot.d_model(layer, self.stack)
        as_wide = (
            other
            for other in self._in_order
            if layer in other.snapshot.layers(self.stack) and other.snapshot.d_model(layer, self.stack) == width
        )
        return next(as_wide)

    def references(self, layer: int) -> tuple[Moment, ...]:
        """The reference of every width of a layer; a single one, if the runs are of one size."""
        having = [moment for moment in self._in_order if layer in moment.snapshot.layers(self.stack)]
        return tuple(dict.fromkeys(self.reference(moment, layer) for moment in having))

    def groups(self) -> list[int]:
        """Rows at which groups of equally many whole examples start, and the number of rows: 8 groups, 4, or a single one."""
        n_groups = next((n for n in N_GROUPS if n <= self.n_examples), 1)
        firsts = [-(-group * self.n_examples // n_groups) for group in range(n_groups)]
        return [*(int(self._starts[first]) for first in firsts), self.n_rows]

    def shift(self) -> int:
        """Number of rows by which to shift one side against the other, about half of them: whole examples, longer than any.

        0 where there is none, such as when one example holds half of the tokens.
        """
        longest = int(np.diff(self._starts, append=self.n_rows).max())
        far = self._starts[(self._starts >= longest) & (self._starts <= self.n_rows - longest)]
        return int(far[np.abs(far - self.n_rows / 2).argmin()]) if len(far) else 0


def _codes(rows: np.ndarray) -> np.ndarray:
    """One ascending number per row."""
    return (rows[:, 0] << 32) | rows[:, 1]


def _shared_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    codes = _codes(parts[0])
    for part in parts[1:]:
        codes = np.intersect1d(codes, _codes(part), assume_unique=True)
    return np.stack([codes >> 32, codes & (2**32 - 1)], axis=1)
