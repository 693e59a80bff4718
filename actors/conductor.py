"""The process that runs searches: brings generator and verifier actors up, and keeps them warm over many requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path as File
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from actors.clients import RemoteGenerator, RemoteVerifier, UnitRef, ask, recovered
from actors.clip_verifier import ClipVerifier
from actors.generator import Generator, Scene
from actors.model_files import ModelFiles
from actors.shelf import Shelf
from actors.unsearched import sample_once
from framegrove.cluster.placement import Role, bundle, placed, require
from framegrove.cluster.session import connect
from framegrove.cluster.supervise import ActorGroup
from framegrove.config.base import validated
from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import EngineConfig, environment, model_folder
from framegrove.evaluation.media import encode_mp4
from framegrove.evaluation.report import SearchRecord, Shown, report_json
from framegrove.flow.cost import SamplingCosts
from framegrove.models.vae_tiling import decode_flops
from framegrove.search.conductor import Conductor, Tally
from framegrove.search.journal import Journal
from framegrove.search.outcome import Outcome
from framegrove.search.policies import make_policy
from framegrove.search.protocols import SearchFailed, WorkFailed
from framegrove.search.tree import Layout
from framegrove.types import (
    Assessment,
    GenerationRequest,
    GenerationResult,
    Path,
    Progress,
    ScoreWork,
)
from framegrove.verification.rewriting import staged

OnProgress = Callable[[Progress], None]
Answer = TypeVar("Answer")

UNSEARCHED = "none"  # the policy that takes the first sample as it comes
_CALLS_AT_A_TIME = 4  # of a generator: one samples, the others cancel it and ask whether it is well


class SearchRunner:
    """Runs searches on generator actors and a verifier actor of its own.

    ``model`` absent is the embedded one; ``search`` says how to search, but for policy and budget: they
    come with each request. Ray must be connected by the time of ``start``.
    """

    def __init__(
        self,
        model: ModelSource | None = None,
        *,
        generators: int = 2,
        verifier: EngineConfig | None = None,
        search: SearchConfig | None = None,
        threads: int = 1,
    ) -> None:
        self._model, self._count, self._threads = model or ModelSource(), generators, threads
        self._engine = verifier or EngineConfig()
        self._search = search or SearchConfig()
        self._files: ModelFiles | None = None
        self._groups: dict[Role, ActorGroup] = {}
        self._starting = {role: asyncio.Lock() for role in (Role.GENERATE, Role.VERIFY)}

    async def start(self, *, judging: bool = True) -> None:
        """Bring the actors up and wait until they answer; without a verifier where nothing is to be judged. Idempotent.

        Raises ValueError, in one sentence, for a missing model, a cluster without room, or actors that keep dying.
        """
        files = await self._read()
        if judging:
            model_folder(self._engine)  # a missing verifier is told here, as far as that can be seen from here
        starts = [self._start(Role.GENERATE, self._count, lambda index: self._new_generator(files))]
        if judging:
            starts.append(self._start(Role.VERIFY, 1, self._new_verifier))
        # Each to its end, so that nothing is still starting when a failure is told.
        for failure in await asyncio.gather(*starts, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _start(self, role: Role, count: int, create: Callable[[int], Any]) -> None:
        async with self._starting[role]:  # a lock a role: what needs no verifier does not wait for it
            if role in self._groups:
                return
            await asyncio.to_thread(_claim_room, role, count, self._gpus(role))
            group = self._groups[role] = ActorGroup(create, count)
            try:
                await asyncio.gather(*(recovered(group, index) for index in range(count)))
            except WorkFailed as failure:
                await self._close([role])
                raise ValueError(f"the actors could not be started: {failure}") from failure
            except BaseException:
                await self._close([role])
                raise

    async def run(
        self, request: GenerationRequest, on_progress: OnProgress = lambda progress: None
    ) -> GenerationResult:
        """Make the video that is asked for. Raises as ``search`` does."""
        record = await self.search(request, on_progress)
        video = await asyncio.to_thread(encode_mp4, record.frames, record.fps)
        return GenerationResult(video, report_json(record))

    async def search(
        self, request: GenerationRequest, on_progress: OnProgress = lambda progress: None, journal: File | None = None
    ) -> SearchRecord:
        """Search for the video that is asked for; with a ``journal`` folder, go on with what is finished in there.

        Raises ValueError, in one sentence, for what the model cannot do, and SearchFailed when actors keep dying. On
        cancellation the works under way are given up and the actors stay usable.
        """
        files = await self._read()
        latent = files.check(request)
        judging = request.policy != UNSEARCHED
        on_progress(Progress(0.0, "starting the actors"))
        await self.start(judging=judging)
        with _failing_in_a_sentence():
            return await self._made(files, request, latent, on_progress, journal)

    async def _made(
        self,
        files: ModelFiles,
        request: GenerationRequest,
        latent: tuple[int, int],
        on_progress: OnProgress,
        journal: File | None,
    ) -> SearchRecord:
        scene = scene_of(files, request)
        text, negative = await self._insist(lambda actor: actor.read.remote(scene))
        decoding = decode_flops(files.vae, latent)
        costs = SamplingCosts(files.transformer, files.recipe, latent, text, negative, decoding)
        given = await self._given(scene, request.image, files.recipe.pyramid.stages - 1)
        layout = Layout(request.units, files.recipe.pyramid.stages, given=len(given))
        clients = self._clients(scene, costs)
        if request.policy != UNSEARCHED:
            outcome = await self._searched(request, layout, costs, clients, given, journal, on_progress)
        else:
            outcome = await sample_once(layout, clients, given, lambda done: on_progress(Progress(done, "sampling")))
        single = costs.unsearched(layout.units, layout.given)
        return SearchRecord(request, files.recipe.fps, outcome, await _shown(outcome, layout), single)

    async def judge(self, record: SearchRecord) -> dict[str, float]:
        """What the panel says of a record's winner as a whole video, whether or not its search asked.

        Raises SearchFailed when the verifier keeps dying.
        """
        if record.scores:
            return record.scores
        await self.start()
        verifier = RemoteVerifier(self._groups[Role.VERIFY], 0, staged(record.request.prompt))
        work = ScoreWork(record.outcome.winner, Assessment.FINAL)
        with _failing_in_a_sentence():
            while True:
                try:
                    return dict((await verifier.score(work, record.outcome.units[-1])).scores)
                except WorkFailed:
                    await verifier.recover()

    async def close(self) -> None:
        """End the actors. The runner can be started again."""
        await self._close(list(self._groups))

    async def _close(self, roles: Sequence[Role]) -> None:
        groups = {role: self._groups.pop(role) for role in roles if role in self._groups}
        if Role.VERIFY in groups:  # the engine has a process of its own
            endings = [asyncio.ensure_future(_ended(actor)) for actor in groups[Role.VERIFY].actors]
            await asyncio.wait(endings, timeout=10)
        for group in groups.values():
            group.close()

    async def _searched(
        self,
        request: GenerationRequest,
        layout: Layout,
        costs: SamplingCosts,
        clients: dict[str, RemoteGenerator],
        given: tuple[UnitRef, ...],
        folder: File | None,
        on_progress: OnProgress,
    ) -> Outcome:
        wanted = {**self._search.model_dump(), "policy": request.policy, "budget": request.budget}
        config = validated(SearchConfig, wanted, "the request")
        policy, _ = make_policy(config, layout.units, layout.stages, costs.table, given=layout.given)
        verifiers = {"verifier": RemoteVerifier(self._groups[Role.VERIFY], 0, staged(request.prompt))}

        def tell(tally: Tally) -> None:
            on_progress(Progress(tally.share, f"{tally.done} works done of at most {tally.at_most}"))

        def conductor(journal: Journal | None) -> Conductor:
            return Conductor(policy, clients, verifiers, config, given=given, journal=journal, on_progress=tell)

        if folder is None:
            return await conductor(None).run()
        shelf = Shelf(folder, layout.last_stage, given)
        identity = await self._identity(request, config)
        with Journal(folder / "journal.jsonl", identity, shelf) as journal:
            return await conductor(journal).run()

    async def _identity(self, request: GenerationRequest, config: SearchConfig) -> dict[str, Any]:
        """Everything that decides the outcome of a search."""
        return {
            "prompt": request.prompt,
            "seed": request.seed,
            "units": request.units,
            "size": [request.width, request.height],
            "image": hashlib.sha256(request.image).hexdigest() if request.image is not None else None,
            "model": (await self._read()).fingerprint(),
            "verifier": self._engine.model_dump(mode="json"),
            "search": config.model_dump(mode="json", exclude={"speculate", "attempts", "scores_in_flight"}),
        }

    def _clients(self, scene: Scene, costs: SamplingCosts) -> dict[str, RemoteGenerator]:
        group = self._groups[Role.GENERATE]
        return {f"generator {n + 1}": RemoteGenerator(group, n, scene, costs) for n in range(len(group))}

    async def _given(self, scene: Scene, image: bytes | None, stage: int) -> tuple[UnitRef, ...]:
        if image is None:
            return ()
        refs: list[Any] = []

        def submit(actor: Any) -> Any:
            refs[:] = actor.given.options(num_returns=3).remote(scene, image)
            return refs[0]

        await self._insist(submit)
        latent, frames, state = refs
        return (UnitRef(stage, latent, frames, state, given=True),)

    async def _insist(self, method: Callable[[Any], Awaitable[Answer]]) -> Answer:
        """Ask a generator something small, and again if it dies of something else meanwhile."""
        group = self._groups[Role.GENERATE]
        while True:
            try:
                return await ask(group, 0, method)
            except WorkFailed:
                await recovered(group, 0)

    async def _read(self) -> ModelFiles:
        """The model's configuration, read once, off the event loop: a hub model is asked for over the network."""
        if self._files is None:
            self._files = await asyncio.to_thread(ModelFiles.read, self._model)
        return self._files

    def _gpus(self, role: Role) -> float:
        """The GPUs of each actor of a role: shares, so that all find a place, but whole ones for a split verifier."""
        there, split = int(ray.cluster_resources().get("GPU", 0)), self._engine.tensor_parallel
        if not there:
            return 0.0
        if split == 1:
            return 1 / math.ceil((self._count + 1) / there)
        return float(split) if role is Role.VERIFY else 1 / math.ceil(self._count / max(1, there - split))

    def _new_generator(self, files: ModelFiles) -> Any:
        options = placed(Role.GENERATE, num_gpus=self._gpus(Role.GENERATE))
        options["max_concurrency"] = _CALLS_AT_A_TIME
        return ray.remote(Generator).options(**options).remote(files.source, self._threads)

    def _new_verifier(self, index: int) -> Any:
        options = placed(Role.VERIFY, num_gpus=self._gpus(Role.VERIFY))
        options["runtime_env"] = {"env_vars": environment(self._engine)}
        return ray.remote(ClipVerifier).options(**options).remote(self._engine)


