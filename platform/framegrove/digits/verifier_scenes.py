"""Clips for training a verifier: flawless ones, ones with the faults of a generator, and the truth about each.

A generated clip fails in typical ways: a digit turns into another one in a later unit, changes colour, vanishes, jumps
to another line, stands still, is malformed, or appears twice; the picture is blurred, mottled or noisy. These faults
are drawn here on purpose, frame by frame, so that the right answer to any question is known. Only the frames that a
verifier is shown are drawn: those of a view (verification/views.py) of a clip of up to 16 units.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from framegrove.digits import world
from framegrove.digits.verifier_sights import Place, Sight, draw_sight, path_of, swerve
from framegrove.digits.world import COLOURS, SIZE, Split
from framegrove.verification.views import View

Ink = npt.NDArray[np.float32]
Colour = tuple[int, int, int]
Choice = TypeVar("Choice")


class SceneFault(enum.StrEnum):
    """What is wrong with one drawn digit; ``later`` means from some frame after the first."""

    NONE = "none"
    RESTYLE = "restyle"  # later the same digit from another scan: harmless
    MORPH = "morph"  # later another digit
    MELT = "melt"  # later strokes that are no digit
    RECOLOUR = "recolour"  # later another colour
    VANISH = "vanish"  # later gone, or a mere smudge
    SWERVE = "swerve"  # later off its line
    STILL = "still"  # does not move
    MALFORMED = "malformed"  # strokes that are no digit: two digits blended, half of one, a blob


class Quality(enum.StrEnum):
    """How clear the whole picture is."""

    CLEAR = "clear"
    FAIR = "fair"  # between the two: no question asks whether it is clear
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Drawn:
    """One digit as it was drawn, shown frame by shown frame; None where a frame shows no digit or no colour."""

    name: world.DigitObject  # as a caption of the first frame would name it
    fault: SceneFault
    start: int  # the first shown frame that a later change affects
    digits: tuple[int | None, ...]
    colours: tuple[str | None, ...]
    motion: str | None  # where the newest unit is shown: in that unit
    centres: tuple[Place, ...]

    @property
    def steady_digit(self) -> int | None:
        """The digit that all frames show, if they do."""
        return self.digits[0] if len(set(self.digits)) == 1 else None

    @property
    def steady_colour(self) -> str | None:
        """The colour that all frames show, if they do."""
        return self.colours[0] if len(set(self.colours)) == 1 else None


@dataclass(frozen=True)
class Scene:
    """The shown frames of one clip, float32 (N, 3, 64, 64) in [0, 1], and the truth about them.

    ``placed`` is false where centres are only roughly those of the digits.
    """

    frames: torch.Tensor
    drawn: tuple[Drawn, ...]
    quality: Quality
    view: View = View.VIDEO
    placed: bool = True


_STATIC_FAULTS = {SceneFault.NONE: 0.8, SceneFault.MALFORMED: 0.2}
_MOVING_FAULTS = {
    SceneFault.NONE: 0.43,
    SceneFault.RESTYLE: 0.04,
    SceneFault.MORPH: 0.13,
    SceneFault.MELT: 0.05,
    SceneFault.RECOLOUR: 0.07,
    SceneFault.VANISH: 0.06,
    SceneFault.SWERVE: 0.10,
    SceneFault.STILL: 0.06,
    SceneFault.MALFORMED: 0.06,
}
_QUALITIES = {Quality.CLEAR: 0.6, Quality.FAIR: 0.27, Quality.UNCLEAR: 0.13}


def draw_scene(
    rng: np.random.Generator,
    *,
    shown: int,
    view: View = View.VIDEO,
    split: Split = "train",
    quality: Quality | None = None,
    painted: bool = True,
) -> Scene:
    """A random clip of which ``shown`` frames are shown; its quality is random unless it is given.

    Without ``painted`` the frames are empty tensors: the truth about the clip is the same, at a twentieth of the cost.
    """
    objects = _objects(rng, split)
    sight = draw_sight(rng, shown, view)
    drawn = []
    for name, area in zip(objects, _areas(len(objects), rng), strict=True):
        fault = _pick(rng, _STATIC_FAULTS if shown == 1 else _MOVING_FAULTS)
        drawn.append(_draw(name, fault, area, sight, rng))
    chosen = quality if quality is not None else _pick(rng, _QUALITIES)
    hand = np.random.default_rng(int(rng.integers(2**62)))  # of its own: scans and artefacts do not change the truth
    frames = _painted(drawn, shown, chosen, hand, split) if painted else torch.empty(shown, 3, 0, 0)
    return Scene(frames, tuple(drawn), chosen, sight.view)


def _pick(rng: np.random.Generator, odds: dict[Choice, float]) -> Choice:
    edges = np.cumsum(list(odds.values()))
    return list(odds)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def _objects(rng: np.random.Generator, split: Split) -> tuple[world.DigitObject, ...]:
    """As in true clips, but sometimes two share colour or digit, or there is a third: generators make such clips."""
    objects = world.draw_objects(rng, split=split, digits=1 if rng.random() < 0.35 else 2)
    if len(objects) == 1:
        return objects
    one, two = objects
    odd = rng.random()
    if odd < 0.15:
        return one, _like(one, two, rng)
    if odd < 0.35:
        three = world.draw_objects(rng, split=split, digits=1)[0]
        if rng.random() < 0.8:
            three = _like(one if rng.random() < 0.5 else two, three, rng)
        return one, two, three
    return objects


def _like(one: world.DigitObject, other: world.DigitObject, rng: np.random.Generator) -> world.DigitObject:
    """``other`` with the digit of ``one``, with its colour, or, half of the time, with both."""
    way = rng.random()
    return world.DigitObject(
        one.digit if way < 0.75 else other.digit, one.colour if way > 0.25 else other.colour, other.motion
    )


def _areas(count: int, rng: np.random.Generator) -> list[world.Area]:
    """As in true clips; where there are three digits, one has half of the picture and the others a quarter each."""
    if count < 3:
        return world.areas(count, rng)
    half, other = world.areas(2, rng)
    side = min(other.right - other.left, other.bottom - other.top)
    first = world.Area(other.left, other.left + side, other.top, other.top + side)
    second = world.Area(other.right - side, other.right, other.bottom - side, other.bottom)
    areas = [half, first, second]
    return [areas[at] for at in rng.permutation(3)]


def _draw(
    name: world.DigitObject, fault: SceneFault, area: world.Area, sight: Sight, rng: np.random.Generator
) -> Drawn:
    """The truth about one digit with its fault."""
    shown = sight.shown
    path = path_of(name.motion, area, sight, rng)
    motion: str | None = name.motion
    start = int(rng.integers(sight.first, shown)) if shown > 1 else 0
    seen: list[int | None] = [name.digit] * shown
    colours: list[str | None] = [name.colour] * shown
    if fault is SceneFault.SWERVE and shown >= 3:
        path, motion = swerve(path, name.motion, area, sight, rng)
        fault = fault if motion != name.motion else SceneFault.NONE
    elif fault is SceneFault.STILL:
        still = 0 if rng.random() < 0.4 else sight.turn  # from the beginning, or through the newest unit
        path, motion = path[:still] + [path[still]] * (shown - still), None
    elif fault is SceneFault.MALFORMED:
        seen = [None] * shown
    elif fault is SceneFault.MELT:
        seen[start:] = [None] * (shown - start)
    elif fault is SceneFault.MORPH:
        seen[start:] = [_other_digit(name.digit, rng)] * (shown - start)
        if shown - start > 1 and rng.random() < 0.5:  # a frame in which it is neither digit
            seen[start] = None
    elif fault is SceneFault.RECOLOUR:
        colours[start:] = [str(rng.choice([c for c in COLOURS if c != name.colour]))] * (shown - start)
    elif fault is SceneFault.VANISH:
        seen[start:], colours[start:] = [None] * (shown - start), [None] * (shown - start)
    elif fault is SceneFault.SWERVE:  # cannot be seen in two frames
        fault = SceneFault.NONE
    return Drawn(name, fault, start, tuple(seen), tuple(colours), motion, tuple(path))


def _painted(drawn: list[Drawn], shown: int, quality: Quality, hand: np.random.Generator, split: Split) -> torch.Tensor:
    """Paint the shown frames (N, 3, H, W)."""
    frames = np.broadcast_to(np.asarray(world.BACKGROUND, np.float32), (shown, SIZE, SIZE, 3)).copy()
    scale = 1.0 if hand.random() < 0.5 else float(hand.uniform(0.85, 1.1))
    side = round((world.SINGLE_SIDE if len(drawn) == 1 else world.PAIR_SIDE) * scale)
    for one in drawn:
        tinge = COLOURS[str(hand.choice(list(COLOURS)))], float(hand.uniform(0, 0.2)) if hand.random() < 0.3 else 0.0
        colours = [_mixed(COLOURS[colour or one.name.colour], *tinge) for colour in one.colours]
        inks = _inks(one, side, hand, split)
        for frame, ink, colour, (x, y) in zip(frames, inks, colours, one.centres, strict=True):
            world.paint(frame, ink, colour, x, y)
    seen = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous() / 255.0
    return degrade(seen, quality, hand)


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """A colour with a share of another: in generated clips one digit's colour bleeds into the other."""
    red, green, blue = (round(one + share * (two - one)) for one, two in zip(colour, other, strict=True))
    return red, green, blue


