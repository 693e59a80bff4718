"""The laws of the state machine, after every event of random lives; and single moves, one by one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.errors import UserError
from framegrove.search.commands import Attempt, Cancel, Command, Recover, Release, Start
from framegrove.search.dispatcher import Dispatcher
from framegrove.search.policies.linear import Linear
from framegrove.search.policies.tof import TreeOfFrames
from framegrove.search.protocols import SearchFailed
from framegrove.search.result import Ending
from framegrove.search.rounds import TreeShape
from framegrove.search.sharing import Share, SharedWorkers
from framegrove.search.tree import Layout, Result
from framegrove.search.workers import GENERATORS, Pool, pool_of
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork
from tests.fakes import World, digest

LAYOUT = Layout(4, 3, draft_stage=1)
EVERYBODY = {each: ["verifier"] for each in Assessment}


def tree(roots: int = 8, widest: int = 4) -> TreeOfFrames:
    return TreeOfFrames(LAYOUT, TreeShape(roots, children=(2, 1, 2), widths=(widest, 2, 2, 1)), roots_per_work=3)


def workers(generators: list[str], verifiers: list[str], at_a_time: int = 1) -> Share:
    return SharedWorkers().join({GENERATORS: Pool(generators), "verifier": Pool(verifiers, at_a_time)})


def linear(workers: Share, layout: Layout | None = None, roots: int = 1, **options: Any) -> Dispatcher:
    return Dispatcher(Linear(layout or Layout(1, 1), roots), workers, EVERYBODY, **options)


class Life:
    """A search without a clock: whatever can happen next happens in random order."""

    def __init__(self, seed: int, generators: int, *, speculate: bool = True, world: World | None = None) -> None:
        self.random = random.Random(seed)
        self.world = world or World(seed=7)
        self.names = [f"g{n}" for n in range(generators)]
        verifiers = {"one": ["one0", "one1"], "two": ["two0"]}
        pools = {name: Pool(names, at_a_time=2) for name, names in verifiers.items()}
        self.workers = SharedWorkers().join({GENERATORS: Pool(self.names), **pools})
        panel = {each: ["one", "two"] for each in Assessment} | {Assessment.MOTION: ["two"]}
        self.state = Dispatcher(tree(), self.workers, panel, speculate=0.0 if speculate else None, attempts=1000)
        self.inputs: dict[int, dict[Path, str]] = {}
        self.cancelled: set[int] = set()
        self.recovering: list[str] = []
        self.released: set[str] = set()
        self.time = 0.0

    def live(self, failures: float) -> None:
        while not (self.state.finished and not self.state.attempts.running):
            for command in self.state.decide(self.time):
                self.carry_out(command)
            laws(self.state, self.workers)
            self.time += 1
            self.something_happens(failures)
            laws(self.state, self.workers, decided=False)

    def carry_out(self, command: Command) -> None:
        match command:
            case Start(attempt, inputs):
                self.inputs[attempt.number] = dict(inputs)
                assert not self.released & set(inputs.values()), "what is released is not needed any more"
            case Cancel(attempt):
                assert attempt.number in self.state.attempts.running
                assert attempt.number not in self.cancelled, "cancelled once"
                self.cancelled.add(attempt.number)
            case Recover(worker):
                assert worker not in self.recovering
                self.recovering.append(worker)
            case Release(handle):
                assert handle in self.state.handles.values()
                self.released.add(handle)

    def something_happens(self, failures: float) -> None:
        possible: list[Attempt | str] = [*self.state.attempts.running.values(), *self.recovering]
        chosen = self.random.choice(possible)
        if isinstance(chosen, str):
            self.recovering.remove(chosen)
            self.state.on_recovered(chosen)
        elif self.random.random() < failures:
            self.state.on_failed(chosen, Cost(self.random.randint(0, 3), 5), "it died", self.time)
        elif chosen.number in self.cancelled and self.random.random() < 0.8:  # now and then it is too late to cancel
            self.state.on_cancelled(chosen, Cost(1, 2), self.time)
        else:
            self.state.on_done(chosen, self.result(chosen), self.time)

    def result(self, attempt: Attempt) -> Result:
        inputs = self.inputs[attempt.number]
        if isinstance(attempt.work, SampleWork):
            handles = tuple(digest(attempt.work, path, inputs) for path in attempt.work.paths)
            return Sampled(attempt.work, Cost(nfe=10 * len(handles), flops=len(str(attempt.work))), handles)
        handle = inputs[attempt.work.path]
        return Scored(attempt.work, self.world.panel(handle, attempt.work), Cost(1, 3))


def laws(state: Dispatcher, workers: Share, *, decided: bool = True) -> None:
    """The laws in the module's docstring, by number."""
    running = [attempt.work for attempt in state.attempts.running.values()]
    done = [span.work for span in state.attempts.spans if span.ending is Ending.DONE]
    assert state.attempts.launched == len(running) + len(state.attempts.spans)  # 1
    planned = set(state.certain_works)
    hopeless = {work for work in planned if state._is_hopeless(work)} - state.done.keys()
    assert state.undone == len(planned - state.done.keys() - hopeless)
    queued = [work for work in planned if work not in state.done and work not in running]
    assert len(planned) == len(planned & state.done.keys()) + len(planned & set(running)) + len(queued)
    assert len(set(running)) == len(running)  # 2
    assert len(set(done)) == len(done)
    assert set(done) == set(state.done)
    assert not set(running) & set(done)
    load = Counter(attempt.worker for attempt in state.attempts.running.values())
    assert all(count <= (1 if worker.startswith("g") else 2) for worker, count in load.items())  # 3
    if decided:
        waiting = [
            work
            for work in queued
            if work not in hopeless and all(latent in state.handles for latent in LAYOUT.inputs(work))
        ]
        assert not any(workers.any_free(pool_of(work)) for work in waiting), (
            "a certain work waits while a worker is idle"
        )
    for pool in workers.pools:  # 4
        costs = state.costs(pool)
        assert costs.spent == sum((s.cost for s in state.attempts.spans if pool_of(s.work) == pool), Cost())
        assert costs.certain == sum(
            (r.cost for w, r in state.done.items() if pool_of(w) == pool and w in planned), Cost()
        )
        assert not state.finished or costs.at_stake == Cost()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    generators=st.integers(1, 4),
    failures=st.sampled_from([0.0, 0.1, 0.4]),
    speculate=st.booleans(),
    grid=st.sampled_from([2, 10, 1000]),
)
def test_the_laws_hold_and_the_scores_alone_decide(
    seed: int, generators: int, failures: float, speculate: bool, grid: int
) -> None:
    world = World(seed=7, grid=grid)
    life = Life(seed, generators, speculate=speculate, world=world)
    life.live(failures)
    calm = Life(0, 1, speculate=False, world=world)
    calm.live(0.0)
    one, other = life.state.plan, calm.state.plan  # 5
    assert (one.winner, one.certain.keys(), one.dropped) == (other.winner, other.certain.keys(), other.dropped)
    assert set(one.judgements) == set(other.judgements)
    assert one.at_most == other.at_most == len(one.certain)
    for pool in life.workers.pools:
        assert life.state.costs(pool).certain == calm.state.costs(pool).certain
    winners = [replace_last(life.state.plan.winner, length) for length in range(1, 5)]
    assert [handle_of(life, path) for path in winners] == [handle_of(calm, path) for path in winners]


