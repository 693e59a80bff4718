"""The teacher: reads a unit of a generated clip, to label what the verifier is trained on.

It says which digit is there in which colour, whether it is malformed, how it moves, and of each of these whether it can
be told at all: what cannot is no label. It shares nothing with the oracle (oracle.py) by which verifiers are examined.
The two know other scans (the held-out ones here, the training ones there), and see them in another way: a residual
network on crops that are normalised by their moments, not a plain one on crops of a fixed scale; hues as angles, not
projections; motions by the distance from the lines of the world, not by the ratio of what is travelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from framegrove.digits.world import BACKGROUND, COLOURS, MOTIONS, DigitObject

SIDE = 24  # of a normalised crop, px
MALFORMED = 10  # class of strokes that are no digit
_SPREAD = 5.0  # root mean square distance of the ink from its centre in a normalised crop, px
_LEAST_INK = 0.25  # of full brightness
_LEAST_MASS, _LEAST_SHARE = 14.0, 0.10  # of an object's ink: pixels of full brightness, share of all ink
_LEAST_CORE = 2.0  # pixels of an object's ink that have ink all around them: fringes have none
_FADED = 0.4  # share of its usual ink below which an object has vanished from a frame
_SURE = 0.7  # mean probability of a class that is told for sure
# Log-odds by which malformed digits are rarer in generated clips, a few in a hundred, than in the network's training.
_RARER = 3.0
_AGREEMENT = 0.85  # least share of frames of the same class
_ON_LINE, _OFF_LINE = 2.2, 3.2  # px from a motion's line: surely on it, surely off it
_TRAVEL, _STILL = 5.0, 3.5  # px: surely moving, surely not
_LONGEST_STEP, _JUMP = 6.0, 8.0  # px between two frames: surely no jump, surely one

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TaughtObject:
    """One object of a unit, with its centre (x, y) in px in each frame, NaN where a frame does not show it.

    ``digit`` is None for strokes that are no digit, or not the same one in all frames; ``motion`` for none of the
    world's (and in a single frame). What is not ``told`` may as well be otherwise.
    """

    colour: str
    digit: int | None
    digit_told: bool
    motion: str | None
    motion_told: bool
    centres: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class UnitReading:
    """What a unit shows, and whether that is what was asked for: None where that cannot be told."""

    objects: tuple[TaughtObject, ...]
    right: bool | None


class Teacher:
    """Reads units with a trained network (teacher_training.py)."""

    def __init__(self, network: TeacherNetwork) -> None:
        self._network = network.eval()

    def read(self, frames_THWC: Pixels, asked: Sequence[DigitObject]) -> UnitReading:
        """Read a unit, uint8 (T, H, W, 3): a single frame, or the frame before it and its own.

        Digits and colours are read off all frames but the one before.
        """
        inks = segment(frames_THWC)
        objects = tuple(self._object(colour, ink) for colour, ink in inks.items())
        return UnitReading(objects, _is_right(objects, asked, moving=len(frames_THWC) > 1))

    @torch.inference_mode()
    def features(self, ink_THW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the network makes of one object's ink before it decides which digit that is: (T, 64), means over places.

        Zeros where a frame has next to no ink.
        """
        activations_TCHW = normalised(torch.from_numpy(np.ascontiguousarray(ink_THW)))
        for layer in list(self._network)[:-2]:  # all but Flatten and Linear
            activations_TCHW = layer(activations_TCHW)
        there = torch.from_numpy(ink_THW.sum((1, 2)) >= _LEAST_MASS / 2)
        return np.asarray(activations_TCHW.mean((2, 3)) * there[:, None])

    def _object(self, colour: str, ink_THW: npt.NDArray[np.float32]) -> TaughtObject:
        centres = centres_of(ink_THW)
        own = ink_THW[1:] if len(ink_THW) > 1 else ink_THW
        digit, digit_told = self._digit(own)
        motion, motion_told = read_motion(centres)
        places = tuple((float(x), float(y)) for x, y in centres)
        return TaughtObject(colour, digit, digit_told, motion, motion_told, places)

    @torch.inference_mode()
    def _digit(self, ink_THW: npt.NDArray[np.float32]) -> tuple[int | None, bool]:
        mass = ink_THW.sum((1, 2))
        if mass.min() < max(_FADED * float(np.median(mass)), _LEAST_MASS / 2):
            return None, True
        logits_TC = self._network(normalised(torch.from_numpy(ink_THW)))
        logits_TC[:, MALFORMED] -= _RARER
        digit, is_told = told(logits_TC.softmax(-1).numpy())
        return digit, is_told and not (digit is not None and _in_pieces(ink_THW[-1]))


