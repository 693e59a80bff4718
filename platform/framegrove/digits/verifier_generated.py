"""Clips of the shipped generator with the oracle's readings as the truth, to evaluate a verifier on.

The oracle is an independent judge, which no training ever sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.digits import world
from framegrove.digits.oracle import DigitsOracle, ObjectReading
from framegrove.digits.verifier_scenes import Drawn, Fault, Quality, Scene
from framegrove.digits.world import DigitObject
from framegrove.flow.generation import Pixels, generate
from framegrove.models.pretrained import load_pipeline
from framegrove.verification.views import shown_frames

# A digit is taken for one from this probability of the likeliest class on, for none below the second one; clips with
# anything in between are left out.
_CERTAIN, _NO_DIGIT = 0.5, 0.25
_SEED = 5


def generated_scenes(count: int, on_clips: Callable[[int], None] = lambda _: None) -> list[Scene]:
    """Generate ``count`` clips, and return those that the oracle reads with certainty.

    ``on_clips`` is told how many are done.
    """
    pipeline = load_pipeline()
    oracle = DigitsOracle()
    asked = world.prompts(count, seed=_SEED)
    captions = [world.caption(objects) for objects in asked]

    def on_unit(done: int, total: int) -> None:
        on_clips(count * done // total)

    videos = generate(pipeline, captions, seeds=list(range(count)), on_unit=on_unit)
    scenes = [scene_as_read(video.frames, objects, oracle) for video, objects in zip(videos, asked, strict=True)]
    return [scene for scene in scenes if scene is not None]


def scene_as_read(frames: Pixels, asked: tuple[DigitObject, ...], oracle: DigitsOracle) -> Scene | None:
    """The shown frames of a clip and what the oracle reads in it, or None where that cannot serve as the truth.

    That is where it is uncertain about a digit, reads different digits in different units, or sees other colours than
    were asked for: it tells objects apart by colour, so that a blend of two looks like a third one.
    """
    meant = {one.colour: one.digit for one in asked}
    readings = oracle.read(frames)
    times = shown_frames(len(frames))
    if {reading.colour for reading in readings} != set(meant):
        return None
    units = [frames[:1], *(frames[at : at + FRAMES_PER_UNIT] for at in range(1, len(frames), FRAMES_PER_UNIT))]
    parts = [part for unit in units for part in oracle.read(unit)]
    by_unit = [(part.colour, part.digit) for part in parts if part.digit is not None]
    if not all(_is_certain(reading, by_unit) for reading in readings):
        return None
    drawn = tuple(_drawn(reading, meant[reading.colour], len(times)) for reading in readings)
    shown = torch.from_numpy(frames[list(times)]).permute(0, 3, 1, 2) / 255.0
    return Scene(shown, drawn, Quality.FAIR)


def _is_certain(reading: ObjectReading, by_unit: Sequence[tuple[str, int | None]]) -> bool:
    """Whether the whole clip and each of its units agree on the digit, or the clip clearly shows none."""
    if reading.digit is None:
        return reading.confidence <= _NO_DIGIT
    changed = any(colour == reading.colour and digit != reading.digit for colour, digit in by_unit)
    return reading.confidence >= _CERTAIN and not changed


def _drawn(reading: ObjectReading, meant: int, shown: int) -> Drawn:
    """A reading as the truth about one digit; where it is malformed, its name is that of the digit asked for."""
    digit = meant if reading.digit is None else reading.digit
    if reading.digit is None:
        fault = Fault.MALFORMED
    elif reading.motion is None:
        fault = Fault.SWERVE
    else:
        fault = Fault.NONE
    return Drawn(
        name=DigitObject(digit, reading.colour, reading.motion or ""),
        fault=fault,
        start=0,
        digits=(reading.digit,) * shown,
        colours=(reading.colour,) * shown,
        motion=reading.motion,
        centres=((0, 0),) * shown,
    )
