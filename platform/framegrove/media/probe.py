"""What a video or picture file is, and whether all of it is there, found out without decoding it."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream
from PIL import Image

from framegrove.media.frames import MediaError, one_line
from framegrove.media.pictures import NotAPicture, pictures_of

LONGEST_GAP = 1.0  # seconds; frames further apart do not belong to one motion
_STILL = 0.04  # seconds that a frame is shown where nothing says so
# A file without its end: what is missing must be more than a last long frame, or a sound track that goes on.
_MISSING_SECONDS, _MISSING_SHARE = 1.0, 0.02
# Streams without a container have no time stamps: they cannot be cut at a time, nor told from a half of themselves.
_RAW = {"h264", "hevc", "vvc", "m4v", "mpegvideo", "obu", "av1", "vc1", "dirac", "h261", "h263", "mjpeg", "rawvideo"}
_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}


@dataclass(frozen=True)
class Bounds:
    """What a video file may be. The defaults are for files that the user of a command names.

    ``container`` is the one that the file is read as, in ffmpeg's words, None: whatever it looks like, which includes
    formats that name other files. ``pixels`` are those of a frame, ``decoded`` those of all its frames together. Both
    are looked at before anything is decoded, and again while it is: frames may be larger than the file says.
    ``frames`` are how many it has. ``threads`` are those of its decoder, which take memory; None: by processors.
    """

    container: str | None = None
    pixels: int = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # as of a picture
    decoded: int | None = None
    frames: int | None = None
    threads: int | None = None


ANY = Bounds()


@dataclass(frozen=True)
class Probe:
    """A readable file. ``pieces`` are (start, end) in seconds from its first frame, cut at gaps in time.

    A picture is one piece that lasts no time.
    """

    kind: Literal["image", "video"]
    pieces: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        """How much footage there is, gaps left out."""
        return sum(end - start for start, end in self.pieces)


def probe(path: Path, bounds: Bounds = ANY) -> Probe:
    """Look at a file. Raises MediaError, one sentence that names it, for what is no whole video or picture."""
    try:
        times = _picture_times(path)
    except NotAPicture:
        return _probe_video(path, bounds)
    return Probe("image", ((0.0, 0.0),)) if len(times) == 1 else Probe("video", _pieces(times))


@contextlib.contextmanager
def opened_video(path: Path, bounds: Bounds = ANY) -> Iterator[tuple[Any, VideoStream]]:
    """The container and the video stream of a file that can be read as a video. Raises MediaError for any other."""
    try:
        # ffmpeg takes "12:30.mp4" for a protocol, but no absolute path. Titles may be in any encoding: they are unused.
        with av.open(str(path.absolute()), format=bounds.container, metadata_errors="ignore") as container:
            if _RAW & set(container.format.name.split(",")):
                raise MediaError(
                    f"{path} cannot be read as a video (it is a bare {container.format.name} stream, without time "
                    "stamps): put it into a container, for example with ffmpeg -i IN -c copy OUT.mp4"
                )
            stream = _video_stream(path, container.streams.best("video"))
            _check(path, stream, bounds.pixels)
            # A stream can change the size of its frames on the way: the decoder holds to the same limit.
            stream.codec_context.options = {"max_pixels": str(bounds.pixels)}
            if bounds.threads is not None:
                stream.codec_context.thread_count = bounds.threads
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path} cannot be read as a video ({one_line(error)})") from None


def counted(path: Path, frames: Iterable[Any], most: int | None) -> Iterator[Any]:
    """Decoded frames, as long as they have ``most`` pixels together. Raises MediaError for the first one beyond."""
    pixels = 0
    for frame in frames:
        pixels += frame.height * frame.width
        if most is not None and pixels > most:
            raise _too_much(path, most)
        yield frame


def _too_much(path: Path, most: int) -> MediaError:
    return MediaError(
        f"{path} has more than {most:,} pixels in all its frames together: make it shorter or smaller, or leave frames "
        "out"
    )


def _picture_times(path: Path) -> list[float]:
    """When the pictures of a picture file are shown. Raises NotAPicture for a file of another kind."""
    try:
        with path.open("rb") as file:
            return [time for time, _ in pictures_of(file, str(path))]
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror})") from None


def _video_stream(path: Path, stream: Any) -> VideoStream:
    if not isinstance(stream, VideoStream):
        raise MediaError(f"{path} cannot be read as a video (it holds none)")
    if stream.disposition & Disposition.attached_pic:
        raise MediaError(f"{path} cannot be read as a video (it holds sound and a cover picture)")
    return stream


def _check(path: Path, stream: VideoStream, most_pixels: int) -> None:
    """Raise MediaError for a video whose frames could not be shown as they are meant, or not in memory."""
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path} cannot be read as a video (there is no decoder for it)")
    curve = _HDR.get(context.color_trc)
    if curve is not None:
        raise MediaError(
            f"{path} is HDR video ({curve}), whose brightness would be read wrongly: convert it to SDR (BT.709) first"
        )
    if context.height * context.width > most_pixels:
        raise MediaError(f"{path} has frames of more than {most_pixels:,} pixels: make them smaller")


def _probe_video(path: Path, bounds: Bounds) -> Probe:
    with opened_video(path, bounds) as (container, stream):
        base = stream.time_base or Fraction(1, 90_000)
        packets = _packets(path, container, stream, bounds)
        first, last = int(packets.times[0]), int(packets.times[-1])
        ends = float((last + packets.last - first) * base)
        declared = _declared(container, stream)
        if declared is not None and declared - ends > max(_MISSING_SECONDS, _MISSING_SHARE * declared):
            raise MediaError(
                f"{path} is half a file: it ends after {ends:.1f} of {declared:.1f} seconds, get the whole one"
            )
        if packets.damaged:
            raise MediaError(f"{path} cannot be read as a video (parts of it are damaged or missing)")
        times = (float((int(time) - first) * base) for time in packets.times)
        return Probe("video", _pieces(times, float(packets.last * base) or None))


@dataclass(frozen=True)
class _Packets:
    """The encoded frames of a file: their times, sorted, and how long the last one lasts, in units of the stream."""

    times: npt.NDArray[np.int64]
    last: int
    damaged: bool


def _packets(path: Path, container: Any, stream: VideoStream, bounds: Bounds) -> _Packets:
    """Go through all packets of a stream, and keep 8 bytes of each. Raises MediaError for none, or too many."""
    most = _most_frames(stream, bounds)
    times = array("q")
    last = (0, 0)
    damaged = shown = False
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None:
            continue
        if most is not None and len(times) == most:
            raise _too_many(path, most, bounds)
        end = (packet.pts, packet.duration or 0)
        last = max(last, end) if times else end
        times.append(packet.pts)
        damaged = damaged or packet.is_corrupt
        shown = shown or not packet.is_discard
    if not times:
        raise MediaError(f"{path} cannot be read as a video (it holds no frame)")
    if not shown:
        raise MediaError(f"{path} shows nothing: its edit list begins after its last frame, save it again without one")
    return _Packets(np.sort(np.frombuffer(times, np.int64)), last[1], damaged)


def _most_frames(stream: VideoStream, bounds: Bounds) -> int | None:
    """How many frames of the declared size are within the bounds; None for any number."""
    limits = [] if bounds.frames is None else [bounds.frames]
    if bounds.decoded is not None:
        limits.append(bounds.decoded // max(1, stream.codec_context.height * stream.codec_context.width))
    return min(limits, default=None)


def _too_many(path: Path, most: int, bounds: Bounds) -> MediaError:
    if most == bounds.frames:
        return MediaError(f"{path} has more than {most:,} frames: make it shorter, or leave frames out")
    return _too_much(path, bounds.decoded or 0)


def _declared(container: Any, stream: VideoStream) -> float | None:
    """How long the file says that its pictures last; None where it says nothing, or only what its size suggests."""
    if stream.duration is not None and stream.time_base is not None and "mpegts" not in container.format.name:
        return float(stream.duration * stream.time_base)
    # Matroska has one duration for the whole file. A longer sound track must not make its pictures look cut off.
    if "matroska" in container.format.name and container.duration and len(container.streams) == 1:
        return float(container.duration / av.time_base)
    return None


def _pieces(times: Iterable[float], last: float | None = None) -> tuple[tuple[float, float], ...]:
    """Stretches of sorted times without a gap. The last frame of each lasts as long as the one before it, or ``last``.

    >>> _pieces([0, 0.5, 1, 9, 9.5])
    ((0, 1.5), (9, 10.0))
    """
    pieces: list[tuple[float, float | None, float]] = []  # first time, the one before the last if any, last
    for time in times:
        if pieces and time - pieces[-1][2] <= LONGEST_GAP:
            first, _, before = pieces[-1]
            pieces[-1] = (first, before, time)
        else:
            pieces.append((time, None, time))
    return tuple((first, end + (last or _STILL if before is None else end - before)) for first, before, end in pieces)
