"""Whole searches with fake workers on a virtual clock: delays, deaths, lost speculation, and always the same video."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig
from framegrove.errors import UserError
from framegrove.search.conductor import Conductor, Tally
from framegrove.search.deadline import most_promising
from framegrove.search.fusion import Panel, product
from framegrove.search.journal import Restored
from framegrove.search.policies import make_policy
from framegrove.search.protocols import PanelMember, SearchFailed, VerifierUnusable, WorkFailed
from framegrove.search.result import Ending, Fate, SearchResult, overlap_seconds
from framegrove.search.tree import Layout, PanelWork, Policy
from framegrove.types import Assessment, Path, Sampled, SampleWork, Scored, ScoreWork, prefixes
from tests.fakes import FREE, FakeGenerator, FakeVerifier, Handle, World, run_virtual

TOF = SearchConfig(policy="tof", budget="4x", path_score="last", options={"tof": {"roots_per_work": 3}})


class Stage:
    """A conductor with its cast."""

    def __init__(
        self, world: World, config: SearchConfig = TOF, generators: int = 2, verifiers: int = 1, **options: Any
    ):
        self.config, self.given = config, len(options.get("given", ()))
        self.generators = {f"g{n}": FakeGenerator(f"g{n}", world) for n in range(generators)}
        self.verifiers = {f"v{n}": FakeVerifier(f"v{n}", world) for n in range(verifiers)}
        panel = {"verifier": PanelMember(self.verifiers, at_a_time=config.scores_in_flight)}
        self.conductor = Conductor(self.new_policy(), self.generators, panel, config, **options)

    def new_policy(self) -> Policy:
        """A policy runs one search."""
        return make_policy(self.config, 4, 3, FREE, given=self.given)[0]


def search(world: World, *args: Any, **options: Any) -> SearchResult:
    async def main() -> SearchResult:
        return await Stage(world, *args, **options).conductor.run()

    return run_virtual(main())


def same_video(one: SearchResult, other: SearchResult) -> bool:
    """Equal winners with equal handles: every latent came from the same works on top of the same latents."""
    return one.winner == other.winner and one.units == other.units


deaths = st.dictionaries(
    st.sampled_from(["g0", "g1", "g2", "g3", "v0", "v1"]), st.frozensets(st.integers(0, 12), max_size=2), max_size=4
)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 3),
    grid=st.sampled_from([2, 1000]),
    timing=st.integers(1, 2**32),
    generators=st.integers(1, 4),
    verifiers=st.integers(1, 2),
    in_flight=st.integers(1, 8),
    deaths=deaths,
    speculate=st.sampled_from(["latency", "thrift", "off"]),
    step_s=st.sampled_from([0.1, 1.0, 5.0]),
    policy=st.sampled_from(["tof", "tof", "linear"]),
)
def test_same_seed_same_video(
    seed: int,
    grid: int,
    timing: int,
    generators: int,
    verifiers: int,
    in_flight: int,
    deaths: dict[str, frozenset[int]],
    speculate: str,
    step_s: float,
    policy: str,
) -> None:
    calm = search(
        World(seed=seed, grid=grid), TOF.model_copy(update={"speculate": "off", "policy": policy}), generators=1
    )
    config = TOF.model_copy(
        update={"speculate": speculate, "scores_in_flight": in_flight, "attempts": 20, "policy": policy}
    )
    world = World(seed=seed, grid=grid, timing=timing, step_s=step_s, deaths=deaths)
    wild = search(world, config, generators=generators, verifiers=verifiers)
    assert same_video(wild, calm)
    assert wild.certain == calm.certain
    assert wild.sampling.certain == calm.sampling.certain
    assert wild.scoring.certain.nfe == calm.scoring.certain.nfe
    assert [(n.path, n.judgements, n.dropped_by) for n in wild.nodes if n.fate is not Fate.SPECULATIVE] == [
        (n.path, n.judgements, n.dropped_by) for n in calm.nodes
    ]
    for bill in (wild.sampling, wild.scoring):
        assert bill.at_stake.nfe == 0
    assert wild.sampling.spent.nfe == sum(s.cost.nfe for s in wild.spans if isinstance(s.work, SampleWork))
    finished = [span.work for span in wild.spans if span.ending is Ending.DONE]
    assert len(set(finished)) == len(finished)
    assert wild.certain <= set(finished)


def test_scoring_goes_on_while_others_are_sampled() -> None:
    outcome = search(World(), generators=2)
    scoring = [(span.start, span.end) for span in outcome.spans if isinstance(span.work, ScoreWork)]
    assert outcome.overlap > 0.5 * overlap_seconds(scoring, scoring)
    assert {span.worker for span in outcome.spans} == {"g0", "g1", "v0"}


def test_overlapping_is_faster_than_taking_turns() -> None:
    outcome = search(World(), generators=1)
    busy = sum(span.end - span.start for span in outcome.spans if span.work in outcome.certain)
    assert outcome.seconds < 0.75 * busy


def test_speculation_saves_time_and_shows_its_waste() -> None:
    """Without speculation, two generators idle in front of every cut."""
    saved, wasted = [], 0
    for seed in range(8):
        world = World(seed=seed, aspects=("only",), score_s=4.0)
        patient = search(world, TOF.model_copy(update={"speculate": "off"}))
        eager = search(world, TOF)
        assert same_video(eager, patient)
        assert patient.sampling.wasted.nfe == 0
        saved.append(1 - eager.seconds / patient.seconds)
        wasted += eager.sampling.wasted.nfe
        samples = [span for span in eager.spans if isinstance(span.work, SampleWork)]
        cancelled = [span for span in samples if span.ending is Ending.CANCELLED]
        lost = [span for span in samples if span.ending is Ending.DONE and span.work not in eager.certain]
        assert eager.sampling.wasted.nfe == sum(span.cost.nfe for span in (*cancelled, *lost))
        assert all(span.cost.nfe < 12 for span in cancelled)
    assert wasted > 0
    assert sum(saved) / len(saved) > 0.05
    assert min(saved) > -0.03  # speculation can hold up certain work by a denoising step, no more


def test_killing_a_generator_or_the_verifier_changes_nothing_but_the_time() -> None:
    calm = search(World())
    for name in ("g0", "g1", "v0"):
        for call in (0, 2, 5):
            killed = search(World(deaths={name: frozenset({call})}))
            assert same_video(killed, calm)
            failed = [span for span in killed.spans if span.ending is Ending.FAILED]
            assert failed
            assert {span.worker for span in failed} == {name}
            assert killed.sampling.certain == calm.sampling.certain


def test_losing_a_generator_for_good_leaves_the_work_to_the_others() -> None:
    outcome = search(World(deaths={"g1": frozenset({1})}, gone=frozenset({"g1"})))
    assert same_video(outcome, search(World()))


def test_losing_the_last_generator_is_one_sentence() -> None:
    with pytest.raises(SearchFailed, match="no generator is left, the last one, g0, was lost: g0 is gone"):
        search(World(deaths={"g0": frozenset({3})}, gone=frozenset({"g0"})), generators=1)


def test_a_work_that_kills_everybody_is_given_up() -> None:
    always = frozenset(range(100))
    with pytest.raises(SearchFailed, match=r"sampling branches? .* failed 3 times, the last time with: g\d died"):
        search(World(deaths={"g0": always, "g1": always}))


@pytest.mark.parametrize("policy", ["linear", "tof", "tree", "beam", "smc", "dfs", "evo", "pyramid"])
@pytest.mark.parametrize("poison", [(0,), (1,), (0, 0), (1, 0), (0, 0, 0)])
def test_a_poisoned_branch_is_given_up_and_the_search_goes_on(policy: str, poison: Path) -> None:
    config = TOF.model_copy(
        update={"policy": policy, "budget": "8x", "options": {"tof": {"roots_per_work": 1}, "smc": {"population": 5}}}
    )
    outcome = search(World(seed=3, poison=frozenset({poison})), config)
    assert outcome.winner[: len(poison)] != poison
    assert all(path[: len(poison)] != poison for path in outcome.handles)
    if outcome.given_up:
        assert poison in outcome.given_up
        assert "failed 3 times, the last time with: g" in outcome.given_up[poison]


@pytest.mark.parametrize(("policy", "options"), [("evo", {}), ("dfs", {"accept": 0.7}), ("beam", {})])
@pytest.mark.parametrize("poison", [(0,), (0, 0)])
def test_a_poisoned_branch_is_nobodys_best_under_the_shipped_panel(
    policy: str, options: dict[str, Any], poison: Path
) -> None:
    panel = Panel(PanelConfig().verifiers, {})
    config = SearchConfig(policy=policy, budget="8x", options={policy: options})
    world = World(seed=3, aspects=("alignment", "motion"), poison=frozenset({poison}))

    async def main() -> SearchResult:
        generators = {name: FakeGenerator(name, world) for name in ("g0", "g1")}
        judge = {"verifier": PanelMember({"v": FakeVerifier("v", world)})}
        policy, _ = make_policy(config, 4, 3, FREE, panel=panel)
        return await Conductor(policy, generators, judge, config, log_p=panel.log_p).run()

    assert run_virtual(main()).winner[: len(poison)] != poison


def test_what_the_others_said_is_carried_to_an_attempt_without_a_verifier_and_all_costs_are() -> None:
    config = SearchConfig(policy="tof", budget="8x", options={"tof": {"roots_per_work": 1}})
    world, answered = World(seed=3), list[ScoreWork]()

    class Tired(FakeVerifier):
        async def score(self, work: ScoreWork, handle: Any) -> Scored:
            if self.calls >= 20:
                raise UserError("no answer")
            return await super().score(work, handle)

    class Counting(FakeVerifier):
        async def score(self, work: ScoreWork, handle: Any) -> Scored:
            scored = await super().score(work, handle)
            answered.append(work)
            return scored

    def attempt(verifiers: dict[str, FakeVerifier], carried: Restored | None = None) -> Conductor:
        panel = {name: PanelMember({name: verifier}) for name, verifier in verifiers.items()}
        generators = {name: FakeGenerator(name, world) for name in ("g0", "g1")}
        return Conductor(make_policy(config, 4, 3, FREE)[0], generators, panel, config, carried=carried)

    async def main() -> tuple[SearchResult, SearchResult, int]:
        good, tired = Counting("good", world), Tired("tired", world)
        first = attempt({"good": good, "tired": tired})
        with pytest.raises(VerifierUnusable):
            await first.run()
        found = await attempt({"good": good}, first.carried({"good"})).run()
        return found, await attempt({"good": FakeVerifier("good", world)}).run(), tired.calls

    found, alone, said = run_virtual(main())
    assert found.winner == alone.winner
    assert len(answered) == len(set(answered)) > 20
    a_verdict = alone.verifiers["good"].certain.flops / sum(isinstance(work, ScoreWork) for work in alone.certain)
    assert found.verifiers["tired"].wasted.flops == said * a_verdict
    assert found.verifiers["good"].spent.flops == len(answered) * a_verdict
    assert found.sampling.certain == alone.sampling.certain


def test_where_every_branch_is_poisoned_nothing_can_win() -> None:
    every = frozenset((n,) for n in range(50))
    for policy in ("linear", "tof", "beam", "smc", "dfs", "halving"):
        with pytest.raises(SearchFailed, match="failed 3 times"):
            search(World(poison=every), TOF.model_copy(update={"policy": policy}))


def test_other_errors_end_the_search_and_leave_nothing_running() -> None:
    class Broken(FakeVerifier):
        async def score(self, work: ScoreWork, handle: Any) -> Scored:
            raise KeyError("a defect")

    async def main() -> None:
        world = World()
        stage = Stage(world)
        stage.verifiers["v0"] = Broken("v0", world)
        conductor = Conductor(stage.new_policy(), stage.generators, {"verifier": PanelMember(stage.verifiers)}, TOF)
        with pytest.raises(KeyError, match="a defect"):
            await conductor.run()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert all(generator.current is None for generator in stage.generators.values())

    run_virtual(main())


def test_cancelling_a_search_stops_its_workers() -> None:
    async def main() -> None:
        stage = Stage(World())
        running = asyncio.create_task(stage.conductor.run())
        await asyncio.sleep(5.5)
        assert any(generator.current for generator in stage.generators.values())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert all(generator.cancelled for generator in stage.generators.values())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


def test_progress_rises_to_the_end() -> None:
    tallies: list[Tally] = []
    outcome = search(World(timing=3), on_progress=tallies.append)
    shares = [tally.share for tally in tallies]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert tallies[-1] == Tally(len(outcome.certain), len(outcome.certain), len(outcome.certain))


def test_the_outcome_tells_what_became_of_every_branch() -> None:
    outcome = search(World(), TOF.model_copy(update={"speculate": "off"}))
    by_path = {node.path: node for node in outcome.nodes}
    assert [by_path[outcome.winner[:n]].fate for n in range(1, 5)] == [Fate.WON] * 4
    assert {node.fate for node in outcome.nodes} <= {Fate.WON, Fate.KEPT, Fate.DROPPED}
    for node in outcome.nodes:
        assert (node.fate is Fate.DROPPED) == (node.dropped_by is not None)
        assert node.start is not None
        assert node.end is not None
        assert node.start < node.end <= outcome.seconds
        assert node.path in outcome.handles
    cut_by_preview = [node for node in outcome.nodes if node.dropped_by is Assessment.POTENTIAL]
    assert cut_by_preview
    assert all([assessment for assessment, _ in node.scores] == [Assessment.POTENTIAL] for node in cut_by_preview)
    winner = by_path[outcome.winner]
    assert winner.scores[0][0] is Assessment.FINAL
    assert dict(winner.scores[0][1]).keys() == {"left", "right"}


def test_what_nothing_builds_on_any_more_is_told_once() -> None:
    told: list[Any] = []
    outcome = search(World(), TOF, release=told.append)
    over = [outcome.handles[node.path] for node in outcome.nodes if node.fate in (Fate.DROPPED, Fate.KEPT)]
    assert set(map(id, over)) <= set(map(id, told))
    assert len(set(map(id, told))) == len(told)
    assert not {id(unit) for unit in outcome.units} & set(map(id, told))


def test_a_given_first_frame_is_where_every_branch_starts() -> None:
    outcome = search(World(), given=["(0,) the encoded image"])
    assert outcome.winner[0] == 0
    assert outcome.units[0] == "(0,) the encoded image"
    assert len({node.path[1] for node in outcome.nodes}) > 1
    panel = {"verifier": PanelMember({"v": FakeVerifier("v", World())})}
    with pytest.raises(ValueError, match="the layout has 0 given units, and there are 1 handles"):
        Conductor(Stage(World()).new_policy(), {"g": FakeGenerator("g", World())}, panel, TOF, given=[1])


def test_one_generator_alone_never_runs_two_works_at_a_time() -> None:
    class Strict(FakeGenerator):
        async def sample(self, work: SampleWork, parents: Any) -> Sampled:
            assert self.current is None
            return await super().sample(work, parents)

    async def main() -> SearchResult:
        world = World(timing=9)
        stage = Stage(world)
        return await Conductor(
            stage.new_policy(), {"g": Strict("g", world)}, {"verifier": PanelMember(stage.verifiers)}, TOF
        ).run()

    assert run_virtual(main()).winner


POLICIES = ["single", "linear", "halving", "tree", "tof", "beam", "smc", "dfs", "pyramid", "evo"]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    timing=st.integers(1, 2**32),
    seconds=st.floats(0.01, 400),
    policy=st.sampled_from(POLICIES),
    generators=st.integers(1, 4),
    given=st.integers(0, 1),
    speculate=st.sampled_from(["latency", "off"]),
    deaths=deaths,
    losses=st.frozensets(st.integers(1, 40), max_size=2),
)
def test_a_time_limit_ends_any_search_with_a_whole_video(
    seed: int,
    timing: int,
    seconds: float,
    policy: str,
    generators: int,
    given: int,
    speculate: str,
    deaths: dict[str, frozenset[int]],
    losses: frozenset[int],
) -> None:
    config = SearchConfig(policy=policy, budget="8x", seconds=seconds, speculate=speculate, attempts=50)
    world = World(seed=seed, timing=timing, deaths=deaths, losses=losses)
    options: dict[str, Any] = {"given": [Handle("given")] * given, "lost": world.lost_of}
    outcome = search(world, config, generators=generators, **options)
    assert len(outcome.winner) == len(outcome.units) == 4
    made = [work for work in outcome.certain if isinstance(work, SampleWork) for path in work.paths]
    for prefix in prefixes(outcome.winner)[given:]:
        assert any(prefix in work.paths and work.last_stage == 2 for work in made), "what it is made of was needed"
    if not outcome.hurried:
        calm = search(World(seed=seed), config.model_copy(update={"seconds": None}), given=options["given"])
        assert outcome.winner == calm.winner
        assert outcome.certain == calm.certain
    for pool in (outcome.sampling, outcome.scoring):
        assert pool.at_stake.nfe == 0
    assert outcome.sampling.spent.nfe == sum(s.cost.nfe for s in outcome.spans if isinstance(s.work, SampleWork))


@pytest.mark.parametrize("policy", ["linear", "tof", "beam", "smc", "dfs", "pyramid"])
def test_a_time_limit_is_kept_to_about_a_unit(policy: str) -> None:
    """As long as there is time for a single video at all."""
    config = SearchConfig(policy=policy, budget="8x", speculate="off")
    for seed in range(10):
        whole = search(World(seed=seed), config)
        samples = [span.end - span.start for span in whole.spans if isinstance(span.work, SampleWork)]
        limit = max(0.6 * whole.seconds, 6 * max(samples))
        outcome = search(World(seed=seed), config.model_copy(update={"seconds": limit}))
        assert outcome.seconds <= limit + 2 * max(samples)


def test_the_most_promising_branch() -> None:
    layout = Layout(units=3, stages=2)

    def promising(scores: dict[Path, float], finished: list[Path], dead: tuple[Path, ...] = ()) -> Path | None:
        panels = {PanelWork(path, layout.assessment(len(path) - 1)): (("s", score),) for path, score in scores.items()}
        return most_promising(layout, finished, dead, panels, product)

    assert promising({}, []) is None
    assert promising({}, [(0,), (0, 0), (1,)]) == (0, 0)  # nothing is known: the longest
    assert promising({(0,): 0.9, (0, 0): 0.3, (1,): 0.8}, [(0,), (0, 0), (1,)]) == (0,)  # (0, 0) went wrong
    assert promising({(0,): 0.9, (0, 0): 0.8, (1,): 0.8}, [(0,), (0, 0), (1,)]) == (0,)  # a fresh unit is likelier
    assert promising({(0,): 0.9, (0, 0): 0.9, (1,): 0.8}, [(0,), (0, 0), (1,)]) == (0, 0)
    whole = [(0,), (0, 0), (0, 0, 0), (1,), (1, 0), (1, 0, 0)]
    assert promising({(0, 0, 0): 0.7}, whole) == (0, 0, 0)  # judged as a whole; the other is 0.85 ** 3
    assert promising({(0, 0, 0): 0.5}, whole) == (1, 0, 0)
    assert promising({(0,): 0.9}, [(0,), (1,)], dead=((0,),)) == (1,)
    there = {(0,): 0.9, (0, 0): 0.3, (1,): 0.8}
    panels = {PanelWork(path, layout.assessment(len(path) - 1)): (("s", score),) for path, score in there.items()}
    soon = [most_promising(layout, list(there), (), panels, product, units) for units in (2, 1, 0)]
    assert soon == [(0,), (0, 0), (0, 0)]  # there is no time to go back


def test_a_branch_that_is_given_up_when_time_is_up_gives_way_to_another() -> None:
    """Every work of branch (0, 1) kills its worker."""

    class Deadly(FakeGenerator):
        async def sample(self, work: SampleWork, parents: Any) -> Sampled:
            if work.paths[0][:2] == (0, 1) or (work.paths[0][:1] == (0,) and len(work.paths[0]) == 3):
                raise WorkFailed("it kills workers")
            return await super().sample(work, parents)

    config = SearchConfig(policy="linear", budget="4x", seconds=70.0, attempts=2)
    stage = Stage(World(seed=1), config, generators=1)
    stage.conductor._generators = {"g0": Deadly("g0", World(seed=1))}

    async def main() -> SearchResult:
        return await stage.conductor.run()

    outcome = run_virtual(main())
    assert outcome.hurried
    assert len(outcome.winner) == 4
    assert not any(prefix in outcome.given_up for prefix in prefixes(outcome.winner))
