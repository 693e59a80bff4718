"""The pools that a search is given: what makes their actors, and what a search must know of them.

A generator pool checks and prices requests and hands out clients that sample; a verifier pool hands out clients that
score. Another generator or verifier is another class with these methods: nothing that runs a search knows more.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.actor import ActorHandle

from actors.clients import (
    Decode,
    KeptStates,
    ObjectStore,
    RemoteGenerator,
    RemoteVerifier,
    UnitRef,
    nothing_to_decode,
)
from actors.generator import Context, Generator, TextRead, Unit
from actors.model_files import Card, ModelFiles, costs_of
from actors.verifier_kinds import giving_way, verifier_class
from framegrove.cluster.placement import Role, placed
from framegrove.cluster.supervise import ActorGroup
from framegrove.config.model import ModelSource
from framegrove.config.pool import PoolSize
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import VerifierConfig, environment
from framegrove.evaluation.report import SearchRecord, Shown
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.decoding import NOTHING_LEFT, LeftAsLatents
from framegrove.flow.sampler import StageLatent
from framegrove.media.pictures import small_copy
from framegrove.models.latent_judge import LatentSpace
from framegrove.search.prices import CostTable
from framegrove.search.protocols import GeneratorClient, VerifierClient
from framegrove.search.workers import GENERATORS
from framegrove.types import Assessment, Cost, GenerationRequest, Path
from framegrove.verification import latents
from framegrove.verification.identity import verifier_identity

Answer = TypeVar("Answer")
CardT = TypeVar("CardT", bound=Card)
Ask = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
"""Calls a method of an actor of the pool, again if it dies: ``await ask(lambda actor: actor.read.remote())``."""

OTHER_CALLS = 3  # of a generator, while it samples: they cancel works and ask whether it is well


@dataclass(frozen=True)
class Opened:
    """A request as a generator pool has opened it: how it is priced, what is given, and clients that sample for it.

    ``lengths`` are the frames of its units. ``cost`` prices sample works in FLOPs, decoding included, ``nfe`` in
    transformer evaluations; ``single`` is what one unsearched video costs. ``given`` holds the units that are not
    searched for. ``prompt`` is the part of the prompt that the model can read, ``unread`` the first words of the rest.

    ``leaving`` is the same request with units left as latents, of those generators that can: ``finishing`` are the
    FLOPs of decoding what that leaves of a winner. ``decode`` gives frames to those units of a branch that have none.
    """

    stages: int
    fps: float
    lengths: tuple[int, ...]
    cost: CostTable
    nfe: CostTable
    single: Cost
    given: tuple[Any, ...]
    clients: Mapping[str, GeneratorClient]
    prompt: str
    unread: str | None = None
    decode: Decode = nothing_to_decode
    leaving: Callable[[LeftAsLatents], Opened] | None = None
    finishing: int = 0


class Units(Protocol):
    """What a search does with the handles of the units that its generators make, by branch."""

    async def shown(self, units: Mapping[Path, Any], last_stage: int) -> Mapping[Path, Shown]:
        """What the branches look like, except for those that are lost. Units of earlier stages are drafts."""
        ...

    async def lost(self, units: Mapping[Path, Any]) -> Collection[Path]:
        """The branches whose newest units are lost: their frames or, where they have none, their latents."""
        ...

    async def latent(self, unit: Any) -> StageLatent:
        """The latent of a unit of the winner."""
        ...

    def drop(self, unit: Any) -> None:
        """Nothing more will be made of this unit: release what can be."""
        ...

    def again(self, record: SearchRecord, path: Path) -> Any:
        """A handle for what a finished search shows of a branch, to be judged once more."""
        ...


class GeneratorPool(Protocol):
    """Actors that sample, and what can be said of a request before any of them is up. Also a crew.Pool."""

    name: str
    role: Role
    size: int
    least: int
    whole_gpus: int | None
    units: Units
    pack: int  # works that each actor takes at a time
    goes_on: bool  # whether a video can begin with the units of an earlier one

    def create(self, gpus: float) -> ActorHandle[Any]: ...

    @property
    def worker_names(self) -> list[str]:
        """What a search calls its actors, by index."""
        ...

    async def check(self, request: GenerationRequest) -> None:
        """Raise UserError, in one sentence, for what the model cannot make. Needs no actor."""
        ...

    async def identity(self) -> str:
        """Changes whenever the model does."""
        ...

    async def latents(self) -> LatentSpace:
        """Whose latents its units are, for verifiers that judge them."""
        ...

    async def open(self, request: GenerationRequest, group: ActorGroup, ask: Ask, config: SearchConfig) -> Opened:
        """Prepare for a request, once the actors are up."""
        ...


class SourcePool(Generic[CardT]):
    """``size`` generator actors of whatever a source names, each with ``threads`` CPU threads.

    Where the size is a range, only the least number of them is always there. Each does up to ``pack`` works together.
    ``worker`` is the class that becomes an actor, and ``read`` tells what is known of the source without any.
    """

    name = GENERATORS
    role = Role.GENERATE
    whole_gpus: int | None = None
    units: Units = ObjectStore()

    def __init__(
        self,
        source: Any,
        read: Callable[[Any], CardT],
        worker: type[Any],
        size: int | PoolSize,
        threads: int,
        pack: int,
    ) -> None:
        self._source, self._reader, self._worker = source, read, worker
        actors = PoolSize.read(size)
        self.size, self.least = actors.most, actors.least
        self.pack = pack
        self._threads = threads
        self._reading = asyncio.Lock()
        self._files: CardT | None = None

    def create(self, gpus: float) -> ActorHandle[Any]:
        """A generator actor."""
        options = {**placed(self.role, num_gpus=gpus), "max_concurrency": self.pack + OTHER_CALLS}
        source = self._files.source if self._files else self._source
        actor: Any = (
            ray.remote(self._worker).options(**options).remote(source, self._threads, self.pack, gives_way=True)
        )
        return actor

    @property
    def worker_names(self) -> list[str]:
        """What a search calls its actors, by index."""
        return generator_names(self.size)

    async def check(self, request: GenerationRequest) -> None:
        """Raise UserError, in one sentence, for what the model cannot make, or for a model that is missing."""
        (await self._read()).check(request)

    async def identity(self) -> str:
        """Changes whenever the model does."""
        return await asyncio.to_thread((await self._read()).fingerprint)

    async def _read(self) -> CardT:
        """What is known of the model, read once, off the event loop: of a hub's model files are fetched."""
        async with self._reading:
            if self._files is None:
                self._files = await asyncio.to_thread(self._reader, self._source)
            return self._files


