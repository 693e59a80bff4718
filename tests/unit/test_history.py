"""The temporal pyramid: which unit is seen at which resolution, and the papers' token counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framegrove.flow.history import history_clips, history_shapes, sample_tokens, stage_shape, token_count
from framegrove.flow.noise import pyramid


def test_token_counts_of_the_paper() -> None:
    """Ten seconds at 768p: 31 units of 96x160 latents, patch 2 (PFM section 3.3)."""
    units = [(1, 96, 160)] * 31
    assert sample_tokens(units, 2, 3, patch=2) == 3840 + 3840 + 960 + 28 * 240 == 15_360
    assert token_count(units, 2) == 119_040


def test_newest_unit_at_the_stage_older_ones_coarser() -> None:
    units = [torch.randn(2, 1, 16, 8) for _ in range(5)]
    levels = [pyramid(unit, 3) for unit in units]
    clips = history_clips(units, 2, 3)
    assert [tuple(clip.shape) for clip in clips] == [(2, 3, 4, 2), (2, 1, 8, 4), (2, 1, 16, 8)]
    torch.testing.assert_close(clips[0], torch.cat([levels[index][0] for index in range(3)], dim=1))
    torch.testing.assert_close(clips[1], levels[3][1])
    assert clips[2] is units[4]


def test_coarsest_stage_keeps_the_newest_unit_in_its_own_clip() -> None:
    units = [torch.randn(2, 1, 8, 8) for _ in range(3)]
    assert [clip.shape[1] for clip in history_clips(units, 0, 3)] == [2, 1]
    assert [clip.shape[1] for clip in history_clips(units, 1, 3)] == [2, 1]
    assert history_clips([], 1, 3) == ()


@given(
    count=st.integers(0, 9),
    stages=st.integers(1, 4),
    frames=st.integers(1, 3),
    batch=st.sampled_from([(), (2,)]),
    data=st.data(),
)
def test_shapes_agree_with_the_clips(count: int, stages: int, frames: int, batch: tuple, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, stages - 1))
    shapes = [(1 if index == 0 else frames, 16, 24) for index in range(count)]
    clips = history_clips([torch.zeros(*batch, 3, *shape) for shape in shapes], stage, stages)
    expected = history_shapes(shapes, stage, stages)
    assert [tuple(clip.shape) for clip in clips] == [(*batch, 3, *shape) for shape in expected]
    assert sum(time for time, _, _ in expected) == sum(time for time, _, _ in shapes)


def test_stage_shape() -> None:
    assert [stage_shape((1, 8, 8), stage, 3) for stage in range(3)] == [(1, 2, 2), (1, 4, 4), (1, 8, 8)]
    assert token_count([(1, 2, 2), (2, 4, 4)], 2) == pytest.approx(9)
