"""Costs of sampling: they add up, siblings share what they may, and guidance and steps are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.config.model import Recipe
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.history import history_shapes, stage_shape, token_count
from tests.tiny import digits_recipe, digits_transformer_config


def costs_of(recipe: Recipe | None = None, text: int = 7, negative: int = 1) -> SamplingCosts:
    return SamplingCosts(digits_transformer_config(), recipe or digits_recipe(), (8, 8), text, negative)


def test_siblings_at_768p_carry_3248_tokens_instead_of_11440() -> None:
    """Five siblings of unit 8 at the coarsest stage, 128 text tokens."""
    unit = (1, 96, 160)
    past = 128 + token_count(history_shapes([unit] * 8, 0, 3), 2)
    current = token_count([stage_shape(unit, 0, 3)], 2)
    assert 5 * (past + current) == 11_440
    assert past + 5 * current == 3_248


def test_stages_and_units_add_up() -> None:
    costs = costs_of()
    for unit in range(3):
        whole = costs.unit(unit)
        assert whole.nfe == 30
        preview = costs.unit(unit, range(1)).nfe - 10
        assert preview == 2 * StepsConfig().preview
        draft = costs.unit(unit, range(1), most_steps=10)
        assert whole == draft + costs.unit(unit, range(1, 3))
        assert draft.flops < costs.unit(unit, range(1)).flops < whole.flops
        assert costs.table(unit, 0, 2, 1) == whole.flops
    assert costs.unsearched(4) == costs.unit(0) + costs.unsearched(4, given=1)
    assert costs.unsearched(4).nfe == 120


def test_whole_works_are_decoded_drafts_too() -> None:
    costs = replace(costs_of(), decoding=(10, 30))
    assert costs.unit(0, siblings=2).decoding == 20
    assert costs.unit(2).decoding == 30
    assert costs.unit(0, range(1)).decoding == 10  # the preview
    assert costs.unit(0, most_steps=29).decoding == 0
    assert costs.unsearched(4).decoding == 100
    assert costs.unit(1).flops == costs_of().unit(1).flops


def test_siblings_share_their_past_but_not_at_the_first_unit() -> None:
    costs = costs_of()
    assert costs.unit(0, siblings=5).flops == 5 * costs.unit(0).flops
    one, five = costs.unit(3).flops, costs.unit(3, siblings=5).flops
    assert one < five < 4 * one
    assert costs.unit(3, siblings=5).nfe == 150


def test_later_units_and_finer_stages_cost_more() -> None:
    costs = costs_of()
    assert costs.unit(1).flops < costs.unit(2).flops < costs.unit(3).flops
    assert costs.table(1, 0, 0, 1) < costs.table(1, 1, 1, 1) < costs.table(1, 2, 2, 1)


def test_guidance_evaluates_the_negative_prompt_too() -> None:
    off = digits_recipe().model_copy(update={"guidance": GuidanceConfig(first=0, others=0)})
    both = costs_of(text=5, negative=5).unit(2).flops
    assert both == 2 * costs_of(off, text=5, negative=5).unit(2).flops


def test_steps_scale_the_cost() -> None:
    recipe = digits_recipe().model_copy(update={"steps": StepsConfig(first=(20, 20, 20), others=(10, 10, 10))})
    assert costs_of(recipe).unit(0).flops == 2 * costs_of().unit(0).flops
    assert costs_of(recipe).unit(1).flops == costs_of().unit(1).flops


@pytest.mark.parametrize("units", [1, 4])
def test_a_video_is_more_than_its_last_unit(units: int) -> None:
    assert costs_of().unsearched(units).flops >= costs_of().unit(units - 1).flops
