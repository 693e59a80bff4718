"""Runs one policy against generators and verifiers, concurrently: the asynchronous shell around dispatcher.py.

The loop is: ask the dispatcher what to do, do it, wait until something has happened, tell the dispatcher. Every
attempt is a task of its own that ends in one event. Sampling and scoring overlap because nothing here waits for one
particular work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from framegrove.config.search import SearchConfig, Speculate
from framegrove.errors import UserError
from framegrove.search.commands import Attempt, Cancel, Command, Recover, Release, Start
from framegrove.search.dispatcher import Dispatcher, check, describe
from framegrove.search.fusion import LogP, product
from framegrove.search.journal import Journal, Restored
from framegrove.search.protocols import (
    NOTHING,
    GeneratorClient,
    PanelMember,
    UnitsLost,
    VerifierClient,
    VerifierUnusable,
    WorkCancelled,
    WorkFailed,
)
from framegrove.search.result import Ending, SearchResult, nodes_of
from framegrove.search.sharing import SharedWorkers
from framegrove.search.snapshot import Snapshot, snapshot_of
from framegrove.search.tree import Latent, Policy, Result
from framegrove.search.workers import GENERATORS, Pool, pool_of
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, prefixes

log = logging.getLogger(__name__)

_MOMENT = 1e-3  # s: time that is as good as none

# From which probability of being needed on a work is done ahead. Doing it saves its time if it is needed, and wastes
# its price if not: at even odds both are worth the same.
LEAST_LIKELY: dict[Speculate, float | None] = {"latency": 0.0, "thrift": 0.5, "off": None}


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


class Observer(Protocol):
    """Is told what a search does, for logs and metrics. Must return at once."""

    def ended(self, pool: str, ending: Ending, seconds: float, reason: str) -> None:
        """An attempt at a work of this pool has ended; ``reason`` is empty unless it failed."""
        ...

    def load(self, pool: str, running: int, waiting: int) -> None:
        """How many works of a pool run, and how many certain ones wait, whenever an attempt starts or ends.

        Those of all searches that share the pool.
        """
        ...


class _Nobody:
    def ended(self, pool: str, ending: Ending, seconds: float, reason: str) -> None: ...

    def load(self, pool: str, running: int, waiting: int) -> None: ...


class Conductor:
    """One search, by ``generators`` and the verifiers of a ``panel``, both by name; all workers' names must differ.

    ``given`` holds handles for the units that are not searched for, oldest first. With a ``journal``, finished works
    are kept there, and those it has already are not done again. ``on_progress`` is called whenever the tally moves.
    ``lost`` is asked before the search ends which of the winner's handles, by branch, lead nowhere any more.
    ``release`` is called with every handle on top of which nothing will be sampled, since its branch was dropped.
    ``carried`` is what an earlier attempt at this search has done and spent already; what the journal has is not asked
    for then. Searches whose workers are the same give all of them by the same names and have
    them ``shared``.
    """

    def __init__(
        self,
        policy: Policy,
        generators: Mapping[str, GeneratorClient],
        panel: Mapping[str, PanelMember],
        config: SearchConfig,
        *,
        given: Sequence[Any] = (),
        journal: Journal | None = None,
        on_progress: Callable[[Tally], None] = lambda tally: None,
        lost: Callable[[Mapping[Path, Any]], Awaitable[Collection[Path]]] | None = None,
        release: Callable[[Any], None] = lambda handle: None,
        observer: Observer | None = None,
        carried: Restored | None = None,
        shared: SharedWorkers | None = None,
        pack: int = 1,
        log_p: LogP = product,
    ) -> None:
        self._happened = asyncio.Event()
        if GENERATORS in panel:
            raise ValueError(f"a verifier cannot be called {GENERATORS}: all pools' names must differ")
        pools = {name: Pool(list(member.clients), member.at_a_time) for name, member in panel.items()}
        self._share = (shared or SharedWorkers()).join(
            {GENERATORS: Pool(list(generators), pack), **pools}, self._happened.set
        )
        judges = {each: [name for name, member in panel.items() if each in member.judges] for each in Assessment}
        self._state = Dispatcher(
            policy,
            self._share,
            judges,
            speculate=LEAST_LIKELY[config.speculate],
            attempts=config.attempts,
            given=given,
            log_p=log_p,
            anchors={name: member.anchors for name, member in panel.items() if member.anchors},
        )
        self._config = config
        self._generators = generators
        self._verifiers: dict[str, VerifierClient] = {
            name: client for member in panel.values() for name, client in member.clients.items()
        }
        self._panel = panel
        self._journal = journal
        self._on_progress = on_progress
        self._lost = lost
        self._release = release
        self._observer = observer or _Nobody()
        self._carried = carried
        self._released: set[int] = set()  # ids of handles
        self._tally: Tally | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._began = 0.0
        self._restored = 0

    async def run(self) -> SearchResult:
        """Search to the end. Call once.

        Raises SearchFailed when a work fails too often or no worker is left, VerifierUnusable, and whatever else a
        client raises. However it ends, cancellation included, no work is left running.
        """
        self._began = asyncio.get_running_loop().time()
        try:
            await self._restore()
            while True:
                if self._time_left() <= _MOMENT:
                    self._state.hurry(max(0.0, (self._config.seconds or 0.0) - self._now()))
                for command in self._state.decide(self._now()):
                    self._carry_out(command)
                self._report()
                if not self._state.finished or self._is_busy:
                    await self._something_happens()
                elif not await self._forget_lost():
                    return self._result()
        finally:
            try:
                await self._stop()
            finally:
                self._share.leave()

    def carried(self, verifiers: Collection[str]) -> Restored:
        """What has been done so far, for an attempt with these verifiers alone.

        Kept are units that are neither lost nor released, and what those verifiers have said of single branches: in a
        comparison, the others may be other ones. All else that was spent is wasted.
        """
        state = self._state
        kept: list[tuple[Result, tuple[Any, ...]]] = []
        wasted = list(state.attempts.wasted.items())
        for result in state.done.values():
            if isinstance(result, Scored):
                handles = () if result.work.verifier in verifiers and not result.work.against else None
            else:
                handles = self._held(result.work)
            if handles is not None:
                kept.append((result, handles))
            else:
                wasted.append((pool_of(result.work), result.cost))
        return Restored(tuple(kept), tuple(wasted))

    def _held(self, work: SampleWork) -> tuple[Any, ...] | None:
        """The handles of what a work has made, None where one is lost or released."""
        handles = tuple(self._state.handles.get(latent) for latent in self._state.layout.outputs(work))
        return handles if all(id(each) not in {id(None), *self._released} for each in handles) else None

    def snapshot(self) -> Snapshot:
        """What the search looks like now. Costs nothing unless it is called, on the event loop that ``run`` is on."""
        pools = {GENERATORS: self._generators, **{name: member.clients for name, member in self._panel.items()}}
        there = {name: self._share.there(workers) for name, workers in pools.items()}
        return snapshot_of(self._state, there, self._now())

    def newest(self, path: Path) -> Any | None:
        """The handle of a branch's newest unit, at the highest stage there is; None while there is none."""
        stages = range(self._state.layout.last_stage, -1, -1)
        return next(
            (self._state.handles[latent] for s in stages if (latent := Latent(path, s)) in self._state.handles), None
        )

    def _carry_out(self, command: Command) -> None:
        match command:
            case Start(attempt, inputs):
                self._spawn(self._attempt(attempt, inputs))
                self._tell_load(pool_of(attempt.work))
            case Cancel(attempt):
                self._cancel(attempt)
            case Recover(worker):
                self._spawn(self._recover(worker))
            case Release(handle):
                self._released.add(id(handle))
                self._release(handle)

    async def _something_happens(self) -> None:
        under_way = self._tasks or self._happened.is_set() or self._share.waiting
        assert under_way, "a search that is not finished has something under way, or waits for a worker"
        left = self._time_left()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left, _MOMENT) if left < math.inf else None):
                await self._happened.wait()
        self._happened.clear()
        if self._error is not None:
            raise self._error

    def _time_left(self) -> float:
        """Seconds after which there is just time to finish a video."""
        if self._config.seconds is None or self._state.hurried or self._state.finished:
            return math.inf
        left = self._config.seconds - self._now()
        return left - self._state.seconds_to_finish(left)

    @property
    def _is_busy(self) -> bool:
        """Whether there is something to wait for before the end: once time was up, not for scores."""
        running = self._state.attempts.running.values()
        return any(isinstance(attempt.work, SampleWork) or not self._state.hurried for attempt in running)

    async def _forget_lost(self) -> bool:
        """Before the end: whether a unit of the winner was lost, so that it has to be computed again."""
        units = self._winning_units()
        lost = await self._lost(units) if self._lost is not None else ()
        self._state.forget({path: units[path] for path in lost})
        return bool(lost)

    async def _attempt(self, attempt: Attempt, inputs: Mapping[Path, Any]) -> None:
        pool = pool_of(attempt.work)
        ending, reason = Ending.DONE, ""
        try:
            result = await self._work(attempt, inputs)
            end = self._now()
            check(result, attempt)  # before it is on the disk, where it would meet every later run
            if self._journal is not None:
                await self._journal.record(result)
        except UserError as error:
            if isinstance(attempt.work, SampleWork):
                raise
            if not self._state.hurried:
                raise VerifierUnusable(attempt.work.verifier, str(error)) from error
            ending, reason = Ending.FAILED, str(error)  # and nobody needs it any more
            self._state.on_lost(attempt, NOTHING, self._now())
        except WorkCancelled as stop:
            ending = Ending.CANCELLED
            await self._waste(pool, stop.cost)
            self._state.on_cancelled(attempt, stop.cost, self._now())
        except WorkFailed as failure:
            ending, reason = Ending.FAILED, str(failure)
            log.warning("%s failed on %s: %s", describe(attempt.work), attempt.worker, reason)
            await self._waste(pool, failure.cost)
            self._state.on_failed(attempt, failure.cost, reason, self._now())
        except UnitsLost as loss:
            ending, reason = Ending.FAILED, str(loss)
            log.warning("%s is postponed: %s", describe(attempt.work), reason)
            await self._waste(pool, loss.cost)
            self._state.on_lost(attempt, loss.cost, self._now())
            self._state.forget({path: inputs[path] for path in loss.paths})
        else:
            self._state.on_done(attempt, result, end)
        self._observer.ended(pool, ending, self._now() - attempt.start, reason)
        self._tell_load(pool)

    def _tell_load(self, pool: str) -> None:
        _, waiting = self._state.load(pool)
        self._observer.load(pool, *self._share.loads(pool, waiting))

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
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and self._error is None:
            self._error = task.exception()
        self._happened.set()

    async def _waste(self, pool: str, cost: Cost) -> None:
        if self._journal is not None:
            await self._journal.record_waste(pool, cost)

    async def _restore(self) -> None:
        earlier = self._carried
        if earlier is None and self._journal is not None:
            earlier = await self._journal.restore()
            self._restored = len({result.work for result, _ in earlier.results})
        if earlier is None:
            return
        for result, handles in earlier.results:
            self._state.restore(result, handles)
        for pool, cost in earlier.wasted:
            self._state.restore_waste(pool, cost)

    async def _stop(self) -> None:
        """Leave nothing running: generators stop at their next step, and nobody waits for their answers."""
        for attempt in self._state.attempts.running.values():
            self._cancel(attempt)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def _report(self) -> None:
        state = self._state
        certain = len(state.certain_works)
        done = certain - state.undone
        done = max(done, self._tally.done if self._tally else 0)  # what is done again was counted before
        tally = Tally(done, certain, state.at_most)
        if tally != self._tally:
            self._tally = tally
            self._on_progress(tally)

    def _result(self) -> SearchResult:
        state = self._state
        assert state.plan.winner is not None
        sampled = [result.work for result in state.done.values() if isinstance(result, Sampled)]
        scored = [result for result in state.done.values() if isinstance(result, Scored)]
        return SearchResult(
            winner=state.plan.winner,
            nodes=nodes_of(state.plan, sampled, state.panels, scored, state.attempts.spans, state.log_p),
            certain=frozenset(state.certain_works),
            sampling=state.costs(GENERATORS),
            verifiers={name: state.costs(name) for name in state.attempts.wasted if name != GENERATORS},
            spans=tuple(state.attempts.spans),
            handles={latent.path: state.handles[latent] for latent in sorted(state.handles)},
            seconds=self._now(),
            restored=self._restored,
            mass=_least_mass(state.done.values()),
            given_up=dict(state.given_up),
            hurried=state.hurried,
        )

    def _winning_units(self) -> dict[Path, Any]:
        winner, layout = self._state.plan.winner or (), self._state.layout
        return {path: self._state.handles[layout.finished(path)] for path in prefixes(winner)}


def _least_mass(results: Collection[Result]) -> dict[str, float]:
    """For each verifier that tells: the least probability that it put on yes and no together."""
    least: dict[str, float] = {}
    for result in results:
        if isinstance(result, Scored) and result.mass is not None:
            name = result.work.verifier
            least[name] = min(result.mass, least.get(name, 1.0))
    return least
