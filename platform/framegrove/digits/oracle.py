"""An independent judge of digits clips: it reads digit, colour and motion off the pixels, or says that it cannot.

It measures whether a clip shows what was asked for. No search uses it, and it shares neither weights nor code with any
verifier. Colours are told apart by hue, a motion by the track of a colour's centroid, and a digit by a small
convolutional network on crops around that centroid. The network has an eleventh class, *reject*, trained on deformed
and blended digits: forced to choose a digit, it would credit a generator for strokes that only resemble one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from framegrove.digits.world import BACKGROUND, COLOURS, DigitObject
from framegrove.errors import UserError

CROP = 28  # side of the crops that the network reads, px
REJECT = 10
_MIN_INK = 0.3  # share of full brightness below which a pixel is background
_MIN_MASS = 20.0  # mean ink per frame from which a colour is an object, in pixels of full brightness
_MIN_SHARE = 0.15  # share of all ink below which a colour is a fringe of another object
_MIN_AGREEMENT = 0.7  # share of frames that must show the same digit
_MAX_REJECT = 0.8  # mean probability of reject above which no digit is read; oddly written true ones come close
_MIN_TRAVEL = 6.0  # px; a digit that moves less stands still
_MAX_JUMP = 10.0  # px between two frames; a digit that moves more jumps


@dataclass(frozen=True)
class ObjectReading:
    """What the oracle reads of one object; None where it cannot tell. ``confidence`` is the digit's probability."""

    digit: int | None
    colour: str
    motion: str | None
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """How well a clip shows what was asked for.

    ``score`` is the share of attributes that are right, in [0, 1]; ``fully_right`` means that all are and that nothing
    else is shown.
    """

    score: float
    fully_right: bool
    readings: tuple[ObjectReading, ...]


class DigitsOracle:
    """Reads clips of the digits world. ``weights`` is a safetensors file, the shipped one (assets/oracle) if absent."""

    def __init__(self, weights: Path | None = None) -> None:
        self._network = _load_network(weights)

    def read(self, frames: npt.NDArray[np.uint8]) -> tuple[ObjectReading, ...]:
        """What a clip, uint8 (T, H, W, 3), shows. The motion in a single frame is None."""
        readings = []
        for colour, ink in segment(frames).items():
            centres = centroids(ink)
            digit, confidence = self._read_digit(crops(ink, centres))
            readings.append(ObjectReading(digit, colour, read_motion(centres), confidence))
        return tuple(readings)

    def judge(self, frames: npt.NDArray[np.uint8], asked: Sequence[DigitObject]) -> Verdict:
        """How well a clip shows what was asked for, under the best assignment of objects seen to objects asked for."""
        seen = self.read(frames)
        moving = len(frames) > 1
        per_object = 3 if moving else 2
        best = sum(_matches(one, wanted, moving) for one, wanted in best_match(seen, asked, moving=moving))
        total = per_object * max(len(asked), len(seen))
        return Verdict(best / total if total else 0.0, best == total, seen)

    @torch.inference_mode()
    def _read_digit(self, images: npt.NDArray[np.float32]) -> tuple[int | None, float]:
        if len(images) == 0:
            return None, 0.0
        probabilities = self._network(torch.from_numpy(images)).softmax(-1)
        mean = probabilities.mean(0)
        digit = int(mean[:REJECT].argmax())
        agreement = float((probabilities[:, :REJECT].argmax(-1) == digit).float().mean())
        if mean[REJECT] > _MAX_REJECT or agreement < _MIN_AGREEMENT:
            return None, float(mean[digit])
        return digit, float(mean[digit])


def oracle_fingerprint(weights: Path | None = None) -> str:
    """Changes with the weights, and with the code that reads clips by them."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=12)
    digest.update(_weights_file(weights).read_bytes())
    return digest.hexdigest()


def best_match(
    seen: Sequence[ObjectReading], asked: Sequence[DigitObject], *, moving: bool
) -> tuple[tuple[ObjectReading, DigitObject], ...]:
    """Objects seen beside the objects asked for that they are, so that most attributes are right.

    As many pairs as the fewer of the two; motions count if the clip is ``moving``.
    """
    pairings = [tuple(zip(order, asked, strict=False)) for order in itertools.permutations(seen, len(asked))] or [
        tuple(zip(seen, order, strict=True)) for order in itertools.permutations(asked, len(seen))
    ]
    return max(pairings, key=lambda pairs: sum(_matches(one, wanted, moving) for one, wanted in pairs))


class DigitNetwork(nn.Sequential):
    """Ink crops (N, 28, 28) in [0, 1] to eleven logits: ten digits and reject."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, CROP)),
            *_block(1, 24),
            *_block(24, 48),
            *_block(48, 64),
            nn.Flatten(),
            nn.Linear(64 * 9, 11),
        )


