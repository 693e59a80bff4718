"""Workers that several searches share: each search has a Share of them, which its dispatcher takes for workers.

One worker after the other is given away, to whoever is next. A search tells at the end of each of its decisions how
many of its certain works could start at once (``waits``); those that had to be refused are woken when it is their turn.
Nothing in here has a clock or a task: waking is a callback, after which the search decides again.

Laws, which hold whenever every search that was woken has decided (tests/unit/test_sharing.py):

1. A worker never has more works than it takes, of all searches together: a generator one, or as many as it packs.
2. No worker is free while a certain work of any search that could start there waits.
3. A free worker goes to the search with the fewest works running in its pool, among those that wait. If several have
   equally few, it goes to the one that got its last worker there the longest ago, or never; among those that never had
   one, to the one that began first.
4. Nobody starves: while a search waits that has no work running in a pool, every other search is given at most one
   worker there.
5. A speculative work only gets a worker for which no search has a certain work waiting, and as many speculative sample
   works are asked to stop as there are certain ones waiting for a generator, first those of whoever has most running.
6. Only workers without works leave, and those that are away get none; whether they come changes nothing but the time.
7. A worker that died is brought back by exactly one search: that under which it died, or, once that search has its
   winner or has ended, any other. One that is gone for good is gone for all.

What a search decides depends on scores alone (law 5 in dispatcher.py), so that sharing changes its time and nothing
else. For the same reason the works themselves do not depend on the workers: how many drafts are denoised in step, for
example, changes the rounding of each and is therefore the policy's option, however many generators there are. Where one
search leaves a wide pool idle, others fill the gaps. Only where generators pack works of several searches, for the sake
of throughput, does a video's rounding depend on who else is there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sized

from framegrove.search.protocols import SearchFailed
from framegrove.search.workers import GENERATORS, Pool, Workers


class SharedWorkers:
    """The workers that some searches share. Pools come in with the first search that needs them.

    >>> shared = SharedWorkers()
    >>> one, other = (shared.join({GENERATORS: Pool(["g"])}) for _ in range(2))
    >>> one.take("g")
    >>> other.any_free(GENERATORS)
    False
    """

    def __init__(self) -> None:
        self._workers = Workers()
        self._shares: dict[Share, None] = {}
        self._waiting: dict[str, dict[Share, int]] = {}  # certain works that could start, by pool; none are 0
        self._queued: Counter[str] = Counter()
        self._seeking: dict[Share, None] = {}  # those that would speculate, were a generator free
        self._broken: dict[str, Share | None] = {}  # workers that nobody brings back yet, and whose it is to do so
        self._recovering: dict[str, Share] = {}
        self._places = itertools.count()
        self._turns = itertools.count(1)

    def join(self, pools: Mapping[str, Pool], wake: Callable[[], None] = lambda: None) -> Share:
        """The share of a search that begins and needs these pools. Its end is to be told: ``Share.leave``.

        ``wake`` is called when the search should decide again; it returns at once. Raises as ``Workers.add``.
        """
        for name, pool in pools.items():
            self._workers.add(name, pool)
            self._waiting.setdefault(name, {})
        share = Share(self, self._workers, tuple(pools), next(self._places), wake)
        self._shares[share] = None
        return share

    # ---- workers that come and leave

    def leave(self, worker: str) -> None:
        """The worker is not there, not yet or not any more. It must be idle."""
        self._workers.leave(worker)

    def come(self, worker: str) -> None:
        """The worker is there now."""
        self._workers.come(worker)
        self._settle()

    def idle(self, pool: str) -> list[str]:
        """The pool's workers that are there and have nothing to do."""
        return self._workers.idle(pool)

    def waiting(self, pool: str) -> int:
        """How many certain works could start if the pool had free workers, counted as far as it could have more."""
        return sum(self._waiting.get(pool, {}).values())

    # ---- whose turn it is

    def _goes_first(self, share: Share, pool: str) -> bool:
        """Whether no other search that waits for the pool goes before this one."""
        mine = share.rank(pool)
        return all(other is share or mine < other.rank(pool) for other in self._waiting[pool])

    def _next(self, pool: str) -> Share | None:
        """The search that gets the pool's next free worker."""
        return min(self._waiting[pool], key=lambda share: share.rank(pool), default=None)

    def _turn(self) -> int:
        return next(self._turns)

    def _wait(self, share: Share, pool: str, works: int) -> None:
        if works:
            self._waiting[pool][share] = works
        else:
            self._waiting[pool].pop(share, None)

    def _to_stop(self) -> Iterator[tuple[Share, int]]:
        """Searches, and how many of their speculative sample works have to make room."""
        waiting = sum(self._waiting.get(GENERATORS, {}).values())
        if not waiting:
            return
        short = waiting - self._workers.free(GENERATORS) - sum(len(share.stopping) for share in self._shares)
        betting = [share for share in self._shares if share.bets]
        for share in sorted(betting, key=lambda share: share.rank(GENERATORS), reverse=True):
            if short <= 0:
                return
            yield share, min(short, len(share.bets))
            short -= len(share.bets)

    def _settle(self, besides: Share | None = None) -> None:
        """Wake whoever should decide again, now that this search has decided or ended, or a worker has come."""
        woken = [self._next(pool) for pool in self._waiting if self._workers.any_free(pool)]
        if self._seeking and self._workers.any_free(GENERATORS) and not self._waiting[GENERATORS]:
            seekers = (share for share in self._seeking if share is not besides)
            seeker = min(seekers, key=lambda share: share.rank(GENERATORS), default=None)
            woken.append(seeker)  # if it finds nothing to do, the next one is woken when it has decided
        woken += [share for share, _ in self._to_stop()]
        orphans = {self._workers.pool(worker) for worker, whose in self._broken.items() if whose is None}
        if orphans:  # only those who will take one over: to wake others would never end
            woken += [share for share in self._shares if not share.winding_up and orphans.intersection(share.pools)]
        for share in dict.fromkeys(woken):
            if share is not None and share is not besides:
                share.wake()

    # ---- workers that die

    def _down(self, share: Share, worker: str) -> None:
        self._workers.down(worker)
        if worker not in self._recovering and not self._workers.is_gone(worker):
            self._broken.setdefault(worker, share)

    def _to_recover(self, share: Share) -> list[str]:
        mine = [name for name, whose in self._broken.items() if whose in (share, None)]
        mine = sorted(name for name in mine if self._workers.pool(name) in share.pools)
        for name in mine:
            del self._broken[name]
            self._recovering[name] = share
        return mine

    def _back(self, worker: str) -> None:
        self._workers.back(worker)
        self._broken.pop(worker, None)
        self._recovering.pop(worker, None)

    def _gone(self, worker: str, reason: str) -> None:
        self._workers.gone(worker, reason)
        self._broken.pop(worker, None)
        self._recovering.pop(worker, None)
        pool = self._workers.pool(worker)
        if pool in self._workers.lost:
            for share in self._shares:
                if pool in share.pools:
                    share.wake()

    def _hand_over(self, share: Share) -> None:
        """What is this search's to bring back, and not under way yet, is anybody's."""
        for worker, whose in self._broken.items():
            if whose is share:
                self._broken[worker] = None

    def _leave(self, share: Share) -> None:
        if share not in self._shares:
            return
        del self._shares[share]
        self._hand_over(share)
        for worker in [worker for worker, whose in self._recovering.items() if whose is share]:
            del self._recovering[worker]
            self._broken[worker] = None
        for pool in share.pools:
            self._wait(share, pool, 0)
        self._seeking.pop(share, None)
        self._settle(share)


