"""Verifiers that compare, inside a search: by the anchors of a cohort, whatever happens when."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.scores import Pairwise
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig, load_panel
from framegrove.errors import UserError
from framegrove.search.conductor import Conductor, Tally
from framegrove.search.journal import Journal
from framegrove.search.panel import Panel
from framegrove.search.policies import check_comparing, make_policy
from framegrove.search.protocols import PanelMember
from framegrove.search.result import Fate, SearchResult
from framegrove.search.tree import Layout, Members, PanelWork
from framegrove.types import Assessment, Scored, ScoreWork, prefixes
from framegrove.verification.bradley_terry import against_anchors, strengths
from framegrove.verification.comparing import compared, comparison_prices
from tests.fakes import FREE, FakeGenerator, FakeVerifier, MemoryStore, World, run_virtual

FINAL = Assessment.FINAL
PAIRWISE = Pairwise(kind="pairwise")


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def test_the_strength_against_anchors_is_that_of_bradley_and_terry() -> None:
    """Where all odds are differences of strengths, it is the strength itself, but for the anchors' mean."""
    true = np.array([1.0, -0.5, 0.25, -0.75, 2.0])
    for count in (1, 2, 3):
        found = [
            against_anchors([true[n] - true[a] for a in range(count) if a != n], of_anchor=n < count) for n in range(5)
        ]
        assert found == pytest.approx(list(true - true[:count].mean()))
    won = {(a, b): sigmoid(true[a] - true[b]) for a, b in itertools.combinations(range(5), 2)}
    whole = np.array(strengths(5, won, pull=1e-9))
    assert list(whole - whole[:3].mean()) == pytest.approx(found, abs=1e-4)
    assert against_anchors([], of_anchor=True) == against_anchors([], of_anchor=False) == 0.0


def test_a_verdict_compares_whole_branches() -> None:
    asked: list[tuple[int, int]] = []

    async def compare(prompt: str, first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
        assert (prompt, len(first), len(second)) == ("a red ball", 9, 9)
        asked.append((int(first[0, 0, 0, 0]), int(second[0, 0, 0, 0])))
        return float(first[-1].mean() - second[-1].mean()), 10

    def units(*values: int) -> list[np.ndarray]:
        return [np.full((frames, 2, 2, 3), value, np.uint8) for value in values for frames in (1, 8)]

    def judged(work: ScoreWork, *values: int) -> Scored:
        return asyncio.run(compared(work, PAIRWISE, "a red ball", units(*values), compare))

    third = judged(ScoreWork((2, 0), FINAL, against=((0, 0), (1, 0))), 7, 4, 8)
    assert asked == [(7, 4), (7, 8)]
    assert dict(third.scores) == {"better": pytest.approx(sigmoid((3 - 1) / 2))}
    assert third.cost.flops == 20
    first = judged(ScoreWork((0, 0), FINAL, against=((1, 0),)), 4, 8)
    assert dict(first.scores) == {"better": pytest.approx(sigmoid(-4 / 2))}, "an anchor is level with itself"
    lone = judged(ScoreWork((0, 0), FINAL), 4)
    assert dict(lone.scores) == {"better": 0.5}
    assert comparison_prices([FINAL], PAIRWISE, [1, 2]) == {FINAL: (4, 8)}, "two anchors, in both orders"


def test_works_are_known_once_the_cohort_is_and_anchors_are_its_first_that_live() -> None:
    panel = Panel({FINAL: ["scores", "compares"]}, {"compares": 2})
    paths = ((3,), (0,), (2,), (1,))
    work = PanelWork((2,), FINAL)
    assert [each.verifier for each in panel.works(work) if isinstance(each, ScoreWork)] == ["scores"]
    assert panel.unknown(work) == 1
    panel.compare(Members(paths, FINAL), given_up=[(0,)])
    assert panel.unknown(work) == 0
    assert panel.works(work)[1] == ScoreWork((2,), FINAL, "compares", ((1,), (2,))[:1])
    assert panel.works(PanelWork((3,), FINAL))[1] == ScoreWork((3,), FINAL, "compares", ((1,), (2,)))


class Stage:
    """A search whose verifier compares, maybe beside one that scores."""

    def __init__(
        self,
        world: World,
        config: SearchConfig,
        generators: int = 2,
        verifiers: int = 1,
        *,
        beside: bool = False,
        anchors: int = 2,
        **options: Any,
    ) -> None:
        policy, _ = make_policy(config, 4, 3, FREE)
        cast = {f"g{n}": FakeGenerator(f"g{n}", world) for n in range(generators)}
        judges = {f"v{n}": FakeVerifier(f"v{n}", world, anchors) for n in range(verifiers)}
        panel = {"compares": PanelMember(judges, at_a_time=config.scores_in_flight, anchors=anchors)}
        if beside:
            panel["scores"] = PanelMember({"s": FakeVerifier("s", world)})
        self.tallies: list[Tally] = []
        self.conductor = Conductor(
            policy, cast, panel, config, on_progress=self.tallies.append, lost=world.lost_of, **options
        )


def search(*args: Any, **options: Any) -> SearchResult:
    async def main() -> SearchResult:
        stage = Stage(*args, **options)
        result = await stage.conductor.run()
        shares = [tally.share for tally in stage.tallies]
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert all(one.at_most >= other.at_most for one, other in itertools.pairwise(stage.tallies))
        return result

    return run_virtual(main())


def told(result: SearchResult) -> Any:
    nodes = [(n.path, n.scores, n.judgements, n.dropped_by) for n in result.nodes if n.fate is not Fate.SPECULATIVE]
    return result.winner, result.units, result.certain, nodes, result.sampling.certain, result.scoring.certain


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 3),
    timing=st.integers(1, 2**32),
    generators=st.integers(1, 4),
    verifiers=st.integers(1, 2),
    beside=st.booleans(),
    in_flight=st.integers(1, 8),
    deaths=st.dictionaries(
        st.sampled_from(["g0", "g1", "v0"]), st.frozensets(st.integers(0, 12), max_size=2), max_size=3
    ),
    losses=st.frozensets(st.integers(0, 40), max_size=2),
    speculate=st.sampled_from(["latency", "off"]),
    policy=st.sampled_from(["tof", "linear", "beam", "smc", "halving", "pyramid"]),
    anchors=st.integers(1, 3),
)
def test_same_seed_same_video(
    seed: int,
    timing: int,
    generators: int,
    verifiers: int,
    beside: bool,
    in_flight: int,
    deaths: dict[str, frozenset[int]],
    losses: frozenset[int],
    speculate: str,
    policy: str,
    anchors: int,
) -> None:
    config = SearchConfig(policy=policy, budget="5x", speculate="off", attempts=50)
    calm = search(World(seed=seed), config, 1, beside=beside, anchors=anchors)
    config = config.model_copy(update={"speculate": speculate, "scores_in_flight": in_flight})
    world = World(seed=seed, timing=timing, deaths=deaths, losses=losses)
    wild = search(world, config, generators, verifiers, beside=beside, anchors=anchors)
    assert told(wild) == told(calm)
    compared_with = [work.against for work in calm.certain if isinstance(work, ScoreWork) and work.verifier != "scores"]
    assert max(map(len, compared_with)) == anchors


