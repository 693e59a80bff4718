"""Features of pictures and videos of the digits world, by the digits teacher's network, for Fréchet distances.

As FID takes the activations of a network that was trained to classify pictures, these are the activations of one that
was trained to classify digits. FVD's network sees videos; this one sees frames, and what a video adds is how they
change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.digits import world
from framegrove.digits.second_opinion import shipped_teacher
from framegrove.digits.teacher import Pixels, Teacher, centres_of, segment
from framegrove.digits.world import DigitObject

WIDTH = 64  # of a picture's features
_SEED = 31_415  # of the reference clips, which no training draws


@dataclass(frozen=True, eq=False)
class Features:
    """``pictures`` (frames, 64) and ``videos`` (videos, 130), a row for each."""

    pictures: npt.NDArray[np.float32]
    videos: npt.NDArray[np.float32]


class TeacherFeatures:
    """Features by a teacher, the shipped one if absent.

    A picture's are the sum of the activations over its objects, so that an object too many or too few shows; a picture
    without an object has zeros. A video's are the mean of its pictures', the mean of their absolute changes from frame
    to frame, and how far its objects travel from frame to frame, across and down, in px.
    """

    def __init__(self, teacher: Teacher | None = None) -> None:
        self._teacher = teacher or shipped_teacher()

    def of(self, clips: Iterable[Pixels]) -> Features:
        """Those of some videos, uint8 (T, H, W, 3) each."""
        pictures, videos = [], []
        for clip in clips:
            frames_TC, travel_2 = self._read(clip)
            change_C = np.abs(np.diff(frames_TC, axis=0)).mean(0) if len(clip) > 1 else np.zeros(WIDTH)
            pictures.append(frames_TC)
            videos.append(np.concatenate([frames_TC.mean(0), change_C, travel_2]))
        if not pictures:
            return Features(np.zeros((0, WIDTH), np.float32), np.zeros((0, 2 * WIDTH + 2), np.float32))
        return Features(np.concatenate(pictures), np.stack(videos).astype(np.float32))

    def _read(self, clip: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        frames_TC, travel_2 = np.zeros((len(clip), WIDTH), np.float32), np.zeros(2, np.float32)
        for ink_THW in segment(clip).values():
            frames_TC += self._teacher.features(ink_THW)
            steps = np.abs(np.diff(centres_of(ink_THW), axis=0))
            seen = steps[~np.isnan(steps).any(1)]
            travel_2 += seen.mean(0) if len(seen) else 0
        return frames_TC, travel_2


def reference_clips(asked: Sequence[tuple[DigitObject, ...]], units: int, seed: int = _SEED) -> Iterator[Pixels]:
    """The world's own clips of these prompts, of held-out scans, at other places and speeds than any that were seen."""
    for number, objects in enumerate(asked):
        rng = np.random.default_rng((seed, number))
        yield world.render(objects, rng, split="heldout", units=units)
