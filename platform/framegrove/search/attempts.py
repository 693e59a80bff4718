"""The attempts at a search's works: which run, which are bets or have been asked to stop, and how each ended."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable

from framegrove.search.commands import Attempt, Cancel
from framegrove.search.result import Ending, Span
from framegrove.search.tree import Work
from framegrove.search.workers import pool_of
from framegrove.types import Cost, SampleWork

_PACE = 16  # sample works by which it is told how long another one takes


class Attempts:
    """All attempts of one search, by workers of these pools.

    Only sampling is ever stopped half-way. What may be stopped is a *bet*: a sample that is not certain to be needed,
    or is known not to be needed any more.
    """

    def __init__(self, pools: Iterable[str]) -> None:
        self.running: dict[int, Attempt] = {}  # by number
        self.bets: dict[int, Attempt] = {}  # those that run and have not been asked to stop
        self.stopping: set[int] = set()  # the numbers of those that have been
        self.spans: list[Span] = []  # of those that have ended
        self.launched = 0
        self.wasted = defaultdict(Cost, dict.fromkeys(pools, Cost()))
        """By pool: the cost of attempts without a result, to which others add that of results that were lost.

        Verifiers that an earlier attempt at the search had, and this one has not, are among them.
        """
        self._busy: set[Work] = set()
        self._unwanted: dict[int, Attempt] = {}  # to be asked to stop

    def is_running(self, work: Work) -> bool:
        """Whether somebody is at it."""
        return work in self._busy

    @property
    def sampling(self) -> list[Attempt]:
        """Samples that run and have not been asked to stop."""
        going_on = (attempt for number, attempt in self.running.items() if number not in self.stopping)
        return [attempt for attempt in going_on if isinstance(attempt.work, SampleWork)]

    def begin(self, work: Work, worker: str, now: float, *, certain: bool) -> Attempt:
        """A worker begins a work, which may be ``certain`` to be needed."""
        attempt = Attempt(self.launched, work, worker, now, speculative=not certain)
        self.launched += 1
        self.running[attempt.number] = attempt
        self._busy.add(work)
        if isinstance(work, SampleWork) and not certain:
            self.bets[attempt.number] = attempt
        return attempt

    def end(self, attempt: Attempt, ending: Ending, cost: Cost, now: float) -> None:
        """The attempt is over. Without a result its cost is wasted."""
        del self.running[attempt.number]
        self.bets.pop(attempt.number, None)
        self.stopping.discard(attempt.number)
        self._busy.discard(attempt.work)
        self.spans.append(Span(attempt.work, attempt.worker, attempt.start, now, ending, cost, attempt.speculative))
        if ending is not Ending.DONE:
            self.wasted[pool_of(attempt.work)] += cost

    def won(self, work: Work) -> None:
        """The work has become certain: whoever is at it has won the bet."""
        for number in [number for number, attempt in self.bets.items() if attempt.work == work]:
            del self.bets[number]

    def lost(self, is_lost: Callable[[Work], bool] = lambda work: True) -> None:
        """Bets on these works are lost: ``stop_unwanted`` ends them, unless they are won by then."""
        self._unwanted |= {number: attempt for number, attempt in self.bets.items() if is_lost(attempt.work)}

    def withdraw(self, attempt: Attempt) -> None:
        """A sample that was certain is not needed any more: ``stop_unwanted`` ends it."""
        self.bets[attempt.number] = self._unwanted[attempt.number] = attempt

    def stop_unwanted(self) -> list[Cancel]:
        """Ask all samples to stop that nobody needs."""
        unwanted = [attempt for number, attempt in self._unwanted.items() if number in self.bets]
        self._unwanted.clear()
        return self.stop(unwanted)

    def stop(self, bets: Iterable[Attempt]) -> list[Cancel]:
        """Ask these bets to stop."""
        commands = []
        for attempt in bets:
            del self.bets[attempt.number]
            self.stopping.add(attempt.number)
            commands.append(Cancel(attempt))
        return commands

    def pace(self, last_stage: int) -> float:
        """Seconds that a unit takes from noise to the end, by the slowest of the latest sample works; 0 before any.

        Where there were none that did all of it, the draft's and the refinement's are added up.
        """
        slowest: dict[tuple[int, int], float] = {}
        done = (s for s in reversed(self.spans) if isinstance(s.work, SampleWork) and s.ending is Ending.DONE)
        for span in itertools.islice(done, _PACE):
            assert isinstance(span.work, SampleWork)
            stages = span.work.first_stage, span.work.last_stage
            slowest[stages] = max(slowest.get(stages, 0.0), span.end - span.start)
        return slowest.get((0, last_stage)) or sum(slowest.values())
