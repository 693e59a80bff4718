"""Clips of real videos for the VAE's training (`vae_clips.ClipSource`): each a pure function of its index."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np

from framegrove.config.vae import VaeConfig, VideoClipsConfig
from framegrove.data.lists import read_list
from framegrove.errors import UserError
from framegrove.media.clips import read_clip
from framegrove.media.frames import Frames, MediaError

log = logging.getLogger(__name__)

_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
_STRETCH = 4  # clips' lengths of a video's beginning that a clip is drawn from
_TRIES = 50  # videos that may be unusable one after the other


class VideoFrames:
    """Clips of a list of videos, of which a share is held out: whole videos, told by their names.

    Videos that cannot be read or are too short are passed over, each with a warning. Making one raises UserError where
    there are not two videos at least.
    """

    kinds = ("video",)

    def __init__(self, config: VideoClipsConfig, vae: VaeConfig, seed: int) -> None:
        side = vae.spatial_factor
        if config.height % side or config.width % side:
            raise UserError(f"data: {config.height}x{config.width} pixels do not fit this VAE: multiples of {side} do")
        self.config, self.seed = config, seed
        self.frames = 1 + vae.temporal_factor * (config.units - 1)
        self._unusable: dict[Path, str] = {}
        paths = _videos(Path(config.videos))
        if len(paths) < 2:
            raise UserError(f"{config.videos} has {len(paths)} videos: two are needed, one of them to measure on")
        by_name = sorted(paths, key=lambda path: hashlib.blake2b(path.name.encode()).digest())
        held = min(len(paths) - 1, max(1, round(config.heldout * len(paths))))
        self.held_out, self.trained = by_name[:held], sorted(by_name[held:])

    def training(self, index: int) -> Frames:
        """Training clip ``index`` of an endless sequence."""
        return self._drawn(self.trained, "training", index)

    def statistics(self, kind: str, index: int) -> Frames:
        """Training clip ``index``, of another sequence, on which the latents' normalisation is measured."""
        return self._drawn(self.trained, "statistics", index)

    def heldout(self, kind: str, index: int) -> Frames:
        """Clip ``index`` of the videos that are held out."""
        return self._drawn(self.held_out, "heldout", index)

    def _drawn(self, paths: list[Path], purpose: str, index: int) -> Frames:
        """A random stretch of a random video, or of the next one drawn where that one is of no use."""
        given = hashlib.blake2b(f"{self.seed} {purpose} {index}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(given))
        for _ in range(_TRIES):
            path = paths[int(rng.integers(len(paths)))]
            frames = self._read(path)
            if frames is not None:
                start = int(rng.integers(len(frames) - self.frames + 1))
                return frames[start : start + self.frames]
        *_, reason = self._unusable.values()
        raise UserError(
            f"of {len(paths)} videos in {self.config.videos} none of {_TRIES} drawn can be used (the last: {reason}): "
            f"give longer ones, or lower data.units"
        )

    def _read(self, path: Path) -> Frames | None:
        """The beginning of a video, or None where it is of no use."""
        if path in self._unusable:
            return None
        size = (self.config.height, self.config.width)
        try:
            frames = read_clip(path, self.config.fps, _STRETCH * self.frames, [size]).frames
            if len(frames) >= self.frames:
                return frames
            reason = f"{path} has {len(frames)} frames of {self.frames}"
        except MediaError as error:
            reason = str(error)
        self._unusable[path] = reason
        log.warning("a video is passed over: %s", reason)
        return None


def _videos(place: Path) -> list[Path]:
    """The files of a list or of a folder. Raises UserError."""
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return sorted({listed.path for listed in read_list(place)})
