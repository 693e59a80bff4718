"""Scenes for the verifier's training from groups of siblings: pictures as a generator draws them, as the teacher reads.

Painted scenes teach what is asked; these teach what a generator's mistakes look like, in the newest unit above all. A
child of which the teacher cannot tell something that would be asked is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from framegrove.config.request import FRAMES_PER_UNIT, unit_lengths
from framegrove.digits.sibling_files import read_groups, shards_in
from framegrove.digits.siblings import Group
from framegrove.digits.teacher import Pixels, TaughtObject
from framegrove.digits.verifier_scenes import Drawn, Quality, Scene, SceneFault, degrade
from framegrove.digits.verifier_sights import MOST, Place
from framegrove.digits.world import COLOURS, DigitObject
from framegrove.verification.views import Shown, View, frames_of_view

Kind = tuple[View, int]  # a view, and how many frames it shows
_WRONG = 0.5  # share of scenes in which something is wrong, where there are such
_MOST_MOVED = 2  # px
_LOOK = Quality.CLEAR  # of what is added: generated pictures have artefacts of their own


@dataclass(frozen=True, eq=False)
class _Kept:
    frames: Pixels
    drawn: tuple[Drawn, ...]
    view: View


class SiblingScenes:
    """Scenes of generated clips by kind, half of them with something wrong."""

    def __init__(self, groups: Iterable[Group], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._kept: dict[Kind, tuple[list[_Kept], list[_Kept]]] = defaultdict(lambda: ([], []))  # right, wrong
        for group in groups:
            for child, places, view in _looks(group, rng):
                drawn = read_as_drawn(group, child, places, view)
                if drawn is not None:
                    right = all(reading.right for reading in (*group.lineage, group.readings[child]))
                    kept = _Kept(group.shown(child, places), drawn, view)
                    self._kept[view, len(places)][0 if right else 1].append(kept)

    @classmethod
    def of(cls, folder: Path) -> SiblingScenes:
        """Those of a folder's groups, without the shards kept apart. Raises UserError where there is none."""
        return cls(group for path in shards_in(folder, apart=False) for group in read_groups(path))

    def count(self, kind: Kind) -> tuple[int, int]:
        """How many scenes of a kind are right, and wrong."""
        right, wrong = self._kept.get(kind, ([], []))
        return len(right), len(wrong)

    def draw(self, kind: Kind, rng: np.random.Generator) -> Scene | None:
        """A random scene of a kind, moved by up to 2 px and a little weathered; None where there is none.

        What is wrong is rare, and drawn many times in a training: it should not be known by heart.
        """
        right, wrong = self._kept.get(kind, ([], []))
        pool = (wrong or right) if rng.random() < _WRONG else (right or wrong)
        if not pool:
            return None
        kept = pool[int(rng.integers(len(pool)))]
        frames = torch.from_numpy(kept.frames).permute(0, 3, 1, 2) / 255.0
        frames = degrade(
            _moved(frames, *(int(by) for by in rng.integers(-_MOST_MOVED, _MOST_MOVED + 1, 2))), _LOOK, rng
        )
        return Scene(frames, kept.drawn, Quality.FAIR, kept.view, placed=False)


def _moved(frames_N3HW: torch.Tensor, right: int, down: int) -> torch.Tensor:
    """The frames, moved by some px; what comes in at the borders is what was there."""
    wide = functional.pad(frames_N3HW, (_MOST_MOVED,) * 4, mode="replicate")
    height, width = frames_N3HW.shape[2:]
    return wide[:, :, _MOST_MOVED - down :, _MOST_MOVED - right :][:, :, :height, :width]


def _looks(group: Group, rng: np.random.Generator) -> list[tuple[int, Shown, View]]:
    """What is shown of a group: every child's newest unit, and one child's whole video."""
    every = range(len(group.children))
    (unit,) = frames_of_view(View.UNIT, unit_lengths(group.frame_count), MOST)
    if group.depth == 0:
        return [(child, unit, View.VIDEO) for child in every]
    spreads = frames_of_view(View.VIDEO, unit_lengths(group.frame_count), MOST)
    whole = int(rng.integers(len(every))), spreads[int(rng.integers(len(spreads)))], View.VIDEO
    return [*((child, unit, View.UNIT) for child in every), whole]


def read_as_drawn(group: Group, child: int, places: Shown, view: View) -> tuple[Drawn, ...] | None:
    """What the teacher reads in the shown frames, as if it had been drawn; None where it cannot tell."""
    readings = (*group.lineage, group.readings[child])
    units = [0 if place == 0 else (place - 1) // FRAMES_PER_UNIT + 1 for place in places]
    asked = {one.colour: one for one in group.objects}
    others = {one.colour for unit in units for one in readings[unit].objects} - set(asked)
    if others and view is View.VIDEO and len(places) > 1:
        return None
    drawn = []
    for colour in (*asked, *sorted(others)):
        by_unit = [next((one for one in reading.objects if one.colour == colour), None) for reading in readings]
        moving = [by_unit[-1]] if view is View.UNIT else by_unit[1:]
        if not all(one is None or one.digit_told for one in (by_unit[unit] for unit in units)):
            return None
        if not all(one is None or one.motion_told for one in moving):
            return None
        motions = {None if one is None else one.motion for one in moving}
        found = [_at(by_unit[unit], place, unit) for unit, place in zip(units, places, strict=True)]
        name = asked.get(colour) or _named(by_unit, colour)
        drawn.append(_drawn(name, found, motions.pop() if len(motions) == 1 else None))
    return tuple(drawn)


def _at(one: TaughtObject | None, place: int, unit: int) -> tuple[int | None, Place] | None:
    """Digit and place of an object in a frame, or None where the frame does not show it."""
    if one is None:
        return None
    x, y = one.centres[place - FRAMES_PER_UNIT * (unit - 1) if unit else 0]
    return None if np.isnan(x) else (one.digit, (round(x), round(y)))


def _named(by_unit: Iterable[TaughtObject | None], colour: str) -> DigitObject:
    """A name for an object that nobody asked for."""
    digits = [one.digit for one in by_unit if one is not None and one.digit is not None]
    return DigitObject(digits[-1] if digits else list(COLOURS).index(colour), colour, "")


def _drawn(name: DigitObject, found: list[tuple[int | None, Place] | None], motion: str | None) -> Drawn:
    digits = tuple(None if one is None else one[0] for one in found)
    colours = tuple(None if one is None else name.colour for one in found)
    if None in colours:
        fault = SceneFault.VANISH
    elif set(digits) == {None}:
        fault = SceneFault.MALFORMED
    elif None in digits:
        fault = SceneFault.MELT
    elif len(set(digits)) > 1:
        fault = SceneFault.MORPH
    else:
        fault = SceneFault.NONE if motion is not None or len(found) == 1 else SceneFault.SWERVE
    start = next((at for at, digit in enumerate(digits) if digit != digits[0]), 0)
    return Drawn(name, fault, start, digits, colours, motion, tuple((0, 0) if one is None else one[1] for one in found))
