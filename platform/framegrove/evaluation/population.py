"""Videos grown unit by unit where only right ones go on: many readings of late units, which few videos reach.

Of a generator that errs at a fifth of its units, one video in thirty is still right at unit 15. So the videos that go
wrong are replaced: before each unit, every one that is wrong gives its place to another child of one that is right
(splitting, as in the simulation of rare events). The parent is of the same prompt where that has any left, else of
another prompt of the batch; the one with the fewest children so far comes first. A reading then is that of a unit with
a right parent, whatever became of the others, which is what a hazard is of.

Two things to know of it. Prompts count about alike at every unit, hard ones too, of which few unsearched videos would
have come so far: the hazards' product is therefore no estimate of how many unsearched videos are right, which are
counted apart (`hazard.UnitHazard.unsearched`). And replacements share a past, so that they are no independent
readings: intervals count prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framegrove.evaluation.hazard import UnitReading
from framegrove.flow.growing import Grower
from framegrove.models.pretrained import Pipeline
from framegrove.types import Path

Pixels = npt.NDArray[np.uint8]
Judge = Callable[[Pixels, int], tuple[str, ...]]  # frames so far (T, H, W, 3), prompt: what is wrong with the last unit
OnUnit = Callable[[int], None]  # units done of the longest video


@dataclass(frozen=True, eq=False)
class _Video:
    """A branch that is right so far. The empty path has no units yet."""

    prompt: int
    path: Path = ()
    latents: tuple[Tensor, ...] = ()
    frames: tuple[Pixels, ...] = ()


@torch.no_grad()
def read_units(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    judge: Judge,
    *,
    units: int,
    videos: int,
    on_unit: OnUnit = lambda _: None,
) -> list[UnitReading]:
    """Grow ``videos`` videos a prompt side by side, ``units`` long, and have every unit judged.

    ``judge`` and the readings know a prompt by its place in ``prompts``. Branch ``path`` of a prompt is that of every
    search with its seed. Stops early where no video is right any more.
    """
    grower = Grower(pipeline, prompts, seeds)
    parents = [_Video(prompt, (root,)) for prompt in range(len(prompts)) for root in range(videos)]
    state: list[Tensor] | None = None
    readings: list[UnitReading] = []
    for unit in range(units):
        latents, clips, state = grower.grow(parents, state)
        children = [
            replace(parent, latents=(*parent.latents, latent), frames=(*parent.frames, frames))
            for parent, latent, frames in zip(parents, latents, clips, strict=True)
        ]
        faults = [judge(np.concatenate(child.frames), child.prompt) for child in children]
        readings += [
            UnitReading(child.prompt, child.path, found) for child, found in zip(children, faults, strict=True)
        ]
        on_unit(unit + 1)
        right = [not found for found in faults]
        if not any(right):
            break
        chosen = refilled([child.prompt for child in children], right)
        state = [part[[place for place, _ in chosen]] for part in state]
        parents = [_next(children[place], child) for place, child in chosen]
    return readings


def refilled(prompts: Sequence[int], right: Sequence[bool]) -> list[tuple[int, int]]:
    """Whose child takes each place, and its number among its parent's children; places that are right keep theirs.

    ``prompts`` are those of the places. At least one place must be ``right``.

    >>> refilled([0, 0, 1, 1], [True, False, False, False])
    [(0, 0), (0, 1), (0, 2), (0, 3)]
    """
    children = {place: 1 for place, alive in enumerate(right) if alive}
    chosen = [(place, 0) for place in range(len(right))]
    for own in (True, False):  # a prompt's own right videos fill its places, before others borrow them
        for place, alive in enumerate(right):
            candidates = [one for one in children if prompts[one] == prompts[place]]
            if alive or bool(candidates) != own:
                continue
            parent = min(candidates or children, key=lambda one: (children[one], one))
            chosen[place] = (parent, children[parent])
            children[parent] += 1
    return chosen


def _next(parent: _Video, child: int) -> _Video:
    """The branch of a parent's child, not yet sampled."""
    return replace(parent, path=(*parent.path, child))
