"""Calls from several threads that are done together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from actors.packing import Packer


class Work:
    """Squares numbers; holds the first batch up until ``go``."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.go = threading.Event(), threading.Event()
        self._at_work = threading.Lock()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        assert self._at_work.acquire(blocking=False), "one batch at a time"
        self.batches.append(list(jobs))
        self.began.set()
        assert self.go.wait(10)
        self._at_work.release()
        if 13 in jobs:
            raise ValueError("13")
        return [job * job for job in jobs]


def gathered(threads: ThreadPoolExecutor, packer: Packer[int, int], jobs: Sequence[int]) -> list[Future[int]]:
    """Calls that wait, in this order, while a batch is under way."""
    calls = []
    for job in jobs:
        calls.append(threads.submit(packer.ask, job))
        while len(packer._waiting) < len(calls):
            threading.Event().wait(0.001)
    return calls


def test_the_first_call_does_not_wait_and_what_gathers_meanwhile_is_done_together() -> None:
    work = Work()
    packer: Packer[int, int] = Packer(work, most=3)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(packer.ask, 1)
        assert work.began.wait(10)
        others = gathered(threads, packer, range(2, 7))
        work.go.set()
        assert [call.result(10) for call in (first, *others)] == [1, 4, 9, 16, 25, 36]
    assert work.batches == [[1], [2, 3, 4], [5, 6]]


def test_every_call_is_answered_once_whatever_the_order() -> None:
    work = Work()
    work.go.set()
    packer: Packer[int, int] = Packer(work, most=4)
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(packer.ask, range(100, 400))) == [job * job for job in range(100, 400)]
    assert sorted(job for batch in work.batches for job in batch) == list(range(100, 400))
    assert max(map(len, work.batches)) <= 4


def test_a_call_returns_when_its_own_batch_is_done() -> None:
    """However many others keep coming."""
    began, batches = threading.Event(), threading.Semaphore(0)

    def work(jobs: Sequence[int]) -> list[int]:
        began.set()
        assert batches.acquire(timeout=10)
        return list(jobs)

    packer: Packer[int, int] = Packer(work, most=2)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(packer.ask, 0)  # alone; then three pairs
        assert began.wait(10)
        calls = [first, *gathered(threads, packer, range(1, 7))]
        for done in (1, 3, 5, 7):
            batches.release()
            assert [call.result(10) for call in calls[:done]] == list(range(done))
            assert not any(call.done() for call in calls[done:])


def test_the_fault_of_one_job_is_not_that_of_its_batch() -> None:
    work = Work()
    packer: Packer[int, int] = Packer(work, most=3)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(packer.ask, 1)
        assert work.began.wait(10)
        others = gathered(threads, packer, (2, 13, 3))
        work.go.set()
        assert first.result(10) == 1
        assert (others[0].result(10), others[2].result(10)) == (4, 9)
        with pytest.raises(ValueError, match="13"):
            others[1].result(10)
    assert work.batches == [[1], [2, 13, 3], [2], [13], [3]]
