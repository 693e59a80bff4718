"""The frames of a video or picture file as they are meant to be seen, at a given rate and size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from framegrove.media.frames import Frames, MediaError, Size, nearest_size
from framegrove.media.pictures import NotAPicture, fitted, pictures_of
from framegrove.media.probe import ANY, LONGEST_GAP, Bounds, counted, opened_video

_NO_COLORSPACE = 2  # ffmpeg's AVCOL_SPC_UNSPECIFIED
_HIGH_DEFINITION = 1280  # pixels on the longer side
_WIDEST_PIXEL = 16  # times its height; whatever claims more is damaged in this field
# How many times as large as the wanted frame one is that covers it. The widest screens (32:9) as a phone's upright
# picture (9:16) are 6.3; of what is beyond 8, less than an eighth of the picture would be left.
_MOST_COVERED = 8
_STRIP = 64  # rows of a frame that are laid over white at a time

Source = TypeVar("Source")


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """What was read of a file: ``frames`` is uint8 (T, H, W, 3); ``ended_by_gap`` if a gap in time cut it short."""

    frames: Frames
    ended_by_gap: bool = False


def read_clip(
    path: Path,
    fps: float,
    most: int,
    sizes: Sequence[Size],
    start: float = 0.0,
    end: float = math.inf,
    bounds: Bounds = ANY,
) -> ClipFrames:
    """Up to ``most`` frames of a file: those nearest in time to the ticks of ``fps`` frames a second.

    ``start`` and ``end`` are seconds from the first frame. Frames are turned as the file says, pixels that are not
    square become square, and what is transparent is white. Each frame is then scaled to cover the one of the (height,
    width) ``sizes`` whose aspect ratio is closest, and cut to its middle. A picture is one frame. Where two frames are
    more than a second apart the clip ends before the gap; a slide show thus becomes a still. Raises MediaError for a
    file that cannot be read, and for a video more than 8 times as wide or high as that aspect ratio.
    """
    try:
        taken, ended_by_gap = _read_picture(path, fps, most, sizes, start, end)
    except NotAPicture:
        taken, ended_by_gap = _read_video(path, fps, most, sizes, start, end, bounds)
    if not taken:
        raise MediaError(f"{path} holds no frame{f' after {start:g} seconds' if start else ''}")
    return ClipFrames(np.stack(taken), ended_by_gap)


def shown_frames(path: Path, side: int) -> Iterator[tuple[float, Frames]]:
    """Every frame of a video as it is meant to be seen, small, with its second counted from the first frame.

    Each is uint8 (H, W, 3), upright, with ``side`` pixels on its longer side. Raises MediaError.
    """
    try:
        with path.open("rb") as file:
            for time, picture in pictures_of(file, str(path)):
                yield time, fitted(picture, _with_longer_side(side, picture.height, picture.width))
        return
    except NotAPicture:
        pass
    with opened_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        pixel = _pixel_width(stream.sample_aspect_ratio)
        for time, frame in _timed(container.decode(stream), _rate(stream, 24), _origin(stream)):
            turn = Turn.of(frame)
            size = _with_longer_side(side, *turn.shown(frame.height, frame.width * pixel))
            yield time, _fitted(frame, size, pixel, turn)


def _with_longer_side(side: int, height: float, width: float) -> Size:
    scale = side / max(height, width)
    return max(2, round(height * scale)), max(2, round(width * scale))


def _read_picture(
    path: Path, fps: float, most: int, sizes: Sequence[Size], start: float, end: float
) -> tuple[list[Frames], bool]:
    def fit(picture: Any) -> Frames:
        return fitted(picture, nearest_size(picture.height, picture.width, sizes))

    try:
        with path.open("rb") as file:
            # A still has no length: all of it is at second 0, wherever it is asked for.
            between = ((time, each) for time, each in pictures_of(file, str(path)) if start <= time < end)
            return sampled(between, fps, most, fit)
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror})") from None


def _read_video(
    path: Path, fps: float, most: int, sizes: Sequence[Size], start: float, end: float, bounds: Bounds
) -> tuple[list[Frames], bool]:
    with opened_video(path, bounds) as (container, stream):
        stream.thread_type = "AUTO"
        pixel = _pixel_width(stream.sample_aspect_ratio)
        size: Size | None = None

        def fit(frame: Any) -> Frames:
            nonlocal size  # of the first frame: all frames of a clip have one size
            turn = Turn.of(frame)
            shown = turn.shown(frame.height, frame.width * pixel)
            if size is None:
                size = nearest_size(*shown, sizes)
            _check_shape(path, shown, size)
            return _fitted(frame, size, pixel, turn)

        rate, origin = _rate(stream, fps), _origin(stream)
        if start and stream.time_base:
            container.seek(int((origin + start) / stream.time_base), stream=stream)  # to the key frame before it
        timed = _timed(counted(path, container.decode(stream), bounds.decoded), rate, origin)
        half = 0.5 / rate  # of a frame: times are rounded
        begun = itertools.dropwhile(lambda each: each[0] < start - half, timed)
        return sampled(itertools.takewhile(lambda each: each[0] < end - half, begun), fps, most, fit)


def _rate(stream: VideoStream, otherwise: float) -> float:
    return float(stream.guessed_rate or stream.average_rate or otherwise)


def _origin(stream: VideoStream) -> float:
    """The time stamp of the first frame, in seconds."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _timed(frames: Iterable[Any], rate: float, origin: float) -> Iterator[tuple[float, Any]]:
    """Frames with their seconds from the first one; those without a time stamp come at ``rate``."""
    for number, frame in enumerate(frames):
        yield (number / rate if frame.time is None else frame.time - origin), frame


