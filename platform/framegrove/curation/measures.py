"""The stages that look at pictures: motion, sharpness, darkness, black bars. Each is a measure and a threshold."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from framegrove.config.curate import MotionConfig, PictureConfig
from framegrove.curation.clip import Clip, Frames, Rejection, Stage
from framegrove.media.pictures import reduced

_FLOW_SIDE = 128  # pixels at which motion is measured
_SHARP_SIDE = 256  # pixels at which sharpness is measured: it depends on the scale
_FLOW_PAIRS = 8  # of frames, spread over the clip
_FLOW_SECONDS = 0.04  # between the frames of a pair, about: further apart, what moves fast is not found again
_LOOKS = 5  # frames that are looked at for everything else
_BLACK = 24  # grey levels: brighter pixels are no part of a bar

Grey = npt.NDArray[np.uint8]


def motion_stage(config: MotionConfig) -> Stage:
    """Rejects videos that move too little or too much; pictures pass."""

    def stage(clip: Clip) -> Clip | Rejection:
        if clip.kind == "image":
            return clip
        moved = motion(clip.frames, clip.fps)
        if moved < config.least:
            return clip.rejected("motion", f"too still ({moved:.3f} lengths a second, at least {config.least:g})")
        if moved > config.most:
            return clip.rejected("motion", f"too wild ({moved:.3f} lengths a second, at most {config.most:g})")
        return clip

    return stage


def picture_stage(config: PictureConfig) -> Stage:
    """Rejects clips that are black, have bars, or are blurred."""

    def stage(clip: Clip) -> Clip | Rejection:
        light = brightness(clip.frames)
        if light < config.brightness:
            return clip.rejected("picture", f"black (mean grey level {light:.1f}, at least {config.brightness:g})")
        barred = bars(clip.frames)
        if barred > config.bars:
            return clip.rejected("picture", f"black bars (over {barred:.0%} of a side, at most {config.bars:.0%})")
        sharp = sharpness(clip.frames)
        if sharp < config.sharpness:
            return clip.rejected("picture", f"blurred (sharpness {sharp:.1f}, at least {config.sharpness:g})")
        return clip

    return stage


def motion(frames: Frames, fps: float) -> float:
    """How far pixels of uint8 (T, H, W, 3) move, on average, in lengths of the longer side a second; 0 for a still.

    Farneback's dense optical flow between pairs of frames a 25th of a second apart.
    """
    apart = min(max(1, round(_FLOW_SECONDS * fps)), len(frames) - 1)
    if apart < 1:
        return 0.0
    firsts = np.unique(np.linspace(0, len(frames) - 1 - apart, _FLOW_PAIRS).round().astype(int))
    moved = []
    for first in firsts:
        before, after = _grey(reduced(frames[[first, first + apart]], _FLOW_SIDE))
        moved.append(_flow(before, after) / max(before.shape))
    return float(np.mean(moved)) * fps / apart


def sharpness(frames: Frames) -> float:
    """The variance of the Laplacian, in grey levels squared, of the median of some frames; low for what is blurred."""
    pictures = _grey(reduced(_some(frames), _SHARP_SIDE))
    return float(np.median([cv2.Laplacian(picture, cv2.CV_64F).var() for picture in pictures]))


def brightness(frames: Frames) -> float:
    """The mean grey level, from 0 to 255."""
    return float(_grey(_some(frames)).mean())


def bars(frames: Frames) -> float:
    """The share of the height, or of the width, that black bars take on both sides together: the larger of the two."""
    brightest: Grey = _grey(_some(frames)).max(axis=0)
    return max(_dark_ends(brightest.max(axis=1)), _dark_ends(brightest.max(axis=0)))


def _dark_ends(line: Grey) -> float:
    bright = np.flatnonzero(line > _BLACK)
    if not len(bright):
        return 1.0
    return float(bright[0] + len(line) - 1 - bright[-1]) / len(line)


def _flow(before: Grey, after: Grey) -> float:
    start = np.zeros((*before.shape, 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(before, after, start, 0.5, 5, 21, 3, 5, 1.2, 0)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean())


def _some(frames: Frames) -> Frames:
    return frames[np.unique(np.linspace(0, len(frames) - 1, _LOOKS).round().astype(int))]


def _grey(frames: Frames) -> Grey:
    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]).astype(
        np.uint8
    )
