"""Which frames of a drawn clip are shown, and where a digit is in them: on its line, or off it.

Clips are of up to 16 units, and their frames are those of a view (verification/views.py).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from framegrove.config.request import FRAMES_PER_UNIT, frames_of, unit_lengths
from framegrove.digits import world
from framegrove.digits.world import MOTIONS
from framegrove.verification.views import Shown, View, frames_of_view

Place = tuple[int, int]

MOST = 6  # frames that are shown at a time
LONGEST = 16  # units
_OFF = 7.0  # px off its line from which a digit that swerves is seen to


@dataclass(frozen=True)
class Sight:
    """The frames of a clip that are shown. Faults begin at shown frame ``first`` or later, of motion after ``turn``."""

    units: int
    view: View
    times: Shown
    first: int
    turn: int

    @property
    def shown(self) -> int:
        return len(self.times)


def draw_sight(rng: np.random.Generator, shown: int, view: View) -> Sight:
    """``shown`` frames of a clip of random length, one of the selections in which a view of it is shown.

    The view "unit" always shows six, of 2 to 16 units; "video" fewer where there are few units, or many.
    """
    if view is View.UNIT:
        units = int(rng.integers(2, LONGEST + 1))
        (times,) = frames_of_view(view, unit_lengths(frames_of(units)), shown)
        before = times.index(frames_of(units - 1) - 1)
        return Sight(units, view, times, before + 1 if rng.random() < 0.8 else 1, before)
    selections = _video_selections(shown)
    units, times = selections[int(rng.integers(len(selections)))]
    return Sight(units, View.VIDEO, times, 1, 0)


@functools.cache
def _video_selections(shown: int) -> list[tuple[int, Shown]]:
    """All lengths of clips, in units, and selections of ``shown`` frames of theirs."""
    return [
        (units, times)
        for units in range(1, LONGEST + 1)
        for times in frames_of_view(View.VIDEO, unit_lengths(frames_of(units)), MOST)
        if len(times) == shown
    ]


def path_of(motion: str, area: world.Area, sight: Sight, rng: np.random.Generator) -> list[Place]:
    """Where the digit is in the shown frames; sometimes whole units are a pixel off, as in generated clips."""
    path = list(world.track(motion, area, frames_of(sight.units), rng))
    if rng.random() < 0.3:
        shake = rng.integers(-1, 2, size=(sight.units, 2)).tolist()
        unit_of = units_of_frames(sight.units)
        path = [(x + shake[unit_of[at]][0], y + shake[unit_of[at]][1]) for at, (x, y) in enumerate(path)]
    return [path[time] for time in sight.times]


def swerve(
    path: list[Place], motion: str, area: world.Area, sight: Sight, rng: np.random.Generator
) -> tuple[list[Place], str | None]:
    """Leave the line after a shown frame, by a jump or onto another line, and the motion then.

    In the view "unit" that may be another one of the world's, where the whole newest unit follows it; otherwise None.
    Both are unchanged where no attempt can be seen.
    """
    across = np.asarray([-MOTIONS[motion][1], MOTIONS[motion][0]]) / np.hypot(*MOTIONS[motion])
    unit = sight.view is View.UNIT
    for _ in range(6):
        start = int(rng.integers(sight.turn + (0 if unit else 1), sight.shown - 1))
        other = str(rng.choice([m for m in MOTIONS if m != motion]))
        steps = sight.times[-1] - sight.times[start] + 1
        jump = not unit or rng.random() < 0.3
        onward = list(world.track(other, area, steps, rng)) if jump else _onward(path[start], other, area, steps, rng)
        changed = path[: start + 1] + [onward[time - sight.times[start]] for time in sight.times[start + 1 :]]
        away = np.abs((np.asarray(changed) - path[start]) @ across)
        if away.max() >= _OFF:
            return changed, other if unit and not jump and start == sight.turn else None
    return path, motion


def _onward(place: Place, motion: str, area: world.Area, frames: int, rng: np.random.Generator) -> list[Place]:
    """From a place on along another line, turning back at the borders of the area."""
    (x, y), (across, down) = place, MOTIONS[motion]
    speed = int(rng.choice([2, 3])) * (1 if rng.random() < 0.5 else -1)
    places = [(x, y)]
    for _ in range(frames - 1):
        ahead = x + speed * across, y + speed * down
        if not (area.left <= ahead[0] <= area.right and area.top <= ahead[1] <= area.bottom):
            speed = -speed
        x, y = x + speed * across, y + speed * down
        places.append((x, y))
    return places


def units_of_frames(units: int) -> list[int]:
    """The unit of every frame of a clip."""
    return [0] + [unit for unit in range(1, units) for _ in range(FRAMES_PER_UNIT)]
