"""How much moves in a clip: a search that picks stills would be right about digits and colours, and show no video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.digits import world
from framegrove.digits.oracle import Verdict, best_match, centroids, segment
from framegrove.digits.world import DigitObject

_REAL_CLIPS = 8


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
    pairs = best_match(verdict.readings, asked, moving=True)
    right = sum(seen.motion == wanted.motion for seen, wanted in pairs)
    return Travel(_mean_travel(frames), right / len(asked))


def real_travel(asked: Sequence[DigitObject], units: int, seed: int = 0) -> float:
    """How far such objects move between two frames of real clips of ``units`` units, in px: the mean of a few."""
    rng = np.random.default_rng(seed)
    clips = [world.render(tuple(asked), rng, split="heldout", units=units) for _ in range(_REAL_CLIPS)]
    return sum(_mean_travel(frames) for frames in clips) / len(clips)


def motion_kept(travel: float, real: float) -> float:
    """How much of the ``real`` travel there is, at most 1; all of it where nothing moves in real clips either.

    >>> motion_kept(1.0, 2.0), motion_kept(3.0, 2.0), motion_kept(0.0, 0.0)
    (0.5, 1.0, 1.0)
    """
    return min(1.0, travel / real) if real > 0 else 1.0


def _mean_travel(frames: npt.NDArray[np.uint8]) -> float:
    steps = [_mean_step(centroids(ink)) for ink in segment(frames).values()]
    return sum(steps) / len(steps) if steps else 0.0


def _mean_step(centres: npt.NDArray[np.float32]) -> float:
    lengths = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    seen = lengths[~np.isnan(lengths)]
    return float(seen.mean()) if len(seen) else 0.0
