"""Which frames of a clip a verifier is shown.

A verifier looks at ``most`` frames at a time, and what is new in a branch is its newest unit: siblings have everything
else in common. A question is therefore asked about a *view*, one or several selections of frames; where there are
several, the answers' log-odds are averaged. Frames are given as places in the clip, ascending, so that questions on one
selection share it in the engine's prefix cache. Of a single frame, as of a preview of unit 0, every view is that frame.

In a clip of a pyramidal model, of 16 units (frames 0 to 120), with four frames at a time:

    >>> from framegrove.config.request import unit_lengths
    >>> clip = unit_lengths(121)
    >>> clip
    (1, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8)
    >>> frames_of_view(View.UNIT, clip, 4)
    ((0, 112, 116, 120),)
    >>> frames_of_view(View.DENSE, clip, 4)
    ((113, 115, 117, 119), (114, 116, 118, 120))
    >>> frames_of_view(View.RECENT, clip, 4)
    ((0, 99, 108, 117),)
    >>> frames_of_view(View.VIDEO, clip, 4)
    ((0, 3, 48, 85), (0, 12, 49, 94), (0, 21, 58, 103), (0, 30, 67, 112), (0, 39, 76, 113))

Other systems' units may be longer, up to a whole video. What is chosen from one after the other is therefore a clip's
*looks*: its first frame, and parts of its units of at most 8 frames each. A video of one unit looks like one of many:

    >>> frames_of_view(View.VIDEO, [81], 4)
    ((0, 3, 39, 67), (0, 12, 48, 76), (0, 21, 49), (0, 30, 58))
    >>> frames_of_view(View.VIDEO, unit_lengths(81), 4) == _
    True
    >>> frames_of_view(View.RECENT, [9, 12, 12], 4)
    ((0, 17, 24, 31),)
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence

from framegrove.config.request import FRAMES_PER_UNIT

Shown = tuple[int, ...]
"""Places of frames in their clip, ascending, that are shown together."""


class View(enum.StrEnum):
    """What a question is asked about. All but ``VIDEO`` cost as much for a long video as for a short one."""

    VIDEO = "video"  # the first frame and one of every look: in one selection, or for long clips in up to five
    RECENT = "recent"  # the first frame and one of each of the latest looks: how things have moved of late
    UNIT = "unit"  # the first frame, the last one of the parent and as many of the newest unit as there is room for
    DENSE = "dense"  # every frame of the newest unit and no other, in several selections: five at most


def frames_of_view(view: View, lengths: Sequence[int], most: int) -> tuple[Shown, ...]:
    """The selections of a clip's frames, of at most ``most`` each, that make up a view of it.

    ``lengths`` are the frames of each of the clip's units, oldest first. Raises ValueError for a clip without units,
    units without frames, or fewer than 2 at a time.
    """
    if not lengths or min(lengths) < 1 or most < 2:
        raise ValueError(
            f"a clip needs at least 1 unit of 1 frame, and 2 shown ones at most, not {tuple(lengths)} and {most}"
        )
    return _SELECTIONS[view](lengths, most)


def grouped(views: Iterable[View], lengths: Sequence[int], most: int) -> dict[Shown, list[int]]:
    """Which questions are asked about which frames: their places in ``views``, one view a question, by selection.

    Questions stand together wherever they look at the same frames, however their views are called.
    """
    asked: dict[Shown, list[int]] = {}
    for place, view in enumerate(views):
        for shown in frames_of_view(view, lengths, most):
            asked.setdefault(shown, []).append(place)
    return asked


def shown_frames(lengths: Sequence[int], most: int = 4) -> Shown:
    """The first frame of a clip and one of every look after it; of evenly spread ones where those are too many.

    The newest look is always among them. The position inside the look advances by one frame from look to look: at a
    fixed one, a motion whose period is a number of units would appear to stand still.
    """
    return _spreads(lengths, most, 1)[0]


# A spread shows three looks besides the first frame where a verifier takes four frames: five show all of 16 units, and
# with eight frames all of 31. Longer videos are thinned out, so that the cost of judging them stays bounded.
_MOST_SPREADS = 5


def _video(lengths: Sequence[int], most: int) -> tuple[Shown, ...]:
    return _spreads(lengths, most, _MOST_SPREADS)


def _spreads(lengths: Sequence[int], most: int, at_most: int) -> tuple[Shown, ...]:
    """The fewest selections that show every look, interleaved, so that each is spread over the whole clip."""
    looks, room = _looks(lengths), most - 1
    count = max(1, min(at_most, -(-len(looks) // room)))
    chosen = _spread(range(len(looks)), count * room)
    places = [_place(looks, look, number=look) for look in chosen]
    return tuple((0, *places[at::count]) for at in range(count))


def _recent(lengths: Sequence[int], most: int) -> tuple[Shown, ...]:
    """The same places in their looks whatever the looks are, so that the steps in time are always as long."""
    looks = _looks(lengths)
    latest = range(len(looks))[-(most - 1) :]
    return ((0, *(_place(looks, look, number=look - latest.start) for look in latest)),)


def _unit(lengths: Sequence[int], most: int) -> tuple[Shown, ...]:
    newest = _newest(lengths)
    before = {0, newest.start - 1} if most >= 4 and newest.start else {0}
    # With less room two of the newest unit are worth more than the frame before it.
    return ((*sorted(before), *_spread(range(max(1, newest.start), newest.stop), most - len(before))),)


def _dense(lengths: Sequence[int], most: int) -> tuple[Shown, ...]:
    """Interleaved like spreads: neighbouring frames look the same, and distant ones show what changes."""
    newest = _spread(_newest(lengths), _MOST_SPREADS * most)
    count = -(-len(newest) // most)
    return tuple(newest[at::count] for at in range(count))


_SELECTIONS: dict[View, Callable[[Sequence[int], int], tuple[Shown, ...]]] = {
    View.VIDEO: _video,
    View.RECENT: _recent,
    View.UNIT: _unit,
    View.DENSE: _dense,
}


def _looks(lengths: Sequence[int]) -> list[range]:
    """The places of a clip's looks, without the first frame: units, or parts of long ones that are about as long."""
    looks, start = [], 1
    for frames in (lengths[0] - 1, *lengths[1:]):
        parts = -(-frames // FRAMES_PER_UNIT)
        ends = [start + frames * (part + 1) // parts for part in range(parts)]
        looks += [range(*ends_of) for ends_of in zip([start, *ends], ends, strict=False)]
        start += frames
    return looks


def _newest(lengths: Sequence[int]) -> range:
    """The frames of the newest unit."""
    return range(sum(lengths[:-1]), sum(lengths))


def _place(looks: Sequence[range], look: int, number: int) -> int:
    """The frame that stands for a look, as it does where it is shown as the one of this number."""
    period = max(map(len, looks))
    return looks[look][min((number + 2) % period, len(looks[look]) - 1)]


def _spread(places: Sequence[int], count: int) -> tuple[int, ...]:
    """At most ``count`` of the places, evenly spread, and always the last."""
    if len(places) <= count:
        return tuple(places)
    return tuple(places[-1 - (len(places) * back) // count] for back in reversed(range(count)))
