"""The pools that a search is given: what makes their actors, and what a search must know of them.

A generator pool checks and prices requests and hands out clients that sample; a verifier pool hands out clients that
score. Another generator or verifier is another class with these methods: nothing that runs a search knows more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray.actor import ActorHandle

from actors.clients import RemoteGenerator, RemoteVerifier, UnitRef
from actors.generator import Context, Generator
from actors.model_files import ModelFiles
from actors.verifier import verifier_class
from framegrove.cluster.placement import Role, placed
from framegrove.cluster.supervise import ActorGroup
from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import VerifierConfig, environment
from framegrove.flow.cost import SamplingCosts
from framegrove.models.vae_tiling import decode_flops
from framegrove.search.prices import CostTable
from framegrove.search.protocols import GeneratorClient, VerifierClient
from framegrove.search.workers import GENERATORS
from framegrove.types import Assessment, Cost, GenerationRequest

Answer = TypeVar("Answer")
Ask = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
"""Calls a method of an actor of the pool, again if it dies: ``await ask(lambda actor: actor.read.remote())``."""

_CALLS_AT_A_TIME = 4  # of a generator: one samples, the others cancel it and ask whether it is well


@dataclass(frozen=True)
class Opened:
    """A request as a generator pool has opened it: how it is priced, what is given, and clients that sample for it.

    ``cost`` prices sample works in FLOPs, decoding included; ``single`` is the whole cost of one unsearched video.
    ``given`` holds the units that are not searched for. ``prompt`` is the part of the prompt that the model can read,
    ``unread`` the first words of the rest.
    """

    stages: int
    fps: float
    cost: CostTable
    single: Cost
    given: tuple[UnitRef, ...]
    clients: Mapping[str, GeneratorClient]
    prompt: str
    unread: str | None = None


class GeneratorPool(Protocol):
    """Actors that sample, and what can be said of a request before any of them is up. Also a crew.Pool."""

    name: str
    role: Role
    size: int
    whole_gpus: int | None

    def create(self, gpus: float) -> ActorHandle[Any]: ...

    async def check(self, request: GenerationRequest) -> None:
        """Raise UserError, in one sentence, for what the model cannot make. Needs no actor."""
        ...

    async def identity(self) -> str:
        """Changes whenever the model does."""
        ...

    async def open(self, request: GenerationRequest, group: ActorGroup, ask: Ask, config: SearchConfig) -> Opened:
        """Prepare for a request, once the actors are up."""
        ...


class PyramidPool:
    """``size`` generator actors of one pyramidal model, each with ``threads`` CPU threads; None is the embedded model.

    ``worker`` is the class that becomes an actor.
    """

    name = GENERATORS
    role = Role.GENERATE
    whole_gpus: int | None = None

    def __init__(
        self,
        model: ModelSource | None = None,
        size: int = 2,
        *,
        threads: int = 1,
        worker: type[Generator] = Generator,
    ) -> None:
        self._model = model or ModelSource()
        self.size = size
        self._threads = threads
        self._worker = worker
        self._files: ModelFiles | None = None

    def create(self, gpus: float) -> ActorHandle[Any]:
        """A generator actor."""
        options = {**placed(self.role, num_gpus=gpus), "max_concurrency": _CALLS_AT_A_TIME}
        source = self._files.source if self._files else self._model
        actor: Any = ray.remote(self._worker).options(**options).remote(source, self._threads)
        return actor

    async def check(self, request: GenerationRequest) -> None:
        """Raise UserError, in one sentence, for what the model cannot make, or for a model that is missing."""
        (await self._read()).check(request)

    async def identity(self) -> str:
        """Changes whenever a file of the model does."""
        return await asyncio.to_thread((await self._read()).fingerprint)

    async def open(self, request: GenerationRequest, group: ActorGroup, ask: Ask, config: SearchConfig) -> Opened:
        """Price the request by its exact numbers of tokens, and encode its image, if any."""
        files = await self._read()
        context = context_of(files, request)
        size = files.check(request)
        read = await ask(lambda actor: actor.read.remote(context, request.prompt))
        decoding = decode_flops(files.vae, size)
        costs = SamplingCosts(files.transformer, files.recipe, size, read.tokens, read.negative_tokens, decoding)
        stages = files.recipe.pyramid.stages
        given: tuple[UnitRef, ...] = ()
        if request.image is not None:
            unit = await ask(lambda actor: actor.given.remote(context, request.image))
            latent, frames, state = map(ray.put, unit)  # kept on this machine: no work could compute them again
            given = (UnitRef(stages - 1, latent, frames, state, given=True),)
        clients = {
            f"generator {index + 1}": RemoteGenerator(group, index, context, costs, config)
            for index in range(len(group))
        }
        return Opened(
            stages=stages,
            fps=files.recipe.fps,
            cost=costs.table,
            single=costs.unsearched(request.units, len(given)),
            given=given,
            clients=clients,
            prompt=read.readable,
            unread=read.unread,
        )

    async def _read(self) -> ModelFiles:
        """The model's configuration, read once, off the event loop: a hub model is asked for over the network."""
        if self._files is None:
            self._files = await asyncio.to_thread(ModelFiles.read, self._model)
        return self._files


class VerifierPool:
    """The actors of one verifier, which share its load. ``worker`` is the class that becomes an actor, by its kind."""

    role = Role.VERIFY

    def __init__(self, config: VerifierConfig, *, worker: type[Any] | None = None) -> None:
        self.config = config
        self.name = config.name
        self.size = config.actors
        self.whole_gpus = config.engine.tensor_parallel if config.kind == "vllm" else 0
        self._worker = worker or verifier_class(config.kind)

    @property
    def judges(self) -> tuple[Assessment, ...]:
        """The assessments it takes part in."""
        return self.config.assessments

    def create(self, gpus: float) -> ActorHandle[Any]:
        """A verifier actor."""
        options = placed(self.role, num_gpus=gpus)
        if self.config.kind == "vllm":
            options["runtime_env"] = {"env_vars": environment(self.config)}
        actor: Any = ray.remote(self._worker).options(**options).remote(self.config)
        return actor

    def clients(self, group: ActorGroup, prompt: str, config: SearchConfig) -> dict[str, VerifierClient]:
        """Clients that judge videos made for this prompt, by the names of their workers."""
        names = [self.name if self.size == 1 else f"{self.name} {index + 1}" for index in range(self.size)]
        return {name: RemoteVerifier(group, index, prompt, config) for index, name in enumerate(names)}


def context_of(files: ModelFiles, request: GenerationRequest) -> Context:
    """What a generator is told of a request. Verifiers judge by the prompt without the model's suffix."""
    return Context(
        prompt=request.prompt + files.recipe.prompt_suffix,
        negative=files.recipe.negative_prompt,
        seed=request.seed,
        height=request.height,
        width=request.width,
        units=request.units,
        from_image=request.image is not None,
    )
