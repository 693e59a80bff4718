"""Runs one policy against generators and verifiers, concurrently: the async shell around dispatch.py.

The loop is: ask the dispatcher what to do, do it, wait until something has happened, tell the dispatcher. Every
attempt is a task of its own that ends in one event. Sampling and scoring overlap because nothing here waits for one
particular work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framegrove.config.search import SearchConfig
from framegrove.search.dispatch import Attempt, Cancel, Command, Dispatcher, Start
from framegrove.search.journal import Journal
from framegrove.search.pool import Kind, Pool, kind_of
from framegrove.search.protocols import GeneratorClient, UnitsLost, VerifierClient, WorkCancelled, WorkFailed
from framegrove.search.result import SearchResult, nodes_of
from framegrove.search.tree import Latent, Policy, Result
from framegrove.types import Cost, Path, Sampled, SampleWork


@dataclass(frozen=True)
class Tally:
    """Progress in works: certain ones that are done, all that are certain so far, and how many it can become."""

    done: int
    certain: int
    at_most: int

    @property
    def share(self) -> float:
        """Finished share in [0, 1]. Never falls, for ``at_most`` never grows; 1 at the end."""
        return self.done / self.at_most


class Conductor:
    """One search. ``generators`` and ``verifiers`` are workers by name; names must all be different.

    ``given`` holds handles for the units that are not searched for, oldest first. With a ``journal``, finished works
    are kept there, and those it has already are not done again. ``on_progress`` is called whenever the tally moves.
    ``lost`` is asked before the search ends: which of the outcome's handles, by branch, lead nowhere any more. ``cut``
    is told every handle, once, that nothing will be sampled on top of: its branch was dropped.
    """

    def __init__(
        self,
        policy: Policy,
        generators: Mapping[str, GeneratorClient],
        verifiers: Mapping[str, VerifierClient],
        config: SearchConfig,
        *,
        given: Sequence[Any] = (),
        journal: Journal | None = None,
        on_progress: Callable[[Tally], None] = lambda tally: None,
        lost: Callable[[Mapping[Path, Any]], Awaitable[Collection[Path]]] | None = None,
        cut: Callable[[Any], None] = lambda handle: None,
    ) -> None:
        pool = Pool(list(generators), list(verifiers), config.scores_in_flight)
        self._state = Dispatcher(policy, pool, speculate=config.speculate, attempts=config.attempts, given=given)
        self._generators, self._verifiers = generators, verifiers
        self._journal, self._on_progress, self._lost, self._cut = journal, on_progress, lost, cut
        self._told: set[Latent] = set()
        self._tally: Tally | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = 0.0
        self._restored = 0

    async def run(self) -> SearchResult:
        """Search to the end. Call once.

        Raises SearchFailed when a work fails too often or no worker is left, and whatever else a client raises. However
        it ends, cancellation included, no work is left running.
        """
        self._began = asyncio.get_running_loop().time()
        await self._restore()
        try:
            while True:
                for command in self._state.decide(self._now()):
                    self._carry_out(command)
                self._tell_cut()
                self._report()
                if not self._state.finished or self._state.running:
                    await self._something_happens()
                elif not await self._forget_lost():
                    return self._outcome()
        finally:
            await self._stop()

    def _tell_cut(self) -> None:
        for latent in self._state.handles.keys() - self._told:
            if latent.path in self._state.plan.dropped:
                self._told.add(latent)
                self._cut(self._state.handles[latent])

    def _carry_out(self, command: Command) -> None:
        match command:
            case Start(attempt, inputs):
                self._spawn(self._attempt(attempt, inputs))
            case Cancel(attempt):
                self._cancel(attempt)
            case _:
                self._spawn(self._recover(command.worker))

    async def _something_happens(self) -> None:
        assert self._tasks, "a search that is not finished has something under way"
        done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done]
        if error := next(filter(None, errors), None):
            raise error

    async def _forget_lost(self) -> bool:
        """Before the end: whether a handle was lost, so that there is something to be made again."""
        handles = self._handles()
        lost = await self._lost(handles) if self._lost is not None else ()
        self._forget({path: handles[path] for path in lost})
        return bool(lost)

    def _forget(self, lost: Mapping[Path, Any]) -> None:
        for result in self._state.forget(lost):
            self._waste(kind_of(result.work), result.cost)

    async def _attempt(self, attempt: Attempt, inputs: Mapping[Path, Any]) -> None:
        try:
            result = await self._work(attempt, inputs)
            end = self._now()
            if self._journal is not None:
                await self._journal.record(result)
        except WorkCancelled as stop:
            self._waste(kind_of(attempt.work), stop.cost)
            self._state.on_cancelled(attempt, stop.cost, self._now())
        except WorkFailed as failure:
            self._waste(kind_of(attempt.work), failure.cost)
            self._state.on_failed(attempt, failure.cost, str(failure), self._now())
        except UnitsLost as loss:
            self._waste(kind_of(attempt.work), loss.cost)
            self._state.on_lost(attempt, loss.cost, self._now())
            self._forget({path: inputs[path] for path in loss.paths})
        else:
            self._state.on_done(attempt, result, end)

    async def _work(self, attempt: Attempt, inputs: Mapping[Path, Any]) -> Result:
        if isinstance(attempt.work, SampleWork):
            return await self._generators[attempt.worker].sample(attempt.work, inputs)
        return await self._verifiers[attempt.worker].score(attempt.work, inputs)

    async def _recover(self, worker: str) -> None:
        client = self._generators[worker] if worker in self._generators else self._verifiers[worker]
        try:
            await client.recover()
        except WorkFailed as failure:
            self._state.on_gone(worker, str(failure))
        else:
            self._state.on_recovered(worker)

    def _cancel(self, attempt: Attempt) -> None:
        if isinstance(attempt.work, SampleWork):
            self._generators[attempt.worker].cancel(attempt.work)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(coroutine))

    def _waste(self, kind: Kind, cost: Cost) -> None:
        if self._journal is not None:
            self._journal.record_waste(kind, cost)

    async def _restore(self) -> None:
        if self._journal is None:
            return
        restored = await self._journal.restore()
        for result, handles in restored.results:
            self._state.restore(result, handles)
        for kind, cost in restored.wasted:
            self._state.restore_waste(kind, cost)
        self._restored = len(self._state.done)

    async def _stop(self) -> None:
        """Leave nothing running: generators stop at their next step, and nobody waits for what they say."""
        for attempt in self._state.running.values():
            self._cancel(attempt)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def _report(self) -> None:
        state = self._state
        done = sum(work in state.done for work in state.plan.certain)
        done = max(done, self._tally.done if self._tally else 0)  # what is made again was counted before
        tally = Tally(done, len(state.plan.certain), state.plan.at_most)
        if tally != self._tally:
            self._tally = tally
            self._on_progress(tally)

    def _outcome(self) -> SearchResult:
        state = self._state
        assert state.plan.winner is not None
        sampled = [result.work for result in state.done.values() if isinstance(result, Sampled)]
        return SearchResult(
            winner=state.plan.winner,
            nodes=nodes_of(state.plan, sampled, state.scores, state.spans),
            certain=frozenset(state.plan.certain),
            sampling=state.bill(Kind.SAMPLING),
            scoring=state.bill(Kind.SCORING),
            spans=tuple(state.spans),
            handles=self._handles(),
            seconds=self._now(),
            restored=self._restored,
        )

    def _handles(self) -> dict[Path, Any]:
        """The newest handle of every branch."""
        handles = self._state.handles
        return {latent.path: handles[latent] for latent in sorted(handles)}
