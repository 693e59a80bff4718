"""What a search leaves as latents since no verifier looks at its frames, and how that of the winner is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from actors.pools import Opened, Units
from framegrove.config.verifier import VerifierConfig
from framegrove.flow.decoding import LeftAsLatents
from framegrove.search.result import CostBreakdown
from framegrove.search.tree import Layout
from framegrove.types import Assessment, Cost, Path

_OF_FINISHED = frozenset({Assessment.IMAGE, Assessment.MOTION, Assessment.FINAL})


def left_as_latents(
    layout: Layout, assessments: Collection[Assessment], looked_at: Collection[Assessment]
) -> LeftAsLatents:
    """The units that nobody looks at whom a policy asks for these ``assessments``.

    Frames are ``looked_at`` in some assessments. Where a policy judges a depth in another way than usual (the option
    whole of dfs), it may be in any.
    """
    asked = _OF_FINISHED.intersection(assessments) or _OF_FINISHED

    def is_left(depth: int) -> bool:
        usual = layout.assessment(depth)
        return not asked.intersection(looked_at) if usual not in asked else usual not in looked_at

    return LeftAsLatents(frozenset(filter(is_left, range(layout.given, layout.units))), layout.last_stage)


def looked_at(verifiers: Iterable[VerifierConfig]) -> frozenset[Assessment]:
    """The assessments in which any of these verifiers looks at frames."""
    return frozenset(each for verifier in verifiers if verifier.reads == "frames" for each in verifier.assessments)


class Finish:
    """The end of a search: what its works have left of the winner as latents is decoded."""

    def __init__(self, units: Units, opened: Opened) -> None:
        self._units, self._opened = units, opened
        self._seconds = 0.0

    async def lost(self, units: Mapping[Path, Any]) -> Collection[Path]:
        """Which of the winner's units are lost; if none is, all of them have frames by then."""
        lost = await self._units.lost(units)
        if not lost:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await self._opened.decode(units)
            self._seconds += loop.time() - began
        return lost

    @property
    def costs(self) -> CostBreakdown:
        """What that has cost."""
        decoding = self._opened.finishing
        certain = Cost(decoding=decoding, seconds=self._seconds if decoding else 0.0)
        return CostBreakdown(certain, Cost(), Cost())
