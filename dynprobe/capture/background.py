"""Writing while the model goes on: actions are done by one thread, in order, never too far behind."""

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

# So many bytes may wait to be written; a larger block waits alone.
MAX_WAITING = 256 * 2**20


class InOrder:
    """A context in which actions are done one after another by a thread beside; leaving it waits for the last.

    The first fault stops the actions behind it and is raised at the next call, or when the context is left.

    Parameters
    ----------
    max_waiting
        Bytes that may wait; the caller is held up beyond that.

    Examples
    --------
    >>> done = []
    >>> with InOrder() as later:
    ...     for number in range(3):
    ...         later(lambda number=number: done.append(number))
    >>> done
    [0, 1, 2]
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._actions: deque[tuple[Callable[[], object], int]] = deque()
        self._n_waiting = 0
        self._over = False
        self._fault: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="dynprobe-writer", daemon=True)

    def __enter__(self) -> "InOrder":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            if kind is not None:
                self._actions.clear()
            self._over = True
            self._changed.notify_all()
        self._thread.join()
        if kind is None and self._fault is not None:
            raise self._fault

    def __call__(self, action: Callable[[], object], n_bytes: int = 0) -> None:
        """Do `action`, which holds on to `n_bytes` of memory, after those before it."""
        with self._changed:
            while self._fault is None and self._n_waiting and self._n_waiting + n_bytes > self._max_waiting:
                self._changed.wait()
            if self._fault is not None:
                raise self._fault
            self._actions.append((action, n_bytes))
            self._n_waiting += n_bytes
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._actions and not self._over:
                    self._changed.wait()
                if not self._actions:
                    return
                action, n_bytes = self._actions.popleft()
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                with self._changed:
                    self._fault, self._over = error, True
                    self._actions.clear()
            finally:
                del action  # it holds the block that was written
                with self._changed:
                    self._n_waiting -= n_bytes
                    self._changed.notify_all()
