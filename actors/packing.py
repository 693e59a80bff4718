"""Several calls of an actor, made at the same time from threads of their own, done together by one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Call(Generic[Job, Answer]):
    job: Job
    answer: Answer | None = None
    error: BaseException | None = None
    done: bool = False


class Packer(Generic[Job, Answer]):
    """Does jobs with ``work``, at most ``most`` of them at a time, one batch after the other.

    Whoever finds nobody at work does what has gathered, for all: the first call is never kept waiting for others, and
    while a batch is under way the next one gathers. Calls are served in the order in which they came, and return when
    their own batch is done. Where a batch fails, its jobs are done again one by one.
    """

    def __init__(self, work: Callable[[Sequence[Job]], Sequence[Answer]], most: int = 1) -> None:
        self._work, self._most = work, most
        self._waiting: list[_Call[Job, Answer]] = []
        self._at_work = False
        self._changed = threading.Condition()

    def ask(self, job: Job) -> Answer:
        """The job's answer. Raises what ``work`` raises for this job."""
        call: _Call[Job, Answer] = _Call(job)
        with self._changed:
            self._waiting.append(call)
            while not call.done:
                if self._at_work:
                    self._changed.wait()
                else:
                    self._do_a_batch()
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _do_a_batch(self) -> None:
        """Do what has gathered, with the lock released meanwhile."""
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        self._at_work = True
        self._changed.release()
        try:
            self._do(batch)
        finally:
            self._changed.acquire()
            self._at_work = False
            for call in batch:
                call.done = True
            self._changed.notify_all()

    def _do(self, batch: Sequence[_Call[Job, Answer]]) -> None:
        try:
            for call, answer in zip(batch, self._work([call.job for call in batch]), strict=True):
                call.answer = answer
        except BaseException as error:  # noqa: BLE001  # each call raises it where it was made
            if len(batch) == 1:
                batch[0].error = error
                return
            for call in batch:  # one by one, so that the fault of one is not that of all
                self._do([call])


def alike_together(
    jobs: Sequence[Job], alike: Callable[[Job], Hashable], work: Callable[[Sequence[Job]], Sequence[Answer]]
) -> list[Answer]:
    """The answers of some jobs, in order, where those for which ``alike`` is the same are done together."""
    places: dict[Hashable, list[int]] = {}
    for place, job in enumerate(jobs):
        places.setdefault(alike(job), []).append(place)
    answers: dict[int, Answer] = {}
    for group in places.values():
        answers.update(zip(group, work([jobs[place] for place in group]), strict=True))
    return [answers[place] for place in range(len(jobs))]
