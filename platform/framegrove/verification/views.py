"""Which frames of a clip a verifier is shown.

A verifier looks at ``most`` frames at a time, and what is new in a branch is its newest unit: siblings have everything
else in common. A question is therefore asked about a *view*, one or several selections of frames; where there are
several, the answers' log-odds are averaged. Frames are given as places in the clip, ascending, so that questions on one
selection share it in the engine's prefix cache. Of a single frame, as of a preview of unit 0, every view is that frame.

In a clip of 16 units (frames 0 to 120), with four frames at a time:

    >>> frames_of_view(View.UNIT, 121, 4)
    ((0, 112, 116, 120),)
    >>> frames_of_view(View.DENSE, 121, 4)
    ((113, 115, 117, 119), (114, 116, 118, 120))
    >>> frames_of_view(View.RECENT, 121, 4)
    ((0, 99, 108, 117),)
    >>> frames_of_view(View.VIDEO, 121, 4)
    ((0, 3, 48, 85), (0, 12, 49, 94), (0, 21, 58, 103), (0, 30, 67, 112), (0, 39, 76, 113))
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from framegrove.config.request import FRAMES_PER_UNIT

Shown = tuple[int, ...]
"""Places of frames in their clip, ascending, that are shown together."""


class View(enum.StrEnum):
    """What a question is asked about. All but ``VIDEO`` cost as much for a long video as for a short one."""

    VIDEO = "video"  # the first frame and one of every unit: in one selection, or for long clips in up to five
    RECENT = "recent"  # the first frame and one of each of the latest units: how things have moved of late
    UNIT = "unit"  # the first frame, the last one of the parent and as many of the newest unit as there is room for
    DENSE = "dense"  # every frame of the newest unit and no other, in several selections


def frames_of_view(view: View, frame_count: int, most: int) -> tuple[Shown, ...]:
    """The selections of a clip's frames, of at most ``most`` each, that make up a view of it.

    The clip's units are those of a video: a frame, and then eight each, of which the last may be incomplete. Raises
    ValueError for a clip without frames or fewer than 2 at a time.
    """
    if frame_count < 1 or most < 2:
        raise ValueError(f"a clip needs at least 1 frame and 2 shown ones at most, not {frame_count} and {most}")
    return _SELECTIONS[view](frame_count, most)


def grouped(views: Iterable[View], frame_count: int, most: int) -> dict[Shown, list[int]]:
    """Which questions are asked about which frames: their places in ``views``, one view a question, by selection.

    Questions stand together wherever they look at the same frames, however their views are called.
    """
    asked: dict[Shown, list[int]] = {}
    for place, view in enumerate(views):
        for shown in frames_of_view(view, frame_count, most):
            asked.setdefault(shown, []).append(place)
    return asked


def shown_frames(frame_count: int, most: int = 4) -> Shown:
    """The first frame of a clip and one of every later unit; of evenly spread ones where those are too many.

    The newest unit is always among them. The position inside the unit advances by one frame from unit to unit: at a
    fixed one, a motion whose period is a number of units would appear to stand still.
    """
    return _spreads(frame_count, most, 1)[0]


# A spread shows three units besides the first frame where a verifier takes four frames: five show all of 16 units, and
# with eight frames all of 31. Longer videos are thinned out, so that the cost of judging them stays bounded.
_MOST_SPREADS = 5


def _video(frame_count: int, most: int) -> tuple[Shown, ...]:
    return _spreads(frame_count, most, _MOST_SPREADS)


def _spreads(frame_count: int, most: int, at_most: int) -> tuple[Shown, ...]:
    """The fewest selections that show every unit, interleaved, so that each is spread over the whole clip."""
    later, room = range(1, _units(frame_count)), most - 1
    count = max(1, min(at_most, -(-len(later) // room)))
    chosen = _spread(later, count * room)
    return tuple((0, *(_frame_of(unit, frame_count) for unit in chosen[at::count])) for at in range(count))


def _recent(frame_count: int, most: int) -> tuple[Shown, ...]:
    """The same places in their units whatever the units are, so that the steps in time are always as long."""
    latest = range(1, _units(frame_count))[-(most - 1) :]
    moved = FRAMES_PER_UNIT * (latest.start - 1)  # what lies between the first frame and the others
    return ((0, *(_frame_of(unit - latest.start + 1, frame_count - moved) + moved for unit in latest)),)


def _unit(frame_count: int, most: int) -> tuple[Shown, ...]:
    newest = _newest(frame_count)
    before = {0, newest.start - 1} if newest.start else set()
    if most < 4:  # two of the newest unit are worth more than the frame before it
        before = {0} if newest.start else set()
    return ((*sorted(before), *_spread(newest, most - len(before))),)


def _dense(frame_count: int, most: int) -> tuple[Shown, ...]:
    """Interleaved like spreads: neighbouring frames look the same, and distant ones show what changes."""
    newest = _newest(frame_count)
    count = -(-len(newest) // most)
    return tuple(tuple(newest[at::count]) for at in range(count))


_SELECTIONS: dict[View, Callable[[int, int], tuple[Shown, ...]]] = {
    View.VIDEO: _video,
    View.RECENT: _recent,
    View.UNIT: _unit,
    View.DENSE: _dense,
}


def _units(frame_count: int) -> int:
    return 1 + -(-(frame_count - 1) // FRAMES_PER_UNIT)


def _newest(frame_count: int) -> range:
    """The frames of the newest unit."""
    units = _units(frame_count)
    return range(1 + FRAMES_PER_UNIT * (units - 2) if units > 1 else 0, frame_count)


def _frame_of(unit: int, frame_count: int) -> int:
    """The frame that stands for a unit."""
    return min(FRAMES_PER_UNIT * (unit - 1) + 1 + (unit + 1) % FRAMES_PER_UNIT, frame_count - 1)


def _spread(places: range, count: int) -> tuple[int, ...]:
    """At most ``count`` of the places, evenly spread, and always the last."""
    if len(places) <= count:
        return tuple(places)
    return tuple(places[-1 - (len(places) * back) // count] for back in reversed(range(count)))
