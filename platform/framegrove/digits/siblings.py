"""Groups of siblings from a generator: children of one parent, which differ in their newest unit alone.

A verifier is worth as much to a search as it can tell siblings apart, so it is trained, calibrated and examined on
groups of them, at every depth alike. Few unsearched videos are still right at a late unit, so the parents are a
population: as in the simulation of rare events, a video that has gone wrong gives its place to another right child of
those that have not. Now and then a wrong one goes on for a unit, for a verifier meets those too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from framegrove.config.request import FRAMES_PER_UNIT, frames_of, unit_lengths
from framegrove.digits import world
from framegrove.digits.teacher import Pixels, UnitReading
from framegrove.digits.verifier_sights import MOST
from framegrove.digits.world import DigitObject, Split
from framegrove.flow.growing import Grower
from framegrove.models.pretrained import Pipeline
from framegrove.types import Path
from framegrove.verification.views import Shown, View, frames_of_view

Objects = tuple[DigitObject, ...]
Read = Callable[[Pixels, Objects], UnitReading]
"""Reads a unit: its frames behind the last one of its parent (of unit 0, a single frame), and what was asked for."""

CHILDREN = 4  # of a parent
PROMPTS = 12  # grown side by side
_WRONG = 0.1  # share of right parents' places that a wrong child takes for a unit
_RECENT = 2 * FRAMES_PER_UNIT  # frames of the parent that are kept: as far back as any view of the newest unit looks


@dataclass(frozen=True, eq=False)
class Group:
    """Children of the branch ``path`` (empty: roots) of a prompt, (K, T, H, W, 3), and what was read of them.

    Of their parent the readings of all units are kept, and the frames ``before`` at the places ``kept``: its first and
    last ones, and those of the view "video".
    """

    objects: Objects
    seed: int
    path: Path
    lineage: tuple[UnitReading, ...]
    kept: tuple[int, ...]
    before: Pixels
    children: Pixels
    readings: tuple[UnitReading, ...]

    @property
    def depth(self) -> int:
        """That of the children."""
        return len(self.path)

    @property
    def frame_count(self) -> int:
        """Frames of a child's clip, all units together."""
        return frames_of(self.depth + 1)

    @property
    def parent_right(self) -> bool:
        """Whether all units of the parent are right, for sure."""
        return all(reading.right for reading in self.lineage)

    def shown(self, child: int, places: Shown) -> Pixels:
        """Frames of a child's clip. Raises ValueError for one of its parent that was not kept."""
        first = self.frame_count - self.children.shape[1]
        return np.stack(
            [
                self.children[child, place - first] if place >= first else self.before[self.kept.index(place)]
                for place in places
            ]
        )


def prompts_of(split: Split, seed: int, shard: int) -> list[Objects]:
    """The prompts of a shard, two thirds with two digits; held-out combinations only in the held-out split."""
    rng = np.random.default_rng([seed, shard, {"train": 0, "heldout": 1}[split]])
    return [world.draw_objects(rng, split=split, digits=1 if at % 3 == 2 else 2) for at in range(PROMPTS)]


@torch.no_grad()
def grow(
    pipeline: Pipeline,
    prompts: Sequence[Objects],
    read: Read,
    *,
    seed: int,
    units: int,
    children: int = CHILDREN,
    wrong: float = _WRONG,
) -> Iterator[Group]:
    """One group a prompt at every depth, up to videos of ``units`` units; pure in its arguments."""
    rng = np.random.default_rng(seed)
    seeds = [seed * len(prompts) + at for at in range(len(prompts))]
    grower = Grower(pipeline, [world.caption(objects) for objects in prompts], seeds)
    parents = [_Video(prompt) for prompt in range(len(prompts))]
    state: list[Tensor] | None = None
    for _ in range(units):
        litters, state = _litters(grower, parents, state, children)
        judged = [[_judged(child, prompts[child.prompt], read) for child in litter] for litter in litters]
        yield from (
            _group(parent, litter, prompts[parent.prompt], seeds[parent.prompt])
            for parent, litter in zip(parents, judged, strict=True)
        )
        chosen = _chosen(judged, rng, wrong)
        state = [part[[place * children + child for place, child, _ in chosen]] for part in state]
        parents = [replace(judged[place][child], offset=copy * children) for place, child, copy in chosen]


