from __future__ import annotations

import numpy as np
import pytest

from framegrove.digits import world
from framegrove.digits.oracle import DigitsOracle
from framegrove.digits.travel import travel_of


@pytest.fixture(scope="module")
def oracle() -> DigitsOracle:
    return DigitsOracle()


def test_true_clips_travel_at_the_worlds_speed(oracle: DigitsOracle) -> None:
    """2 or 3 px a frame along an axis, and so many in both directions along a diagonal; bounces cost a little."""
    for index in range(6):
        clip = world.clip(1, index, split="heldout", digits=2)
        travel = travel_of(clip.frames, clip.objects, oracle.judge(clip.frames, clip.objects))
        assert 1.7 < travel.pixels_per_frame < 3.1 * np.sqrt(2)
        assert travel.as_asked == 1.0


def test_a_still_does_not_travel(oracle: DigitsOracle) -> None:
    clip = world.clip(1, 0, split="heldout", digits=2)
    still = np.repeat(clip.frames[:1], 9, axis=0)
    travel = travel_of(still, clip.objects, oracle.judge(still, clip.objects))
    assert (travel.pixels_per_frame, travel.as_asked) == (0.0, 0.0)


def test_half_of_what_was_asked_for(oracle: DigitsOracle) -> None:
    clip = world.clip(1, 0, split="heldout", digits=2)
    first, second = clip.objects
    other = next(motion for motion in world.MOTIONS if motion != second.motion)
    asked = (first, world.DigitObject(second.digit, second.colour, other))
    assert travel_of(clip.frames, asked, oracle.judge(clip.frames, asked)).as_asked == 0.5


def test_nothing_moves_where_nothing_is(oracle: DigitsOracle) -> None:
    clip = world.clip(1, 0, digits=1)
    black = np.zeros_like(clip.frames)
    travel = travel_of(black, clip.objects, oracle.judge(black, clip.objects))
    assert (travel.pixels_per_frame, travel.as_asked) == (0.0, 0.0)
    one = clip.frames[:1]
    assert travel_of(one, clip.objects, oracle.judge(one, clip.objects)).pixels_per_frame == 0.0
