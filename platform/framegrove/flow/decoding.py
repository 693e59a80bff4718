"""Which units of a search's branches are decoded as soon as they are sampled, and which are left as latents."""

from __future__ import annotations

from dataclasses import dataclass

from framegrove.types import SampleWork


@dataclass(frozen=True)
class LeftAsLatents:
    """Finished units at these ``depths`` are left as latents; drafts, which end before ``last_stage``, never are.

    Whoever decodes a later unit of a branch decodes those before it first, from the last that is decoded on.

    >>> left = LeftAsLatents(frozenset({0, 2, 3}), last_stage=2)
    >>> left.has(3), left.has(4), left.before(4), left.before(2)
    (True, False, range(2, 4), range(2, 2))
    """

    depths: frozenset[int] = frozenset()
    last_stage: int = 0

    def has(self, depth: int, stage: int | None = None) -> bool:
        """Whether a unit is left that was sampled up to a ``stage`` (None: the last)."""
        return depth in self.depths and stage in (None, self.last_stage)

    def before(self, depth: int) -> range:
        """The units before this one that have to be decoded first."""
        first = depth
        while first - 1 in self.depths:
            first -= 1
        return range(first, depth)

    def has_work(self, work: SampleWork) -> bool:
        """Whether what a work makes is left."""
        return self.has(work.depth, work.last_stage)

    def before_work(self, work: SampleWork) -> range:
        """The units that are decoded with a work besides those that it makes: none where those are left."""
        return range(work.depth, work.depth) if self.has_work(work) else self.before(work.depth)


NOTHING_LEFT = LeftAsLatents()
