"""Where clips begin and end: cuts found by PySceneDetect, gaps in time, and strides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from framegrove.config.curate import ShotsConfig
from framegrove.curation.clip import Frames

Span = tuple[float, float]  # seconds from a video's first frame


@dataclass(frozen=True)
class Window:
    """A stretch of a shot that becomes a clip. ``shot`` counts windows from 0 in the order of time."""

    shot: int
    start: float
    end: float


def cuts(frames: Iterable[tuple[float, Frames]], config: ShotsConfig) -> list[float]:
    """The seconds at which a new shot begins, of small uint8 frames (H, W, 3) with their seconds."""
    times: list[float] = []
    found: list[FrameTimecode] = []
    detector: ContentDetector | None = None
    waiting: list[Frames] = []  # the first two frames, which tell the rate

    def look(number: int, frame: Frames) -> None:
        assert detector is not None
        found.extend(detector.process_frame(FrameTimecode(number, rate), frame[..., ::-1]))

    rate = 24.0
    for time, frame in frames:
        times.append(time)
        if detector is None:
            waiting.append(frame)
            if len(waiting) < 2:
                continue
            rate = 1 / max(times[1] - times[0], 1e-3)
            detector = ContentDetector(config.threshold, min_scene_len=max(1, round(config.least * rate)))
            for number, early in enumerate(waiting):
                look(number, early)
        else:
            look(len(times) - 1, frame)
    if detector is not None:
        found.extend(detector.post_process(FrameTimecode(len(times) - 1, rate)))
    return [times[cut.frame_num] for cut in found]


def windows(pieces: Sequence[Span], found: Sequence[float], length: float, stride: float | None) -> list[Window]:
    """The clips of a video, each at most ``length`` seconds: of every shot its beginning, or one every ``stride``.

    ``pieces`` are stretches without a gap in time, which are cut where ``found`` says that a shot begins. A clip that
    a stride would begin within the last half of one is left out where the shot has another.

    >>> windows([(0, 10)], [4], length=2, stride=None)
    [Window(shot=0, start=0, end=2), Window(shot=1, start=4, end=6)]
    """
    spans: list[Span] = []
    for start, end in pieces:
        inside = sorted({cut for cut in found if start < cut < end})
        spans += zip([start, *inside], [*inside, end], strict=True)
    result: list[Window] = []
    for start, end in spans:
        begins = [start]
        while stride is not None and begins[-1] + stride + length / 2 <= end:
            begins.append(begins[-1] + stride)
        result += [Window(len(result) + at, each, min(each + length, end)) for at, each in enumerate(begins)]
    return result


def within(pieces: Sequence[Span], start: float, end: float) -> list[Span]:
    """The parts of some stretches between two seconds."""
    cut = [(max(low, start), min(high, end)) for low, high in pieces]
    return [(low, high) for low, high in cut if low < high]
