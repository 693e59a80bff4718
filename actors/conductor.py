"""The process that runs searches: brings generator and verifier actors up, and keeps them warm over many requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path as File
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from actors.clients import RemoteGenerator, RemoteVerifier, UnitRef, ask, lost_of, recovered
from actors.generator import Generator, Scene
from actors.model_files import ModelFiles
from actors.unit_store import UnitStore
from actors.unsearched import sample_once
from actors.verifier import verifier_class
from framegrove.cluster.placement import Role, bundle, grows, machines, placed, require
from framegrove.cluster.session import connect
from framegrove.cluster.shares import Shares, gpu_shares
from framegrove.cluster.supervise import ActorGroup, Limit
from framegrove.config.base import validated
from framegrove.config.model import ModelSource
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig, environment
from framegrove.errors import UserError
from framegrove.evaluation.report import SearchRecord, Shown, report_json
from framegrove.flow.cost import SamplingCosts
from framegrove.media.writing import encode_mp4
from framegrove.models.vae_tiling import decode_flops
from framegrove.search.conductor import Conductor, Tally
from framegrove.search.journal import Journal
from framegrove.search.policies import make_policy
from framegrove.search.protocols import SearchFailed, WorkFailed
from framegrove.search.result import SearchResult
from framegrove.search.tree import Layout
from framegrove.types import (
    Assessment,
    GenerationRequest,
    GenerationResult,
    Path,
    Progress,
    ScoreWork,
)
from framegrove.verification.identity import verifier_identity

OnProgress = Callable[[Progress], None]
Answer = TypeVar("Answer")

UNSEARCHED = "none"  # the policy that takes the first sample as it comes
# Settings of a search that decide how long it takes, and nothing else.
_FOR_THE_TIME_ONLY = {"speculate", "attempts", "scores_in_flight", "start_limit", "sample_limit", "score_limit"}
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
        verifier: PanelConfig | None = None,
        search: SearchConfig | None = None,
        threads: int = 1,
    ) -> None:
        self._model, self._count, self._threads = model or ModelSource(), generators, threads
        (self._verifier,) = (verifier or PanelConfig()).verifiers
        self._search = search or SearchConfig()
        self._files: ModelFiles | None = None
        self._groups: dict[Role, ActorGroup] = {}
        self._placing = asyncio.Lock()
        self._coming: dict[Role, asyncio.Task[None]] = {}  # actors that are there and do not answer yet

    async def start(self, *, judging: bool = True) -> None:
        """Bring the actors up and wait until they answer; without a verifier where nothing is to be judged. Idempotent.

        Raises UserError, in one sentence, for a missing model, a cluster without room, or actors that keep dying.
        """
        files = await self._read()
        roles = [Role.GENERATE]
        if judging:
            # A missing verifier is reported here, as far as that can be seen from this machine.
            PanelConfig(verifiers=(self._verifier,)).check_files()
            roles.append(Role.VERIFY)
        if any(role not in self._groups for role in roles):  # what needs no verifier does not wait for its room
            async with self._placing:
                await self._place(roles, files)
        await self._come(roles)

    async def _place(self, roles: Sequence[Role], files: ModelFiles) -> None:
        """Create the actors that are missing, of all roles or of none: there must be room for them together."""
        await self._come(list(self._groups))  # until they answer, they may not have taken their place yet
        new = [role for role in roles if role not in self._groups]
        if not new:
            return
        shares = await asyncio.to_thread(_claim_room, new, self._count, self._verifier.engine.tensor_parallel)
        for role in new:
            if role is Role.GENERATE:
                group = ActorGroup(lambda index: self._new_generator(files, shares), self._count)
            else:
                group = ActorGroup(lambda index: self._new_verifier(shares), 1)
            self._groups[role] = group
            self._coming[role] = asyncio.create_task(self._started(role, group))

    async def _come(self, roles: Sequence[Role]) -> None:
        """Wait for actors to answer, each to its end, so that nothing is still starting when a failure is told."""
        coming = [asyncio.shield(self._coming[role]) for role in roles if role in self._coming]
        for failure in await asyncio.gather(*coming, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _started(self, role: Role, group: ActorGroup) -> None:
        try:
            await asyncio.gather(*(recovered(group, index, self._search) for index in range(len(group))))
        except WorkFailed as failure:
            await self._close([role])
            raise UserError(f"the actors could not be started: {failure}") from failure
        except BaseException:
            await self._close([role])
            raise
        finally:
            if self._coming.get(role) is asyncio.current_task():
                del self._coming[role]

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

        Raises UserError, in one sentence, for what the model cannot do, and SearchFailed when actors keep dying. On
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
        verifier = RemoteVerifier(self._groups[Role.VERIFY], 0, record.request.prompt, self._search)
        work = ScoreWork(record.outcome.winner, Assessment.FINAL)
        branch = [work.path[: n + 1] for n in range(len(work.path))]
        units = {path: UnitRef(0, None, ray.put(record.shown[path].frames), None) for path in branch}
        with _failing_in_a_sentence():
            while True:
                try:
                    return dict((await verifier.score(work, units)).scores)
                except WorkFailed:
                    await verifier.recover()

    async def close(self) -> None:
        """End the actors. The runner can be started again."""
        coming = list(self._coming.values())
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
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
    ) -> SearchResult:
        wanted = {**self._search.model_dump(), "policy": request.policy, "budget": request.budget}
        config = validated(SearchConfig, wanted, "the request")
        policy, _ = make_policy(config, layout.units, layout.stages, costs.table, given=layout.given)
        verifiers = {"verifier": RemoteVerifier(self._groups[Role.VERIFY], 0, request.prompt, config)}

        def tell(tally: Tally) -> None:
            on_progress(Progress(tally.share, f"{tally.done} works done of at most {tally.at_most}"))

        def conductor(journal: Journal | None) -> Conductor:
            return Conductor(
                policy,
                clients,
                verifiers,
                config,
                given=given,
                journal=journal,
                on_progress=tell,
                lost=lost_of,
                cut=UnitRef.let_go,
            )

        if folder is None:
            return await conductor(None).run()
        identity = await self._identity(request, config)
        store = UnitStore(folder)
        with Journal(folder / "journal.jsonl", identity, store) as journal:
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
            "verifier": await asyncio.to_thread(verifier_identity, self._verifier),
            "search": config.model_dump(mode="json", exclude=_FOR_THE_TIME_ONLY),
        }

    def _clients(self, scene: Scene, costs: SamplingCosts) -> dict[str, RemoteGenerator]:
        group = self._groups[Role.GENERATE]
        return {f"generator {n + 1}": RemoteGenerator(group, n, scene, costs, self._search) for n in range(len(group))}

    async def _given(self, scene: Scene, image: bytes | None, stage: int) -> tuple[UnitRef, ...]:
        if image is None:
            return ()
        unit = await self._insist(lambda actor: actor.given.remote(scene, image))
        latent, frames, state = map(ray.put, unit)  # kept on this machine: no work could make them again
        return (UnitRef(stage, latent, frames, state, given=True),)

    async def _insist(self, method: Callable[[Any], Awaitable[Answer]]) -> Answer:
        """Ask a generator something small, and again if it dies of something else meanwhile."""
        group, limit = self._groups[Role.GENERATE], Limit(self._search.sample_limit, "reading the request")
        while True:
            try:
                return await ask(group, 0, method, limit)
            except WorkFailed:
                await recovered(group, 0, self._search)

    async def _read(self) -> ModelFiles:
        """The model's configuration, read once, off the event loop: a hub model is asked for over the network."""
        if self._files is None:
            self._files = await asyncio.to_thread(ModelFiles.read, self._model)
        return self._files

    def _new_generator(self, files: ModelFiles, shares: Shares) -> Any:
        options = placed(Role.GENERATE, num_gpus=shares.generator)
        options["max_concurrency"] = _CALLS_AT_A_TIME
        return ray.remote(Generator).options(**options).remote(files.source, self._threads)

    def _new_verifier(self, shares: Shares) -> Any:
        options = placed(Role.VERIFY, num_gpus=shares.verifier)
        options["runtime_env"] = {"env_vars": environment(self._verifier)}
        return ray.remote(verifier_class(self._verifier.kind)).options(**options).remote(self._verifier)


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


def _claim_room(roles: Sequence[Role], generators: int, split: int) -> Shares:
    """How many GPUs each actor gets. Raises NoRoom where the cluster cannot hold all actors of these roles together."""
    with connect() as cluster:
        shares = gpu_shares(machines(), generators, split=split, grows=grows())
        wanted = []
        if Role.GENERATE in roles:
            wanted += [bundle(Role.GENERATE, num_gpus=shares.generator)] * generators
        if Role.VERIFY in roles:
            wanted.append(bundle(Role.VERIFY, num_gpus=shares.verifier))
        names = {Role.GENERATE: f"generating with {generators} actors", Role.VERIFY: "judging"}
        require(cluster, wanted, purpose=" and ".join(names[role] for role in roles))
    return shares


async def _shown(outcome: SearchResult, layout: Layout) -> dict[Path, Shown]:
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
