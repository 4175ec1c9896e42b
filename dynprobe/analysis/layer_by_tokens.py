"""One layer of several snapshots by products of its tokens: CKA alone, where tokens are few for the width."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynprobe.analysis.directions import LeftOut
from dynprobe.analysis.layer import Agreement, Compared, Layer, Side
from dynprobe.analysis.moments import Moment, Pair
from dynprobe.analysis.representations import Representations
from dynprobe.metrics import balanced_half_samples
from dynprobe.metrics.kernels import Kernel, hsic, kernel_of, self_hsic
from dynprobe.metrics.workers import in_parallel

# Up to so many tokens for each feature, products of tokens take less time and memory than sums of those of features.
MOST_ROWS_PER_FEATURE = 4


@dataclass(frozen=True, kw_only=True)
class TokenSide(Side):
    """One snapshot of a layer.

    Attributes
    ----------
    kernel
        Products of its tokens.
    self_similarity
        Unbiased HSIC with itself, of all examples and of each half of them; NaN where it is nothing but rounding.
    """

    kernel: Kernel
    self_similarity: Tensor


class TokenLayer(Layer[TokenSide]):
    """CKA of one layer of one stack by products of its tokens.

    Parameters
    ----------
    states, number, keep, left_out
        As for :class:`~dynprobe.analysis.layer.Layer`.
    """

    def __init__(
        self, states: Representations, number: int, *, keep: Collection[Moment], left_out: Mapping[Moment, LeftOut]
    ) -> None:
        super().__init__(states, number, keep=keep, left_out=left_out)
        n_groups = len(self._groups) - 1
        halves = balanced_half_samples(n_groups) if n_groups > 1 else np.empty((0, 1))
        self._chosen = torch.from_numpy(np.concatenate([np.ones((1, n_groups)), halves]))

    def compare(self, pairs: Sequence[Pair]) -> list[Compared]:
        """How similar the two snapshots of each pair are, on all examples, on halves of them, and by chance."""
        self.read(moment for pair in pairs for moment in (pair.a, pair.b))
        return list(in_parallel(self._compared, pairs))

    def _compared(self, pair: Pair) -> Compared:
        a, b = self.side(pair.a), self.side(pair.b)
        own = (a.self_similarity * b.self_similarity).sqrt()
        value, *halves = _agreements(hsic(a.kernel, b.kernel, self._chosen) / own)
        shift = self._states.shift()
        if shift == 0:
            return Compared(value, tuple(halves), None)
        unrelated = hsic(a.kernel.ungrouped(), b.kernel.rolled(shift), self._chosen[:1, :1])
        return Compared(value, tuple(halves), *_agreements(unrelated / own[:1]))

    def _side(self, moment: Moment) -> TokenSide:
        problem = ""
        try:
            kernel = kernel_of(self._states.states(moment, self._number), self._groups)
        except ValueError as error:  # NaN, which capture refuses but a file may hold
            kernel, problem = kernel_of(np.zeros((self._states.n_rows, 1)), self._groups), str(error)
        without = self._left_out[self._states.reference(moment, self._number)]
        own = self_hsic(kernel, self._chosen)
        return TokenSide(kernel=kernel, self_similarity=own, left_out=without, problem=problem)


def _agreements(similarities: Tensor) -> list[Agreement]:
    return [Agreement(cka) for cka in similarities.clamp(-1.0, 1.0).tolist()]
