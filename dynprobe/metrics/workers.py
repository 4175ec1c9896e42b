"""Several pieces of work at once: small decompositions gain nothing from many threads of their own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Each worker holds a few layers in memory.
MAX_WORKERS = 4


def n_workers() -> int:
    """Number of workers: as many as torch may use threads, at most four."""
    return min(MAX_WORKERS, torch.get_num_threads())


def in_parallel(
    function: Callable[[Item], Answer], items: Sequence[Item], *, workers: int | None = None
) -> Iterator[Answer]:
    """Answers for all items, in their order; torch's threads are shared out to the workers while the iteration lasts.

    Parameters
    ----------
    function
        Touches nothing that another call changes.
    items
        What it is called with.
    workers
        At most so many at once; by default :func:`n_workers`.

    Examples
    --------
    >>> list(in_parallel(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    most = max(1, min(n_workers(), workers or MAX_WORKERS))
    with _threads_each(most):
        if most == 1 or len(items) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(most) as pool:
            yield from pool.map(function, items)


@contextmanager
def _threads_each(workers: int) -> Iterator[None]:
    """Share torch's threads out to the workers; on a busy machine idle threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
