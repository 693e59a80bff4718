"""The clips a VAE is trained on: where they come from, and how batches are cut from them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from framegrove.config.vae import VaeTrainingConfig
from framegrove.models.vae_files import from_uint8

Frames = npt.NDArray[np.uint8]

_FRESH = 3  # clips of the window that are replaced at every step
_FOREGROUND_LEVEL = 40  # of 255: a pixel with a brighter channel is foreground


class ClipSource(Protocol):
    """Where clips come from: uint8 frames (T, H, W, 3), all of one shape, each a pure function of its index.

    Whatever is measured is measured for each of the ``kinds`` of clips.
    """

    @property
    def kinds(self) -> tuple[str, ...]: ...

    def training(self, index: int) -> Frames:
        """Clip ``index`` of the endless sequence that is trained on."""

    def statistics(self, kind: str, index: int) -> Frames:
        """Clip ``index`` of a kind, on which the normalisation of latents is measured."""

    def heldout(self, kind: str, index: int) -> Frames:
        """Clip ``index`` of a kind, which resembles none that is trained on."""


class ClipWindow:
    """A window over the source's training clips, from which batches are drawn.

    It moves on by a few clips at every step, so that a clip is drawn once and trained on several times. Its content
    depends on the step alone, so that a resumed run sees what it would have seen.
    """

    def __init__(self, config: VaeTrainingConfig, source: ClipSource, step: int) -> None:
        self.config, self.source = config, source
        first = _FRESH * step
        self._clips = {index % config.pool: source.training(index) for index in range(first, first + config.pool)}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Video BCTHW in [-1, 1] and the weight B1THW of each pixel; then the window moves on to the next step.

        Most steps see crops around the foreground; whole frames are all that the last part of the training sees.
        """
        config = self.config
        rng = np.random.default_rng([config.seed, step])
        whole = step >= config.full_from * config.steps or rng.random() < config.full_share
        chosen = rng.choice(config.pool, config.full_batch if whole else config.batch, replace=False)
        clips = [self._clips[int(slot)] for slot in chosen]
        if not whole:
            crop = _crop if config.foreground > 1 else _crop_anywhere
            clips = [crop(clip, config.crop, rng) for clip in clips]
        newest = config.pool + _FRESH * step
        for index in range(newest, newest + _FRESH):
            self._clips[index % config.pool] = self.source.training(index)
        frames = torch.from_numpy(np.stack(clips))
        return from_uint8(frames), self._weight(frames)

    def _weight(self, frames_BTHWC: Tensor) -> Tensor:
        """More weight on and beside the foreground, and on the first frame, which is a unit of its own."""
        foreground = (frames_BTHWC.amax(dim=-1) > _FOREGROUND_LEVEL).float()
        near = F.max_pool2d(foreground, 5, stride=1, padding=2)
        weight = 1 + (self.config.foreground - 1) * near
        weight[:, 0] *= self.config.image
        return weight[:, None]


def _crop(clip: Frames, side: int, rng: np.random.Generator) -> Frames:
    """A square of all frames around a random foreground pixel of a random frame, or the clip if it is no larger."""
    height, width = clip.shape[1:3]
    if side >= min(height, width):
        return clip
    rows, columns = np.nonzero(clip[int(rng.integers(len(clip)))].max(axis=-1) > _FOREGROUND_LEVEL)
    if not len(rows):  # a dark frame
        return _crop_anywhere(clip, side, rng)
    pick = int(rng.integers(len(rows)))
    top = int(np.clip(rows[pick] - side // 2, 0, height - side))
    left = int(np.clip(columns[pick] - side // 2, 0, width - side))
    return clip[:, top : top + side, left : left + side]


def _crop_anywhere(clip: Frames, side: int, rng: np.random.Generator) -> Frames:
    """A square of all frames, or the clip if it is no larger."""
    height, width = clip.shape[1:3]
    if side >= min(height, width):
        return clip
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return clip[:, top : top + side, left : left + side]