@contextlib.contextmanager
def _failing_in_a_sentence() -> Iterator[None]:
    """A worker that is given up, outside of any policy's work, ends the search."""
    try:
        yield
    except WorkFailed as failure:
        raise SearchFailed(str(failure)) from failure


def scene_of(files: ModelFiles, request: GenerationRequest) -> Scene:
    """What a generator is told of a request. The verifier judges by the prompt without the model's suffix."""
    text = request.prompt + files.recipe.prompt_suffix
    from_image = request.image is not None
    return Scene(
        text, files.recipe.negative_prompt, request.seed, request.height, request.width, request.units, from_image
    )


def _claim_room(role: Role, count: int, gpus: float) -> None:
    """Raise NoRoom where the cluster cannot hold so many actors."""
    purpose = "generating" if role is Role.GENERATE else "the verifier"
    with connect() as cluster:
        require(cluster, [bundle(role, num_gpus=gpus)] * count, purpose=purpose)


async def _shown(outcome: Outcome, layout: Layout) -> dict[Path, Shown]:
    """What every branch of a finished search looks like."""
    units: list[UnitRef] = list(outcome.handles.values())
    frames = await asyncio.gather(*(_value(unit.frames) for unit in units))
    return {
        path: Shown(shown, draft=unit.stage < layout.last_stage)
        for path, unit, shown in zip(outcome.handles, units, frames, strict=True)
    }


async def _value(ref: Any) -> Any:
    return await ref


async def _ended(actor: Any) -> None:
    with contextlib.suppress(RayError):  # an actor that is dead or never came up needs no ending
        await actor.close.remote()
