"""What an adapter does: the protocol by which any system that makes videos is searched.

An adapter is a plain class, made twice: where a search is planned, with its options alone, and in every generator
actor, where ``load`` is called once. A search samples units (see config.generator.Form); what an adapter makes of one
is a StageLatent, tensors that are all it needs to go on from there, wherever that is: actors come and go, and keep
nothing that a search depends on. The same task gives the same bits on any of them, so noise is drawn from
``flow.noise`` by the seed and the branch's path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from framegrove.config.generator import Form
from framegrove.flow.decoding import NOTHING_LEFT, LeftAsLatents
from framegrove.flow.sampler import StageLatent
from framegrove.types import Cost, Path, Sampling

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3), RGB
ShouldStop = Callable[[], bool]
OnStep = Callable[[], None]


@dataclass(frozen=True)
class Wanted:
    """The video that a search makes, the same for all its branches. Sides in pixels.

    ``frames`` are those of the whole video that are wanted, ``image`` an encoded first picture (PNG or JPEG). Of a
    branch that is dropped frames are kept whose longer side is at most ``small``.
    """

    prompt: str
    seed: int
    height: int
    width: int
    units: int
    frames: int
    sampling: Sampling = Sampling()  # noqa: RUF009 - it is frozen
    image: bytes | None = None
    small: int = 192

    @property
    def are_frames_large(self) -> bool:
        """Whether frames are scaled down for that."""
        return max(self.height, self.width) > self.small


@dataclass(frozen=True, eq=False)
class Task:
    """The newest unit of branch ``path``: ``history`` are the finished units before it, oldest first.

    ``start`` is what it continues from, as it was after an earlier stage; None: from noise.
    """

    wanted: Wanted
    path: Path
    history: tuple[StageLatent, ...]
    start: StageLatent | None = None


@dataclass(frozen=True)
class UnitPrice:
    """What a unit costs: denoising ``steps`` of each stage, FLOPs of one of them, and FLOPs of decoding the unit."""

    steps: tuple[int, ...]
    step_flops: tuple[int, ...]
    decoding: int = 0


@dataclass(frozen=True)
class Needs:
    """What a model takes, by its configurations: ``weights`` are numbers, by part; all else is bytes.

    ``latent`` is what a branch carries from stage to stage, ``denoising`` and ``decoding`` are about what layers hold
    at a time beside the weights. ``width`` is bytes of a weight.
    """

    weights: Mapping[str, int]
    width: int
    latent: int
    denoising: int
    decoding: int


class Adapter(Protocol):
    """A system that makes videos. ``where`` and ``options`` of its source are what it is made with.

    What goes wrong is told apart as in search.protocols: a UserError ends the search with its sentence, WorkFailed has
    the work done again, by another actor if there is one, and any other exception is a defect. ``sample`` and
    ``decode`` are called from one thread at a time, and tensors of a history must not be changed: others share them.

    An adapter may also have ``together``, how many tasks share their passes, of whichever works and searches: of works
    that an actor is given at the same time (``pack``) up to so many come in one call of ``sample``. One that only waits
    for somebody else to sample says so by ``waits = True``, and is called from as many threads as works are packed.
    """

    form: Form

    def __init__(self, where: str, **options: Any) -> None:
        """Read what is known without the weights. Raises UserError for options that it has not, or cannot use."""
        ...

    def identity(self) -> Any:
        """JSON values that change whenever its videos do."""
        ...

    def price(self, wanted: Wanted) -> Sequence[UnitPrice]:
        """The price of each unit of a video, counted without the weights. Asked once a request, off the event loop."""
        ...

    # An adapter may also have needs(wanted) -> Needs, which jobs.generate --plan shows.

    def load(self, device: str) -> None:
        """Read the weights."""
        ...

    def sample(
        self, tasks: Sequence[Task], stages: range, should_stop: ShouldStop, on_step: OnStep
    ) -> list[StageLatent]:
        """Take tasks of equal depth and settings through ``stages``, and call ``on_step`` after each step of all.

        They are of one work, or of several that differ in prompts and seeds.

        Raises CancelledSampling as soon as ``should_stop`` says so between two steps.
        """
        ...

    def decode(self, tasks: Sequence[Task], latents: Sequence[StageLatent]) -> list[Frames]:
        """The newest units' frames; of one that is not at its last stage what it is going to be, as far as is known.

        Of a video of one unit those beyond ``wanted.frames`` are cut off.
        """
        ...


@dataclass(frozen=True)
class ListedCosts:
    """Costs of sampling a video of which each unit has a price (flow.cost.SamplingCosts for any other system)."""

    units: tuple[UnitPrice, ...]
    left: LeftAsLatents = NOTHING_LEFT

    def unit(self, unit: int, stages: range | None = None, siblings: int = 1, most_steps: int | None = None) -> Cost:
        """The newest unit of ``siblings`` children of one branch, sampled through ``stages`` (absent: all).

        With ``most_steps``, sampling is cancelled after that many steps, and unless it was complete nothing is decoded.
        """
        price = self.units[unit]
        stages = range(len(price.steps)) if stages is None else stages
        planned = sum(price.steps[stage] for stage in stages)
        left = planned if most_steps is None else min(most_steps, planned)
        whole, total = left == planned, Cost()
        for stage in stages:
            taken = min(left, price.steps[stage])
            left -= taken
            total += Cost(nfe=taken * siblings, flops=taken * siblings * price.step_flops[stage])
        return total + Cost(decoding=siblings * price.decoding if whole else 0)

    def unsearched(self, units: int, given: int = 0) -> Cost:
        """One whole video of ``units`` units sampled without a search, the first ``given`` of which already exist."""
        return sum((self.unit(unit) for unit in range(given, units)), Cost())

    def table(self, depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        """FLOPs of one sample work, both stages included, and of decoding what it makes: its price in a budget."""
        return self.unit(depth, range(first_stage, last_stage + 1), siblings).all_flops

    def nfe_table(self, depth: int, first_stage: int, last_stage: int, siblings: int) -> int:
        """Evaluations of the network in one sample work."""
        return self.unit(depth, range(first_stage, last_stage + 1), siblings).nfe
