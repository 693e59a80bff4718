"""A lab's own clips: a list of captioned video files, and a file's frames at a wanted rate and size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from framegrove.data.ingest import DataError, Size

Frames = npt.NDArray[np.uint8]
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}


@dataclass(frozen=True)
class Listed:
    """A line of a list: a video or image file and what it shows. ``id`` is its place in the list."""

    id: int
    path: Path
    caption: str


def read_list(path: Path) -> list[Listed]:
    """The lines of a parquet, csv or jsonl file with columns ``video`` and ``caption``; paths as seen from its folder.

    Raises DataError, in one sentence.
    """
    if path.suffix not in _FORMATS:
        raise DataError(f"{path} is no list of videos: give a {', '.join(_FORMATS)} file")
    try:
        table = ds.dataset(path, format=_FORMATS[path.suffix]).to_table(columns=["video", "caption"])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as a list with the columns video and caption ({reason})") from None
    lines = enumerate(table.to_pylist())
    listed = [Listed(n, path.parent / str(line["video"]), str(line["caption"] or "")) for n, line in lines]
    if not listed:
        raise DataError(f"{path} lists no videos")
    return listed


def nearest_size(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The one of the (height, width) ``sizes`` whose shape is most like that of a picture."""
    return min(sizes, key=lambda size: abs(np.log(size[0] / size[1] * width / height)))


def read_frames(path: Path, fps: float, most: int, sizes: Sequence[Size]) -> Frames:
    """Up to ``most`` frames from a file's start, uint8 (T, H, W, 3): those nearest in time to ticks of ``fps``.

    Each is scaled to cover the one of the (height, width) ``sizes`` that suits it best, and cut to its middle. An image
    is one frame. Raises DataError, in one sentence, for a file that is no video.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            size = nearest_size(stream.height, stream.width, sizes)
            frames = [_fitted(frame, size) for frame in _at_rate(container.decode(stream), fps, most)]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path} cannot be read as a video ({' '.join(str(error).split())[:160]})") from None
    if not frames:
        raise DataError(f"{path} holds no frame")
    return np.stack(frames)


def _at_rate(frames: Iterator[Any], fps: float, most: int) -> Iterator[Any]:
    """The frame nearest in time to each tick of 1 / ``fps`` seconds; the last one lasts as long as the one before."""
    before = next(frames, None)
    if before is None:
        return
    start, half, tick = before.time or 0.0, 0.0, 0
    for frame in frames:
        half = ((frame.time or 0.0) - (before.time or 0.0)) / 2
        while tick / fps < (before.time or 0.0) - start + half:
            yield before
            tick += 1
            if tick == most:
                return
        before = frame
    while tick < most and (not tick or tick / fps < (before.time or 0.0) - start + half):
        yield before
        tick += 1


def _fitted(frame: Any, size: Size) -> Frames:
    """The middle of a frame, scaled to cover ``size``."""
    height, width = size
    scale = max(height / frame.height, width / frame.width)
    scaled = frame.reformat(
        width=max(width, round(frame.width * scale)),
        height=max(height, round(frame.height * scale)),
        format="rgb24",
        interpolation="LANCZOS",
    ).to_ndarray()
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    cut: Frames = scaled[top : top + height, left : left + width]
    return cut