def replace_last(winner: Path | None, length: int) -> Path:
    assert winner is not None
    return winner[:length]


def handle_of(life: Life, path: Path) -> object:
    return next(handle for latent, handle in life.state.handles.items() if latent.path == path and latent.stage == 2)


def start(state: Dispatcher, now: float = 0.0) -> list[Attempt]:
    return [command.attempt for command in state.decide(now) if isinstance(command, Start)]


def sampled(attempt: Attempt) -> Sampled:
    assert isinstance(attempt.work, SampleWork)
    return Sampled(attempt.work, Cost(1, 1), tuple(f"{path}" for path in attempt.work.paths))


def score(state: Dispatcher, path: Path, assessment: Assessment, value: float) -> None:
    """The score of a branch, as if it came from a journal."""
    state.restore(Scored(ScoreWork(path, assessment), (("only", value),)))


def drafted(workers: Share, policy: TreeOfFrames | None = None) -> Dispatcher:
    """All roots drafted, none scored; verifiers stay out of it."""
    policy = policy or tree()
    state = Dispatcher(policy, workers, EVERYBODY)
    for work in policy.rounds[0].samples([(root,) for root in range(policy.shape.roots)]):
        state.restore(Sampled(work, Cost(1, 1)), [str(path) for path in work.paths])
    return state


