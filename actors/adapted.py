"""Generators that are other systems, behind adapters (framegrove.generators): the actor, its pool, what is told of it.

The actor answers as that of a pyramidal model does, so that clients, units and their store are the same for both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from actors.clients import KeptStates, RemoteGenerator
from actors.generator import Cancellations, Frames, Made
from actors.model_files import Card, ModelFiles
from actors.packing import Packer, alike_together
from actors.pools import Ask, GeneratorPool, Opened, PyramidPool, SourcePool, generator_names
from framegrove.cluster.priority import give_way
from framegrove.cluster.supervise import ActorGroup
from framegrove.config.generator import AdaptedSource, AnySource, Form
from framegrove.config.pool import PoolSize
from framegrove.config.request import check_prompt
from framegrove.config.search import SearchConfig
from framegrove.errors import UserError
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.finding import adapter_of
from framegrove.generators.protocol import Adapter, ListedCosts, Needs, Task, Wanted
from framegrove.media.pictures import small_copy
from framegrove.models.latent_judge import LatentSpace
from framegrove.types import GenerationRequest, SampleWork


class Job(NamedTuple):
    """A sample work with all that it is made from."""

    number: int
    work: SampleWork
    wanted: Wanted
    tasks: tuple[Task, ...]


class Done(NamedTuple):
    """What became of a work: latents and frames of its paths, none if it was cancelled."""

    made: Made
    units: tuple[tuple[StageLatent, Frames], ...]


class AdaptedGenerator:
    """Samples and decodes through an adapter. ``cancel`` may come from another thread.

    Of up to ``pack`` works that were given at the same time, each from a thread of its own, those are done together
    that gain by it (Adapter); the others one after the other, or side by side where the adapter only waits.
    """

    def __init__(self, source: AdaptedSource, threads: int = 1, pack: int = 1, *, gives_way: bool = False) -> None:
        if gives_way:
            give_way()
        self._threads = threads
        torch.set_num_threads(threads)
        self._adapter: Adapter = adapter_of(source)
        self._adapter.load("cuda" if torch.cuda.is_available() else "cpu")
        self._cancellations = Cancellations()
        self._waits: bool = getattr(self._adapter, "waits", False)
        self._packer: Packer[Job, Done] = Packer(self.sample_together, min(pack, getattr(self._adapter, "together", 1)))

    def ready(self) -> bool:
        """Answers as soon as the model is loaded."""
        return True

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def sample(
        self, number: int, work: SampleWork, wanted: Wanted, history: int, state: None, *latents: StageLatent
    ) -> tuple[Any, ...]:
        """Do one piece of work; arguments and answer are those of actors.generator.Generator.sample."""
        before, starts = latents[:history], latents[history:] or (None,) * len(work.paths)
        tasks = tuple(Task(wanted, path, before, start) for path, start in zip(work.paths, starts, strict=True))
        job = Job(number, work, wanted, tasks)
        (done,) = self.sample_together([job]) if self._waits else (self._packer.ask(job),)
        parts: list[Any] = []
        for latent, frames in done.units or ((None, None),) * len(work.paths):
            parts += (latent, frames, None, small_copy(frames, wanted.small))
        return (done.made, *parts)

    def sample_together(self, jobs: Sequence[Job]) -> list[Done]:
        """Do some works, those together that go through the same stages of videos that are wanted alike."""
        torch.set_num_threads(self._threads)  # a setting of the thread, and an actor may run each call in another one

        def alike(job: Job) -> tuple[Any, ...]:
            work, wanted = job.work, job.wanted
            asked = wanted.sampling.steps, wanted.sampling.guidance, wanted.height, wanted.width, wanted.frames
            return work.first_stage, work.last_stage, work.depth, wanted.image is None, *asked

        return alike_together(jobs, alike, self._packed)

    def _packed(self, jobs: Sequence[Job]) -> list[Done]:
        started, steps = time.time(), 0
        tasks = [task for job in jobs for task in job.tasks]
        stages = range(jobs[0].work.first_stage, jobs[0].work.last_stage + 1)

        def cancelled() -> bool:
            return all(job.number in self._cancellations for job in jobs)

        def count() -> None:
            nonlocal steps
            steps += 1

        try:
            with torch.no_grad():
                latents = self._adapter.sample(tasks, stages, cancelled, count)
                decoded = self._adapter.decode(tasks, latents)
        except CancelledSampling:
            return [Done(Made(steps, started, time.time(), whole=False), ()) for _ in jobs]
        finally:
            for job in jobs:
                self._cancellations.ended(job.number)
        frames = [
            clip[: task.wanted.frames] if task.wanted.units == 1 else clip
            for task, clip in zip(tasks, decoded, strict=True)
        ]
        units = iter(zip(latents, frames, strict=True))
        made = Made(steps, started, time.time())
        return [Done(made, tuple(next(units) for _ in job.tasks)) for job in jobs]

    def cancel(self, number: int) -> None:
        """Give up the work of this number at its next denoising step, or as soon as it is started."""
        self._cancellations.add(number)


class AdaptedFiles:
    """What is known of an adapted system without its weights (model_files.Card)."""

    def __init__(self, source: AdaptedSource) -> None:
        self.source = source
        self._adapter = adapter_of(source)
        self._form = self._adapter.form

    @property
    def name(self) -> str:
        """What it is called where its place does not matter."""
        return self.source.called

    @property
    def native(self) -> Form:
        """What its videos are like."""
        return self._form

    @property
    def stages(self) -> int:
        """Stages in which a unit is sampled."""
        return self._form.stages

    @property
    def most_units(self) -> int:
        """Of the longest video."""
        return self._form.most_units

    @property
    def side(self) -> int:
        """Pixels that widths and heights are multiples of."""
        return self._form.multiple

    def check(self, request: GenerationRequest) -> None:
        """Raise UserError, in one sentence, for what the system cannot make."""
        form = self._form
        check_prompt(request.prompt)
        self._check_shape(request)
        if request.given or request.start is not None or request.clip is not None:
            raise UserError(f"{self.name} cannot go on from a clip: begin a video anew")
        if request.image is not None and not form.takes_image:
            raise UserError(f"{self.name} cannot begin with a picture: leave it out")
        if request.image is None and form.needs_image:
            raise UserError(f"{self.name} makes videos that begin with a picture: give one")

    def _check_shape(self, request: GenerationRequest) -> None:
        form = self._form
        if not 1 <= request.units <= form.most_units:
            longest = form.frames_of(form.most_units)
            raise UserError(
                f"a video of {request.units} units cannot be made: {self.name} makes 1 to {form.most_units}, which are "
                f"{longest} frames"
            )
        if request.height % form.multiple or request.width % form.multiple:
            raise UserError(
                f"a video of {request.width}x{request.height} cannot be made: the sides of {self.name}'s are multiples "
                f"of {form.multiple}"
            )

    def fingerprint(self) -> str:
        """Changes whenever its videos do."""
        facts = {"source": self.source.model_dump(mode="json"), "adapter": self._adapter.identity()}
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()

    def given(self, request: GenerationRequest) -> int:
        """Units of a video that are not searched for: none, a picture only leads what is sampled."""
        return 0

    def costs(self, request: GenerationRequest) -> ListedCosts:
        """What sampling costs. Raises UserError for a size or a length that the system cannot make."""
        self._check_shape(request)
        return ListedCosts(tuple(self._adapter.price(self.wanted(request))))

    def needs(self, request: GenerationRequest) -> Needs | None:
        """What the model takes beside time, where its adapter can tell."""
        tell = getattr(self._adapter, "needs", None)
        return tell(self.wanted(request)) if tell is not None else None

    def wanted(self, request: GenerationRequest) -> Wanted:
        """What a generator is told of a request."""
        return Wanted(
            prompt=request.prompt + self._form.prompt_suffix,
            seed=request.seed,
            height=request.height,
            width=request.width,
            units=request.units,
            frames=request.frames or self._form.frames_of(request.units),
            sampling=request.sampling,
            image=request.image,
        )

    def lengths(self, request: GenerationRequest) -> tuple[int, ...]:
        """Frames of each unit; a video of one unit has as many as are wanted."""
        return (self.wanted(request).frames,) if request.units == 1 else self._form.lengths(request.units)


class AdaptedPool(SourcePool[AdaptedFiles]):
    """The generator actors of an adapted system."""

    goes_on = False  # and what a video's latents are is the adapter's affair: of a remote one, all of its pixels

    def __init__(self, source: AdaptedSource, size: int | PoolSize = 2, *, threads: int = 1, pack: int = 1) -> None:
        super().__init__(source, AdaptedFiles, AdaptedGenerator, size, threads, pack)
        self._states = KeptStates(0)  # an adapter's units have none

    async def latents(self) -> LatentSpace:
        """Raises UserError: what is known of latents is known of those of pyramidal models."""
        raise UserError(
            f"judges of kind latent know the latents of pyramidal models alone, not {self._source.called}'s"
        )

    async def open(self, request: GenerationRequest, group: ActorGroup, ask: Ask, config: SearchConfig) -> Opened:
        """Price the request."""
        files = await self._read()
        files.check(request)
        wanted, costs = files.wanted(request), await asyncio.to_thread(files.costs, request)
        clients = [RemoteGenerator(group, n, wanted, costs, self._states, config) for n in range(len(group))]
        return Opened(
            stages=files.stages,
            fps=files.native.fps,
            lengths=files.lengths(request),
            cost=costs.table,
            nfe=costs.nfe_table,
            single=costs.unsearched(request.units),
            given=(),
            clients=dict(zip(generator_names(len(group)), clients, strict=True)),
            prompt=request.prompt,
        )


def card_of(source: AnySource) -> Card:
    """What is known of a model without any actor. Raises UserError, in one sentence, where it cannot be used."""
    return AdaptedFiles(source) if isinstance(source, AdaptedSource) else ModelFiles.read(source)


def generator_pool(
    source: AnySource | None, size: int | PoolSize = 2, *, threads: int = 1, pack: int = 1
) -> GeneratorPool:
    """Generator actors of a model, whatever it is; None is the embedded one."""
    if isinstance(source, AdaptedSource):
        return AdaptedPool(source, size, threads=threads, pack=pack)
    return PyramidPool(source, size, threads=threads, pack=pack)
