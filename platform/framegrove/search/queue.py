"""The certain works of a search, and where each of them stands: waiting for its inputs, or ready by urgency.

A work is put in when it is to be done. It waits until the last of its inputs has arrived, and is then ready. It leaves
when it is taken; if it has to be done again, it is put in again.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heappop, heappush

from framegrove.search.tree import Latent, Layout, Work
from framegrove.search.workers import pool_of


class WorkQueue:
    """Certain works for these pools. ``there`` holds the latents that have been sampled and are not lost."""

    def __init__(self, pools: Iterable[str], layout: Layout, there: Collection[Latent]) -> None:
        self._layout = layout
        self._there = there
        self._numbers = itertools.count()
        self._urgency: dict[Work, int] = {}  # of every certain work; smaller goes first
        self._inputs: dict[Work, tuple[Latent, ...]] = {}
        self._users: dict[Latent, list[Work]] = defaultdict(list)
        self._ready: dict[str, list[tuple[int, Work]]] = {pool: [] for pool in pools}  # heaps
        self._missing: dict[Work, set[Latent]] = {}
        self._waiting_for: dict[Latent, set[Work]] = defaultdict(set)
        self.undone: Counter[str] = Counter()  # certain works that are not done, by pool; kept by who uses the queue

    @property
    def works(self) -> Collection[Work]:
        """Every work that is known to be needed, finished or not, in the order in which that became known."""
        return self._urgency.keys()

    def certain(self, work: Work) -> bool:
        """Whether the work is known to be needed."""
        return work in self._urgency

    def inputs(self, work: Work) -> tuple[Latent, ...]:
        """What the work builds on."""
        return self._inputs.get(work) or self._layout.inputs(work)

    def users(self, latent: Latent) -> Collection[Work]:
        """The certain works that build on a latent."""
        return self._users.get(latent, ())

    def add(self, work: Work) -> None:
        """The work is known to be needed, and less urgent than those before."""
        self._urgency[work] = next(self._numbers)
        self._inputs[work] = self._layout.inputs(work)
        for latent in self._inputs[work]:
            self._users[latent].append(work)

    def remove(self, work: Work) -> None:
        """Another work takes the place of this one, which was waiting."""
        del self._urgency[work]
        for latent in self._inputs.pop(work):
            self._users[latent].remove(work)
            self._waiting_for[latent].discard(work)
        self._missing.pop(work, None)
        self.undone[pool_of(work)] -= 1

    def put(self, work: Work) -> Collection[Latent]:
        """The work is to be done. Returns those of its inputs that it has to wait for."""
        missing = {latent for latent in self._inputs[work] if latent not in self._there}
        if missing:
            self._missing[work] = missing
            for latent in missing:
                self._waiting_for[latent].add(work)
        else:
            heappush(self._ready[pool_of(work)], (self._urgency[work], work))
        return missing

    def arrived(self, latent: Latent) -> None:
        """A latent is there: works that had waited for this last input are ready."""
        for work in self._waiting_for.pop(latent, ()):
            self._missing[work].discard(latent)
            if not self._missing[work]:
                del self._missing[work]
                heappush(self._ready[pool_of(work)], (self._urgency[work], work))

    def first(self, pool: str, open_: Callable[[Work], bool]) -> Work | None:
        """The pool's most urgent ready work that is ``open_``: neither done nor running.

        Entries that are out of date are removed on the way.
        """
        ready = self._ready[pool]
        while ready:
            work = ready[0][1]
            wanted = work in self._urgency and open_(work)
            if wanted and all(latent in self._there for latent in self._inputs[work]):
                return work
            heappop(ready)
            if wanted:  # an input was lost after the work had become ready
                self.put(work)
        return None

    def take(self, pool: str) -> None:
        """The pool's first work leaves the queue."""
        heappop(self._ready[pool])

    def ready(self, pool: str) -> Iterator[Work]:
        """The pool's ready works in no particular order, and entries that are out of date."""
        return (work for _, work in self._ready[pool] if work in self._urgency)