def test_a_certain_work_takes_a_generator_from_the_least_likely_speculation() -> None:
    state = drafted(workers(["g0", "g1"], ["v"]))
    for root, value in enumerate((0.1, 0.2, 0.3)):
        score(state, (root,), Assessment.POTENTIAL, value)
    ahead = [attempt for attempt in start(state) if isinstance(attempt.work, SampleWork)]
    assert [early.work for early in ahead] == [SampleWork(((2,),), 2, 2)]  # the one that is above the average so far
    for root, value in ((3, 0.4), (4, 0.0)):
        score(state, (root,), Assessment.POTENTIAL, value)
    # Root 3 has four below it: certain, and it gets the idle generator. Root 2 stays a early.
    assert [a.work for a in start(state)] == [SampleWork(((3,),), 2, 2)]
    score(state, (5,), Assessment.POTENTIAL, 0.9)  # root 5 is certain too: the early has to make room
    assert [command for command in state.decide(1.0) if isinstance(command, Cancel)] == [Cancel(ahead[0])]
    assert not any(isinstance(command, Cancel) for command in state.decide(1.0)), "cancelled once"
    state.on_cancelled(ahead[0], Cost(3, 30), 2.0)
    assert [a.work for a in start(state, 2.0)] == [SampleWork(((5,),), 2, 2)]
    assert state.costs(GENERATORS).wasted == Cost(3, 30)


def speculation_on_two_and_a_certain_work(workers: Share) -> tuple[Dispatcher, dict[int, Attempt]]:
    """Bets that run on roots 5 and 4, the likelier first, and root 6, certain now, without a generator."""
    state = drafted(workers, tree(roots=12, widest=6))
    for root in range(6):
        score(state, (root,), Assessment.POTENTIAL, root / 10)
    ahead = {a.work.paths[0][0]: a for a in start(state) if isinstance(a.work, SampleWork)}
    assert list(ahead) == [5, 4]
    score(state, (6,), Assessment.POTENTIAL, 0.9)
    assert SampleWork(((6,),), 2, 2) in state.certain_works
    assert [bet.work.paths for bet in state._policy.speculative() if isinstance(bet.work, SampleWork)] == [
        ((5,),),
        ((4,),),
    ]
    return state, ahead


def test_the_least_likely_of_several_speculative_works_makes_room() -> None:
    state, ahead = speculation_on_two_and_a_certain_work(workers(["g0", "g1"], ["v"]))
    assert [command for command in state.decide(1.0) if isinstance(command, Cancel)] == [Cancel(ahead[4])]


def test_no_more_speculative_works_make_room_than_needed() -> None:
    state, ahead = speculation_on_two_and_a_certain_work(workers(["g0", "g1"], ["v"]))
    state.decide(1.0)
    assert not any(isinstance(command, Cancel) for command in state.decide(2.0)), "one is on its way out already"
    state.on_cancelled(ahead[4], Cost(1, 1), 3.0)
    assert [(a.work, a.worker) for a in start(state, 3.0)] == [(SampleWork(((6,),), 2, 2), ahead[4].worker)]
    assert ahead[5].number in state.attempts.running


def test_a_speculative_work_that_killed_its_worker_waits_until_it_is_certain() -> None:
    state = drafted(workers(["g0"], ["v"]))
    for root, value in enumerate((0.1, 0.2)):
        score(state, (root,), Assessment.POTENTIAL, value)
    (early,) = (attempt for attempt in start(state) if isinstance(attempt.work, SampleWork))
    state.on_failed(early, Cost(1, 1), "out of memory", 1.0)
    assert Recover(early.worker) in state.decide(1.0)
    state.on_recovered(early.worker)
    assert early.work in [bet.work for bet in state._policy.speculative()]
    assert not start(state, 2.0)
    for root in range(2, 5):
        score(state, (root,), Assessment.POTENTIAL, 0.0)
    assert [attempt.work for attempt in start(state, 3.0)] == [early.work]


def test_lost_speculation_is_cancelled_and_counted() -> None:
    state = drafted(workers(["g0"], ["v"]))
    for root, value in enumerate((0.1, 0.2)):
        score(state, (root,), Assessment.POTENTIAL, value)
    (early,) = (attempt for attempt in start(state) if isinstance(attempt.work, SampleWork))
    for root in range(2, 6):
        score(state, (root,), Assessment.POTENTIAL, 0.3 + root / 10)
    assert Cancel(early) in state.decide(1.0)
    state.on_done(early, sampled(early), 2.0)  # too late to cancel
    assert state.costs(GENERATORS).wasted == Cost(1, 1)


def test_speculation_that_was_right_costs_nothing_extra() -> None:
    state = drafted(workers(["g0"], ["v"]))
    for root, value in enumerate((0.1, 0.2)):
        score(state, (root,), Assessment.POTENTIAL, value)
    (early,) = (attempt for attempt in start(state) if isinstance(attempt.work, SampleWork))
    state.on_done(early, sampled(early), 1.0)
    assert state.costs(GENERATORS).at_stake == Cost(1, 1)
    for root in range(2, 8):
        score(state, (root,), Assessment.POTENTIAL, 0.0)
    assert state.certain(early.work)
    assert state.costs(GENERATORS).wasted == Cost()


