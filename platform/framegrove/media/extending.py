"""A clip that a video is to go on from, as the frames that it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.media.clips import read_clip
from framegrove.media.frames import Frames, MediaError
from framegrove.media.probe import Bounds, probe

_OWN = Bounds(decoded=2**36, frames=2**18)  # of the user's own files: two minutes of 4K at 60 frames a second, an hour


@dataclass(frozen=True)
class ClipForm:
    """What a clip becomes: frames of ``height`` x ``width`` pixels, ``fps`` a second, that make ``units`` at most."""

    height: int
    width: int
    fps: float
    units: int


def frames_to_extend(path: Path, form: ClipForm, bounds: Bounds = _OWN) -> Frames:
    """The clip in a file as uint8 (1 + 8 n, H, W, 3): scaled and cut to its middle, resampled, ending as it ends.

    Of a length in between, up to 7 frames at the beginning are left out, since what follows goes on from the end.
    Raises MediaError, one sentence that names the file, for a picture, for a clip with a gap in time or one that is too
    long, and as `probe` and `read_clip` do.
    """
    found = probe(path, bounds)
    if found.kind == "image":
        raise MediaError(f"{path} is a picture: give it as the first frame of a new video, or give a video")
    if len(found.pieces) > 1:
        raise MediaError(f"{path} has a gap after {found.pieces[0][1]:.1f} seconds: cut it there, and give one part")
    longest = FRAMES_PER_UNIT * form.units / form.fps
    if found.seconds > longest + 0.5 / form.fps:
        raise MediaError(
            f"{path} lasts {found.seconds:.1f} seconds, and a video that is to become so much longer begins with "
            f"{longest:g} at most: cut it, or ask for less"
        )
    read = read_clip(path, form.fps, FRAMES_PER_UNIT * form.units, [(form.height, form.width)], bounds=bounds)
    return read.frames[(len(read.frames) - 1) % FRAMES_PER_UNIT :]
