"""The scorer of samples of the digits world."""

from __future__ import annotations

import pytest

from framegrove.digits import world
from framegrove.errors import UserError
from jobs.oracle_score import score


def test_a_clip_scores_by_what_it_shows_of_the_prompt() -> None:
    clip = world.clip(31, 0, split="heldout", digits=1)
    (shown,) = clip.objects
    assert score(clip.caption, clip.frames) == 1.0
    assert score(f"a {shown.colour} {(shown.digit + 1) % 10} moves {shown.motion}", clip.frames) == pytest.approx(2 / 3)
    assert score(clip.caption, clip.frames[:1]) == 1.0  # a picture does not move


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(UserError, match="the oracle cannot judge 'a cat'"):
        score("a cat", world.clip(31, 0).frames)