def _inks(drawn: Drawn, side: int, hand: np.random.Generator, split: Split) -> list[Ink]:
    """The strokes of a digit, shown frame by shown frame."""
    shown, start, digit = len(drawn.digits), drawn.start, drawn.name.digit
    scan = _scan(digit, hand, split)
    if drawn.fault is SceneFault.MALFORMED:
        return [_malformed(scan, digit, side, hand, split)] * shown
    inks = [_ink(scan, side, hand)] * shown
    if drawn.fault is SceneFault.MELT:
        inks[start:] = [_malformed(scan, digit, side, hand, split)] * (shown - start)
    elif drawn.fault is SceneFault.RESTYLE:
        inks[start:] = [_ink(_scan(digit, hand, split), side, hand)] * (shown - start)
    elif drawn.fault is SceneFault.MORPH:
        target = _scan(drawn.digits[-1] or 0, hand, split)
        inks[start:] = [_ink(target, side, hand)] * (shown - start)
        if drawn.digits[start] is None:
            inks[start] = _ink(((scan + target) / 2).astype(np.float32), side, hand)
    elif drawn.fault is SceneFault.VANISH:
        smudge = ndimage.gaussian_filter(inks[0], side / 5) * float(hand.uniform(0.0, 0.5))
        inks[start:] = [smudge] * (shown - start)
    return inks