@pytest.mark.parametrize("policy", ["linear", "beam"])
def test_a_journal_brings_comparisons_back(policy: str, tmp_path: File) -> None:
    config = SearchConfig(policy=policy, budget="4x", speculate="off")
    store, results = MemoryStore(), []
    for _ in range(2):
        world = World(seed=1)
        with Journal(tmp_path / "journal.jsonl", {"seed": 1}, store) as journal:
            results.append(search(world, config, journal=journal))
    first, again = results
    assert again.restored == len(first.certain)
    assert (again.winner, again.certain) == (first.winner, first.certain)
    assert [node.scores for node in again.nodes] == [node.scores for node in first.nodes]


@pytest.mark.parametrize("policy", ["linear", "beam", "tof"])
def test_where_an_anchor_is_given_up_another_branch_takes_its_place(policy: str) -> None:
    config = SearchConfig(policy=policy, budget="6x", speculate="off", attempts=2)
    poison = (0, 0) if policy == "linear" else (0,)
    result = search(World(seed=1, poison=frozenset({poison})), config)
    assert poison in result.given_up
    assert result.winner[0] != 0
    done = {span.work for span in result.spans if isinstance(span.work, ScoreWork)}
    anchors = {path for work in done for path in work.against}
    assert max(len(work.against) for work in done) == 2
    assert not anchors & result.given_up.keys()
    lost = result.given_up.keys()
    wanted = {work for work in result.certain if isinstance(work, ScoreWork) and lost.isdisjoint(prefixes(work.path))}
    assert done == wanted


def test_what_needs_scores_that_hold_by_themselves_is_refused(tmp_path: File) -> None:
    for policy in ("linear", "tof", "beam", "smc", "halving", "pyramid", "single", "none"):
        check_comparing(SearchConfig(policy=policy), ["judge"])
    check_comparing(SearchConfig(policy="tree", options={"tree": {"select": "top"}}), ["judge"])
    for config, sentence in (
        (SearchConfig(policy="dfs"), "the policy dfs, with these options, accepts .* choose one of linear, tof"),
        (SearchConfig(policy="evo"), "the policy evo"),
        (SearchConfig(policy="tree"), "the policy tree"),
        (SearchConfig(policy="linear", until=0.9), r"verifier judge compares .* leave until out"),
        (SearchConfig(policy="beam", seconds=60), "set no limit of time"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_comparing(config, ["judge"])
        check_comparing(config, [])
    from typer.testing import CliRunner

    from jobs import generate

    (tmp_path / "judge.yaml").write_text("verifiers: [{name: judge, score: {kind: pairwise}}]")
    given = ["--prompt", "a lamp", "--out", str(tmp_path / "out"), "--verifier", str(tmp_path / "judge.yaml")]
    told_at_once = CliRunner().invoke(generate.app, given)
    assert told_at_once.exit_code == 1
    assert "and the policy dfs, with these options" in " ".join(told_at_once.output.split())
    panel = load_panel(str(tmp_path / "judge.yaml"))
    with pytest.raises(UserError, match=r"verifier judge compares the branches of a cohort .* cannot say which"):
        panel.check_absolute("which")
    PanelConfig().check_absolute("which")
    assert Layout(2, 1).inputs(ScoreWork((1, 0), FINAL, against=((0, 0),)))[0].path == (1,)
