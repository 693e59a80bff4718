"""Calls from several threads that are done together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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


def test_the_first_call_does_not_wait_and_what_gathers_meanwhile_is_done_together() -> None:
    work = Work()
    packer: Packer[int, int] = Packer(work, most=3)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(packer.ask, 1)
        assert work.began.wait(10)
        others = []
        for job in range(2, 7):
            others.append(threads.submit(packer.ask, job))
            while len(packer._waiting) < job - 1:
                threading.Event().wait(0.001)
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


def test_a_failure_is_that_of_its_batch_alone() -> None:
    work = Work()
    packer: Packer[int, int] = Packer(work, most=2)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(packer.ask, 13)
        assert work.began.wait(10)
        second = threads.submit(packer.ask, 3)
        work.go.set()
        with pytest.raises(ValueError, match="13"):
            first.result(10)
        assert second.result(10) == 9
