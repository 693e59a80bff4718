"""The state of a running search: a pure state machine that is told what happened and asked what to do next.

No clock, no tasks and no waiting in here: the conductor passes events in (``on_done``, ``on_cancelled``, ``on_failed``,
``on_lost``, ``on_recovered``, ``on_gone``) and carries out the commands that ``decide`` returns. A work can be tried
several times; each try is an attempt. What a work has made can be lost again (``forget``): then it is as if it had
never been done, but for its cost, which is wasted.

Laws, which hold after every event (``laws`` in tests/unit/test_dispatch.py):

1. Attempts are conserved: launched = running + done + cancelled + failed. So are certain works: planned =
   finished + running + queued.
2. A work has at most one running attempt, and at most one that is done and whose handles have not been lost; never
   both. When the search is finished, every certain work has exactly one that is done.
3. A worker never has more attempts running than it can take. A bet only gets a worker that no certain work could use;
   a generator is asked to drop its bet as soon as one can.
4. Costs are conserved: spent = certain + at stake + wasted, and nothing is at stake once the search is finished.
   Certain is what the done attempts of certain works took, at stake what finished bets took that may still be won,
   wasted all the rest.
5. The scores alone decide: a policy never sees anything else, so neither the winner nor the certain works, nor their
   cost, depend on who did what when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framegrove.search.pool import Kind, Pool, kind_of
from framegrove.search.protocols import SearchFailed, check_panel
from framegrove.search.result import CostBreakdown, Ending, Span
from framegrove.search.tree import Latent, Panel, Plan, Policy, Result, Work
from framegrove.types import Cost, Path, Sampled, SampleWork, ScoreWork


@dataclass(frozen=True)
class Attempt:
    """One try at a work by one worker."""

    number: int
    work: Work
    worker: str
    start: float


@dataclass(frozen=True)
class Start:
    """Command: begin this attempt, with the handles of what the work builds on."""

    attempt: Attempt
    inputs: Mapping[Path, Any]


@dataclass(frozen=True)
class Cancel:
    """Command: ask this running attempt to stop."""

    attempt: Attempt


@dataclass(frozen=True)
class Recover:
    """Command: wait until this worker can take work again, then say ``on_recovered`` or ``on_gone``."""

    worker: str


Command = Start | Cancel | Recover


class Dispatcher:
    """Assigns the works of a policy's plan to the workers of a pool.

    A certain work is tried ``attempts`` times. ``given`` holds the handles of the units that are not searched for,
    oldest first.
    """

    def __init__(
        self, policy: Policy, pool: Pool, *, speculate: bool = True, attempts: int = 3, given: Sequence[Any] = ()
    ) -> None:
        layout = policy.layout
        if len(given) != layout.given:
            raise ValueError(f"the layout has {layout.given} given units, and there are {len(given)} handles for them")
        self.plan: Plan = policy.plan({})
        self.scores: dict[ScoreWork, Panel] = {}
        self.done: dict[Work, Result] = {}
        self.handles = {Latent(layout.prefix[: n + 1], layout.last_stage): handle for n, handle in enumerate(given)}
        self.running: dict[int, Attempt] = {}
        self.spans: list[Span] = []
        self.launched = 0
        self._policy, self._pool, self._speculate, self._tries = policy, pool, speculate, attempts
        self._certain = frozenset(self.plan.certain)
        self._busy: set[Work] = set()
        self._cancelling: set[int] = set()
        self._failures: dict[Work, list[str]] = {}
        self._withdrawn: set[Work] = set()  # bets under which a worker died: they are not made again
        self._makers: dict[Latent, str] = {}
        self._stopped = dict.fromkeys(Kind, Cost())

    @property
    def finished(self) -> bool:
        """Whether the winner is known and every certain work is done."""
        return self.plan.winner is not None and self._certain <= self.done.keys()

    def certain(self, work: Work) -> bool:
        """Whether the work is known to be needed, whatever scores are missing."""
        return work in self._certain

    # ---- what to do next

    def decide(self, now: float) -> list[Command]:
        """Commands, to be carried out at once: certain works first, bets on whatever is left idle."""
        commands: list[Command] = self._cancel(self._lost_bets())
        commands += self._start(self.plan.certain, now)
        commands += self._cancel(self._bets_in_the_way())
        if self._speculate and not self.finished:
            commands += self._start((work for work in self.plan.speculative if work not in self._withdrawn), now)
        commands += [Recover(worker) for worker in self._pool.to_recover()]
        return commands

    def _start(self, works: Iterable[Work], now: float) -> list[Command]:
        commands: list[Command] = []
        for work in works:
            if self._ready(work) and (free := self._pool.free(kind_of(work))):
                attempt = Attempt(self.launched, work, self._choose(work, free), now)
                self.launched += 1
                self.running[attempt.number] = attempt
                self._busy.add(work)
                self._pool.take(attempt.worker)
                inputs = {latent.path: self.handles[latent] for latent in self._policy.layout.inputs(work)}
                commands.append(Start(attempt, inputs))
        return commands

    def _ready(self, work: Work) -> bool:
        """Neither done nor running, and everything it builds on is there."""
        if work in self.done or work in self._busy:
            return False
        return all(latent in self.handles for latent in self._policy.layout.inputs(work))

    def _choose(self, work: Work, free: Sequence[str]) -> str:
        """Rather a worker that has not failed at this work; of those, one that made what the work builds on."""
        failed = self._failures.get(work, ())
        makers = {self._makers.get(latent) for latent in self._policy.layout.inputs(work)}
        return min(free, key=lambda worker: (worker in failed, worker not in makers))

    def _cancel(self, attempts: Iterable[Attempt]) -> list[Command]:
        commands: list[Command] = [Cancel(attempt) for attempt in attempts]
        self._cancelling |= {command.attempt.number for command in commands if isinstance(command, Cancel)}
        return commands

    def _lost_bets(self) -> list[Attempt]:
        """Running bets that can no longer be won."""
        return [attempt for attempt in self._bets() if self._lost(attempt.work)]

    def _bets_in_the_way(self) -> list[Attempt]:
        """As many running bets, worst first, as there are certain sample works without a generator."""
        waiting = sum(1 for work in self.plan.certain if isinstance(work, SampleWork) and self._ready(work))
        merit = {work: -place for place, work in enumerate(self.plan.speculative)}
        bets = sorted(self._bets(), key=lambda bet: merit.get(bet.work, -len(merit)))
        return bets[: max(waiting - len(self._cancelling), 0)]

    def _bets(self) -> list[Attempt]:
        """Sample works that run on speculation and are not being cancelled yet. Scores are too short to cancel."""
        return [
            attempt
            for attempt in self.running.values()
            if isinstance(attempt.work, SampleWork)
            and attempt.work not in self._certain
            and attempt.number not in self._cancelling
        ]

    def _lost(self, work: Work) -> bool:
        """Whether the work will never be certain: a branch it builds on, or the branch itself, is dropped."""
        if work in self._certain:
            return False
        paths = work.paths if isinstance(work, SampleWork) else (work.path,)
        prefixes = (path[:length] for path in paths for length in range(1, len(path) + 1))
        return self.finished or any(prefix in self.plan.dropped for prefix in prefixes)

    # ---- what happened

    def restore(self, result: Result, handles: Sequence[Any] = ()) -> None:
        """An earlier run of this search has finished this work. Comes before the first ``decide``."""
        self._keep(result, handles)

    def restore_waste(self, kind: Kind, cost: Cost) -> None:
        """An earlier run of this search has wasted this much."""
        self._stopped[kind] += cost

    def on_done(self, attempt: Attempt, result: Result, now: float) -> None:
        """The attempt has a result. Raises SearchFailed for scores outside [0, 1], ValueError for a wrong work."""
        if result.work != attempt.work:
            raise ValueError(f"{attempt.worker} was asked for {describe(attempt.work)}, it answered {result.work}")
        self._end(attempt, Ending.DONE, result.cost, now)
        if isinstance(result, Sampled):
            self._makers |= dict.fromkeys(self._policy.layout.outputs(result.work), attempt.worker)
        self._keep(result, result.handles if isinstance(result, Sampled) else ())

    def on_cancelled(self, attempt: Attempt, cost: Cost, now: float) -> None:
        """The attempt stopped as it was told to. One that was not told to has failed."""
        if attempt.number in self._cancelling:
            self._end(attempt, Ending.CANCELLED, cost, now)
        else:
            self.on_failed(attempt, cost, "it stopped without being cancelled", now)

    def on_failed(self, attempt: Attempt, cost: Cost, reason: str, now: float) -> None:
        """The worker died under the attempt. Raises SearchFailed when a certain work has been tried often enough."""
        self._end(attempt, Ending.FAILED, cost, now)
        self._pool.down(attempt.worker)
        if attempt.work not in self._certain:
            self._withdrawn.add(attempt.work)
            return
        self._count(attempt.work, attempt.worker, reason)

    def on_lost(self, attempt: Attempt, cost: Cost, now: float) -> None:
        """The attempt could not go on because handles it was given are lost; ``forget`` says which."""
        self._end(attempt, Ending.FAILED, cost, now)

    def forget(self, lost: Mapping[Path, Any]) -> list[Result]:
        """These handles, by branch, are lost: the works that made them are to be done again, if they are certain.

        Returns the results that are wasted thereby. Handles that have been replaced meanwhile are passed over. Raises
        SearchFailed for given units, which no work makes, and when a certain work's are lost as often as it is tried.
        """
        wasted = []
        for latent in [at for at, handle in self.handles.items() if at.path in lost and lost[at.path] is handle]:
            if len(latent.path) <= self._policy.layout.given:
                raise SearchFailed(f"the given unit {len(latent.path) - 1} was lost: start the search again")
            del self.handles[latent]
            for work in [work for work in self.done if latent in self._made(work)]:
                wasted.append(self.done.pop(work))
                self._stopped[kind_of(work)] += wasted[-1].cost
                self._count(work, self._makers.get(latent, "an earlier run"), "what it made was lost")
        return wasted

    def on_recovered(self, worker: str) -> None:
        """The worker can take work again."""
        self._pool.back(worker)

    def on_gone(self, worker: str, reason: str) -> None:
        """The worker will never be back. Raises SearchFailed if it was the last of its kind."""
        self._pool.gone(worker, reason)

    def _count(self, work: Work, worker: str, reason: str) -> None:
        failures = self._failures.setdefault(work, [])
        failures.append(worker)
        if len(failures) >= self._tries and work in self._certain:
            raise SearchFailed(f"{describe(work)} failed {len(failures)} times, the last time with: {reason}")

    def _made(self, work: Work) -> tuple[Latent, ...]:
        return self._policy.layout.outputs(work) if isinstance(work, SampleWork) else ()

    def _end(self, attempt: Attempt, ending: Ending, cost: Cost, now: float) -> None:
        del self.running[attempt.number]
        self._busy.discard(attempt.work)
        self._cancelling.discard(attempt.number)
        self._pool.release(attempt.worker)
        if ending is not Ending.DONE:
            self._stopped[kind_of(attempt.work)] += cost
        self.spans.append(Span(attempt.work, attempt.worker, attempt.start, now, ending, cost))

    def _keep(self, result: Result, handles: Sequence[Any]) -> None:
        if isinstance(result, Sampled):
            self.handles |= zip(self._policy.layout.outputs(result.work), handles, strict=True)
            self.done[result.work] = result
            return
        check_panel(result.work, result.scores)
        self.done[result.work] = result
        self.scores[result.work] = result.scores
        self.plan = self._policy.plan(self.scores)
        self._certain = frozenset(self.plan.certain)

    # ---- what it cost

    def bill(self, kind: Kind) -> CostBreakdown:
        """The costs of one kind of work so far."""
        certain, at_stake, wasted = Cost(), Cost(), self._stopped[kind]
        for work, result in self.done.items():
            if kind_of(work) is not kind:
                continue
            if work in self._certain:
                certain += result.cost
            elif self._lost(work):
                wasted += result.cost
            else:
                at_stake += result.cost
        return CostBreakdown(certain, at_stake, wasted)


def describe(work: Work) -> str:
    """The work in words, for messages."""
    if isinstance(work, ScoreWork):
        return f"the {work.assessment} score of branch {_name(work.path)}"
    branches = ", ".join(map(_name, work.paths))
    return f"sampling {'branch' if len(work.paths) == 1 else 'branches'} {branches}"


def _name(path: Path) -> str:
    return ".".join(map(str, path))
