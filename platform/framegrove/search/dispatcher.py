"""The state of a running search: a pure state machine that is told what happened and asked what to do next.

No clock, no tasks and no waiting in here: the conductor passes events in (``on_done``, ``on_cancelled``, ``on_failed``,
``on_lost``, ``on_recovered``, ``on_gone``) and carries out the commands that ``decide`` returns.

A policy asks for samples and for judgements of the whole panel (PanelWork). Each of the latter becomes one ScoreWork
for each verifier that takes part in the assessment; once all their scores are in, the policy is told. Verifiers that
compare get theirs when the branch's cohort is known, since they name the others that it is compared with. A work can be
tried several times; each try is an attempt. What a work has made can be lost again (``forget``): if it is still needed,
it is as if the work had never been done, except that its cost is wasted.

Works that are not certain yet but probably will be are *speculative*: idle workers do them in advance.

When time is up (``hurry``), the most promising branch is finished and wins, and nothing else is done any more: what was
certain and is not needed for that is *withdrawn*.

A branch is *given up* when a certain work of it has failed too often: what builds on it is not done any more, and the
policy is told that its scores are 0. The search goes on with the others, unless nothing else is left to win.

Laws, which hold after every event (``laws`` in tests/unit/test_dispatcher.py):

1. Attempts are conserved: launched = running + done + cancelled + failed. So are certain works: planned =
   finished + running + queued + given up or withdrawn.
2. A work has at most one running attempt, and at most one that is done and counts; never both. When the search is
   finished, every certain work is done or given up, and the winner's units are there.
3. A worker never has more attempts running than it can take. A speculative work only gets a worker that no certain
   work could use; a generator is asked to drop its speculative work as soon as a certain one could use it. Both hold
   for all searches together that share the workers (sharing.py).
4. Costs are conserved: spent = certain + at stake + wasted, and nothing is at stake once the search is finished.
   Certain is what the done attempts of certain works took, at stake what finished speculative works took that may yet
   become certain, wasted all the rest.
5. The scores alone decide: a policy never sees anything else, so neither the winner nor the certain works, nor their
   cost, depend on who did what when, as long as no branch is given up and time is not up.

Every event costs time in proportion to what it changes, not to the size of the search (queue.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from framegrove.lineage import branch_name
from framegrove.search.attempts import Attempts
from framegrove.search.commands import Attempt, Command, Recover, Release, Start
from framegrove.search.deadline import known_children, most_promising, rest_of, works_of
from framegrove.search.fusion import LogP, product
from framegrove.search.holdings import Holdings, Maker
from framegrove.search.panel import Panel
from framegrove.search.protocols import SearchFailed, check_scores
from framegrove.search.queue import WorkQueue
from framegrove.search.result import CostBreakdown, Ending
from framegrove.search.sharing import Share
from framegrove.search.tree import (
    Decision,
    Latent,
    Layout,
    Members,
    PanelWork,
    Plan,
    Policy,
    Result,
    Scores,
    Work,
    grows_once,
)
from framegrove.search.workers import GENERATORS, pool_of
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork, paths_of, prefixes

_MOST_LOOKED_AT = 1024  # speculative works: more would hardly ever be needed by those who would otherwise idle


class Dispatcher:
    """Assigns the works of a policy to workers, its share of those that there are.

    ``panel`` names the verifiers that take part in each assessment. A certain work is tried ``attempts`` times; then
    its branches are given up. ``given`` holds the handles of the units that are not searched for, oldest first. Works
    that are at least as likely to be needed as ``speculate`` are done ahead by workers that would otherwise idle; None:
    none are. For ``anchors`` see Panel.
    """

    def __init__(
        self,
        policy: Policy,
        workers: Share,
        panel: Mapping[Assessment, Sequence[str]],
        *,
        speculate: float | None = 0.0,
        attempts: int = 3,
        given: Sequence[Any] = (),
        log_p: LogP = product,
        anchors: Mapping[str, int] | None = None,
    ) -> None:
        layout = policy.layout
        if len(given) != layout.given:
            raise ValueError(f"the layout has {layout.given} given units, and there are {len(given)} handles for them")
        self._policy = policy
        self._workers = workers
        self._panel = Panel(panel, anchors)
        self._speculate = speculate
        self._tries = attempts
        # What is known.
        self.plan = Plan(layout.prefix, grows_once(policy))
        self.done: dict[Work, Result] = {}
        self._held = Holdings()
        self.given_up: dict[Path, str] = {}  # branches, and why
        self._hopeless: dict[Work, None] = {}  # certain works that are not done any more
        self.hurried = False
        """Whether time was up, so that the policy is not asked any more."""
        self.log_p = log_p
        self._unanswered: list[PanelWork] = []  # judgements of given-up branches that the policy waits for
        # What is to be done.
        self._queue = WorkQueue(workers.pools, layout, self._held.handles)
        # What is going on.
        self.attempts = Attempts(workers.pools)
        workers.bets, workers.stopping = self.attempts.bets, self.attempts.stopping
        self._to_release: list[Any] = []
        self._dropped: set[Latent] = set()  # of dropped branches, with certain works that are still to be done
        self._failures: dict[Work, list[str]] = {}
        self._withdrawn: set[Work] = set()  # speculative works under which a worker died: not tried again
        self._sampled_ahead = False  # whether there is a speculative sample that nobody has tried to have scored
        self._news = 0  # results and judgements so far: what speculation depends on
        self._unknown = 0  # works of certain judgements whose cohorts are not known yet
        self._next_look = 0  # the number of news from which on to look for speculative work
        for assessment in policy.assessments:  # told now, not when the first such branch has been sampled
            self._panel.works(PanelWork(layout.prefix, assessment))
        for unit, handle in enumerate(given):
            self._put(Latent(layout.prefix[: unit + 1], layout.last_stage), handle)
        self._follow(policy.start())

    @property
    def handles(self) -> Mapping[Latent, Any]:
        """Where what has been sampled is found."""
        return self._held.handles

    @property
    def panels(self) -> Mapping[PanelWork, Scores]:
        """What the panel has said about branches."""
        return self._panel.scores

    @property
    def finished(self) -> bool:
        """Whether the winner is known and every certain work is done."""
        return self.plan.winner is not None and not self.undone

    def certain(self, work: Work) -> bool:
        """Whether the work is known to be needed, whatever scores are missing."""
        return self._queue.certain(work)

    @property
    def layout(self) -> Layout:
        """The grid that the search moves on."""
        return self._policy.layout

    @property
    def at_most(self) -> int:
        """How many certain works there can be in the end."""
        further = (self.plan.at_most - len(self.plan.certain)) * self._panel.widest
        return len(self._queue.works) + self._unknown + further

    @property
    def certain_works(self) -> Collection[Work]:
        """Every work that is known to be needed, finished or not."""
        return self._queue.works

    @property
    def undone(self) -> int:
        """How many of them are not done."""
        return self._queue.undone.total()

    def load(self, pool: str) -> tuple[int, int]:
        """How many works of a pool run, and how many certain ones wait."""
        running = self._workers.load(pool)
        return running, max(0, self._queue.undone[pool] - running)

    # ---- what to do next

    def decide(self, now: float) -> list[Command]:
        """Commands, to be carried out at once: certain works first, speculative ones on whatever is left idle.

        Raises SearchFailed if another search has lost the last worker of a pool.
        """
        self._answer_the_rest()
        if not self.finished:
            self._workers.check((GENERATORS,) if self.hurried else self._workers.pools)
        commands: list[Command] = [Release(handle) for handle in self._to_release]
        self._to_release.clear()
        if self.finished:
            self.attempts.lost()
        commands += self.attempts.stop_unwanted()
        for pool in self._workers.pools:
            commands += self._start_certain(pool, now)
            self._workers.waits(pool, self._waiting(pool))
        commands += self.attempts.stop(self._in_the_way())
        if self._speculate is not None and not self.finished and not self.hurried:
            commands += self._start_speculative(now)
            self._workers.seeks(self._look_is_due and not self._workers.any_spare(GENERATORS))
        if self.finished:  # a worker that is not needed any more need not come back
            self._workers.wind_up()
        else:
            commands += [Recover(worker) for worker in self._workers.to_recover()]
        self._workers.settle()
        return commands

    def _start_certain(self, pool: str, now: float) -> Iterator[Start]:
        """Start the most urgent works that are ready, as long as the pool has workers for them."""
        while self._workers.any_free(pool) and (work := self._queue.first(pool, self._is_open)) is not None:
            self._queue.take(pool)
            yield self._begin(work, now)

    def _waiting(self, pool: str) -> int:
        """How many certain works are ready, counted as far as that makes a difference."""
        if self._queue.first(pool, self._is_open) is None:
            return 0
        most = self._workers.most_waiting(pool)
        if most == 1:
            return 1
        return sum(1 for _ in itertools.islice(filter(self._is_open, self._queue.ready(pool)), most))

    def _is_open(self, work: Work) -> bool:
        """Neither done nor running, nor given up."""
        return work not in self.done and not self.attempts.is_running(work) and work not in self._hopeless

    def _begin(self, work: Work, now: float) -> Start:
        inputs = self._queue.inputs(work)
        worker = self._workers.choose(pool_of(work), self._failures.get(work, ()), self._held.made_by(inputs))
        self._workers.take(worker)
        attempt = self.attempts.begin(work, worker, now, certain=self.certain(work))
        return Start(attempt, {latent.path: self.handles[latent] for latent in inputs})

    def _start_speculative(self, now: float) -> Iterator[Start]:
        """Start likely works on idle workers.

        A look that found nothing is not repeated before enough has happened to pay for it: how many works are looked at
        grows with the search, and most news change nothing.
        """
        idle = self._look_is_due and self._workers.any_spare(GENERATORS)
        if not idle and not self._sampled_ahead:
            return
        self._sampled_ahead = False
        looked = started = 0
        for bet in itertools.islice(self._policy.speculative(), _MOST_LOOKED_AT):
            if bet.likely < (self._speculate or 0.0):
                break  # they come likeliest first
            looked += 1
            for work in self._panel.works(bet.work):
                if self._can_speculate(work):
                    started += 1
                    yield self._begin(work, now)
        self._next_look = 0 if started else self._news + 1 + max(looked - 64, 0) // 16

    @property
    def _look_is_due(self) -> bool:
        return self._news >= self._next_look

    def _can_speculate(self, work: Work) -> bool:
        if not self._is_open(work) or work in self._withdrawn or self.certain(work):
            return False
        if not self._workers.any_spare(pool_of(work)) or self._is_hopeless(work):
            return False
        return all(latent in self.handles for latent in self._policy.layout.inputs(work))

    def _in_the_way(self) -> list[Attempt]:
        """As many speculative samples, least likely first, as have to make room for certain ones."""
        leaving = self._workers.to_stop
        if not leaving:
            return []
        bets = itertools.islice(self._policy.speculative(), _MOST_LOOKED_AT)
        place: dict[Work | PanelWork, int] = {bet.work: n for n, bet in enumerate(bets)}
        running = sorted(self.attempts.bets.values(), key=lambda attempt: -place.get(attempt.work, len(place)))
        return running[:leaving]

    # ---- when time is up

    def seconds_to_finish(self, at_least: float) -> float:
        """About how long the most promising branch takes to be finished, by the slowest of the latest whole units.

        If a whole video would take less than ``at_least``, that is told without looking for the branch.
        """
        pace = self.attempts.pace(self.layout.last_stage)
        from_nothing = pace * (self.layout.units - self.layout.given)
        if from_nothing < at_least:
            return from_nothing
        return pace * (self.layout.units - len(self._most_promising() or self.layout.prefix))

    def hurry(self, left: float = math.inf) -> None:
        """Time is up: finish the most promising branch that can be in what is ``left`` (s), and do nothing else.

        Raises SearchFailed where that, and all others, were given up.
        """
        again, self.hurried = self.hurried, True
        self._unanswered.clear()
        pace = self.attempts.pace(self.layout.last_stage)
        best = self.plan.winner or self._most_promising(left / pace + 0.5 if pace else math.inf)
        if best is None and again:
            self._check_winner()
            raise SearchFailed("every branch was given up, and no time is left for others")
        sampling = [attempt.work for attempt in self.attempts.sampling]
        going_on = [work for work in sampling if isinstance(work, SampleWork) and not self._is_hopeless(work)]
        taken = known_children(self.plan, self._whole_branches(), self.given_up)
        dead = {*self.plan.dropped, *self.plan.ended, *self.given_up}
        rest = dict(rest_of(best or self.layout.prefix, self.layout, going_on, dead, taken))
        winner = next(reversed(rest)) if rest else best
        assert winner is not None
        asked_for = (work for work in self._queue.works if isinstance(work, SampleWork) and work not in self._hopeless)
        works = works_of(winner, self.layout, asked_for, rest, self._held.makers())
        planned = tuple(work for work in works if not self.certain(work))
        self._follow(Decision(len(self.plan.certain) + len(planned), planned, winner=winner))
        for work in self._queue.works:
            if work not in works and work not in self.done and work not in self._hopeless:
                self._lose_hope(work)
        for attempt in self.attempts.sampling:
            if attempt.work in self._hopeless:
                self.attempts.withdraw(attempt)
        self.attempts.lost()
        self._let_go(list(self._dropped))

    def _most_promising(self, most_units: float = math.inf) -> Path | None:
        failing = (path[:-1] for path in self.given_up)  # there is no time to find out whose fault it was
        dead = {*self.plan.dropped, *self.plan.ended, *self.given_up, *failing}
        return most_promising(self.layout, self._whole_branches(), dead, self.panels, self.log_p, most_units)

    def _whole_branches(self) -> set[Path]:
        """Branches whose newest units are there at full resolution."""
        return self._held.branches(self.layout.last_stage)

    # ---- what happened

    def restore(self, result: Result, handles: Sequence[Any] = ()) -> None:
        """An earlier run of this search has finished this work. Comes before the first ``decide``.

        A work that was done twice had been lost in between: the first time counts as wasted.
        """
        earlier = self.done.get(result.work)
        if earlier is not None:
            self.attempts.wasted[pool_of(result.work)] += earlier.cost
        self._keep(result, handles)

    def restore_waste(self, pool: str, cost: Cost) -> None:
        """An earlier run of this search has wasted this much."""
        self.attempts.wasted[pool] += cost

    def on_done(self, attempt: Attempt, result: Result, now: float) -> None:
        """The attempt has a result. Raises as ``check`` does."""
        check(result, attempt)
        self._end(attempt, Ending.DONE, result.cost, now)
        self._keep(result, result.handles if isinstance(result, Sampled) else (), attempt.worker)

    def on_cancelled(self, attempt: Attempt, cost: Cost, now: float) -> None:
        """The attempt stopped as it was told to. One that was not told to has failed."""
        if attempt.number in self.attempts.stopping:
            self._end(attempt, Ending.CANCELLED, cost, now)
        else:
            self.on_failed(attempt, cost, "it stopped without being cancelled", now)

    def on_failed(self, attempt: Attempt, cost: Cost, reason: str, now: float) -> None:
        """The worker died under the attempt; tried often enough, its branches are given up.

        Raises SearchFailed when nothing else can win.
        """
        self._end(attempt, Ending.FAILED, cost, now)
        self._workers.down(attempt.worker)
        if attempt.work in self._hopeless:
            return
        if not self.certain(attempt.work):
            self._withdrawn.add(attempt.work)
            return
        self._count(attempt.work, attempt.worker, reason)

    def on_lost(self, attempt: Attempt, cost: Cost, now: float) -> None:
        """The attempt could not go on because handles it was given are lost; ``forget`` says which."""
        self._end(attempt, Ending.FAILED, cost, now)

    def forget(self, lost: Mapping[Path, Any]) -> None:
        """These handles, by branch, are lost: the works that made them are done again where they are still needed.

        Handles that have been replaced meanwhile are passed over. Raises SearchFailed for given units, which no work
        makes, and when a certain work's are lost as often as it is tried.
        """
        for path, handle in lost.items():
            for latent in self._held.lose(path, handle):
                if len(path) <= self._policy.layout.given:
                    raise SearchFailed(f"the given unit {len(path) - 1} was lost: start the search again")
                if self._needed(latent):
                    self._undo(latent)

    def on_recovered(self, worker: str) -> None:
        """The worker can take work again."""
        self._workers.back(worker)

    def on_gone(self, worker: str, reason: str) -> None:
        """The worker will never be back. Raises SearchFailed if it was the last of a pool that is still needed."""
        try:
            self._workers.gone(worker, reason)
        except SearchFailed:
            if not self.hurried:  # afterwards only generators count, which ``decide`` looks after
                raise

    def _needed(self, latent: Latent) -> bool:
        """Whether a certain work builds on it that is not done, or a later one may, or the winner is made of it."""
        if any(work not in self.done and work not in self._hopeless for work in self._queue.users(latent)):
            return True
        if latent.stage < self._policy.layout.last_stage:  # a draft is of no use once it has been refined
            refined = Latent(latent.path, self._policy.layout.last_stage) in self.handles
            return not (refined or self.plan.winner or self.plan.is_dead(latent.path))
        if self.plan.winner is not None:
            return self.plan.winner[: len(latent.path)] == latent.path
        return not self.plan.is_dead(latent.path)

    def _undo(self, latent: Latent) -> None:
        """The work that made it counts as not done, and its cost is wasted."""
        maker = self._held.maker(latent)
        assert maker is not None
        work, worker = maker
        result = self.done.pop(work, None)
        if result is None:  # a sibling was lost with it
            return
        self.attempts.wasted[GENERATORS] += result.cost
        self._queue.undone[GENERATORS] += self.certain(work)
        self._count(work, worker, "what it made was lost")
        if self.certain(work) and work not in self._hopeless:
            self._enqueue(work)

    def _count(self, work: Work, worker: str, reason: str) -> None:
        failures = self._failures.setdefault(work, [])
        failures.append(worker)
        if len(failures) >= self._tries and self.certain(work):
            self._give_up(work, f"{describe(work)} failed {len(failures)} times, the last time with: {reason}")

    def _end(self, attempt: Attempt, ending: Ending, cost: Cost, now: float) -> None:
        self.attempts.end(attempt, ending, cost, now)
        self._workers.release(attempt.worker)
        if ending is not Ending.DONE:
            self._next_look = 0
            if self.certain(attempt.work) and attempt.work not in self._hopeless:
                self._enqueue(attempt.work)

    def _keep(self, result: Result, handles: Sequence[Any], worker: str = "an earlier run") -> None:
        if self.certain(result.work) and result.work not in self.done:
            self._queue.undone[pool_of(result.work)] -= result.work not in self._hopeless
            self._hopeless.pop(result.work, None)
        if isinstance(result, Scored):
            self.done[result.work] = result
            self._let_go(self._dropped.intersection(self._queue.inputs(result.work)))
            self._judge(PanelWork(result.work.path, result.work.assessment))
            return
        self.done[result.work] = result
        self._news += 1
        self._sampled_ahead |= not self.certain(result.work)
        for latent, handle in zip(self._policy.layout.outputs(result.work), handles, strict=True):
            self._put(latent, handle, Maker(result.work, worker))
            if self.plan.is_dead(latent.path):
                self._let_go([latent])

    def _put(self, latent: Latent, handle: Any, maker: Maker | None = None) -> None:
        self._held.put(latent, handle, maker)
        self._queue.arrived(latent)

    # ---- what follows from it

    def _judge(self, work: PanelWork) -> None:
        """Once all verifiers have scored the branch, and the policy has asked for it, the policy is told."""
        if not self._panel.add_up(work, self.done):
            return
        self._news += 1
        if work in self.plan.certain and not self.hurried:
            self._follow(self._policy.judged(work, self.panels[work]))
        if self._unanswered:
            self._answer(work.assessment)

    def _follow(self, decision: Decision) -> None:
        """Carry a policy's decision over into the queues, and those that follow from it at once."""
        decisions = [decision]
        while decisions:
            decision = decisions.pop(0)  # in the order in which they were taken
            ended = self.plan.add(decision)
            for planned in decision.works:
                for work in self._panel.works(planned):
                    self._becomes_certain(work)
                self._unknown += self._panel.unknown(planned) if isinstance(planned, PanelWork) else 0
                if isinstance(planned, PanelWork) and self._is_judged(planned) and not self.hurried:  # scored ahead
                    decisions.append(self._policy.judged(planned, self.panels[planned]))
            for members in decision.cohorts:
                decisions += self._compare(members)
            if decision.dropped:
                self._drop([path for path, _ in decision.dropped], ended)
        self._check_winner()

    def _is_judged(self, work: PanelWork) -> bool:
        return work in self.panels or self._panel.add_up(work, self.done)

    def _compare(self, members: Members) -> Iterator[Decision]:
        """A cohort is known: verifiers that compare can judge its members."""
        if not self._panel.compares:
            return
        asked = [PanelWork(path, members.assessment) for path in members.paths]
        self._unknown -= sum(self._panel.unknown(work) for work in asked if work in self.plan.certain)
        self._panel.compare(members, self.given_up)
        for planned in asked:
            if planned not in self.plan.certain:
                continue
            for work in self._panel.works(planned):
                if not self.certain(work):
                    self._becomes_certain(work)
            if self._panel.add_up(planned, self.done) and not self.hurried:  # an earlier run has compared it
                yield self._policy.judged(planned, self.panels[planned])

    def _becomes_certain(self, work: Work) -> None:
        self._queue.add(work)
        if work in self.done:
            return
        self._queue.undone[pool_of(work)] += 1
        if self._is_hopeless(work):
            self._lose_hope(work)
            return
        if not self.attempts.is_running(work):
            self._enqueue(work)
        self.attempts.won(work)

    def _enqueue(self, work: Work) -> None:
        for latent in self._queue.put(work):
            if self._held.maker(latent) is not None:  # it was lost when nothing seemed to need it
                self._undo(latent)

    # ---- branches that are given up

    def _give_up(self, work: Work, reason: str) -> None:
        """No work of its branches, nor of any that builds on them, is tried again."""
        self.given_up |= dict.fromkeys(paths_of(work), reason)
        self._find_anchors()
        for each in self._queue.works:
            if each not in self.done and each not in self._hopeless and self._is_hopeless(each):
                self._lose_hope(each)
        if self.hurried and any(prefix in self.given_up for prefix in prefixes(self.plan.winner or ())):
            self.plan.winner = None
            self.hurry()
        self._check_winner()
        self._answer_the_rest()

    def _find_anchors(self) -> None:
        """Where a branch was given up that others wait to be compared with, others of the cohort take its place."""
        for work in list(self._queue.works):
            if not isinstance(work, ScoreWork) or not work.against or work in self.done or work in self._hopeless:
                continue
            there = all(latent in self.handles for latent in self._queue.inputs(work))
            if there or not any(prefix in self.given_up for prefix in work.shown[len(work.path) :]):
                continue
            self._queue.remove(work)  # nobody could be compared with that branch: it was never made
            self._panel.renew(PanelWork(work.path, work.assessment), self.given_up)
            for each in self._panel.works(PanelWork(work.path, work.assessment)):
                if not self.certain(each):
                    self._becomes_certain(each)

    def _is_hopeless(self, work: Work) -> bool:
        """Whether the work is of a branch that was given up, or builds on one."""
        if not self.given_up:
            return False
        return any(prefix in self.given_up for path in paths_of(work) for prefix in prefixes(path))

    def _lose_hope(self, work: Work) -> None:
        """A certain work is not done any more; if it is a judgement, the policy still waits for it."""
        self._hopeless[work] = None
        self._queue.undone[pool_of(work)] -= 1
        if isinstance(work, ScoreWork) and not self.hurried:
            panel = PanelWork(work.path, work.assessment)
            if panel not in self.panels and panel not in self._unanswered:
                self._unanswered.append(panel)

    def _answer(self, assessment: Assessment | None = None) -> None:
        """Tell the policy that given-up branches score 0: at this assessment, whose columns are known, or at all."""
        asked = [work for work in self._unanswered if assessment in (None, work.assessment)]
        self._unanswered = [work for work in self._unanswered if work not in asked]
        self._panel.give_up(asked)
        for work in asked:
            self._follow(self._policy.judged(work, self.panels[work]))

    def _answer_the_rest(self) -> None:
        """Where nobody is left whose scores would tell what columns are called, the policy need not wait for them."""
        while self._unanswered and not self.undone:
            self._answer()

    def _check_winner(self) -> None:
        """Raise SearchFailed where a branch has won that was given up: there was nothing better."""
        for prefix in prefixes(self.plan.winner or ()):
            if prefix in self.given_up:
                raise SearchFailed(self.given_up[prefix])

    def _drop(self, dropped: Iterable[Path], ended: Iterable[Path]) -> None:
        """Branches lead no further: what hangs on them is released, and speculation on them is given up."""
        self.attempts.lost(self._is_lost)
        for path in dropped:
            self._let_go(self._held.below(path))
        for path in ended:
            self._let_go(self._held.of(path))

    def _let_go(self, latents: Iterable[Latent]) -> None:
        """Release what dropped branches are made of, as soon as no certain work, such as a late judgement, needs it."""
        for latent in list(latents):
            if any(work not in self.done and work not in self._hopeless for work in self._queue.users(latent)):
                self._dropped.add(latent)
            elif latent in self.handles:
                self._dropped.discard(latent)
                self._to_release.append(self.handles[latent])

    def _is_lost(self, work: Work) -> bool:
        """Whether the work will never be certain: a branch that it builds on, or the branch itself, is dropped."""
        if self.certain(work):
            return False
        return self.finished or any(self.plan.is_dead(path) for path in paths_of(work))

    # ---- what it cost

    def costs(self, pool: str) -> CostBreakdown:
        """The costs of one pool's work so far."""
        certain = Cost()
        at_stake = Cost()
        wasted = self.attempts.wasted[pool]
        for work, result in self.done.items():
            if pool_of(work) != pool:
                continue
            if self.certain(work):
                certain += result.cost
            elif self._is_lost(work):
                wasted += result.cost
            else:
                at_stake += result.cost
        return CostBreakdown(certain, at_stake, wasted)


def check(result: Result, attempt: Attempt) -> None:
    """Raise ValueError for a result of another work, UserError for scores outside [0, 1]."""
    if result.work != attempt.work:
        raise ValueError(f"{attempt.worker} was asked for {describe(attempt.work)}, it answered {result.work}")
    if isinstance(result, Scored):
        check_scores(result)


def describe(work: Work) -> str:
    """The work in words, for messages."""
    if isinstance(work, ScoreWork):
        return f"the {work.assessment} score of branch {branch_name(work.path)} by {work.verifier}"
    branches = ", ".join(map(branch_name, work.paths))
    return f"sampling {'branch' if len(work.paths) == 1 else 'branches'} {branches}"
