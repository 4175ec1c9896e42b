"""Attention of one layer as a sequence of arrays of different shapes, read from a flat array when it is asked for."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from dynprobe.errors import RunFormatError
from dynprobe.storage.reader import FileReader


class Ragged(Sequence[np.ndarray]):
    """Attention of one layer: one array (n_heads, n_query, n_key) per example, read when it is asked for.

    Parameters
    ----------
    file
        Open snapshot file.
    name
        Name of the flat array in it.
    n_heads
        Number of heads.
    lengths
        (n_examples, 2) number of query and of key positions of each example.
    """

    def __init__(self, file: FileReader, name: str, n_heads: int, lengths: np.ndarray) -> None:
        self._file, self._name, self._n_heads, self._lengths = file, name, n_heads, lengths
        sizes = [n_heads * n_query * n_key for n_query, n_key in lengths.tolist()]  # Python integers do not overflow
        self._offsets = list(accumulate(sizes, initial=0))
        if self._offsets[-1] != file.shape(name)[0]:
            raise RunFormatError(
                f"{file.path}: `{name}` must hold {self._offsets[-1]} values; got {file.shape(name)[0]}"
            )

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self._n_heads

    @property
    def lengths(self) -> np.ndarray:
        """(n_examples, 2) number of query and of key positions of each example."""
        return self._lengths

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored numbers: float16, or float32 where that was asked for or needed."""
        return np.dtype(self._file.facts(self._name)["dtype"])

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices: each read is one example
        if not -len(self) <= index < len(self):
            raise IndexError(f"example must lie in 0..{len(self) - 1}; got {index}")
        position = index % len(self)
        start, stop = self._offsets[position], self._offsets[position + 1]
        n_query, n_key = (int(length) for length in self._lengths[position])
        return self._file.read(self._name, slice(start, stop)).reshape(self._n_heads, n_query, n_key)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))
