"""How much moves in a clip: a search that picks stills would be right about digits and colours, and show no video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.digits.oracle import Verdict, best_match, centroids, segment
from framegrove.digits.world import DigitObject


@dataclass(frozen=True)
class Travel:
    """How far the objects of a clip move between two frames, in px, and which share of those asked for as asked."""

    pixels_per_frame: float
    as_asked: float


def travel_of(frames: npt.NDArray[np.uint8], asked: Sequence[DigitObject], verdict: Verdict) -> Travel:
    """The travel of a clip, uint8 (T, H, W, 3), of which the oracle's ``verdict`` is known.

    The mean over objects of how far the centre of each colour's ink moves, over the pairs of frames that both show it.
    Nothing moves in a single frame, nor in a clip that shows nothing.
    """
    steps = [_mean_step(centroids(ink)) for ink in segment(frames).values()]
    pairs = best_match(verdict.readings, asked, moving=True)
    right = sum(seen.motion == wanted.motion for seen, wanted in pairs)
    return Travel(sum(steps) / len(steps) if steps else 0.0, right / len(asked))


def _mean_step(centres: npt.NDArray[np.float32]) -> float:
    lengths = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    seen = lengths[~np.isnan(lengths)]
    return float(seen.mean()) if len(seen) else 0.0
