"""Handles lost with the machine that held them: what they stood for is made again, and the video is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.search import SearchConfig
from framegrove.search.commands import Attempt, Start
from framegrove.search.conductor import Conductor, Tally
from framegrove.search.dispatcher import Dispatcher
from framegrove.search.journal import Journal
from framegrove.search.policies import make_policy
from framegrove.search.policies.linear import Linear
from framegrove.search.protocols import PanelMember, SearchFailed, WorkFailed
from framegrove.search.result import Ending, SearchResult
from framegrove.search.sharing import SharedWorkers
from framegrove.search.tree import Layout
from framegrove.search.workers import GENERATORS, Pool
from framegrove.types import Assessment, Cost, Path, Sampled, SampleWork, Scored, ScoreWork
from tests.fakes import FREE, FakeGenerator, FakeVerifier, Handle, MemoryStore, World, run_virtual

CONFIG = SearchConfig(policy="tof", budget="4x", options={"tof": {"roots_per_work": 3}}, attempts=30)


def search(world: World, config: SearchConfig = CONFIG, generators: int = 2, **options: Any) -> SearchResult:
    async def main() -> SearchResult:
        policy, _ = make_policy(config, 4, 3, FREE, given=len(options.get("given", ())))
        workers = {f"g{n}": FakeGenerator(f"g{n}", world) for n in range(generators)}
        panel = {"verifier": PanelMember({"v0": FakeVerifier("v0", world)})}
        return await Conductor(policy, workers, panel, config, lost=world.lost_of, **options).run()

    return run_virtual(main())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 3),
    timing=st.integers(1, 2**32),
    generators=st.integers(1, 4),
    losses=st.frozensets(st.integers(0, 60), max_size=12),
    deaths=st.dictionaries(
        st.sampled_from(["g0", "g1", "v0"]), st.frozensets(st.integers(0, 12), max_size=2), max_size=3
    ),
    buried=st.booleans(),
    speculate=st.sampled_from(["latency", "thrift", "off"]),
    policy=st.sampled_from(["tof", "tof", "linear"]),
)
def test_whatever_is_lost_whenever_the_video_is_the_same(
    seed: int,
    timing: int,
    generators: int,
    losses: frozenset[int],
    deaths: dict[str, frozenset[int]],
    buried: bool,
    speculate: str,
    policy: str,
) -> None:
    config = CONFIG.model_copy(update={"speculate": speculate, "policy": policy})
    calm = search(World(seed=seed), config.model_copy(update={"speculate": "off"}), generators=1)
    tallies: list[Tally] = []
    world = World(seed=seed, timing=timing, deaths=deaths, losses=losses, buried=buried)
    wild = search(world, config, generators, on_progress=tallies.append)
    assert (wild.winner, wild.units) == (calm.winner, calm.units)
    assert wild.certain == calm.certain
    assert wild.sampling.certain == calm.sampling.certain
    assert not any(handle.lost for handle in wild.units)
    assert {node.path for node in calm.nodes} <= {node.path for node in wild.nodes}
    for bill, sampling in ((wild.sampling, True), (wild.scoring, False)):
        assert bill.at_stake == Cost()
        assert bill.spent == sum((s.cost for s in wild.spans if isinstance(s.work, SampleWork) == sampling), Cost())
    shares = [tally.share for tally in tallies]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_machine_that_takes_its_units_along_costs_time_only() -> None:
    calm = search(World())
    died = search(World(deaths={"g1": frozenset({6})}, gone=frozenset({"g1"}), buried=True))
    assert died.units == calm.units
    assert died.sampling.certain == calm.sampling.certain
    assert died.sampling.wasted.flops > calm.sampling.wasted.flops
    again = [span.work for span in died.spans if span.ending is Ending.DONE and isinstance(span.work, SampleWork)]
    assert len(again) > len(set(again)), "something that was done had to be made again"


def test_what_is_lost_when_all_is_done_is_made_again() -> None:
    """The winner was known and its last unit is lost before anybody has fetched it."""
    calm = search(World())

    class Late(World):
        asked = 0

        async def lost_of(self, handles: Any) -> list[Path]:
            self.asked += 1
            if self.asked == 1:
                handles[calm.winner].lost = True
            return list(await super().lost_of(handles))

    world = Late()
    outcome = search(world)
    assert world.asked == 2
    assert outcome.units == calm.units
    assert not outcome.units[-1].lost
    assert outcome.seconds > calm.seconds


def test_waste_of_what_was_lost_is_in_the_journal(tmp_path: File) -> None:
    world, store = World(losses=frozenset({8, 12, 20})), MemoryStore()
    with Journal(tmp_path / "journal.jsonl", {}, store) as journal:
        first = search(world, journal=journal)
    with Journal(tmp_path / "journal.jsonl", {}, store) as journal:
        second = search(World(), journal=journal)
    assert second.units == first.units
    assert (second.sampling, second.scoring) == (first.sampling, first.scoring)


def test_what_is_lost_before_it_is_kept_is_made_elsewhere(tmp_path: File) -> None:
    class Torn(MemoryStore):
        torn = 0

        async def save(self, name: str, handle: Any) -> None:
            if name.startswith("1.") and self.torn < 2:
                self.torn += 1
                raise WorkFailed("the machine that held it is gone")
            await super().save(name, handle)

    store = Torn()
    with Journal(tmp_path / "journal.jsonl", {}, store) as journal:
        outcome = search(World(), journal=journal)
    assert store.torn == 2
    assert outcome.units == search(World()).units
    failed = [span for span in outcome.spans if span.ending is Ending.FAILED]
    assert len(failed) == 2
    assert all(span.cost.flops > 0 for span in failed)


def dispatcher(layout: Layout, **options: Any) -> Dispatcher:
    workers = SharedWorkers().join({GENERATORS: Pool(["g0"]), "verifier": Pool(["v"])})
    return Dispatcher(Linear(layout, roots=1), workers, {each: ["verifier"] for each in Assessment}, **options)


def start(state: Dispatcher) -> list[Start]:
    return [command for command in state.decide(0.0) if isinstance(command, Start)]


def finish(state: Dispatcher, attempt: Attempt) -> None:
    assert isinstance(attempt.work, SampleWork)
    handles = tuple(Handle(path) for path in attempt.work.paths)
    state.on_done(attempt, Sampled(attempt.work, Cost(1, 10), handles), 1.0)


def test_a_lost_unit_is_made_again_before_what_builds_on_it_and_its_worker_is_not_blamed() -> None:
    state = dispatcher(Layout(2, 1), attempts=2)
    (root,) = start(state)
    finish(state, root.attempt)
    (child,) = start(state)
    state.on_lost(child.attempt, Cost(0, 3), 2.0)
    state.forget({(0,): child.inputs[(0,)]})
    assert root.attempt.work not in state.done
    assert state.costs(GENERATORS).wasted == Cost(1, 13)
    (again,) = start(state)
    assert again.attempt.work == root.attempt.work
    finish(state, again.attempt)
    state.forget({(0,): child.inputs[(0,)]})
    assert root.attempt.work in state.done, "it has been replaced meanwhile"
    (child,) = start(state)
    assert child.inputs[(0,)] is state.handles[state._policy.layout.inputs(child.attempt.work)[0]]
    with pytest.raises(SearchFailed, match="sampling branch 0 failed 2 times, the last time with: what it made was lo"):
        state.forget(child.inputs)


def test_a_score_whose_history_is_lost_waits_for_it() -> None:
    state = dispatcher(Layout(2, 1))
    for path in ((0,), (0, 0)):
        (command,) = start(state)
        assert command.attempt.work == SampleWork((path,), 0, 0)
        finish(state, command.attempt)
    (asked,) = start(state)
    assert asked.attempt.work == ScoreWork((0, 0), Assessment.FINAL)
    state.on_lost(asked.attempt, Cost(), 2.0)
    state.forget({(0,): asked.inputs[(0,)]})
    (again,) = start(state)
    assert again.attempt.work == SampleWork(((0,),), 0, 0), "only what is lost is made again"
    finish(state, again.attempt)
    (asked,) = start(state)
    state.on_done(asked.attempt, Scored(ScoreWork((0, 0), Assessment.FINAL), (("only", 0.5),)), 3.0)
    assert state.finished


def test_given_units_cannot_be_made_again() -> None:
    layout = replace(Layout(2, 1), given=1)
    state = dispatcher(layout, given=["the image"])
    (command,) = start(state)
    with pytest.raises(SearchFailed, match="the given unit 0 was lost: start the search again"):
        state.forget(command.inputs)
