"""How a verifier that compares two videos judges a branch in a search: against the anchors of its cohort.

Its score is the probability that the branch beats an average anchor. It is worth something within the cohort alone:
in another one, other anchors are to be beaten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from framegrove.config.scores import Pairwise
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.bradley_terry import against_anchors
from framegrove.verification.clips import Frames, clip_of
from framegrove.verification.scoring import probability

BETTER = "better"
QUESTIONS = 2  # of a comparison: one in each order

Compare = Callable[[str, Frames, Frames], Awaitable[tuple[float, int]]]
"""Log-odds that the first of two clips, made for a prompt, is the better one, asked in both orders; and the FLOPs."""


async def compared(work: ScoreWork, score: Pairwise, prompt: str, units: Sequence[Frames], compare: Compare) -> Scored:
    """The verdict on a branch; ``units`` are those of ``work.shown``."""
    length = len(work.path)
    own, *others = (clip_of(*units[at : at + length]) for at in range(0, len(units), length))
    found = await asyncio.gather(*(compare(prompt, own, other) for other in others))
    odds = [each for each, _ in found]
    strength = against_anchors(odds, of_anchor=len(others) < score.anchors)
    answers = tuple((f"better than {path}", probability(each)) for path, each in zip(work.against, odds, strict=True))
    cost = Cost(flops=sum(flops for _, flops in found))
    return Scored(work, ((BETTER, probability(strength)),), cost, answers=answers)


def comparison_prices(
    assessments: Sequence[Assessment], score: Pairwise, by_depth: Sequence[int]
) -> dict[Assessment, tuple[int, ...]]:
    """FLOPs of judging a branch, by depth, from those of one question there."""
    prices = tuple(score.anchors * QUESTIONS * flops for flops in by_depth)
    return dict.fromkeys(assessments, prices)
