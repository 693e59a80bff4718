"""The teacher as a judge of whole videos."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from framegrove.config.verifier import VerifierConfig
from framegrove.digits import world
from framegrove.digits.second_opinion import second_opinion
from framegrove.errors import UserError
from framegrove.types import Assessment, ScoreWork
from framegrove.verification.callables import CallableVerifier


def test_right_clips_are_told_from_wrong_ones() -> None:
    clips = [world.clip(seed=5, index=index, units=5) for index in range(12)]
    right = [second_opinion(clip.frames, clip.caption)["whole"] for clip in clips]
    others = [clips[(index + 1) % 12] for index in range(12)]
    wrong = [second_opinion(clip.frames, other.caption)["whole"] for clip, other in zip(clips, others, strict=True)]
    assert np.mean(right) > 0.85
    assert np.mean(wrong) < 0.2


def test_a_unit_that_goes_wrong_shows_in_the_newest_and_counts_once_in_the_whole() -> None:
    clip = world.clip(seed=5, index=0, units=5)
    before = second_opinion(clip.frames, clip.caption)
    assert before == {"newest": 0.98, "whole": pytest.approx(0.98), "every": pytest.approx(0.98**5)}
    broken = clip.frames.copy()
    broken[25:] = broken[24]  # nothing moves in the last unit
    after = second_opinion(broken, clip.caption)
    assert after["newest"] == 0.05
    assert after["whole"] == pytest.approx((4 * 0.98 + 0.05) / 5)
    assert after["every"] == pytest.approx(0.98**4 * 0.05)


def test_it_is_a_verifier_like_any_other() -> None:
    config = VerifierConfig(name="teacher", kind="callable", function="framegrove.digits.second_opinion:second_opinion")
    clip = world.clip(seed=5, index=0, units=2)
    work = ScoreWork((0, 0), Assessment.FINAL, "teacher")
    scored = asyncio.run(CallableVerifier(config).score(work, clip.caption, clip.frames))
    assert dict(scored.scores) == second_opinion(clip.frames, clip.caption)
    with pytest.raises(UserError, match="cannot judge 'a paper boat'"):
        second_opinion(clip.frames, "a paper boat")