def _other_digit(digit: int, rng: np.random.Generator) -> int:
    return int((digit + rng.integers(1, 10)) % 10)


def _scan(digit: int, rng: np.random.Generator, split: Split) -> Ink:
    scans = world.scans_of(digit, split)
    chosen: Ink = scans[int(rng.integers(len(scans)))]
    return chosen


def _ink(scan: Ink, side: int, rng: np.random.Generator) -> Ink:
    """The scan as strokes, mostly a little turned, sheared, thinner, thicker or fainter, as generated ones are."""
    if rng.random() < 0.4:
        return world.sprite(scan, side)
    turn, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15)
    matrix = np.asarray([[np.cos(turn), -np.sin(turn) + shear], [np.sin(turn), np.cos(turn)]])
    middle = np.asarray([3.5, 3.5])
    bent = ndimage.affine_transform(scan, matrix, offset=middle - matrix @ middle, order=1)
    strokes = world.sprite(np.clip(bent * float(rng.uniform(0.85, 1.35)), 0, 1).astype(np.float32), side)
    return strokes * np.float32(rng.uniform(0.6, 1.0) if rng.random() < 0.3 else 1.0)


def _malformed(scan: Ink, digit: int, side: int, rng: np.random.Generator, split: Split) -> Ink:
    """Strokes that are no digit."""
    way = rng.random()
    if way < 0.5:
        weight = float(rng.uniform(0.4, 0.6))
        return world.sprite(weight * scan + (1 - weight) * _scan(_other_digit(digit, rng), rng, split), side)
    if way < 0.8:
        half = scan.copy()
        half[(slice(0, 4), slice(4, 8))[int(rng.integers(2))]] = 0
        return world.sprite(half, side)
    blob = ndimage.gaussian_filter(scan, float(rng.uniform(1.2, 2.0)))
    return world.sprite((blob / blob.max()).astype(np.float32), side)


def degrade(frames_N3HW: torch.Tensor, quality: Quality, rng: np.random.Generator) -> torch.Tensor:
    """Add blur, noise, or the artefacts of a video autoencoder, as strong as ``quality`` implies; results in [0, 1]."""
    low, high = {Quality.CLEAR: (0.0, 0.3), Quality.FAIR: (0.3, 0.75), Quality.UNCLEAR: (1.4, 2.2)}[quality]
    if quality is Quality.CLEAR and rng.random() < 0.5:
        return frames_N3HW
    strength = float(rng.uniform(low, high))
    way = rng.random()
    if way < 0.3:
        damaged = _blur(frames_N3HW, 2.6 * strength)
    elif way < 0.5:
        damaged = frames_N3HW + 0.25 * strength * _normal(frames_N3HW.shape, rng)
    else:
        damaged = _autoencoded(frames_N3HW, strength, rng)
    return damaged.clamp(0, 1)


def _autoencoded(frames: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Soft strokes, bleeding colours, and mottling of a few pixels near strokes."""
    count = frames.shape[0]
    soft = _blur(frames, 0.4 + 1.6 * strength)
    coarse = functional.interpolate(functional.avg_pool2d(frames, 4), scale_factor=4, mode="bilinear")
    bled = soft + min(1.0, 0.7 * strength) * (coarse - soft)
    grain = functional.interpolate(_normal((count, 3, 16, 16), rng), scale_factor=4, mode="bilinear")
    where = _blur(frames.amax(1, keepdim=True), 3.0)
    return bled + 0.45 * strength * grain * (where + 0.05)


def _blur(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur as two matrix products: several times faster on a CPU than a convolution."""
    if sigma < 0.2:
        return frames
    at = torch.arange(frames.shape[-1], dtype=torch.float32)
    weights = torch.exp(-0.5 * ((at[:, None] - at[None, :]) / sigma) ** 2)
    weights = torch.where(weights > 1e-5, weights, 0.0)  # denormal numbers make products slow
    weights = weights / weights.sum(1, keepdim=True)
    across = frames.reshape(-1, frames.shape[-1]) @ weights.T
    return weights @ across.view(frames.shape)


def _normal(shape: tuple[int, ...] | torch.Size, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
