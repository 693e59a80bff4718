"""Small video files for tests."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
from scipy.ndimage import gaussian_filter

from framegrove.media.frames import Frames
from framegrove.media.writing import encode_mp4


def grey_film(path: Path, frames: int, height: int = 64, width: int = 64, fps: float = 24) -> Path:
    """A video whose frames are grey, each 8 levels lighter than the one before."""
    greys = 16 + 8 * np.arange(frames, dtype=np.uint8)
    path.write_bytes(encode_mp4(np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy(), fps))
    return path


def recorded(frames: Frames, fps: int = 24, form: str = "mp4", *, pictures: bool = True, sound: bool = False) -> bytes:
    """A video file as a camera or an editor writes it: an mp4, webm or mov, with silence or without pictures."""
    video, audio = ("libvpx-vp9", "libopus") if form == "webm" else ("libx264", "aac")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(video, rate=fps) if pictures else None
        track = container.add_stream(audio, rate=48_000) if sound else None
        if stream is not None:
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        if track is not None:
            silence = np.zeros((1, 2 * 48_000 * len(frames) // fps), np.int16)
            whole = av.AudioFrame.from_ndarray(silence, format="s16", layout="stereo")
            whole.rate = 48_000
            pieces = av.AudioResampler(track.format, "stereo", 48_000, frame_size=track.frame_size or 960)
            for piece in [*pieces.resample(whole), None]:
                container.mux(track.encode(piece))
    return file.getvalue()


def scenery(seed: int, height: int = 96, width: int = 160) -> Frames:
    """A picture with structure at several scales, of a colour of its own."""
    rng = np.random.default_rng(seed)
    scales = [gaussian_filter(rng.standard_normal((height, width)), scale) * scale for scale in (1, 3, 9)]
    tint = rng.uniform(0.4, 1, 3)
    picture = 128 + 60 * sum(scales)[..., None] * tint
    return np.clip(picture, 0, 255).astype(np.uint8)


def panned(picture: Frames, frames: int, pixels: int) -> Frames:
    """The picture, moving sideways by so many pixels a frame."""
    return np.stack([np.roll(picture, pixels * number, axis=1) for number in range(frames)])
