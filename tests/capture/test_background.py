"""Actions beside the model: in order, bounded, and no fault is lost."""

import threading
import time

import pytest

from dynprobe.capture.background import InOrder


def test_actions_are_done_in_order_by_another_thread() -> None:
    done: list[int] = []
    threads: set[int] = set()
    with InOrder() as later:
        for number in range(100):
            later(lambda number=number: (done.append(number), threads.add(threading.get_ident())))
    assert done == list(range(100))
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1


def test_the_caller_waits_when_too_much_is_waiting() -> None:
    release, waiting = threading.Event(), []
    with InOrder(max_waiting=10) as later:
        later(lambda: release.wait(10), 8)
        caller = threading.Thread(target=lambda: (later(lambda: None, 8), waiting.append("over")))
        caller.start()
        time.sleep(0.05)
        assert not waiting, "8 bytes wait, and 8 more do not fit"
        release.set()
        caller.join()
        later(lambda: None, 1000)  # larger than all that may wait: it waits alone
    assert waiting == ["over"]


def test_a_fault_stops_what_follows_and_is_raised() -> None:
    done: list[int] = []

    def work() -> None:
        with InOrder() as later:
            later(lambda: (_ for _ in ()).throw(OSError("disk full")))
            for number in range(1000):
                later(lambda number=number: done.append(number))
                time.sleep(0.001)

    with pytest.raises(OSError, match="disk full"):
        work()
    assert len(done) < 1000


def test_a_fault_of_the_caller_drops_what_waits() -> None:
    done: list[int] = []

    def work() -> None:
        with InOrder() as later:
            later(lambda: time.sleep(0.05))
            later(lambda: done.append(1))
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not done
    assert not any(thread.name == "dynprobe-writer" for thread in threading.enumerate())
