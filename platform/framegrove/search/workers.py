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
    """Workers by name, in pools: up, down (failed, and not back yet) or gone for good."""

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
        self._open[name] = dict.fromkeys(pool.names)
        self._idle[name] = dict.fromkeys(pool.names)
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
        if not self._left[pool]:
            who = "no generator is left" if pool == GENERATORS else f"the verifier {pool} has no worker left"
            self.lost[pool] = f"{who}, the last one, {worker}, was lost: {reason}"

    def is_gone(self, worker: str) -> bool:
        """Whether the worker will never be back."""
        return worker not in self._left[self._pool[worker]]

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
