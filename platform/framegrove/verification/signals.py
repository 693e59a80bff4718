"""The ``signals`` verifier: what can be measured of a video without any model, in NumPy."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from framegrove.config.verifier import VerifierConfig
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.clips import Frames, clip_of

_BLOCK = 8  # side of the blocks that motion is looked for in, px
_VISIBLE_CHANGE = 4.0  # grey levels
_USUAL_VARIANCE = 100.0  # of the Laplacian: pictures below it are commonly called blurred


class SignalsVerifier:
    """Scores flicker, sharpness and motion; motion is reported but by default not ranked (VerifierConfig.weight_of).

    A still video has neither flicker nor motion and a shaky one has much of both, so the amount of motion is neither
    good nor bad by itself. Give it a weight by name where a search should prefer videos that move.
    """

    def __init__(self, config: VerifierConfig) -> None:
        self._name, self._assessments = config.name, config.assessments

    async def ready(self) -> str:
        """The verifier's name."""
        return self._name

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """Measure the clip that ``units``, uint8 (T, H, W, 3) each, make up; the prompt does not matter.

        A single frame is measured for sharpness alone.
        """
        began = time.monotonic()
        scores = await asyncio.to_thread(measured, clip_of(*units))
        return Scored(work, scores, Cost(seconds=time.monotonic() - began))

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: none are counted."""
        return dict.fromkeys(self._assessments, (0,) * len(lengths))

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Nothing to stop."""


def measured(frames: Frames) -> tuple[tuple[str, float], ...]:
    """All scores of a clip, by name."""
    scores = [("sharpness", sharpness(frames))]
    if len(frames) > 1:
        scores = [("flicker", flicker(frames)), *scores, ("motion", motion(frames))]
    return tuple(scores)


def flicker(frames: Frames) -> float:
    """Freedom from flicker in [0, 1], as VBench's temporal flickering (arXiv 2311.17982): (255 - MAE) / 255.

    MAE is the mean absolute difference between consecutive frames, over all pixels, channels and pairs. 1 is a still
    video, 0 one that alternates between black and white.
    """
    differences = [np.abs(after.astype(np.int16) - before).mean() for before, after in itertools.pairwise(frames)]
    return float((255.0 - np.mean(differences)) / 255.0)


def sharpness(frames: Frames) -> float:
    """Sharpness in [0, 1]: v / (v + 100), where v is the variance of the brightness's Laplacian, averaged over frames.

    The Laplacian (left + right + above + below - 4 x centre) answers to edges and fine detail. 0 is a picture of one
    colour, 0.5 one at the edge of being blurred. It grows with v, and with noise too.
    """
    variances = []
    for frame in frames:
        grey = _brightness(frame)
        around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        variances.append(float(np.var(around - 4 * grey[1:-1, 1:-1])) if around.size else 0.0)
    mean = float(np.mean(variances))
    return mean / (mean + _USUAL_VARIANCE)


def motion(frames: Frames) -> float:
    """Amount of motion in [0, 1]: the fraction of 8 x 8 blocks whose mean brightness changes by more than 4 levels.

    Averaged over all pairs of consecutive frames. Means over blocks let grain and compression noise pass unnoticed.
    """
    blocks = np.stack([_block_means(_brightness(frame)) for frame in frames])
    return float((np.abs(np.diff(blocks, axis=0)) > _VISIBLE_CHANGE).mean())


def _brightness(frame: Frames) -> npt.NDArray[np.float32]:
    """Luma (ITU-R BT.601) in [0, 255], (H, W)."""
    return (frame @ np.asarray([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def _block_means(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Means over blocks; what does not fill a block at the right and the bottom is left out."""
    height, width = (max(_BLOCK, side - side % _BLOCK) for side in grey.shape)
    if min(grey.shape) < _BLOCK:
        return grey.mean(keepdims=True)
    tiles = grey[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    return tiles.mean(axis=(1, 3))
