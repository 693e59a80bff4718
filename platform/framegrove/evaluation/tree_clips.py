"""The moving pictures of a tree's page: each branch's newest unit as a strip of frames, all within a limit of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from framegrove.evaluation.report import Frames, Shown
from framegrove.types import Path

LIMIT = 3 * 1024 * 1024  # bytes of all clips together, as text in the page

_QUALITY = 85  # of lossy WebP: digits of 64 pixels keep their edges
_PROBES = 12  # branches that are encoded to estimate the size of all


@dataclass(frozen=True)
class Size:
    """How large clips are: at most so many pixels high, and at most so many frames of a unit."""

    height: int
    frames: int


SIZES = (Size(160, 8), Size(96, 8), Size(64, 8), Size(64, 4), Size(48, 4), Size(32, 2))
"""From the best to the smallest that is still worth looking at."""


@dataclass(frozen=True)
class Clip:
    """Frames of a unit side by side, as a data URI: ``count`` of the unit's ``of``, each ``width`` x ``height``."""

    uri: str
    count: int
    of: int
    width: int
    height: int


def clips_of(shown: Mapping[Path, Shown], order: Sequence[Path], limit: int = LIMIT) -> tuple[dict[Path, Clip], Size]:
    """Clips of the branches in ``order``, most important first, and the size that was chosen for them.

    The size is the best at which all of them probably fit into ``limit`` bytes. Where not even the smallest does, those
    at the end get none.
    """
    size = next((size for size in SIZES if _estimate(shown, order, size) <= limit), SIZES[-1])
    clips: dict[Path, Clip] = {}
    total = 0
    for path in order:
        clip = encode(shown[path].frames, size)
        total += len(clip.uri)
        if total > limit:
            break
        clips[path] = clip
    return clips, size


def encode(frames: Frames, size: Size) -> Clip:
    """One clip of frames (T, H, W, 3): evenly chosen, scaled down where they are larger than ``size``."""
    of, height, width, _ = frames.shape
    chosen = frames[np.linspace(0, of - 1, min(size.frames, of)).round().astype(int)]
    scale = min(1.0, size.height / height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    pictures = [Image.fromarray(frame) for frame in chosen]
    if scale < 1:
        pictures = [picture.resize((wide, high), Image.Resampling.BILINEAR) for picture in pictures]
    strip = Image.new("RGB", (wide * len(pictures), high))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * wide, 0))
    target = io.BytesIO()
    strip.save(target, format="WEBP", quality=_QUALITY, method=2)
    uri = "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode("ascii")
    return Clip(uri, len(pictures), of, wide, high)


def _estimate(shown: Mapping[Path, Shown], order: Sequence[Path], size: Size) -> float:
    """Bytes of all clips at this size, from some of them."""
    if not order:
        return 0
    probes = [order[i] for i in np.linspace(0, len(order) - 1, min(_PROBES, len(order))).round().astype(int)]
    return sum(len(encode(shown[path].frames, size).uri) for path in probes) / len(probes) * len(order)
