"""What passes through the stages of curation: a clip, or the reason why there is none.

A stage is a function from a clip to a clip or a `Rejection`. It looks at nothing else, so that it can run anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.data.schema import Kind

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Rejection:
    """A clip, or a whole file, that is not kept. ``shot`` counts the clips of a file from 0; -1 is the whole file.

    ``entry`` is the key of the entry that it came from.
    """

    entry: str
    path: str
    shot: int
    start: float  # seconds
    stage: str
    reason: str


@dataclass(frozen=True, eq=False)
class Clip:
    """A stretch of a source as it will be encoded: ``frames`` is uint8 (T, H, W, 3) at ``fps``.

    ``id`` and ``source`` are those of `framegrove.data.schema`, ``entry`` is the key of the entry that it came from;
    ``hash`` is 24 bytes of a perceptual hash, empty where nobody compares clips.
    """

    id: int
    entry: str
    path: str
    source: str
    kind: Kind
    split: str
    shot: int
    start: float
    fps: float
    frames: Frames
    caption: str = ""
    caption_source: str = ""
    ended_by_gap: bool = False
    hash: bytes = b""

    def rejected(self, stage: str, reason: str) -> Rejection:
        """This clip's rejection by a stage."""
        return Rejection(self.entry, self.path, self.shot, self.start, stage, reason)


Stage = Callable[[Clip], Clip | Rejection]


def through(clip: Clip, stages: Iterable[Stage]) -> Clip | Rejection:
    """What becomes of a clip in the stages, one after the other, up to the first that rejects it."""
    for stage in stages:
        outcome = stage(clip)
        if isinstance(outcome, Rejection):
            return outcome
        clip = outcome
    return clip