def sampled(
    timed: Iterable[tuple[float, Source]], fps: float, most: int, fit: Callable[[Source], Frames]
) -> tuple[list[Frames], bool]:
    """The fitted frame nearest in time to each tick of 1 / ``fps`` seconds, and whether a gap ended them early.

    The last frame lasts as long as the one before it. Frames that no tick needs are not fitted.
    """
    rest = iter(timed)
    first = next(rest, None)
    if first is None:
        return [], False
    start, shown = first
    time = start
    half = 0.0
    taken: list[Frames] = []

    def take(at_least: int) -> None:
        """Take ``shown`` for every tick up to half-way between it and the frame after it."""
        count = at_least
        while len(taken) + count < most and (len(taken) + count) / fps < time - start + half:
            count += 1
        if count:
            taken.extend([fit(shown)] * count)

    for later, frame in rest:
        # A jump back, as where recordings were joined, is as much of a break as one ahead.
        if abs(later - time) > LONGEST_GAP:
            take(at_least=0 if taken else 1)
            return taken, len(taken) < most
        half = (later - time) / 2
        take(at_least=0)
        if len(taken) == most:
            return taken, False
        time, shown = later, frame
    take(at_least=0 if taken else 1)
    return taken, False


class Turn(NamedTuple):
    """How stored rows and columns are turned to be shown: exchanged first, then reversed."""

    exchanged: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """What a frame's display matrix asks for, as the nearest of the eight ways a rectangle can be laid down.

        The matrix takes a stored point (x, y) to the shown one (a x + c y, b x + d y); its nine numbers begin with
        a, b, u, c, d.
        """
        matrix = next((data for data in frame.side_data if data.type == SideData.DISPLAYMATRIX), None)
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, np.int32, count=5).tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, rows_reversed=d < 0, columns_reversed=a < 0)
        return cls(True, rows_reversed=b < 0, columns_reversed=c < 0)

    def shown(self, height: float, width: float) -> tuple[float, float]:
        """(height, width) as shown, or as stored of what is shown."""
        return (width, height) if self.exchanged else (height, width)

    def apply(self, stored: Frames) -> Frames:
        """Rows and columns of (H, W, 3) as shown."""
        turned = stored.swapaxes(0, 1) if self.exchanged else stored
        return turned[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]


def _pixel_width(ratio: Fraction | None) -> float:
    """How many times as wide as high a pixel is shown; square where the file says nothing or nonsense."""
    if ratio is None or ratio <= 0 or max(ratio, 1 / ratio) > _WIDEST_PIXEL:
        return 1.0
    return float(ratio)


def _check_shape(path: Path, shown: tuple[float, float], size: Size) -> None:
    """Raise MediaError for a frame of which next to nothing would be left, and which is huge where it covers a size."""
    wider = (shown[1] / shown[0]) / (size[1] / size[0])
    if max(wider, 1 / wider) > _MOST_COVERED:
        raise MediaError(
            f"{path} is shown at {shown[1]:.0f}x{shown[0]:.0f} pixels, which is more than {_MOST_COVERED} times as "
            f"{'wide' if wider > 1 else 'high'} as the shape of {size[1]}x{size[0]}: cut it closer to that shape"
        )


def _fitted(frame: Any, size: Size, pixel: float, turn: Turn) -> Frames:
    """The middle of a frame, scaled to cover ``size`` = (height, width) as it is shown."""
    height, width = (int(side) for side in turn.shown(*size))
    frame = _over_white(frame)
    scale = max(height / frame.height, width / (frame.width * pixel))
    scaled = frame.reformat(
        width=max(width, round(frame.width * pixel * scale)),
        height=max(height, round(frame.height * scale)),
        format="rgb24",
        interpolation="LANCZOS",
        src_colorspace=_colorspace(frame),
    ).to_ndarray()
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    middle = scaled[top : top + height, left : left + width]
    return turn.apply(middle.copy())  # a view would keep all of the scaled frame in memory


def _colorspace(frame: Any) -> Colorspace | None:
    """The matrix of a frame that names none: BT.709 in high definition, as players have it; None: ffmpeg's BT.601."""
    untagged = frame.colorspace == _NO_COLORSPACE and not frame.format.is_rgb
    return Colorspace.ITU709 if untagged and max(frame.height, frame.width) >= _HIGH_DEFINITION else None


def _over_white(frame: Any) -> Any:
    """The frame without transparency; laid over white before it is scaled, so that hidden colours do not bleed."""
    if not (frame.format.has_palette or any(component.is_alpha for component in frame.format.components)):
        return frame
    pixels = frame.reformat(format="rgba").to_ndarray()
    blended = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), _STRIP):  # the whole frame in 16 bits, at each step, would be a gigabyte
        strip = pixels[top : top + _STRIP].astype(np.uint16)
        colours, alpha = strip[..., :3], strip[..., 3:]
        blended[top : top + _STRIP] = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return av.VideoFrame.from_ndarray(blended, format="rgb24")
