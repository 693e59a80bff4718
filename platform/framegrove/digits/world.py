"""The embedded world: captioned videos of bouncing handwritten digits, drawn from scikit-learn's real scans.

"a red 3 moves left and right", "a green 7 moves up and down and a blue 2 moves along the rising diagonal". 64x64, 8
fps, any number of units (25 frames for four). A clip is a pure function of (seed, index, split), so nothing is
downloaded or stored. A fifth of the scans and a tenth of the (digit, colour, motion) combinations are held out: no
training clip shows them.

Digits start on multiples of 8 px and move by 2 or 3 px per frame, hence by 16 or 24 px per unit of 8 frames: at every
unit boundary they are aligned with the cells of an 8x8x8 latent grid. Where there are two, each has a half of the
picture to itself, so that neither hides the other.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from framegrove.config.request import frames_of

Split = Literal["train", "heldout"]

SIZE = 64
FPS = 8
DIGITS = tuple(range(10))
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 45),
    "green": (50, 205, 60),
    "blue": (65, 95, 250),
    "yellow": (240, 220, 50),
    "cyan": (50, 215, 225),
    "magenta": (225, 60, 215),
}
# Direction (x to the right, y down) of each motion; every digit goes back and forth along its line.
MOTIONS: dict[str, tuple[int, int]] = {
    "left and right": (1, 0),
    "up and down": (0, 1),
    "along the rising diagonal": (1, -1),
    "along the falling diagonal": (1, 1),
}
BACKGROUND = (10, 10, 14)

SINGLE_SIDE = 28  # side of the only digit, px
PAIR_SIDE = 22  # side of each of two digits, px
_SPEEDS = (2, 3)  # px per frame


@dataclass(frozen=True)
class DigitObject:
    """One digit of a clip, as its caption names it."""

    digit: int
    colour: str
    motion: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.digit} moves {self.motion}"


@dataclass(frozen=True)
class Clip:
    """A captioned clip. ``frames`` is uint8 (T, H, W, 3)."""

    caption: str
    frames: npt.NDArray[np.uint8]
    objects: tuple[DigitObject, ...]


def clip(seed: int, index: int, *, split: Split = "train", digits: int | None = None, units: int = 4) -> Clip:
    """Clip ``index`` of the endless data set of a seed.

    It shows ``digits`` digits, 1 or 2, or, if that is None, either with equal probability. The train split never shows
    a held-out scan or a held-out combination; the heldout split shows held-out scans in any combination.
    """
    rng = _rng(seed, index, split)
    objects = draw_objects(rng, split=split, digits=digits)
    return Clip(caption(objects), render(objects, rng, split=split, units=units), objects)


def prompts(
    count: int, seed: int, *, digits: int | None = None, split: Split = "heldout"
) -> list[tuple[DigitObject, ...]]:
    """The objects of ``count`` prompts, pure in its arguments.

    For evaluation held-out combinations are among them; prompts of the split "train" have none.
    """
    return [prompt(seed, index, digits=digits, split=split) for index in range(count)]


def prompt(seed: int, index: int, *, digits: int | None = None, split: Split = "heldout") -> tuple[DigitObject, ...]:
    """The objects of one of the `prompts`, of which there is no end."""
    return draw_objects(_rng(seed, index, split), split=split, digits=digits)


def frame_count(units: int) -> int:
    """Pixel frames of a clip: unit 0 is one frame, every later unit is eight."""
    return frames_of(units)


def caption(objects: tuple[DigitObject, ...]) -> str:
    """The caption of one or two digits."""
    return " and ".join(str(o) for o in objects)


_PHRASE = rf"an? ({'|'.join(COLOURS)}) ([0-9]) moves ({'|'.join(MOTIONS)})"
_CAPTION = re.compile(rf"^{_PHRASE}(?: and {_PHRASE})?$")


def parse(text: str) -> tuple[DigitObject, ...] | None:
    """The objects that a caption names, or None where the text is not a caption of this world."""
    match = _CAPTION.match(" ".join(text.lower().strip().rstrip(".").split()))
    if match is None:
        return None
    groups = match.groups()
    named = [groups[i : i + 3] for i in (0, 3) if groups[i] is not None]
    return tuple(DigitObject(int(digit), colour, motion) for colour, digit, motion in named)


def is_held_out(obj: DigitObject) -> bool:
    """Whether no training clip shows this combination: one in ten, of every colour and motion, of nine digits."""
    return (obj.digit + 3 * list(COLOURS).index(obj.colour) + 7 * list(MOTIONS).index(obj.motion)) % 10 == 0


def draw_objects(rng: np.random.Generator, *, split: Split, digits: int | None = None) -> tuple[DigitObject, ...]:
    """One or two random objects; two always differ in digit and in colour, so that captions are unambiguous."""
    count = digits if digits is not None else int(rng.integers(1, 3))
    if count not in (1, 2):
        raise ValueError(f"a clip shows 1 or 2 digits, not {count}")
    while True:
        objects = tuple(_draw_object(rng) for _ in range(count))
        distinct = len({o.digit for o in objects}) == len({o.colour for o in objects}) == count
        if distinct and not (split == "train" and any(is_held_out(o) for o in objects)):
            return objects


def render(
    objects: tuple[DigitObject, ...], rng: np.random.Generator, *, split: Split, units: int = 4
) -> npt.NDArray[np.uint8]:
    """Frames uint8 (T, H, W, 3) of the objects; scans (of the split), places, speeds and directions are random."""
    frames = np.broadcast_to(np.asarray(BACKGROUND, np.float32), (frame_count(units), SIZE, SIZE, 3)).copy()
    for obj, area in zip(objects, areas(len(objects), rng), strict=True):
        side = SINGLE_SIDE if len(objects) == 1 else PAIR_SIDE
        scans = scans_of(obj.digit, split)
        ink = sprite(scans[int(rng.integers(len(scans)))], side)
        for frame, (x, y) in zip(frames, track(obj.motion, area, frame_count(units), rng), strict=True):
            paint(frame, ink, COLOURS[obj.colour], x, y)
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8)


@functools.cache
def scans_of(digit: int, split: Split) -> npt.NDArray[np.float32]:
    """The scans of one digit, float32 (N, 8, 8) in [0, 1]; every fifth scan of a digit is held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    scans = data.images[data.target == digit].astype(np.float32) / 16.0
    held_out = np.arange(len(scans)) % 5 == 4
    chosen: npt.NDArray[np.float32] = scans[held_out if split == "heldout" else ~held_out]
    return chosen