@dataclass(frozen=True, eq=False)
class _Video:
    """A branch as far as it has come. ``offset`` is the number of its next child: clones have other children."""

    prompt: int
    path: Path = ()
    latents: tuple[Tensor, ...] = ()
    frames: tuple[Pixels, ...] = ()  # one array a unit
    readings: tuple[UnitReading, ...] = ()
    offset: int = 0

    @property
    def right(self) -> bool:
        return all(reading.right for reading in self.readings)


def _chosen(litters: Sequence[Sequence[_Video]], rng: np.random.Generator, wrong: float) -> list[tuple[int, int, int]]:
    """For each place: whose child goes on (place, number of the child), and as which copy of it."""
    right = [[at for at, child in enumerate(litter) if child.right] for litter in litters]
    bad = [[at for at, child in enumerate(litter) if child.readings[-1].right is False] for litter in litters]
    spare = [(place, at) for place, found in enumerate(right) for at in found[1:]]
    used: dict[tuple[int, int], int] = {}

    def take(one: tuple[int, int]) -> tuple[int, int, int]:
        used[one] = used.get(one, -1) + 1
        return *one, used[one]

    chosen = []
    for place, found in enumerate(right):
        if found and bad[place] and rng.random() < wrong:
            chosen.append(take((place, bad[place][0])))
        elif found:
            chosen.append(take((place, found[0])))
        elif spare:
            chosen.append(take(spare.pop(int(rng.integers(len(spare))))))
        else:
            living = [(other, its[0]) for other, its in enumerate(right) if its] or [(place, 0)]
            chosen.append(take(min(living, key=lambda one: used.get(one, -1))))
    return chosen


def _judged(child: _Video, asked: Objects, read: Read) -> _Video:
    shown = child.frames[-1] if len(child.frames) == 1 else np.concatenate([child.frames[-2][-1:], child.frames[-1]])
    return replace(child, readings=(*child.readings, read(shown, asked)))


def _group(parent: _Video, litter: Sequence[_Video], asked: Objects, seed: int) -> Group:
    count = frames_of(len(parent.path) + 1)
    newest = sum(len(frames) for frames in parent.frames)
    video = {place for shown in frames_of_view(View.VIDEO, unit_lengths(count), MOST) for place in shown}
    kept = sorted(({0} | video | set(range(newest - _RECENT, newest))) & set(range(newest)))
    so_far = (
        np.concatenate(parent.frames) if parent.frames else np.zeros((0, *litter[0].frames[-1].shape[1:]), np.uint8)
    )
    return Group(
        asked,
        seed,
        parent.path,
        parent.readings,
        tuple(kept),
        so_far[kept],
        np.stack([child.frames[-1] for child in litter]),
        tuple(child.readings[-1] for child in litter),
    )


def _litters(
    grower: Grower, parents: Sequence[_Video], state: list[Tensor] | None, children: int
) -> tuple[list[list[_Video]], list[Tensor]]:
    """The children of every parent, whose decoder's state is given, and the decoder's state after each of them."""
    born = [replace(parent, path=(*parent.path, parent.offset + at)) for parent in parents for at in range(children)]
    if state is not None:
        state = [part.repeat_interleave(children, 0) for part in state]
    latents, clips, after = grower.grow(born, state)
    grown = [
        replace(one, latents=(*one.latents, latent), frames=(*one.frames, frames))
        for one, latent, frames in zip(born, latents, clips, strict=True)
    ]
    return [grown[at : at + children] for at in range(0, len(grown), children)], after