class Share:
    """What one search may take of the workers, and what it tells of itself.

    A dispatcher asks ``any_free`` before it gives a certain work away, tells how many more could start (``waits``),
    asks ``any_spare`` before it gives a speculative one away, and ends each decision with ``settle``.
    """

    def __init__(
        self, shared: SharedWorkers, workers: Workers, pools: Collection[str], place: int, wake: Callable[[], None]
    ) -> None:
        self._shared, self._workers = shared, workers
        self.pools = pools
        """The names of the pools that this search needs."""
        self.wake = wake
        self.bets: Sized = ()
        """Running speculative sample works that can be asked to stop; whoever has them keeps them here, up to date."""
        self.stopping: Sized = ()
        """Those that have been asked to, likewise."""
        self.winding_up = False
        """Whether this search needs nothing more."""
        self._place = place
        self._works: Counter[str] = Counter()  # by worker
        self._running: Counter[str] = Counter()  # by pool
        self._queued: Counter[str] = Counter()
        self._served: dict[str, int] = dict.fromkeys(pools, 0)  # when it last got a worker; 0: never

    def rank(self, pool: str) -> tuple[int, int, int]:
        """Who gets the pool's next worker: the search for which this is least."""
        return self._running[pool], self._served[pool], self._place

    # ---- taking workers

    def any_free(self, pool: str) -> bool:
        """Whether a worker of the pool can take a certain work of this search now: nobody who waits goes first."""
        return self._workers.any_free(pool) and self._shared._goes_first(self, pool)

    def any_spare(self, pool: str) -> bool:
        """Whether a worker of the pool is free that no certain work of any search waits for."""
        return self._workers.any_free(pool) and not self._shared._waiting[pool]

    def choose(self, pool: str, avoid: Collection[str], prefer: Collection[str]) -> str:
        """The worker that the next work goes to (Workers.choose)."""
        return self._workers.choose(pool, avoid, prefer)

    def take(self, worker: str) -> None:
        """A work of this search was given to the worker."""
        pool = self._workers.pool(worker)
        self._workers.take(worker)
        self._works[worker] += 1
        self._running[pool] += 1
        self._served[pool] = self._shared._turn()

    def release(self, worker: str) -> None:
        """One of this search's works there has ended, for whatever reason."""
        self._workers.release(worker)
        self._works[worker] -= 1
        self._running[self._workers.pool(worker)] -= 1

    def load(self, pool: str) -> int:
        """How many works of this search the pool's workers have."""
        return self._running[pool]

    def loads(self, pool: str, queued: int) -> tuple[int, int]:
        """How many works of all searches run in the pool, and how many are queued, of this one ``queued``."""
        self._shared._queued[pool] += queued - self._queued[pool]
        self._queued[pool] = queued
        return self._workers.load(pool), self._shared._queued[pool]

    # ---- telling what is wanted

    def waits(self, pool: str, works: int) -> None:
        """So many certain works could start if the pool had free workers, counted up to ``most_waiting``."""
        self._shared._wait(self, pool, works)

    @property
    def waiting(self) -> bool:
        """Whether this search has told of works that could start."""
        return any(self in self._shared._waiting[pool] for pool in self.pools)

    def most_waiting(self, pool: str) -> int:
        """How large a number of waiting works makes a difference.

        Speculative works make room for so many, or so many workers may come for them.
        """
        away = self._workers.away(pool)
        if pool != GENERATORS:
            return max(1, away)
        return max(1, away, sum(len(share.bets) + len(share.stopping) for share in self._shared._shares))

    def there(self, workers: Collection[str]) -> tuple[str, ...]:
        """Those of these workers that are not away."""
        return tuple(worker for worker in workers if self._workers.is_there(worker))

    @property
    def to_stop(self) -> int:
        """How many of this search's speculative sample works have to make room, for works of its own or others'."""
        return dict(self._shared._to_stop()).get(self, 0) if self.bets else 0

    def seeks(self, more: bool) -> None:
        """Whether this search would look for speculative works if a generator were free."""
        if more:
            self._shared._seeking[self] = None
        else:
            self._shared._seeking.pop(self, None)

    def settle(self) -> None:
        """This search has decided: wake others that should, because of that or of what it was told before."""
        self._shared._settle(self)

    # ---- workers that die

    def check(self, pools: Collection[str]) -> None:
        """Raise SearchFailed if one of these pools has no worker left."""
        for pool in pools:
            if pool in self._workers.lost:
                raise SearchFailed(self._workers.lost[pool])

    def down(self, worker: str) -> None:
        """The worker failed: it gets nothing until it is back."""
        self._shared._down(self, worker)

    def to_recover(self) -> list[str]:
        """Workers that this search has to bring back, in addition to those that it was told before."""
        self.winding_up = False
        return self._shared._to_recover(self) if self._shared._broken else []

    def wind_up(self) -> None:
        """This search needs nothing more: others bring back what died under it."""
        self.winding_up = True
        self.seeks(False)
        self._shared._hand_over(self)

    def back(self, worker: str) -> None:
        """The worker can take work again."""
        self._shared._back(worker)
        self._shared._settle(self)

    def gone(self, worker: str, reason: str) -> None:
        """The worker will never be back, for anybody. Raises SearchFailed if it was the last of its pool."""
        self._shared._gone(worker, reason)
        pool = self._workers.pool(worker)
        if pool in self._workers.lost:
            raise SearchFailed(self._workers.lost[pool])

    def leave(self) -> None:
        """This search has ended: what it has is free, and what it was to bring back is for others. Idempotent."""
        for worker, works in self._works.items():
            for _ in range(works):
                self._workers.release(worker)
        self._works.clear()
        self._running.clear()
        for pool in self.pools:
            self.loads(pool, 0)
        self._shared._leave(self)
