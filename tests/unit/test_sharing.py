"""The laws of shared workers: in random lives without searches, and in whole searches on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from framegrove.config.search import SearchConfig
from framegrove.search.conductor import Conductor
from framegrove.search.dispatcher import Dispatcher
from framegrove.search.policies import make_policy
from framegrove.search.protocols import PanelMember, SearchFailed
from framegrove.search.result import Ending, SearchResult, Span
from framegrove.search.sharing import Share, SharedWorkers
from framegrove.search.tree import Policy, Work
from framegrove.search.workers import GENERATORS, Pool, pool_of
from framegrove.types import Cost, SampleWork
from tests.fakes import FREE, FakeGenerator, FakeVerifier, World, run_virtual

NOSHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
POOLS = {GENERATORS: Pool(["g0", "g1"]), "verifier": Pool(["v0"], at_a_time=3)}


@dataclass(eq=False)
class Asker:
    """A search that only wants workers: so many certain works for each pool, more of them now and then."""

    wanted: Counter[str] = field(default_factory=Counter)
    running: list[str] = field(default_factory=list)
    share: Share | None = None
    woken: bool = False
    waiting_since: dict[str, dict[Asker, int]] = field(default_factory=dict)  # what others got since, by pool

    def wake(self) -> None:
        self.woken = True

    def decide(self, others: Sequence[Asker]) -> None:
        assert self.share is not None
        self.woken = False
        for pool in POOLS:
            while self.wanted[pool] and self.share.any_free(pool):
                worker = self.share.choose(pool, (), ())
                self.share.take(worker)
                self.running.append(worker)
                self.wanted[pool] -= 1
                self.waiting_since.pop(pool, None)
                for other in others:
                    if pool in other.waiting_since and not other.share.load(pool):  # type: ignore[union-attr]
                        other.waiting_since[pool][self] = other.waiting_since[pool].get(self, 0) + 1
            self.share.waits(pool, self.wanted[pool])
            if self.wanted[pool] and not self.share.load(pool):
                self.waiting_since.setdefault(pool, {})
        self.share.settle()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), searches=st.integers(1, 5), steps=st.integers(10, 80))
def test_workers_are_shared_fairly_and_never_idle(seed: int, searches: int, steps: int) -> None:
    chance, shared = random.Random(seed), SharedWorkers()
    askers: list[Asker] = []

    def everybody_decides() -> None:
        while woken := [asker for asker in askers if asker.woken]:
            one = chance.choice(woken)
            one.decide([other for other in askers if other is not one])

    for _ in range(steps):
        one = chance.choice(askers) if askers and chance.random() < 0.9 else Asker()
        if one.share is None:
            if len(askers) == searches:
                continue
            one.share = shared.join(POOLS, one.wake)
            askers.append(one)
        if one.running and chance.random() < 0.6:
            worker = one.running.pop(chance.randrange(len(one.running)))
            one.share.release(worker)
        elif chance.random() < 0.1:
            one.share.leave()
            askers.remove(one)
            everybody_decides()
            continue
        one.wanted[chance.choice(list(POOLS))] += chance.randint(0, 3)
        one.woken = True
        come_and_leave(shared, chance, {GENERATORS: ["g0", "g1"]})
        everybody_decides()
        load = Counter(worker for asker in askers for worker in asker.running)
        assert all(count <= (3 if worker == "v0" else 1) for worker, count in load.items())  # 1
        there = len(one.share.there(["g0", "g1"])) if one.share else 0
        for pool, limit in ((GENERATORS, there), ("verifier", 3)):
            running = sum(asker.share.load(pool) for asker in askers if asker.share)
            if running < limit:
                assert not any(asker.wanted[pool] for asker in askers)  # 2
        for asker in askers:
            for pool, given_since in asker.waiting_since.items():
                if asker.share is not None and not asker.share.load(pool):
                    assert max(given_since.values(), default=0) <= 1  # 4


def come_and_leave(shared: SharedWorkers, chance: random.Random, pools: Mapping[str, Sequence[str]]) -> None:
    """An idle worker may leave, unless it is the last, and one that is away may come."""
    for pool, workers in pools.items():
        there = [worker for worker in workers if shared._workers.is_there(worker)]
        idle = [worker for worker in shared.idle(pool) if worker in workers]
        if idle and len(there) > 1 and chance.random() < 0.3:
            shared.leave(chance.choice(idle))
        away = [worker for worker in workers if worker not in there]
        if away and chance.random() < 0.3:
            shared.come(chance.choice(away))


def take(share: Share, pool: str = GENERATORS) -> str:
    assert share.any_free(pool)
    worker = share.choose(pool, (), ())
    share.take(worker)
    return worker


def test_a_free_worker_goes_to_whoever_has_fewest_then_to_whoever_waited_longest_then_to_the_first() -> None:
    shared = SharedWorkers()
    one, two, three = (shared.join({GENERATORS: Pool(["g0", "g1", "g2"])}) for _ in range(3))
    held = [take(one), take(one), take(two)]
    for share in (one, two, three):
        share.waits(GENERATORS, 1)
    one.release(held[0])
    assert [share.any_free(GENERATORS) for share in (one, two, three)] == [False, False, True]
    take(three)
    three.waits(GENERATORS, 1)
    one.release(held[1])
    assert [share.any_free(GENERATORS) for share in (one, two, three)] == [True, False, False]
    take(one)
    two.release(held[2])
    two.waits(GENERATORS, 1)
    assert two.any_free(GENERATORS)
    newest = shared.join({GENERATORS: Pool(["g0", "g1", "g2"])})
    newest.waits(GENERATORS, 1)
    assert newest.any_free(GENERATORS)
    assert not two.any_free(GENERATORS), "it had a worker, the newest never had one"


def test_as_many_speculative_works_make_room_as_others_wait_first_those_of_whoever_has_most() -> None:
    woken: list[str] = []
    shared, pools = SharedWorkers(), {GENERATORS: Pool(["g0", "g1", "g2"])}
    rich, poor, late = (shared.join(pools, lambda name=name: woken.append(name)) for name in ("rich", "poor", "late"))  # type: ignore[misc]
    for share, bets in ((rich, 2), (poor, 1)):
        for _ in range(bets):
            assert share.any_spare(GENERATORS)
            take(share)
        share.bets = list(range(bets))
    assert late.most_waiting(GENERATORS) == 3
    late.waits(GENERATORS, 1)
    late.settle()
    assert woken == ["rich"]
    assert (rich.to_stop, poor.to_stop) == (1, 0)
    rich.bets, rich.stopping = [0], [1]
    assert (rich.to_stop, poor.to_stop) == (0, 0), "one is on its way out already"
    late.waits(GENERATORS, 3)
    assert (rich.to_stop, poor.to_stop) == (1, 1)


def test_who_would_speculate_is_woken_when_a_generator_is_spare() -> None:
    woken: list[str] = []
    shared = SharedWorkers()
    one, other = (shared.join({GENERATORS: Pool(["g"])}, lambda name=name: woken.append(name)) for name in "ab")  # type: ignore[misc]
    take(one)
    other.seeks(True)
    one.settle()
    assert woken == []
    one.release("g")
    one.settle()
    assert woken == ["b"]
    assert other.any_spare(GENERATORS)
    one.waits(GENERATORS, 1)
    assert not other.any_spare(GENERATORS)


def test_a_dead_worker_is_brought_back_by_one_search_and_by_another_if_that_ends() -> None:
    woken: list[str] = []
    shared = SharedWorkers()
    one, other = (shared.join(POOLS, lambda name=name: woken.append(name)) for name in "ab")  # type: ignore[misc]
    unjudged = shared.join({GENERATORS: POOLS[GENERATORS]}, lambda: woken.append("unjudged"))
    one.down("v0")
    assert other.to_recover() == []
    assert one.to_recover() == ["v0"]
    assert one.to_recover() == []
    other.down("v0")  # it notices later
    assert other.to_recover() == []
    one.leave()
    assert woken == ["b"]
    assert unjudged.to_recover() == [], "it has nobody who knows that worker"
    assert other.to_recover() == ["v0"]
    assert not other.any_free("verifier")
    other.back("v0")
    assert other.any_free("verifier")
    other.down("v0")
    other.wind_up()
    assert shared.join(POOLS).to_recover() == ["v0"]


def test_who_is_away_gets_nothing_until_it_comes() -> None:
    woken: list[str] = []
    shared = SharedWorkers()
    shared.leave("g1")  # before any search needs it
    one = shared.join(POOLS, lambda: woken.append("one"))
    assert take(one) == "g0"
    assert not one.any_free(GENERATORS)
    assert one.most_waiting(GENERATORS) == 1
    one.waits(GENERATORS, 1)
    assert (shared.waiting(GENERATORS), shared.idle(GENERATORS)) == (1, [])
    shared.come("g1")
    assert woken == ["one"]
    assert take(one) == "g1"
    with pytest.raises(AssertionError, match="only idle workers leave"):
        shared.leave("g1")
    one.waits(GENERATORS, 0)
    one.release("g0")
    shared.leave("g0")
    one.down("g1")
    with pytest.raises(SearchFailed, match="no generator is left, the last one, g1"):
        one.gone("g1", "node lost")


def test_who_is_gone_is_gone_for_all() -> None:
    shared = SharedWorkers()
    one, other = shared.join(POOLS), shared.join(POOLS)
    one.down("g0")
    one.to_recover()
    one.gone("g0", "node lost")
    other.down("g0")  # a work of it had been there, too
    assert other.to_recover() == []
    other.check(other.pools)
    with pytest.raises(SearchFailed, match="no generator is left, the last one, g1, was lost: node lost"):
        one.gone("g1", "node lost")
    with pytest.raises(SearchFailed, match="no generator is left"):
        other.check(other.pools)


def test_a_pool_that_is_known_has_the_same_workers_for_all() -> None:
    shared = SharedWorkers()
    shared.join(POOLS)
    with pytest.raises(ValueError, match="the pool generators has other workers than"):
        shared.join({GENERATORS: Pool(["g0"])})


# ---- whole searches


class Fellowship:
    """Searches by the same fakes, at the same time."""

    def __init__(
        self,
        world: World,
        configs: Sequence[SearchConfig],
        generators: int,
        verifiers: int,
        restless: random.Random | None = None,
    ) -> None:
        self.generators = {f"g{n}": FakeGenerator(f"g{n}", world) for n in range(generators)}
        self.verifiers = {f"v{n}": FakeVerifier(f"v{n}", world) for n in range(verifiers)}
        self.shared = SharedWorkers()
        self.configs = configs
        self.restless = restless
        self.conductors: dict[int, Conductor] = {}

    async def search(self, number: int, after: float = 0.0) -> SearchResult:
        await asyncio.sleep(after)
        config = self.configs[number]
        panel = {"verifier": PanelMember(self.verifiers, at_a_time=3)}
        conductor = Conductor(policy(config), self.generators, panel, config, shared=self.shared)
        self.conductors[number] = conductor
        try:
            return await conductor.run()
        finally:
            del self.conductors[number]

    async def watched(self) -> None:
        """Look between the moments at which anything happens, and hold the laws."""
        await asyncio.sleep(0.0317)
        while True:
            running = [
                attempt for each in self.conductors.values() for attempt in each._state.attempts.running.values()
            ]
            load = Counter(attempt.worker for attempt in running)
            assert all(count <= (3 if worker.startswith("v") else 1) for worker, count in load.items())  # 1
            states = [conductor._state for conductor in self.conductors.values()]
            waiting = [work for state in states for work in state.certain_works if could_start(state, work)]
            assert not any(self.shared._workers.any_free(pool_of(work)) for work in waiting)  # 2
            samples = sum(isinstance(work, SampleWork) for work in waiting)
            if samples > sum(len(state.attempts.stopping) for state in states):
                assert not any(state.attempts.bets for state in states)  # 5
            await asyncio.sleep(0.25)

    async def moved(self) -> None:
        """Workers come and leave (law 6), at the moments at which works begin and end, too."""
        pools = {GENERATORS: list(self.generators), "verifier": list(self.verifiers)}
        while self.restless is not None:
            await asyncio.sleep(0.5)
            come_and_leave(self.shared, self.restless, pools)


def could_start(state: Dispatcher, work: Work) -> bool:
    return state._is_open(work) and all(latent in state.handles for latent in state.layout.inputs(work))


def policy(config: SearchConfig) -> Policy:
    return make_policy(config, 4, 3, FREE)[0]


def together(fellowship: Fellowship, starts: Sequence[float]) -> list[SearchResult | BaseException]:
    async def main() -> list[SearchResult | BaseException]:
        watch, moving = asyncio.create_task(fellowship.watched()), asyncio.create_task(fellowship.moved())
        searches = [fellowship.search(number, after) for number, after in enumerate(starts)]
        results = await asyncio.gather(*searches, return_exceptions=True)
        assert not watch.done() or watch.exception() is None, watch.exception()
        watch.cancel()
        moving.cancel()
        return results

    return run_virtual(main())


def alone(config: SearchConfig, world: World) -> SearchResult:
    (result,) = together(Fellowship(world, [config], 1, 1), [0.0])
    assert isinstance(result, SearchResult)
    return result


configurations = st.builds(
    lambda policy, budget, speculate, path_score: SearchConfig(
        policy=policy, budget=budget, speculate=speculate, path_score=path_score, attempts=40
    ),
    st.sampled_from(["tof", "linear", "dfs", "beam", "single"]),
    st.sampled_from(["2x", "4x"]),
    st.sampled_from(["latency", "thrift", "off"]),
    st.sampled_from([None, "last"]),
)


@settings(max_examples=25, deadline=None, phases=NOSHRINK)
@given(
    configs=st.lists(configurations, min_size=2, max_size=5),
    starts=st.lists(st.sampled_from([0.0, 0.0, 3.0, 30.0]), min_size=5, max_size=5),
    timing=st.integers(1, 2**32),
    grid=st.sampled_from([2, 1000]),
    generators=st.integers(1, 4),
    verifiers=st.integers(1, 2),
    deaths=st.dictionaries(
        st.sampled_from(["g0", "g1", "v0", "v1"]), st.frozensets(st.integers(0, 30), max_size=3), max_size=4
    ),
    restless=st.none() | st.randoms(use_true_random=False),
)
def test_every_search_ends_as_it_would_alone(
    configs: list[SearchConfig],
    starts: list[float],
    timing: int,
    grid: int,
    generators: int,
    verifiers: int,
    deaths: dict[str, frozenset[int]],
    restless: random.Random | None,
) -> None:
    """However many workers come and leave meanwhile."""
    world = World(grid=grid, timing=timing, deaths=deaths)
    results = together(Fellowship(world, configs, generators, verifiers, restless), starts[: len(configs)])
    for config, result in zip(configs, results, strict=True):
        assert isinstance(result, SearchResult), result
        calm = alone(config, World(grid=grid))
        assert (result.winner, result.units, result.certain) == (calm.winner, calm.units, calm.certain)
        assert result.sampling.certain == calm.sampling.certain
        assert result.scoring.certain.nfe == calm.scoring.certain.nfe
        assert result.sampling.at_stake == result.scoring.at_stake == Cost()


LINEAR = SearchConfig(policy="linear", budget="6x")


def test_equal_searches_make_equal_progress() -> None:
    """One generator and four searches: nobody is two works ahead of anybody."""
    results = together(Fellowship(World(), [LINEAR] * 4, 1, 1), [0.0] * 4)
    ends = [[span.end for span in r.spans if isinstance(span.work, SampleWork)] for r in results]  # type: ignore[union-attr]
    for moment in sorted({end for each in ends for end in each}):
        if moment > min(max(each) for each in ends):
            break
        done = [sum(end <= moment for end in each) for each in ends]
        assert max(done) - min(done) <= 1


def test_searches_fill_each_others_gaps() -> None:
    dfs = SearchConfig(policy="dfs", budget="4x", speculate="off")
    one = alone(dfs, World())
    results = together(Fellowship(World(), [dfs] * 4, 4, 2), [0.0] * 4)
    assert max(result.seconds for result in results if isinstance(result, SearchResult)) < 1.2 * one.seconds


def test_speculation_makes_room_for_a_search_that_comes() -> None:
    eager = SearchConfig(policy="tof", budget="8x", speculate="latency", path_score="last")
    single = SearchConfig(policy="single", budget="1x")
    (calm,) = together(Fellowship(World(), [eager], 2, 1), [0.0])
    assert isinstance(calm, SearchResult)
    samples = [span for span in calm.spans if isinstance(span.work, SampleWork)]
    early = [span for span in samples if span.speculative and span.end - span.start > 2]
    starts = [span.start + 0.5 for span in early if busy(samples, span.start + 0.5) == 2]
    assert starts, "there are moments at which one of two generators speculates, and none is free"
    stopped = 0
    for start in starts:
        first, second = together(Fellowship(World(), [eager, single], 2, 1), [0.0, start])
        assert isinstance(first, SearchResult)
        assert isinstance(second, SearchResult)
        assert first.winner == calm.winner
        stopped += second.spans[0].start == 0.5  # the next denoising step
        assert all(span.ending is Ending.DONE for span in second.spans)
    assert stopped > len(starts) / 2


def busy(spans: Sequence[Span], moment: float) -> int:
    return sum(span.start <= moment < span.end for span in spans)


def test_who_ends_early_leaves_its_workers_and_what_is_to_be_brought_back_to_the_others() -> None:
    async def main() -> SearchResult:
        world = World(deaths={"g0": frozenset({0})})
        fellowship = Fellowship(world, [LINEAR, LINEAR], 1, 1)
        first = asyncio.create_task(fellowship.search(0))
        second = asyncio.create_task(fellowship.search(1, after=0.5))
        await asyncio.sleep(13.0)  # the generator has died under the first search, which waits for it
        assert not fellowship.generators["g0"].alive
        first.cancel()
        return await second

    assert run_virtual(main()).winner == alone(LINEAR, World()).winner


def test_who_loses_the_last_worker_fails_and_so_does_everybody_else() -> None:
    world = World(deaths={"g0": frozenset({1})}, gone=frozenset({"g0"}))
    results = together(Fellowship(world, [LINEAR] * 3, 1, 1), [0.0] * 3)
    assert all(isinstance(result, SearchFailed) for result in results)
    assert {str(result) for result in results} == {
        "no generator is left, the last one, g0, was lost: g0 is gone",
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_a_poisoned_branch_of_all_ends_no_search(workers: int) -> None:
    world = World(seed=3, poison=frozenset({(0,)}))
    config = SearchConfig(policy="tof", budget="8x", options={"tof": {"roots_per_work": 1}})
    for result in together(Fellowship(world, [config] * 3, workers, 1), [0.0] * 3):
        assert isinstance(result, SearchResult), result
        assert result.winner[0] != 0
        assert list(result.given_up) == [(0,)]


def observed(world: World) -> list[tuple[str, int, int]]:
    loads: list[tuple[str, int, int]] = []

    class Gauge:
        def ended(self, *given: Any) -> None: ...

        def load(self, pool: str, running: int, waiting: int) -> None:
            loads.append((pool, running, waiting))

    async def main() -> None:
        fellowship = Fellowship(world, [LINEAR] * 2, 2, 1)
        panel = {"verifier": PanelMember(fellowship.verifiers)}
        conductors = [
            Conductor(policy(LINEAR), fellowship.generators, panel, LINEAR, shared=fellowship.shared, observer=Gauge())
            for _ in range(2)
        ]
        await asyncio.gather(*(conductor.run() for conductor in conductors))

    run_virtual(main())
    return loads


def test_an_observer_is_told_the_load_of_all_searches() -> None:
    loads = [load for load in observed(World()) if load[0] == GENERATORS]
    works = sum(isinstance(span.work, SampleWork) for span in alone(LINEAR, World()).spans)
    assert max(running for _, running, _ in loads) == 2
    assert works < max(waiting for _, _, waiting in loads) <= 2 * works
    assert loads[-1] == (GENERATORS, 0, 0)
