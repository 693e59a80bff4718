"""Which workers there are, and which of them can take another work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from framegrove.search.tree import Work
from framegrove.types import SampleWork

GENERATORS = "generators"
"""The pool that samples. Every other pool is a verifier and has its name."""


def pool_of(work: Work) -> str:
    """The pool whose workers do this work."""
    return GENERATORS if isinstance(work, SampleWork) else work.verifier


@dataclass(frozen=True)
class Pool:
    """Interchangeable workers by name. Each takes ``at_a_time`` works."""

    names: Sequence[str]
    at_a_time: int = 1


class Workers:
    """Workers by name, in pools: up, down (failed, not back yet), away (not started, or let go) or gone for good."""

    def __init__(self) -> None:
        self._pool: dict[str, str] = {}
        self._limit: dict[str, int] = {}
        self._load: dict[str, int] = {}
        self._running: dict[str, int] = {}
        # Those that can take another work, and of those the ones that have none: dicts, as sets that keep their order.
        self._open: dict[str, dict[str, None]] = {}
        self._idle: dict[str, dict[str, None]] = {}
        self._left: dict[str, set[str]] = {}
        self._down: set[str] = set()
        self._away: set[str] = set()
        self.lost: dict[str, str] = {}
        """Pools of which nobody is left, and the sentence that says so."""

    def add(self, name: str, pool: Pool) -> None:
        """There is a pool; one that is known already stays as it is.

        Raises ValueError for an empty pool, for names that are not all different, and for other workers in a known one.
        """
        if name in self._open:
            if {each for each, whose in self._pool.items() if whose == name} != set(pool.names):
                raise ValueError(f"the pool {name} has other workers than {pool.names}")
            return
        if not pool.names or len({*self._pool, *pool.names}) < len(self._pool) + len(pool.names):
            raise ValueError(f"every pool needs workers, and all names must differ: {name} has {pool.names}")
        self._pool |= dict.fromkeys(pool.names, name)
        self._load |= dict.fromkeys(pool.names, 0)
        self._limit[name] = pool.at_a_time
        self._running[name] = 0
        self._open[name] = {each: None for each in pool.names if each not in self._away}
        self._idle[name] = dict(self._open[name])
        self._left[name] = set(pool.names)

    def pool(self, worker: str) -> str:
        """The name of the worker's pool."""
        return self._pool[worker]

    def any_free(self, pool: str) -> bool:
        """Whether a worker of the pool can take another work."""
        return bool(self._open[pool])

    def free(self, pool: str) -> int:
        """How many workers of the pool can take another work."""
        return len(self._open[pool])

    def idle(self, pool: str) -> list[str]:
        """The pool's workers that have nothing to do."""
        return list(self._idle.get(pool, ()))

    def away(self, pool: str) -> int:
        """How many workers of the pool are not there, and may come."""
        return len(self._left[pool] & self._away)

    def leave(self, worker: str) -> None:
        """The worker is not there, and gets nothing until it comes. It has no works; its pool may not be known yet."""
        assert not self._load.get(worker), "only idle workers leave"
        self._away.add(worker)
        if worker in self._pool:
            self._sort_in(worker)

    def come(self, worker: str) -> None:
        """A worker that was away is there."""
        self._away.discard(worker)
        if worker in self._pool:
            self._sort_in(worker)

    def is_there(self, worker: str) -> bool:
        """Whether the worker is not away."""
        return worker not in self._away

    def choose(self, pool: str, avoid: Collection[str], prefer: Collection[str]) -> str:
        """The worker that the next work goes to; one must be free.

        Rather one that is not to be avoided, then one that is preferred, then the least loaded.
        """
        free = self._open[pool]
        preferred = [name for name in prefer if name in free and name not in avoid]
        if preferred:
            return min(preferred, key=self._load.__getitem__)
        idle = next((name for name in self._idle[pool] if name not in avoid), None)
        if idle is not None:
            return idle
        return min(free, key=lambda name: (name in avoid, self._load[name]))

    def load(self, pool: str) -> int:
        """How many works the pool's workers have."""
        return self._running[pool]

    def take(self, worker: str) -> None:
        """A work was given to the worker."""
        self._load[worker] += 1
        self._running[self._pool[worker]] += 1
        self._sort_in(worker)

    def release(self, worker: str) -> None:
        """One of the worker's works has ended, for whatever reason."""
        self._load[worker] -= 1
        self._running[self._pool[worker]] -= 1
        self._sort_in(worker)

    def down(self, worker: str) -> None:
        """The worker failed: it gets nothing until it is back."""
        self._down.add(worker)
        self._sort_in(worker)

    def back(self, worker: str) -> None:
        """The worker can take work again."""
        self._down.discard(worker)
        self._sort_in(worker)

    def gone(self, worker: str, reason: str) -> None:
        """The worker will never be back."""
        pool = self._pool[worker]
        self.down(worker)
        self._left[pool].discard(worker)
        if not self._left[pool] - self._away:
            who = "no generator is left" if pool == GENERATORS else f"the verifier {pool} has no worker left"
            self.lost[pool] = f"{who}, the last one, {worker}, was lost: {reason}"

    def is_gone(self, worker: str) -> bool:
        """Whether the worker will never be back."""
        return worker not in self._left[self._pool[worker]]

    def _sort_in(self, worker: str) -> None:
        pool = self._pool[worker]
        up = worker not in self._down and worker not in self._away
        _put(self._open[pool], worker, up and self._load[worker] < self._limit[pool])
        _put(self._idle[pool], worker, up and not self._load[worker])


def _put(members: dict[str, None], worker: str, there: bool) -> None:
    if there:
        members.setdefault(worker)
    else:
        members.pop(worker, None)
