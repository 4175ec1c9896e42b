"""Hidden states of snapshots on the tokens that all of them have, and their principal subspaces, each factored once."""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch

from dynprobe.analysis.cka_sides import CkaSide
from dynprobe.analysis.moments import Moment
from dynprobe.metrics import Subspace, principal_subspace
from dynprobe.metrics.workers import n_workers

MAX_BYTES = 2**30
MIN_TOKENS = 4096
_SIDES_PER_WORKER = 4
# Tokens for each dimension, as in the rule of thumb for canonical correlations; more would only cost time.
_TOKENS_PER_DIMENSION = 10


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
    variance
        Share of the variance that a subspace keeps.
    max_bytes
        Memory that remembered subspaces may take; the longest unused are dropped beyond it.

    Attributes
    ----------
    rows
        (n_rows, 2) example and position of each token: those of the first examples, at least 4096 or ten for each
        dimension, as far as there are so many.
    n_shared, n_unshared
        Number of tokens that all snapshots have, and that some of them lack.
    """

    def __init__(
        self, moments: Sequence[Moment], stack: str, *, specials: bool, variance: float, max_bytes: int = MAX_BYTES
    ) -> None:
        self.stack, self.variance = stack, variance
        stored = {moment: moment.snapshot.hidden_rows(stack).astype(np.int64) for moment in moments}
        common = _shared_rows(list(stored.values()))
        self.n_unshared = max(len(rows) for rows in stored.values()) - len(common)
        probe = moments[0].run.probe_set
        if not specials and stack in probe.special:
            common = common[~probe.special[stack][common[:, 0], common[:, 1]]]
        self.n_shared = len(common)
        d_model = max(
            m.snapshot.hidden_states(m.snapshot.layers(stack)[0], stack).shape[1] for m in _one_per_run(moments)
        )
        self.rows = common = _first_examples(common, max(MIN_TOKENS, _TOKENS_PER_DIMENSION * d_model))
        self._index = {moment: np.searchsorted(_codes(rows), _codes(common)) for moment, rows in stored.items()}
        self._max_bytes = max_bytes
        self._subspaces: OrderedDict[tuple[Moment, int], Subspace] = OrderedDict()
        self._max_sides = _SIDES_PER_WORKER * n_workers()
        self._lock = Lock()
        self._sides: OrderedDict[tuple[Moment, int], CkaSide] = OrderedDict()

    @property
    def n_rows(self) -> int:
        """Number of tokens."""
        return len(self.rows)

    def states(self, moment: Moment, layer: int) -> np.ndarray:
        """(n_rows, d_model) hidden states, float32."""
        states = moment.snapshot.hidden_states(layer, self.stack)
        index = self._index[moment]
        return states[index].astype(np.float32)

    def side(self, moment: Moment, layer: int) -> CkaSide:
        """Hidden states prepared for CKA; both starts and the pair in hand of each worker are remembered."""
        key = moment, layer
        with self._lock:
            found = self._sides.get(key)
        if found is None:
            found = CkaSide.of(torch.from_numpy(self.states(moment, layer)))
        with self._lock:
            self._sides[key] = found
            self._sides.move_to_end(key)
            while len(self._sides) > self._max_sides:
                self._sides.popitem(last=False)
        return found

    def subspace(self, moment: Moment, layer: int) -> Subspace:
        """The directions that hold the wanted share of the variance; computed once while memory lasts."""
        key = moment, layer
        with self._lock:
            found = self._subspaces.get(key)
        if found is None:
            found = principal_subspace(self.states(moment, layer), variance=self.variance)
        with self._lock:
            self._subspaces[key] = found
            self._subspaces.move_to_end(key)
            while len(self._subspaces) > 1 and self._n_bytes() > self._max_bytes:
                self._subspaces.popitem(last=False)
        return found

    def forget(self, layer: int, *, keep: Sequence[Moment]) -> None:
        """Drop the subspaces of a layer that is done, but for some snapshots."""
        with self._lock:
            for key in [key for key in self._subspaces if key[1] == layer and key[0] not in keep]:
                del self._subspaces[key]

    def groups(self, n_groups: int) -> np.ndarray:
        """(n_rows,) number of the group of examples that each token belongs to; whole examples stay together."""
        _, example = np.unique(self.rows[:, 0], return_inverse=True)
        return example % n_groups

    @property
    def n_examples(self) -> int:
        """Number of examples with a token."""
        return len(np.unique(self.rows[:, 0]))

    def shifts(self, fractions: Sequence[float]) -> tuple[int, ...]:
        """Numbers of rows that shift the tokens by about these fractions of the examples, by whole examples."""
        starts = np.unique(self.rows[:, 0], return_index=True)[1]
        n = len(starts)
        chosen = {int(starts[round(fraction * n) % n]) for fraction in fractions}
        return tuple(sorted(chosen - {0}))

    def _n_bytes(self) -> int:
        return sum(subspace.variates.nbytes for subspace in self._subspaces.values())


def _one_per_run(moments: Sequence[Moment]) -> list[Moment]:
    return list({moment.name: moment for moment in moments}.values())


def _first_examples(rows: np.ndarray, n_tokens: int) -> np.ndarray:
    """Whole examples from the first on, until there are so many tokens; any prefix of a probe set is a stratified choice."""
    if len(rows) <= n_tokens:
        return rows
    return rows[rows[:, 0] <= rows[n_tokens - 1, 0]]


def _codes(rows: np.ndarray) -> np.ndarray:
    """One ascending number per row."""
    return (rows[:, 0] << 32) | rows[:, 1]


def _shared_rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    codes = _codes(parts[0])
    for part in parts[1:]:
        codes = np.intersect1d(codes, _codes(part), assume_unique=True)
    return np.stack([codes >> 32, codes & (2**32 - 1)], axis=1)
