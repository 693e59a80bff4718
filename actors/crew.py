"""The actors of a search: brought up together, replaced when they die, closed together.

A crew knows pools, not what is in them: a pool says how many actors it wants, what each needs of the cluster and how to
make one. Every pool becomes an ActorGroup, which replaces actors that die.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.clients import recovered
from framegrove.cluster.placement import Role, bundle, grows, has_room, offered, require
from framegrove.cluster.session import connect
from framegrove.cluster.shares import gpu_shares
from framegrove.cluster.supervise import ActorGroup
from framegrove.config.search import SearchConfig
from framegrove.search.protocols import WorkFailed

log = logging.getLogger(__name__)

_CLOSING_S = 10.0  # for actors that have processes of their own to end
_ROOM_S, _ROOM_GROWING_S = 2.0, 30 * 60.0  # how long room for one more actor is waited for


class Pool(Protocol):
    """Up to ``size`` interchangeable actors, at least ``least``: where they stand, what they need, how one is made.

    ``whole_gpus`` is the number of GPUs that each actor takes as a whole where there are GPUs (a verifier that is split
    over several); 0 means none at all, None a share of one where there are not enough.
    """

    @property
    def name(self) -> str: ...

    @property
    def role(self) -> Role: ...

    @property
    def size(self) -> int: ...

    @property
    def least(self) -> int: ...

    @property
    def whole_gpus(self) -> int | None: ...

    @property
    def worker_names(self) -> list[str]:
        """What a search calls them, by index."""
        ...

    def create(self, gpus: float) -> ActorHandle[Any]:
        """Make one actor. It has a method ``ready``, which returns once it can work, and may have a ``close``."""
        ...


class Workplace(Protocol):
    """Where the workers of a search are: what a runner asks of its crew, on Ray (Crew) or elsewhere."""

    def __getitem__(self, name: str) -> Any:
        """The workers of a pool, as that pool knows them."""
        ...

    async def start(self, names: Iterable[str] | None = None) -> None: ...

    async def close(self) -> None: ...


class Neighbours:
    """Crews that share a cluster: they look for room one after the other, and GPUs are divided among all."""

    def __init__(self) -> None:
        self.crews: list[Crew] = []
        self.placing = asyncio.Lock()

    @property
    def pools(self) -> list[Pool]:
        """The pools of all of them."""
        return [pool for crew in self.crews for pool in crew.pools]

    async def settled(self) -> None:
        """Wait for actors that are coming: until they answer, they may not have taken their place yet."""
        coming = [asyncio.shield(task) for crew in self.crews for task in crew.coming.values()]
        await asyncio.gather(*coming, return_exceptions=True)


class Crew:
    """Actor groups by the names of their pools. Ray must be connected by the time of ``start``.

    ``on_replaced`` is told the pool of every actor that died and was replaced. Crews of one process that use the same
    cluster at the same time are ``neighbours``.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        limits: SearchConfig | None = None,
        *,
        on_replaced: Callable[[str], None] = lambda pool: None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.pools = tuple(pools)
        self._pools = {pool.name: pool for pool in pools}
        self._on_replaced = on_replaced
        self._limits = limits or SearchConfig()
        self._groups: dict[str, ActorGroup] = {}
        self._gpus: dict[str, float] = {}  # of an actor, by pool
        self.coming: dict[str, asyncio.Task[None]] = {}
        """By pool: actors that are there and do not answer yet."""
        self._neighbours = neighbours or Neighbours()
        self._neighbours.crews.append(self)

    def __getitem__(self, name: str) -> ActorGroup:
        return self._groups[name]

    async def start(self, names: Iterable[str] | None = None) -> None:
        """Bring the actors of these pools up, or of all, and wait until they answer. Idempotent.

        Raises NoRoom for a cluster without room, CrashLoop for actors that keep dying.
        """
        wanted = list(self._pools if names is None else names)
        if any(name not in self._groups for name in wanted):
            async with self._neighbours.placing:
                await self._place(wanted)
        await self._come(wanted)

    async def close(self) -> None:
        """End the actors. The crew can be started again."""
        coming = list(self.coming.values())
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        await self._close(list(self._groups))

    async def add(self, name: str, indices: Sequence[int], wanted: Callable[[], bool]) -> list[int]:
        """Start further actors of a pool that is up, those for which there is room. Returns which have come.

        On a cluster that grows, room for one is waited for, as long as it is ``wanted``. Raises what is wrong with the
        actors where they cannot work.
        """
        group, pool = self._groups[name], self._pools[name]
        one = [bundle(pool.role, num_gpus=self._gpus[name])]
        if grows() and not await has_room(one, _ROOM_GROWING_S, wanted):
            return []
        async with self._neighbours.placing:
            await self._neighbours.settled()
            while not await has_room(one * len(indices), _ROOM_S):
                if len(indices) == 1:
                    return []
                indices = indices[:1]
            for index in indices:
                group.start(index)
            coming = self.coming[f"{name} more"] = asyncio.create_task(self._come_up(group, indices))
        try:
            await asyncio.shield(coming)
        except BaseException:
            coming.cancel()
            for index in indices:
                group.stop(index)
            raise
        finally:
            del self.coming[f"{name} more"]
        return list(indices)

    async def _come_up(self, group: ActorGroup, indices: Sequence[int]) -> None:
        await asyncio.gather(*(recovered(group, index, self._limits) for index in indices))

    async def let_go(self, name: str, index: int) -> None:
        """End one actor of a pool, to which nothing is under way."""
        group = self._groups[name]
        actor = group.actor(index)
        if actor is not None:
            await asyncio.wait([asyncio.ensure_future(_ended(actor))], timeout=_CLOSING_S)
            group.stop(index)

    async def _place(self, names: Sequence[str]) -> None:
        """Create the actors that are missing, of all pools or of none: there must be room for them together."""
        await self._come(list(self._groups))
        await self._neighbours.settled()
        new = [self._pools[name] for name in names if name not in self._groups]
        if not new:
            return
        gpus = await asyncio.to_thread(_claim_room, new, self._neighbours.pools)
        for pool in new:
            group = self._group(pool, gpus[pool.name])
            self._groups[pool.name], self._gpus[pool.name] = group, gpus[pool.name]
            self.coming[pool.name] = asyncio.create_task(self._started(pool.name, group))

    def _group(self, pool: Pool, gpus: float) -> ActorGroup:
        return ActorGroup(
            lambda index: pool.create(gpus),
            pool.size,
            up=pool.least,
            name=pool.name,
            on_replaced=lambda: self._on_replaced(pool.name),
        )

    async def _come(self, names: Sequence[str]) -> None:
        """Wait for actors to answer, each to its end, so that nothing is still starting when a failure is raised."""
        coming = [asyncio.shield(self.coming[name]) for name in names if name in self.coming]
        for failure in await asyncio.gather(*coming, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _started(self, name: str, group: ActorGroup) -> None:
        try:
            await self._come_up(group, group.up)
        except BaseException as error:
            await self._close([name])
            if isinstance(error, WorkFailed) and error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        finally:
            if self.coming.get(name) is asyncio.current_task():
                del self.coming[name]

    async def _close(self, names: Sequence[str]) -> None:
        groups = [self._groups.pop(name) for name in names if name in self._groups]
        endings = [asyncio.ensure_future(_ended(actor)) for group in groups for actor in group.actors]
        if endings:
            await asyncio.wait(endings, timeout=_CLOSING_S)
        for group in groups:
            group.close()


def _claim_room(new: Sequence[Pool], everyone: Sequence[Pool]) -> dict[str, float]:
    """GPUs of an actor of each pool. Raises NoRoom where the cluster cannot hold all actors of the new ones together.

    GPUs are divided among all pools, also those that come up later, as if all had as many actors as they may have.
    """
    with connect() as cluster:
        generators = sum(pool.size for pool in everyone if pool.whole_gpus is None)
        splits = [pool.whole_gpus for pool in everyone if pool.whole_gpus for _ in range(pool.size)]
        shares = gpu_shares(offered(), generators, splits=splits, grows=grows())
        gpus = {
            pool.name: shares.generator if pool.whole_gpus is None else shares.verifier(pool.whole_gpus) for pool in new
        }
        wanted = [bundle(pool.role, num_gpus=gpus[pool.name]) for pool in new for _ in range(pool.least)]
        require(cluster, wanted, purpose=_purpose(new))
    return gpus


def _purpose(pools: Sequence[Pool]) -> str:
    counts = [f"{pool.name} ({pool.least} actor{'s' if pool.least > 1 else ''})" for pool in pools]
    return f"starting {' and '.join(counts)}"


async def _ended(actor: Any) -> None:
    """Let an actor end what it has started, such as an engine's process."""
    if not hasattr(actor, "close"):
        return
    with contextlib.suppress(RayError):  # an actor that is dead or never came up needs no ending
        await actor.close.remote()
