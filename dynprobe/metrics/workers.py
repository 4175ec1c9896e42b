"""Several pieces of work at once, each on one thread: small decompositions gain nothing from many threads of their own."""

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


def in_parallel(function: Callable[[Item], Answer], items: Sequence[Item]) -> Iterator[Answer]:
    """Answers for all items, in their order; torch is held to one thread per worker while the iteration lasts.

    Parameters
    ----------
    function
        Touches nothing that another call changes.
    items
        What it is called with.

    Examples
    --------
    >>> list(in_parallel(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    workers = n_workers()
    with _one_thread_each():
        if workers == 1 or len(items) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(function, items)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Hold torch to one thread per operation; on a busy machine its idle threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