@dataclass(frozen=True)
class Area:
    """Where a digit's centre may be, in px: both ends inclusive, all on the 8 px grid."""

    left: int
    right: int
    top: int
    bottom: int


def _rng(seed: int, index: int, split: Split) -> np.random.Generator:
    return np.random.default_rng([seed, index, {"train": 0, "heldout": 1}[split]])


def _draw_object(rng: np.random.Generator) -> DigitObject:
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    motion = list(MOTIONS)[int(rng.integers(len(MOTIONS)))]
    return DigitObject(int(rng.integers(10)), colour, motion)


def areas(count: int, rng: np.random.Generator) -> list[Area]:
    """The area of one digit, or of each of two, side by side or one above the other."""
    if count == 1:
        return [Area(16, 48, 16, 48)]
    halves = [Area(8, 24, 8, 56), Area(40, 56, 8, 56)]
    if rng.integers(2):
        halves = [Area(area.top, area.bottom, area.left, area.right) for area in halves]
    return halves[::-1] if rng.integers(2) else halves


def track(motion: str, area: Area, frames: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Centres (x, y) in px, frame by frame: a triangle wave along the motion's line within the area."""
    step_x, step_y = MOTIONS[motion]
    room_x, room_y = area.right - area.left, area.bottom - area.top
    length = min(room for room, step in ((room_x, step_x), (room_y, step_y)) if step)
    # The upper left end of the line; a rising diagonal begins at its lower left end instead.
    x0 = area.left + 8 * int(rng.integers((room_x - length * abs(step_x)) // 8 + 1))
    y0 = area.top + 8 * int(rng.integers((room_y - length * abs(step_y)) // 8 + 1))
    if step_y < 0:
        y0 += length
    phase = 8 * int(rng.integers(2 * length // 8))
    speed = _SPEEDS[int(rng.integers(len(_SPEEDS)))]
    for frame in range(frames):
        travelled = (phase + speed * frame) % (2 * length)
        along = min(travelled, 2 * length - travelled)
        yield x0 + step_x * along, y0 + step_y * along


def sprite(scan: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """The ink of an 8x8 scan, enlarged to smooth strokes, float32 (side, side) in [0, 1]."""
    padded = np.pad(scan, 1)
    ink = ndimage.zoom(padded, side / padded.shape[0], order=3, grid_mode=True, mode="grid-constant")
    ink = np.clip((ink - 0.15) / 0.6, 0.0, 1.0)
    smooth: npt.NDArray[np.float32] = (ink * ink * (3 - 2 * ink)).astype(np.float32)
    return smooth


def paint(
    frame: npt.NDArray[np.float32], ink: npt.NDArray[np.float32], colour: tuple[int, int, int], x: int, y: int
) -> None:
    """Blend a sprite in ``colour`` into a float frame (H, W, 3), in place, with its centre at (x, y)."""
    side = ink.shape[0]
    left, top = x - side // 2, y - side // 2
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, SIZE), min(top + side, SIZE)
    alpha = ink[y0 - top : y1 - top, x0 - left : x1 - left, None]
    patch = frame[y0:y1, x0:x1]
    patch += alpha * (np.asarray(colour, np.float32) - patch)
