"""What is wrong with the newest unit of a video of the digits world, as the oracle reads it.

A unit is read together with the last frame before it: nine frames, of which the digit, the colours, the count and the
motion are taken alike (of unit 0, a single frame, all but the motion). A reading of the whole clip so far would average
a bad unit away: a digit may differ in 30% of a clip's frames, and one that stops late has travelled far enough. Nine
frames are enough for the motion, bounces included: a digit of this world covers 16 or 24 px in a unit.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.digits.oracle import DigitsOracle, best_match
from framegrove.digits.world import DigitObject


class UnitFault(enum.StrEnum):
    """What can be wrong with a unit."""

    DIGIT = "another digit"
    MALFORMED = "no clear digit"
    COLOUR = "another colour"
    MOTION = "motion"
    EXTRA = "extra object"
    MISSING = "missing object"


def newest_unit(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The frames by which the newest unit of a clip (T, H, W, 3) is read: its own, and the last one before it."""
    return frames[-(FRAMES_PER_UNIT + 1) :]


def unit_faults(
    oracle: DigitsOracle, frames: npt.NDArray[np.uint8], asked: Sequence[DigitObject]
) -> tuple[UnitFault, ...]:
    """All that is wrong with the newest unit of a clip, uint8 (T, H, W, 3), each fault once; nothing if it is right.

    Empty exactly where the oracle calls those frames fully right.
    """
    shown = newest_unit(frames)
    seen = oracle.read(shown)
    found: set[UnitFault] = set()
    for reading, wanted in best_match(seen, asked, moving=len(shown) > 1):
        if reading.digit != wanted.digit:
            found.add(UnitFault.MALFORMED if reading.digit is None else UnitFault.DIGIT)
        if reading.colour != wanted.colour:
            found.add(UnitFault.COLOUR)
        if len(shown) > 1 and reading.motion != wanted.motion:
            found.add(UnitFault.MOTION)
    if len(seen) != len(asked):
        found.add(UnitFault.EXTRA if len(seen) > len(asked) else UnitFault.MISSING)
    return tuple(fault for fault in UnitFault if fault in found)
