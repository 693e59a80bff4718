"""The schedule against the published figures, and the jump against the distribution that training starts from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framegrove.config.base import ConfigError, load
from framegrove.config.flow import GuidanceConfig, PyramidConfig, StepsConfig
from framegrove.flow.noise import block_noise, double
from framegrove.flow.schedule import PyramidSchedule

SCHEDULES = st.builds(
    lambda cuts, shift, gamma: PyramidSchedule(
        stages=len(cuts) + 1, shift=shift, gamma=gamma, boundaries=(0.0, *(cut / 20 for cut in sorted(cuts)), 1.0)
    ),
    st.sets(st.integers(1, 19), max_size=4),
    st.floats(0.3, 4.0),
    st.floats(-1 / 3, 0.0),
)


def test_published_figures_of_three_stages() -> None:
    schedule = PyramidSchedule()
    assert [schedule.start_sigma(stage) for stage in range(3)] == pytest.approx([1, 0.80024, 0.50075], abs=1e-5)
    assert [schedule.end_sigma(stage) for stage in range(3)] == pytest.approx([0.667, 0.334, 0], abs=1e-6)
    assert schedule.jump(1) == pytest.approx((0.600, 0.693), abs=5e-4)
    assert schedule.jump(2) == pytest.approx((0.750, 0.434), abs=5e-4)
    for stage, ends in enumerate([(1000, 744.256), (744, 386.358), (386, 1.385)]):
        grid = schedule.training_timesteps(stage)
        assert (len(grid), grid[0], grid[-1]) == (1000, pytest.approx(ends[0]), pytest.approx(ends[1]))


def test_sampler_grid_ends_with_a_tiny_step_to_zero() -> None:
    schedule = PyramidSchedule()
    assert schedule.ratios(1, 3) == pytest.approx((1, 0.5005, 0.001, 0))
    assert schedule.timesteps(1, 1) == (744.0,)
    assert schedule.timesteps(0, 2) == pytest.approx((1000, 744.256))


def test_minus_one_third_is_equation_15() -> None:
    schedule = PyramidSchedule()
    for stage in (1, 2):
        s = 1 - schedule.start_sigma(stage)
        assert 1 - schedule.end_sigma(stage - 1) == pytest.approx(2 * s / (1 + s))
        assert schedule.jump(stage) == pytest.approx(((1 + s) / 2, math.sqrt(3) * (1 - s) / 2))


@given(SCHEDULES)
def test_any_gamma_is_equation_25(schedule: PyramidSchedule) -> None:
    g = schedule.gamma
    for stage in range(1, schedule.stages):
        s = 1 - schedule.start_sigma(stage)
        divisor = (1 - s) * math.sqrt(-g) + s * math.sqrt(1 - g)
        if divisor > 1e-6:
            assert 1 - schedule.end_sigma(stage - 1) == pytest.approx(s * math.sqrt(1 - g) / divisor)
        assert schedule.jump(stage)[1] == pytest.approx((1 - s) / math.sqrt(1 - g))


@given(SCHEDULES)
def test_jump_continues_the_flow(schedule: PyramidSchedule) -> None:
    """Mean and 2x2 block covariance after the jump are those of the next stage's training start, exactly."""
    for stage in range(1, schedule.stages):
        alpha, beta = schedule.jump(stage)
        signal, end = 1 - schedule.start_sigma(stage), schedule.end_sigma(stage - 1)
        assert alpha * (1 - end) == pytest.approx(signal, abs=1e-9)
        ones, unit = np.ones((4, 4)), np.eye(4)
        after = (alpha * end) ** 2 * ones + beta**2 * ((1 - schedule.gamma) * unit + schedule.gamma * ones)
        np.testing.assert_allclose(after, schedule.start_sigma(stage) ** 2 * unit, atol=1e-9)


@given(SCHEDULES)
def test_timesteps_fall_over_the_whole_axis(schedule: PyramidSchedule) -> None:
    previous = 1000.001  # a shifted axis begins at 1000 only up to float32 rounding
    for stage in range(schedule.stages):
        assert 0 <= schedule.end_sigma(stage) < schedule.start_sigma(stage) <= 1 + 1e-6
        grid = schedule.training_timesteps(stage)
        assert grid[0] < previous
        assert np.all(np.diff(grid) <= 0)
        assert grid[-1] > 0
        previous = grid[-1]


@pytest.mark.parametrize("gamma", [-1 / 3, -0.2, 0.0])
def test_jump_seen_in_samples(gamma: float) -> None:
    schedule = PyramidSchedule(gamma=gamma)
    generator = torch.Generator().manual_seed(1)
    alpha, beta = schedule.jump(1)
    end = schedule.end_sigma(0) * torch.randn(20000, 1, 1, generator=generator) + (1 - schedule.end_sigma(0)) * 3.0
    noise = block_noise((20000, 2, 2), generator, gamma)
    start = (alpha * double(end) + beta * noise).reshape(-1, 4)
    sigma = schedule.start_sigma(1)
    torch.testing.assert_close(start.mean(0), torch.full((4,), (1 - sigma) * 3.0), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(start.T), sigma**2 * torch.eye(4), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": 0}, "at least 1 stage"),
        ({"gamma": 0.5}, "must not be positive"),
        ({"shift": 0.0}, "positive"),
        ({"boundaries": (0, 0.5, 0.4, 1)}, "rising from 0 to 1"),
        ({"boundaries": (0, 1)}, "4 numbers"),
    ],
)
def test_impossible_schedules_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidSchedule(**arguments)


def test_stages_and_steps_out_of_range_are_refused() -> None:
    schedule = PyramidSchedule()
    with pytest.raises(ValueError, match="no stage 3"):
        schedule.start_sigma(3)
    with pytest.raises(ValueError, match="no jump"):
        schedule.jump(0)
    with pytest.raises(ValueError, match="at least 1 step"):
        schedule.timesteps(0, 0)


def test_configuration_refuses_in_one_line() -> None:
    with pytest.raises(ConfigError, match="rising from 0 to 1"):
        load(PyramidConfig, overrides=["boundaries=[0, 0.6, 0.5, 1]"])
    with pytest.raises(ConfigError, match="at least one step"):
        load(StepsConfig, overrides=["first=[1,0,1]"])


def test_guidance_of_a_unit() -> None:
    assert [GuidanceConfig().scale(unit) for unit in range(3)] == [7, 5, 5]
    assert [GuidanceConfig(decay=2.5, floor=3).scale(unit) for unit in range(3)] == [7, 4.5, 3]
    assert [GuidanceConfig(others_from_image=4).scale(unit, from_image=True) for unit in range(1, 3)] == [4, 4]
    assert GuidanceConfig().scale(1, from_image=True) == 5
    assert GuidanceConfig(first=0).scale(1) is None
    assert GuidanceConfig(others=0).scale(1) == 0