def segment(frames: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    """Ink in [0, 1] of each colour that is an object of the clip, float32 (T, H, W), most ink first."""
    light = frames.astype(np.float32) - np.asarray(BACKGROUND, np.float32)
    value = np.clip(light.max(-1) / 225.0, 0.0, 1.0)
    value[value < _MIN_INK] = 0.0
    palette = np.asarray(list(COLOURS.values()), np.float32) - np.asarray(BACKGROUND, np.float32)
    palette /= np.linalg.norm(palette, axis=-1, keepdims=True)
    hue = (np.clip(light, 0, None) @ palette.T).argmax(-1)
    inks = {name: np.where(hue == i, value, 0.0).astype(np.float32) for i, name in enumerate(COLOURS)}
    mass = {name: float(ink.sum() / len(frames)) for name, ink in inks.items()}
    floor = max(_MIN_MASS, _MIN_SHARE * sum(mass.values()))
    return {name: inks[name] for name in sorted(mass, key=mass.__getitem__, reverse=True) if mass[name] >= floor}


def centroids(ink: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centre of the ink of each frame, float32 (T, 2) as x, y in px; NaN where a frame shows none."""
    mass = ink.sum((1, 2))
    ys, xs = np.mgrid[: ink.shape[1], : ink.shape[2]]
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.stack([(ink * xs).sum((1, 2)) / mass, (ink * ys).sum((1, 2)) / mass], axis=-1)
    centre[mass < _MIN_MASS / 2] = np.nan
    return centre.astype(np.float32)


def crops(ink: npt.NDArray[np.float32], centres: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Crops around the centres, float32 (N, 28, 28); frames without ink are left out."""
    half = CROP // 2
    padded = np.pad(ink, ((0, 0), (half, half), (half, half)))
    found = [
        padded[t, round(float(y)) : round(float(y)) + CROP, round(float(x)) : round(float(x)) + CROP]
        for t, (x, y) in enumerate(centres)
        if not np.isnan(x)
    ]
    return np.stack(found) if found else np.zeros((0, CROP, CROP), np.float32)


def read_motion(centres: npt.NDArray[np.float32]) -> str | None:
    """The motion of a track (T, 2), or None where it stands still, jumps, is interrupted, or follows no clear line."""
    if len(centres) < 2 or np.isnan(centres).any():
        return None
    steps = np.diff(centres, axis=0)
    if np.abs(steps).max() > _MAX_JUMP or np.ptp(centres, axis=0).max() < _MIN_TRAVEL:
        return None
    travel_x, travel_y = np.abs(steps).sum(0)
    ratio = min(travel_x, travel_y) / max(travel_x, travel_y)
    if ratio < 0.4:
        return "left and right" if travel_x > travel_y else "up and down"
    agreement = float((steps[:, 0] * steps[:, 1]).sum() / np.sqrt((steps**2).sum(0).prod()))
    if ratio < 0.6 or abs(agreement) < 0.6:
        return None
    return "along the falling diagonal" if agreement > 0 else "along the rising diagonal"


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def _matches(seen: ObjectReading, asked: DigitObject, moving: bool) -> int:
    right = (seen.digit == asked.digit) + (seen.colour == asked.colour)
    return right + (moving and seen.motion == asked.motion)


def _weights_file(weights: Path | None) -> Path:
    source = weights or Path(str(resources.files("framegrove") / "assets" / "oracle" / "model.safetensors"))
    if not source.is_file():
        raise UserError(
            f"no oracle weights at {source}: train them with python -m jobs.train_oracle --out {source.parent}"
        )
    return source


@functools.cache
def _load_network(weights: Path | None) -> DigitNetwork:
    network = DigitNetwork()
    network.load_state_dict(load_file(_weights_file(weights)))
    return network.eval()