class PyramidPool(SourcePool[ModelFiles]):
    """The generator actors of one pyramidal model; None is the embedded one."""

    goes_on = True

    def __init__(
        self,
        model: ModelSource | None = None,
        size: int | PoolSize = 2,
        *,
        threads: int = 1,
        pack: int = 1,
        worker: type[Generator] = Generator,
    ) -> None:
        super().__init__(model or ModelSource(), ModelFiles.read, worker, size, threads, pack)
        self._latents: LatentSpace | None = None
        self._states: KeptStates | None = None

    async def latents(self) -> LatentSpace:
        """Whose latents its units are. Reads the VAE, the first time."""
        if self._latents is None:
            self._latents = await asyncio.to_thread((await self._read()).latents)
        return self._latents

    async def open(self, request: GenerationRequest, group: ActorGroup, ask: Ask, config: SearchConfig) -> Opened:
        """Price the request by its exact numbers of tokens, and encode its image or its clip, if any."""
        files = await self._read()
        files.check(request)
        context = context_of(files, request)
        read = await ask(lambda actor: actor.read.remote(context, request.prompt))
        units: list[Unit] = []
        if request.image is not None:
            units = [await ask(lambda actor: actor.given.remote(context, request.image))]
        if request.start is not None:
            units = await ask(lambda actor: actor.gone_on.remote(request.start))
        if request.clip is not None:
            units = await ask(lambda actor: actor.after_clip.remote(context, request.clip))
        given = tuple(_kept(unit, last=unit is units[-1]) for unit in units)

        states = self._kept_states()

        def client(index: int, costs: SamplingCosts) -> RemoteGenerator:
            return RemoteGenerator(group, index, replace(context, left=costs.left), costs, states, config)

        clients = [functools.partial(client, n) for n in range(len(group))]
        return opened(files, request, read, given, clients, lambda costs: functools.partial(_decode, ask, context))

    def _kept_states(self) -> KeptStates:
        """The decoder states of all searches: they get half of the cluster's object store."""
        if self._states is None:
            store = ray.cluster_resources().get("object_store_memory", 2**30)
            self._states = KeptStates(int(store / 2))
        return self._states


def _kept(unit: Unit, *, last: bool) -> UnitRef:
    """A given unit, kept on this machine: no work could compute it again. Works start from the last one alone."""
    state = ray.put(unit.state) if last else None
    return UnitRef(unit.latent.stage, ray.put(unit.latent), ray.put(unit.frames), state, given=True)


