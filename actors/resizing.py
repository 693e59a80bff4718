"""Pools that grow while works wait and shrink while actors idle; what searches find does not depend on it.

Only idle actors leave, and a search is told before (framegrove.search.sharing, law 6), so that no work is lost or done
twice by it. What an actor has made outlives it in Ray's object store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from actors.crew import Crew, Pool
from framegrove.cluster.resizing import Load, Patience, change
from framegrove.config.pool import PoolSize
from framegrove.search.sharing import SharedWorkers

log = logging.getLogger(__name__)


class Resizing:
    """Looks after those pools of a crew whose size is a range, from ``start`` to ``close``.

    ``at_a_time`` says how many works an actor of a pool takes.
    """

    def __init__(
        self,
        crew: Crew,
        shared: SharedWorkers,
        pools: Sequence[Pool],
        at_a_time: Mapping[str, int],
        patience: Patience,
    ) -> None:
        self._pools = [_Resized(crew, shared, pool, at_a_time[pool.name], patience) for pool in pools]
        self._looking: dict[str, asyncio.Task[None]] = {}

    def start(self, names: Sequence[str]) -> None:
        """Begin, with those of these pools that are not looked after yet. Their actors must be up."""
        for each in self._pools:
            if each.name in names and each.name not in self._looking:
                each.begin()
                self._looking[each.name] = asyncio.create_task(each.look_after())

    async def close(self) -> None:
        """Stop. Actors that are being started are given up."""
        tasks = list(self._looking.values())
        self._looking.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Resized:
    """One pool, and since when its works wait and its actors idle."""

    def __init__(self, crew: Crew, shared: SharedWorkers, pool: Pool, at_a_time: int, patience: Patience) -> None:
        self.name = pool.name
        self._crew, self._shared, self._at_a_time, self._patience = crew, shared, at_a_time, patience
        self._size = PoolSize(pool.least, pool.size)
        self._workers = pool.worker_names
        self._coming: list[int] = []
        self._adding: asyncio.Task[None] | None = None
        self._waiting_since: float | None = None
        self._idle_since: dict[str, float] = {}
        self._no_room_until = 0.0

    def begin(self) -> None:
        """Tell the searches to come which workers are not there."""
        there = self._crew[self.name].up
        for index, worker in enumerate(self._workers):
            if index not in there:
                self._shared.leave(worker)

    async def look_after(self) -> None:
        """Look at the pool now and then, for ever."""
        try:
            while True:
                await asyncio.sleep(self._patience.look)
                try:
                    await self._look()
                except Exception:
                    log.exception("the number of %s could not be changed", self.name)
        finally:
            if self._adding is not None:
                self._adding.cancel()
                await asyncio.wait([self._adding])

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        load = self._load(now)
        more = change(self._size, load, at_a_time=self._at_a_time, patience=self._patience)
        if more > 0 and not self._coming and now >= self._no_room_until:
            group = self._crew[self.name]
            self._coming = [index for index in range(len(group)) if index not in group.up][:more]
            self._adding = asyncio.create_task(self._add(self._coming))
        for _ in range(-more):
            await self._let_go_of_the_last()

    def _load(self, now: float) -> Load:
        waiting, idle = self._shared.waiting(self.name), self._shared.idle(self.name)
        self._waiting_since = (self._waiting_since if self._waiting_since is not None else now) if waiting else None
        self._idle_since = {worker: self._idle_since.get(worker, now) for worker in idle}
        return Load(
            up=len(set(self._crew[self.name].up) - set(self._coming)),
            coming=len(self._coming),
            waiting=waiting,
            waited=now - self._waiting_since if self._waiting_since is not None else 0.0,
            idle=[now - since for since in self._idle_since.values()],
        )

    async def _add(self, indices: Sequence[int]) -> None:
        came: list[int] = []
        try:
            came = await self._crew.add(self.name, indices, wanted=lambda: self._shared.waiting(self.name) > 0)
        except Exception:
            log.exception("no more %s could be started", self.name)
        finally:
            self._coming = []
            if not came:
                self._no_room_until = asyncio.get_running_loop().time() + self._patience.again
        for index in came:
            self._shared.come(self._workers[index])
        if came:
            self._tell("more were started")

    async def _let_go_of_the_last(self) -> None:
        """End the last of the actors that have been idle for long enough, unless it is asked something after all."""
        group, now = self._crew[self.name], asyncio.get_running_loop().time()
        rested = [
            index
            for index in group.up
            if now - self._idle_since.get(self._workers[index], now) >= self._patience.rest
            and not group.is_called(index)
        ]
        if rested:
            worker = self._workers[rested[-1]]
            self._shared.leave(worker)
            del self._idle_since[worker]
            await self._crew.let_go(self.name, rested[-1])
            self._tell("one was idle and let go")

    def _tell(self, why: str) -> None:
        log.info("%s: %s, %d of at most %d are there", self.name, why, len(self._crew[self.name].up), self._size.most)