def test_a_failed_work_goes_elsewhere_and_its_worker_recovers_first() -> None:
    state = linear(workers(["g0", "g1"], ["v"]))
    (first,) = start(state)
    state.on_failed(first, Cost(2, 2), "out of memory", 1.0)
    commands = state.decide(1.0)
    assert Recover(first.worker) in commands
    (second,) = (command.attempt for command in commands if isinstance(command, Start))
    assert second.work == first.work
    assert second.worker != first.worker
    assert not state.decide(1.0), "the recovery is asked for once"
    state.on_recovered(first.worker)
    state.on_failed(second, Cost(), "out of memory", 2.0)
    (third,) = start(state, 2.0)
    with pytest.raises(SearchFailed, match="sampling branch 0 failed 3 times, the last time with: out of memory"):
        state.on_failed(third, Cost(), "out of memory", 3.0)


def test_a_work_avoids_a_worker_that_failed_at_it_though_its_parent_was_made_there() -> None:
    state = linear(workers(["g0", "g1"], ["v"]), Layout(2, 1), roots=2)
    for parent in start(state):
        state.on_done(parent, sampled(parent), 1.0)
    child, other = start(state, 1.0)
    state.on_failed(child, Cost(), "out of memory", 2.0)
    assert Recover(child.worker) in state.decide(2.0)
    state.on_recovered(child.worker)
    state.on_done(other, sampled(other), 3.0)  # now both generators are free
    again = next(attempt for attempt in start(state, 3.0) if attempt.work == child.work)
    assert again.worker == other.worker


def test_the_least_loaded_worker_comes_first() -> None:
    state = drafted(workers(["g0"], ["v0", "v1"], 2))
    assert [a.worker for a in start(state) if isinstance(a.work, ScoreWork)] == ["v0", "v1", "v0", "v1"]


def test_the_last_worker_of_a_kind_ends_the_search() -> None:
    state = linear(workers(["g0", "g1"], ["v"]))
    state.on_gone("g0", "node lost")
    with pytest.raises(SearchFailed, match="no generator is left, the last one, g1, was lost: node lost"):
        state.on_gone("g1", "node lost")
    with pytest.raises(SearchFailed, match="the verifier verifier has no worker left"):
        state.on_gone("v", "node lost")


def test_branches_stay_where_their_parents_were_made() -> None:
    state = linear(workers(["g0", "g1"], ["v"]), Layout(2, 1), roots=2)
    one, two = start(state)
    state.on_done(one, sampled(one), 1.0)
    state.on_done(two, sampled(two), 1.0)
    assert {(a.work.paths[0][0], a.worker) for a in start(state, 1.0) if isinstance(a.work, SampleWork)} == {
        (one.work.paths[0][0], one.worker),  # type: ignore[union-attr]
        (two.work.paths[0][0], two.worker),  # type: ignore[union-attr]
    }


def test_a_worker_that_stops_unasked_has_failed() -> None:
    state = linear(workers(["g0"], ["v"]), attempts=1)
    (only,) = start(state)
    with pytest.raises(SearchFailed, match="it stopped without being cancelled"):
        state.on_cancelled(only, Cost(), 1.0)


def test_wrong_answers_are_refused() -> None:
    state = linear(workers(["g0"], ["v"]))
    (only,) = start(state)
    with pytest.raises(ValueError, match="g0 was asked for sampling branch 0, it answered"):
        state.on_done(only, replace(sampled(only), work=SampleWork(((1,),), 0, 0)), 1.0)
    state.on_done(only, sampled(only), 1.0)
    (asked,) = start(state, 1.0)
    for panel, says in (
        ((), "returned no score"),
        ((("a", float("nan")),), "nan: scores must be between"),
        ((("a", 7.0),), "7.0"),
    ):
        with pytest.raises(UserError, match=says):
            state.on_done(asked, Scored(ScoreWork((0,), Assessment.FINAL), panel), 2.0)
    assert asked.worker == "v"


def test_workers_need_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="all names must differ"):
        workers(["a"], ["a"])
    with pytest.raises(ValueError, match="every pool needs workers"):
        workers([], ["a"])


def test_an_assessment_that_no_verifier_takes_part_in_is_refused() -> None:
    with pytest.raises(UserError, match="no verifier takes part in the final assessment"):
        Dispatcher(Linear(Layout(1, 1), 1), workers(["g"], ["v"]), {})