def told(chances_TC: npt.NDArray[np.float32]) -> tuple[int | None, bool]:
    """The digit of a unit from the probabilities of its frames' classes, and whether it can be told.

    A digit that is another one in some frames, for sure, is none.
    """
    mean, classes = chances_TC.mean(0), chances_TC.argmax(-1)
    best = int(mean.argmax())
    sure = {int(c) for c, p in zip(classes, chances_TC.max(-1), strict=True) if p > _SURE}
    steady = float((classes == best).mean()) >= _AGREEMENT
    if best == MALFORMED:
        return None, bool(mean[best] >= _SURE)
    if len(sure) > 1 and not steady:
        return None, True
    return best, bool(mean[best] >= _SURE and steady)


class TeacherNetwork(nn.Sequential):
    """Normalised ink crops (N, 24, 24) in [0, 1] to eleven logits: ten digits and malformed."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, SIDE)),
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            _Residual(32),
            _Residual(32),
            nn.GELU(),
            nn.Conv2d(32, 64, 2, stride=2),
            _Residual(64),
            _Residual(64),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * (SIDE // 4) ** 2, 11),
        )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(functional.gelu(self.first(functional.gelu(self.norm(x)))))
        return x + changed


def normalised(ink_NHW: Tensor) -> Tensor:
    """Crops (N, 24, 24) in which the ink is centred and spread alike, whatever its place and size."""
    height, width = ink_NHW.shape[1:]
    mass = ink_NHW.sum((1, 2)).clamp_min(1e-3)
    ys, xs = torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32)
    x = (ink_NHW.sum(1) * xs).sum(1) / mass
    y = (ink_NHW.sum(2) * ys).sum(1) / mass
    away = (xs[None, None] - x[:, None, None]) ** 2 + (ys[None, :, None] - y[:, None, None]) ** 2
    spread = ((ink_NHW * away).sum((1, 2)) / mass).sqrt().clamp(2.0, 16.0)
    scale = spread / _SPREAD  # px of the picture per px of the crop
    grid = torch.arange(SIDE, dtype=torch.float32) - (SIDE - 1) / 2
    across = (x[:, None] + grid * scale[:, None]) * 2 / (width - 1) - 1
    down = (y[:, None] + grid * scale[:, None]) * 2 / (height - 1) - 1
    places = torch.stack([across[:, None].expand(-1, SIDE, -1), down[:, :, None].expand(-1, -1, SIDE)], -1)
    crops: Tensor = functional.grid_sample(ink_NHW[:, None], places, align_corners=True)[:, 0]
    return crops


def segment(frames_THWC: Pixels) -> dict[str, npt.NDArray[np.float32]]:
    """Ink in [0, 1] of each colour that is an object, (T, H, W) float32, most ink first."""
    light = frames_THWC.astype(np.float32) - np.asarray(BACKGROUND, np.float32)
    value = np.clip(light.max(-1) / 225.0, 0.0, 1.0)
    hues = _hue(light)
    palette = _hue(np.asarray(list(COLOURS.values()), np.float32) - np.asarray(BACKGROUND, np.float32))
    apart = np.abs((hues[..., None] - palette + math.pi) % (2 * math.pi) - math.pi)
    nearest = np.where(value >= _LEAST_INK, apart.argmin(-1), -1)
    inks = {name: np.where(nearest == at, value, 0.0).astype(np.float32) for at, name in enumerate(COLOURS)}
    mass = {name: float(ink.sum((1, 2)).mean()) for name, ink in inks.items()}
    least = max(_LEAST_MASS, _LEAST_SHARE * sum(mass.values()))
    shown = [name for name in sorted(mass, key=mass.__getitem__, reverse=True) if mass[name] >= least]
    return {name: inks[name] for name in shown if _core(inks[name]) >= _LEAST_CORE}


def centres_of(ink_THW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The ink's centre in each frame, (T, 2) as x, y in px; NaN where there is next to none."""
    centres = np.full((len(ink_THW), 2), np.nan, np.float32)
    for at, ink in enumerate(ink_THW):
        if ink.sum() >= _LEAST_MASS / 2:
            y, x = ndimage.center_of_mass(ink)
            centres[at] = x, y
    return centres


