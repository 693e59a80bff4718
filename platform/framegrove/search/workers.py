"""Which workers there are, and which of them can take another work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from framegrove.search.protocols import SearchFailed
from framegrove.search.tree import Work
from framegrove.types import SampleWork

GENERATORS = "generators"
"""The pool that samples. Every other pool is a verifier and has its name."""


def pool_of(work: Work) -> str:
    """The pool whose workers do this work."""
    return GENERATORS if isinstance(work, SampleWork) else work.verifier


class Workers:
    """Workers by name, in pools: up, down (failed, and not back yet) or gone for good.

    A generator takes one work at a time, a worker of the verifier v takes ``at_a_time[v]``. Raises ValueError for an
    empty pool or for names that are not all different.
    """

    def __init__(
        self, generators: Sequence[str], verifiers: Mapping[str, Sequence[str]], at_a_time: Mapping[str, int]
    ) -> None:
        pools = {GENERATORS: generators, **verifiers}
        self._pool = {name: pool for pool, names in pools.items() for name in names}
        if GENERATORS in verifiers or len(self._pool) < sum(map(len, pools.values())) or not all(pools.values()):
            raise ValueError(f"every pool needs workers, and all names must differ: {pools}")
        self._limit = {GENERATORS: 1, **at_a_time}
        self._load = dict.fromkeys(self._pool, 0)
        self._running = dict.fromkeys(pools, 0)
        # Those that can take another work, and of those the ones that have none: dicts, as sets that keep their order.
        self._open = {pool: dict.fromkeys(names) for pool, names in pools.items()}
        self._idle = {pool: dict.fromkeys(names) for pool, names in pools.items()}
        self._left = {pool: set(names) for pool, names in pools.items()}
        self._down: set[str] = set()
        self._recovering: set[str] = set()

    @property
    def pools(self) -> Collection[str]:
        """The names of the pools."""
        return self._open.keys()

    def any_free(self, pool: str) -> bool:
        """Whether a worker of the pool can take another work."""
        return bool(self._open[pool])

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

    def to_recover(self) -> list[str]:
        """Workers that are down and not being recovered yet; from now on they are."""
        if not self._down:
            return []
        names = sorted(self._down - self._recovering)
        self._recovering |= self._down
        return names

    def back(self, worker: str) -> None:
        """The worker can take work again."""
        self._down.discard(worker)
        self._recovering.discard(worker)
        self._sort_in(worker)

    def gone(self, worker: str, reason: str) -> None:
        """The worker will never be back. Raises SearchFailed if it was the last of its pool."""
        pool = self._pool[worker]
        self._down.add(worker)
        self._recovering.add(worker)
        self._sort_in(worker)
        self._left[pool].discard(worker)
        if not self._left[pool]:
            who = "no generator is left" if pool == GENERATORS else f"the verifier {pool} has no worker left"
            raise SearchFailed(f"{who}, the last one, {worker}, was lost: {reason}")

    def _sort_in(self, worker: str) -> None:
        pool = self._pool[worker]
        up = worker not in self._down
        _put(self._open[pool], worker, up and self._load[worker] < self._limit[pool])
        _put(self._idle[pool], worker, up and not self._load[worker])


def _put(members: dict[str, None], worker: str, there: bool) -> None:
    if there:
        members.setdefault(worker)
    else:
        members.pop(worker, None)
