"""Calls in processes of their own: what hangs, dies or raises is named, and the next call is answered."""

import math
import operator
import os
import time

import pytest

from psaq_kernels.workers import CallError, Worker, Workers

START = 60.0  # seconds that a process may take to start


def test_a_lost_process_is_named_and_replaced():
    worker = Worker()
    first = worker.call(os.getpid, seconds=START)
    assert first != os.getpid()
    with pytest.raises(CallError, match="ValueError: "):
        worker.call(math.sqrt, -1.0, seconds=START)
    assert worker.call(os.getpid, seconds=START) == first
    with pytest.raises(CallError, match=r"not done in 0\.5 s"):
        worker.call(time.sleep, 600, seconds=0.5)
    second = worker.call(os.getpid, seconds=START)
    assert second != first
    with pytest.raises(CallError, match="died"):
        worker.call(os._exit, 3, seconds=START)
    assert worker.call(os.getpid, seconds=START) not in (first, second)
    worker.end()
    worker.end()  # which a second time changes nothing


def test_calls_are_shared_and_given_up_at_the_end():
    with Workers(processes=2) as workers:
        sums = [workers.submit(operator.add, number, 1, seconds=START) for number in range(5)]
        broken = workers.submit(operator.truediv, 1, 0, seconds=START)
        assert [each.result() for each in sums] == [1, 2, 3, 4, 5]
        with pytest.raises(CallError, match="ZeroDivisionError"):
            broken.result()
        started = time.monotonic()
        unfinished = [workers.submit(time.sleep, 600, seconds=600) for _ in range(3)]
    assert time.monotonic() - started < START
    assert unfinished[2].cancelled()
