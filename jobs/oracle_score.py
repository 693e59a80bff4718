"""Scores samples of the digits world by its oracle: what `samples.scorer` names in the digits configurations."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from framegrove.errors import UserError

if TYPE_CHECKING:
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.media.frames import Frames


def score(prompt: str, frames: Frames) -> float:
    """The share of attributes that a video, uint8 (T, H, W, 3), shows as a prompt of the digits world asks, in [0, 1].

    Raises UserError for a prompt of another world.
    """
    from framegrove.digits.world import parse

    asked = parse(prompt)
    if asked is None:
        raise UserError(
            f'the oracle cannot judge {prompt[:60]!r}: it reads prompts as "a red 3 moves left and right", perhaps two '
            'joined by "and"'
        )
    return _oracle().judge(frames, asked).score


@cache
def _oracle() -> DigitsOracle:
    from framegrove.digits.oracle import DigitsOracle

    return DigitsOracle()
