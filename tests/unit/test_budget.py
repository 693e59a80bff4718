"""What a budget buys, and that it is never overdrawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.base import ConfigError, load
from framegrove.config.search import SearchConfig, parse_budget
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.search.budget import BudgetError, allot_linear, allot_tof
from framegrove.search.policies import make_policy
from framegrove.search.policies.linear import Linear
from framegrove.search.policies.tof import TreeOfFrames
from framegrove.search.prices import Prices
from framegrove.search.rounds import Branching
from framegrove.search.tree import Layout
from framegrove.types import SampleWork
from tests.fakes import FREE, PAID, World, played

DRAFTED = Layout(units=4, stages=3, draft_stage=1)


@pytest.mark.parametrize("name", policies.summaries())
def test_1x_is_the_unsearched_sample_for_every_policy(name: str) -> None:
    policy, allotment = make_policy(SearchConfig(policy=name, budget="1x"), 4, 3, PAID)
    assert allotment.worst_case == allotment.one_sample == allotment.allowed
    plan = played(policy, World())
    assert plan.winner == (0, 0, 0, 0)
    assert PAID.works(tuple(plan.certain)) == PAID.one_sample(DRAFTED)


def test_linear_buys_as_many_whole_videos_as_fit() -> None:
    assert allot_linear(3.9, Layout(4, 3), FREE)[0] == 3
    assert allot_linear(8, Layout(4, 3), FREE)[1].utilisation == 1
    assert allot_linear(4, Layout(4, 3), PAID)[0] == 3  # a fourth could be sampled, but not judged


@pytest.mark.parametrize(("multiple", "least"), [(1.5, 0.85), (2, 0.9), (4, 0.95), (8, 0.97), (32, 0.99)])
def test_the_budget_is_used_well(multiple: float, least: float) -> None:
    _, allotment = allot_tof(multiple, DRAFTED, FREE, roots_per_work=4)
    assert least <= allotment.utilisation <= 1


@pytest.mark.parametrize(
    ("branching", "children"), [("units", (2,) * 5), ("prompts", (2, 1, 1, 1, 2)), ("never", (1,) * 5)]
)
def test_the_tree_narrows_by_half_and_branches_where_it_is_told(
    branching: Branching, children: tuple[int, ...]
) -> None:
    layout = Layout(units=6, stages=3, draft_stage=1)
    shape, _ = allot_tof(8, layout, FREE, roots_per_work=4, branching=branching)
    assert shape.children == children
    cohort = shape.roots
    for each, width in zip((1, 1, *shape.children), shape.widths, strict=False):
        cohort = cohort * each
        assert width <= -(-cohort // 2)
        cohort = width


def test_what_is_asked_for_is_taken_or_refused() -> None:
    shape, _ = allot_tof(8, DRAFTED, FREE, roots_per_work=4, roots=6, widths=(3, 2, 2, 1))
    assert (shape.roots, shape.widths, shape.children) == (6, (3, 2, 2, 1), (2, 1, 2))
    with pytest.raises(BudgetError, match=r"costs .*x and the budget is 2x: raise it, or lower roots or widths"):
        allot_tof(2, DRAFTED, FREE, roots_per_work=4, roots=6, widths=(6, 6, 6, 6))
    with pytest.raises(BudgetError, match=r"widths has 2 numbers, .* is cut 4 times"):
        allot_tof(2, DRAFTED, FREE, roots_per_work=4, widths=(1, 1))
    with pytest.raises(BudgetError, match="5 videos and their judgement cost 5x and the budget is 4x"):
        allot_linear(4, DRAFTED, FREE, roots=5)
    with pytest.raises(BudgetError, match="draft_stages is 3 and the pyramid has 3 stages"):
        make_policy(SearchConfig(policy="tof", options={"tof": {"draft_stages": 3}}), 4, 3, FREE)
    with pytest.raises(BudgetError, match="nothing is left to search for"):
        make_policy(SearchConfig(policy="tof"), 1, 3, FREE, given=1)


def test_pyramids_of_one_stage_given_frames_and_single_images_have_their_trees() -> None:
    for units, stages, first, drafts in ((4, 1, 0, False), (4, 3, 1, False), (1, 3, 0, True)):
        policy, allotment = make_policy(SearchConfig(policy="tof", budget="4x"), units, stages, FREE, given=first)
        assert isinstance(policy, TreeOfFrames)
        assert (policy.layout.draft_stage is not None) is drafts
        assert policy.shape.roots > 1
        plan = played(policy, World())
        assert plan.winner is not None
        assert len(plan.winner) == units
        assert plan.winner[:first] == (0,) * first
        assert FREE.works(tuple(plan.certain)) <= allotment.allowed


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([*policies.summaries()]),
    multiple=st.floats(1, 12),
    units=st.integers(1, 6),
    stages=st.integers(1, 3),
    given_units=st.integers(0, 1),
    until=st.sampled_from([None, 0.6, 0.95]),
    prices=st.sampled_from([FREE, PAID]),
    seed=st.integers(0, 2**32),
    grid=st.sampled_from([1, 3, 1000]),
    options=st.fixed_dictionaries(
        {
            "tof": st.fixed_dictionaries({"roots_per_work": st.integers(1, 5)}),
            "dfs": st.fixed_dictionaries(
                {"accept": st.sampled_from([0.1, 0.3, 0.8]), "grow": st.integers(1, 3), "most": st.integers(1, 4)}
            ),
            "evo": st.fixed_dictionaries(
                {
                    "accept": st.sampled_from([0.1, 0.3, 0.8]),
                    "population": st.sampled_from([None, 2, 6]),
                    "elite": st.integers(1, 3),
                    "generations": st.integers(1, 4),
                }
            ),
            "tree": st.fixed_dictionaries(
                {"select": st.sampled_from(["top", "threshold", "multinomial"]), "every": st.integers(1, 3)}
            ),
        }
    ),
)
def test_certain_work_never_costs_more_than_the_budget(
    name: str,
    multiple: float,
    units: int,
    stages: int,
    given_units: int,
    until: float | None,
    prices: Prices,
    seed: int,
    grid: int,
    options: dict[str, dict[str, object]],
) -> None:
    stages = max(stages, 2) if name == "pyramid" else stages
    config = SearchConfig(policy=name, budget=f"{multiple:.3f}", options=options, until=until)
    first = min(given_units, units - 1)
    policy, allotment = make_policy(config, units, stages, prices, given=first, seed=seed)
    plan = played(policy, World(seed=seed, grid=grid))
    assert prices.works(tuple(plan.certain)) <= allotment.worst_case <= allotment.allowed
    assert plan.winner is not None
    assert plan.winner[:first] == (0,) * first
    assert len(plan.winner) == units


def test_large_models_are_not_rounded_into_bankruptcy() -> None:
    def huge(depth: int, first: int, last: int, siblings: int) -> int:
        return siblings * (10**17 + 1)

    assert allot_linear(1, Layout(1, 1), Prices(huge))[0] == 1


@pytest.mark.parametrize("text", ["4x", "4", "2.5x", " 1x "])
def test_budgets_that_are_understood(text: str) -> None:
    assert parse_budget(text) == float(text.strip().removesuffix("x"))


@pytest.mark.parametrize(
    ("text", "says"), [("0.5x", "the smallest is 1x"), ("x", "such as 4x"), ("-1x", "such as 4x"), ("", "such as 4x")]
)
def test_budgets_that_are_not(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_budget(text)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("budget=0.2x", "a budget below 1x cannot pay for a single video, the smallest is 1x, not '0.2x'"),
        ("bugdet=2x", "unknown key 'bugdet', did you mean 'budget'?"),
        ("weights={a: -1}", "weights must be finite, not negative"),
        ("options=3", "options"),
    ],
)
def test_bad_configuration_is_one_sentence(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SearchConfig, overrides=[override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_may_be_written_as_a_number() -> None:
    assert load(SearchConfig, overrides=["budget=2.5"]).multiple == 2.5
    assert isinstance(make_policy(load(SearchConfig, overrides=["policy=linear"]), 4, 3, FREE)[0], Linear)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*policies.summaries()]),
    multiple=st.sampled_from([1, 2, 4, 8]),
    most_nfe=st.integers(8, 100),
    seed=st.integers(0, 2**32),
)
def test_a_search_needs_no_more_evaluations_than_it_is_allowed(
    name: str, multiple: int, most_nfe: int, seed: int
) -> None:
    prices = replace(PAID, nfe=lambda depth, first, last, siblings: (last - first + 1) * siblings)
    config = SearchConfig(policy=name, budget=f"{multiple}x", nfe=most_nfe)
    policy, allotment = make_policy(config, 4, 2, prices, seed=seed)
    works = tuple(played(policy, World(seed=seed)).certain)
    assert (
        sum(prices.nfe(w.depth, w.first_stage, w.last_stage, len(w.paths)) for w in works if isinstance(w, SampleWork))
        <= most_nfe
    )
    assert prices.works(works) <= multiple * prices.one_sample(Layout(4, 2))
    assert allotment.utilisation <= 1


def test_a_cap_on_evaluations_that_forbids_a_single_video_is_refused() -> None:
    prices = replace(PAID, nfe=lambda depth, first, last, siblings: 10 * siblings)
    with pytest.raises(BudgetError, match="nfe is 39, and a single video needs 40 transformer evaluations: raise it"):
        make_policy(SearchConfig(nfe=39), 4, 2, prices)