class VerifierPool:
    """The actors of one verifier, which share its load. ``worker`` is the class that becomes an actor, by its kind."""

    role = Role.VERIFY

    def __init__(self, config: VerifierConfig, *, worker: type[Any] | None = None) -> None:
        self.config = config
        self.name = config.name
        self.size, self.least = config.actors.most, config.actors.least
        self.whole_gpus = config.gpus
        self._worker = worker or verifier_class(config.kind)

    @property
    def judges(self) -> tuple[Assessment, ...]:
        """The assessments it takes part in."""
        return self.config.assessments

    def create(self, gpus: float) -> ActorHandle[Any]:
        """A verifier actor."""
        options = placed(self.role, num_gpus=gpus)
        if variables := environment(self.config):
            options["runtime_env"] = {"env_vars": variables}
        actor: Any = ray.remote(giving_way(self._worker)).options(**options).remote(self.config)
        return actor

    @property
    def worker_names(self) -> list[str]:
        """What a search calls its workers."""
        return [self.name if self.size == 1 else f"{self.name} {number}" for number in range(1, self.size + 1)]

    async def identity(self) -> dict[str, Any]:
        """What decides its scores and how they count, as JSON values."""
        return await asyncio.to_thread(verifier_identity, self.config)

    async def prices(
        self, request: GenerationRequest, prompt: str, lengths: Sequence[int], ask: Ask
    ) -> Mapping[Assessment, Sequence[int]]:
        """FLOPs of judging a branch of a request, by assessment and depth.

        ``prompt`` is what its clients judge by, ``lengths`` are the frames of its units.
        """
        size = request.height, request.width
        prices: Mapping[Assessment, Sequence[int]] = await ask(lambda actor: actor.price.remote(prompt, lengths, *size))
        return prices

    def clients(
        self,
        group: ActorGroup,
        prompt: str,
        config: SearchConfig,
        decode: Decode = nothing_to_decode,
    ) -> dict[str, VerifierClient]:
        """Clients that judge videos made for this prompt, by the names of their workers; for ``decode`` see Opened."""
        reads = self.config.reads
        return {
            name: RemoteVerifier(group, index, prompt, config, reads, decode)
            for index, name in enumerate(self.worker_names)
        }


async def check_latents(generators: GeneratorPool, verifiers: Iterable[VerifierPool]) -> None:
    """Raise UserError where a verifier judges latents, and other ones than these generators sample."""
    for pool in verifiers:
        if pool.config.reads == "latent":
            await asyncio.to_thread(latents.check_latents, pool.config, await generators.latents())


def generator_names(count: int) -> list[str]:
    """What a search calls so many generators."""
    return [f"generator {number}" for number in range(1, count + 1)]


def opened(
    files: ModelFiles,
    request: GenerationRequest,
    read: TextRead,
    given: Sequence[Any],
    clients: Sequence[Callable[[SamplingCosts], GeneratorClient]],
    decode: Callable[[SamplingCosts], Decode],
    left: LeftAsLatents = NOTHING_LEFT,
) -> Opened:
    """A request to a pyramidal model, priced; ``clients`` make what samples for it, ``decode`` what decodes."""
    recipe = files.recipe.sampled(request.sampling)
    costs = costs_of(files, recipe, files.check(request), read.tokens, read.negative_tokens)
    if left.depths:
        costs = replace(costs, left=left)
    return Opened(
        stages=recipe.pyramid.stages,
        fps=recipe.fps,
        lengths=recipe.lengths(request.units),
        cost=costs.table,
        nfe=costs.nfe_table,
        single=costs.unsearched(request.units, len(given)),
        given=tuple(given),
        clients={name: make(costs) for name, make in zip(generator_names(len(clients)), clients, strict=True)},
        prompt=read.readable,
        unread=read.unread,
        decode=decode(costs),
        leaving=functools.partial(opened, files, request, read, given, clients, decode),
        finishing=costs.left_over(request.units),
    )


async def _decode(ask: Ask, context: Context, units: Mapping[Path, UnitRef]) -> None:
    """Decode those units of a branch, oldest first, that have no frames yet."""
    refs = list(units.values())
    missing = [unit for unit in refs if unit.frames is None]
    if not missing or any(unit.latent is None for unit in missing):  # of one that was dropped, nothing is left
        return
    there = next(n for n, unit in enumerate(refs) if unit.frames is None)
    first = next((n for n in range(there, 0, -1) if refs[n - 1].state is not None), 0)
    state = refs[first - 1].state if first else None
    latents = [unit.latent for unit in refs]
    frames = await ask(lambda actor: actor.decode.remote(state, first, *latents))
    for unit, pixels in zip(refs[first:], frames, strict=True):
        if unit in missing:
            small = await asyncio.to_thread(small_copy, pixels, context.small)
            unit.decoded(ray.put(pixels), ray.put(small) if small is not None else None)


def context_of(files: ModelFiles, request: GenerationRequest) -> Context:
    """What a generator is told of a request. Verifiers judge by the prompt without the model's suffix."""
    recipe = files.recipe.sampled(request.sampling)
    return Context(
        prompt=request.prompt + recipe.prompt_suffix,
        negative=recipe.negative_prompt,
        seed=request.seed,
        height=request.height,
        width=request.width,
        units=request.units,
        from_image=request.image is not None,
        sampling=request.sampling,
    )