def read_motion(centres_T2: npt.NDArray[np.float32]) -> tuple[str | None, bool]:
    """Along which of the world's lines an object goes, back and forth or not, and whether that can be told."""
    if len(centres_T2) < 2:
        return None, True
    if np.isnan(centres_T2).any():
        return None, True
    longest = float(np.linalg.norm(np.diff(centres_T2, axis=0), axis=1).max())
    off = {name: _off_line(centres_T2, step) for name, step in MOTIONS.items()}
    motion = min(off, key=off.__getitem__)
    direction = np.asarray(MOTIONS[motion]) / np.hypot(*MOTIONS[motion])
    travel = float(np.ptp(centres_T2 @ direction))
    if longest > _JUMP or travel < _STILL or off[motion] > _OFF_LINE:
        return None, True
    return motion, longest <= _LONGEST_STEP and travel >= _TRAVEL and off[motion] <= _ON_LINE


def _off_line(centres_T2: npt.NDArray[np.float32], step: tuple[int, int]) -> float:
    """The farthest distance from the line of a direction through the middle of the centres, px."""
    across = np.asarray([-step[1], step[0]]) / np.hypot(*step)
    away = centres_T2 @ across
    return float(np.ptp(away)) / 2


def _is_right(objects: Sequence[TaughtObject], asked: Sequence[DigitObject], *, moving: bool) -> bool | None:
    wanted = {one.colour: one for one in asked}
    if {one.colour for one in objects} != set(wanted):
        return False
    doubtful = False
    for one in objects:
        told_and_right = [(one.digit_told, one.digit == wanted[one.colour].digit)]
        if moving:
            told_and_right.append((one.motion_told, one.motion == wanted[one.colour].motion))
        if any(told and not right for told, right in told_and_right):
            return False
        doubtful |= not all(told for told, _ in told_and_right)
    return None if doubtful else True


def _hue(light: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The angle of (.., RGB) on the colour circle, in radians."""
    red, green, blue = light[..., 0], light[..., 1], light[..., 2]
    angle: npt.NDArray[np.float32] = np.arctan2(math.sqrt(0.75) * (green - blue), red - (green + blue) / 2)
    return angle


def _core(ink_THW: npt.NDArray[np.float32]) -> float:
    inside = ndimage.minimum_filter(ink_THW, size=(1, 2, 2))
    return float((inside > _LEAST_INK).sum()) / len(ink_THW)


def _in_pieces(ink_HW: npt.NDArray[np.float32]) -> bool:
    """Whether the ink may be two objects: pieces far from one another, each with a good part of it."""
    pieces, count = ndimage.label(ndimage.binary_dilation(ink_HW > _LEAST_INK, iterations=2))
    if count < 2:
        return False
    shares = np.sort(ndimage.sum(ink_HW, pieces, range(1, count + 1)))[::-1] / max(float(ink_HW.sum()), 1e-6)
    return bool(shares[1] > 0.25)
