"""From a request to a finished record: runs searches on a crew that stays up over many of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any

from ray.exceptions import ObjectLostError

from actors.adapted import generator_pool
from actors.clients import Decode, ask, by_one_of, nothing_to_decode, recovered
from actors.crew import Crew, Neighbours, Pool, Workplace
from actors.finishing import Finish, left_as_latents, looked_at
from actors.pools import GeneratorPool, Opened, VerifierPool, check_latents
from actors.resizing import Resizing
from actors.unit_store import UnitStore
from framegrove import logs
from framegrove.cluster.metrics import Metrics
from framegrove.cluster.resizing import USUAL, Patience
from framegrove.cluster.supervise import ActorGroup, Limit
from framegrove.config.base import validated
from framegrove.config.generator import AnySource
from framegrove.config.pool import PoolSize
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig
from framegrove.errors import UserError
from framegrove.evaluation.artefacts import artefacts
from framegrove.evaluation.live import LiveSearch
from framegrove.evaluation.outlook import Lookout
from framegrove.evaluation.report import Frames, SearchRecord, report_json
from framegrove.flow.decoding import NOTHING_LEFT
from framegrove.flow.sampler import StageLatent, packed
from framegrove.media.writing import encode_mp4
from framegrove.search import policies
from framegrove.search.conductor import Conductor, Observer, Tally
from framegrove.search.fusion import Panel
from framegrove.search.journal import JOURNAL, Journal
from framegrove.search.panel import unjudged
from framegrove.search.prices import Prices
from framegrove.search.protocols import PanelMember, SearchFailed, VerifierUnusable, WorkFailed
from framegrove.search.result import SearchResult
from framegrove.search.sharing import SharedWorkers
from framegrove.search.tree import Layout, Policy, columns
from framegrove.serving.live import OnLive
from framegrove.types import Assessment, GenerationRequest, GenerationResult, Path, Progress, ScoreWork, prefixes

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]

# Settings of a search that decide how long it takes, and nothing else.
_FOR_THE_TIME_ONLY = {"speculate", "attempts", "scores_in_flight", "start_limit", "sample_limit", "score_limit"}


def search_runner(
    model: AnySource | None = None,
    panel: PanelConfig | None = None,
    search: SearchConfig | None = None,
    *,
    generators: int | PoolSize = 2,
    threads: int = 1,
    pack: int = 1,
    metrics: Metrics | None = None,
    neighbours: Neighbours | None = None,
) -> SearchRunner:
    """A runner for a model and a panel of verifiers; what is None is what comes with the package.

    A generator takes ``pack`` works at a time, of whichever searches, and samples them together: more videos in an
    hour, each of them later, whose last bits depend on what they shared a pass with. With ``metrics``, what its
    searches do is reported through Ray. Runners of one process that use a cluster at the same time are ``neighbours``.
    """
    pools = [VerifierPool(config) for config in (panel or PanelConfig()).verifiers]
    return SearchRunner(
        generator_pool(model, generators, threads=threads, pack=pack),
        pools,
        search,
        observer=metrics,
        on_replaced=metrics.replaced if metrics else lambda pool: None,
        neighbours=neighbours,
    )


class SearchRunner:
    """Runs searches on actors of its own: those of a generator pool and of the verifier pools of a panel.

    Any number of searches may go on at the same time: they share the actors fairly (framegrove.search.sharing), and
    none changes what another one finds.

    ``search`` says how to search, except for policy and budget, which come with each request. ``observer`` is told what
    the searches do, for metrics. Ray must be connected by the time of ``start``, unless the pools' workers are not on
    Ray and come with a ``crew`` of their own (local_pools.LocalCrew).
    """

    def __init__(
        self,
        generators: GeneratorPool,
        verifiers: Sequence[VerifierPool],
        search: SearchConfig | None = None,
        *,
        observer: Observer | None = None,
        on_replaced: Callable[[str], None] = lambda pool: None,
        crew: Workplace | None = None,
        neighbours: Neighbours | None = None,
        shared: SharedWorkers | None = None,
        patience: Patience = USUAL,
    ) -> None:
        self._generators = generators
        self._verifiers = {pool.name: pool for pool in verifiers}
        self._search = search or SearchConfig()
        self._observer = observer
        self._shared = shared or SharedWorkers()
        Panel([pool.config for pool in verifiers], self._search.weights)  # a weight that is nobody's is told now
        self.crew: Workplace = crew or Crew(
            [generators, *verifiers], self._search, on_replaced=on_replaced, neighbours=neighbours
        )
        self._patience = patience
        self._resizing = self._resized()

    def searching(self, search: SearchConfig) -> SearchRunner:
        """A runner that searches in another way, with the same workers."""
        other = SearchRunner(
            self._generators,
            list(self._verifiers.values()),
            search,
            observer=self._observer,
            crew=self.crew,
            shared=self._shared,
        )
        other._resizing = self._resizing
        return other

    async def start(self, *, judging: bool = True) -> None:
        """Bring the actors up and wait until they answer; without verifiers where nothing is to be judged. Idempotent.

        Raises UserError for a missing model or a cluster without room, CrashLoop for actors that keep dying.
        """
        await self._generators.identity()  # missing files are told before anything is started
        if judging:
            PanelConfig(verifiers=tuple(pool.config for pool in self._verifiers.values())).check_files()
            await check_latents(self._generators, self._verifiers.values())
        names = [self._generators.name, *(self._verifiers if judging else ())]
        await self.crew.start(names)
        if self._resizing is not None:
            self._resizing.start(names)

    async def close(self) -> None:
        """End the actors. The runner can be started again."""
        if self._resizing is not None:
            await self._resizing.close()
        self._shared = SharedWorkers()  # those that start again are well, whatever became of these
        self._resizing = self._resized()
        await self.crew.close()

    def _resized(self) -> Resizing | None:
        """What lets the pools grow and shrink whose size is a range."""
        everyone: list[Pool] = [self._generators, *self._verifiers.values()]
        pools = [pool for pool in everyone if pool.least < pool.size]
        if not pools or not isinstance(self.crew, Crew):
            return None
        at_a_time = dict.fromkeys(self._verifiers, self._search.scores_in_flight)
        at_a_time[self._generators.name] = self._generators.pack
        return Resizing(self.crew, self._shared, pools, at_a_time, self._patience)

    async def run(
        self,
        request: GenerationRequest,
        on_progress: OnProgress = lambda progress: None,
        on_live: OnLive = lambda live: None,
    ) -> GenerationResult:
        """Make the video that is asked for, with everything that is shown beside it. Raises as ``search`` does.

        ``on_live`` gets what there is to watch as soon as the search begins, and again where it begins anew.
        """
        record = await self.search(request, on_progress, watch=lambda lookout: on_live(LiveSearch(lookout)))
        video = await asyncio.to_thread(encode_mp4, record.frames[: request.frames], request.fps or record.fps)
        files = await asyncio.to_thread(artefacts, record)
        if self._generators.goes_on:
            units = [await self._generators.units.latent(unit) for unit in record.outcome.units]
            files = {**files, "latents.safetensors": packed(units)}
        return GenerationResult(video, report_json(record), files)

    async def search(
        self,
        request: GenerationRequest,
        on_progress: OnProgress = lambda progress: None,
        journal: File | None = None,
        watch: Callable[[Lookout], None] = lambda lookout: None,
        *,
        whole: bool = False,
    ) -> SearchRecord:
        """Search for the video that is asked for; with a ``journal`` folder, continue after what is finished in there.

        ``watch`` is called once, just before the search begins, with what there is to look at while it goes on.
        ``whole``: branches that lead no further are kept as they are, for `latents`.
        Raises UserError for what the model or the policy cannot do, SearchFailed when actors keep dying. On
        cancellation the works under way are given up and the actors stay usable.
        """
        await self._generators.check(request)
        config = config_of(request, self._search)
        policies.check_comparing(config, [name for name, pool in self._judges(request).items() if pool.config.anchors])
        if self._generators.pack > 1:  # no generator idles while another search has something to do
            config = config.model_copy(update={"speculate": "off"})
        with logs.about(search=secrets.token_hex(4)), _failing_as_a_search():
            log.info("search begins: policy %s, budget %gx, %d units", config.policy, request.budget, request.units)
            on_progress(Progress(0.0, "starting the actors"))
            await self.start(judging=policies.find(request.policy).judged)
            opened = await self._generators.open(request, self._group, self._insist, config)
            made_by = await self._whose(request, config)  # before it begins: files may be others by the end
            layout, result = await self._searched(request, config, opened, made_by, journal, on_progress, watch, whole)
            shown = await self._generators.units.shown(result.handles, layout.last_stage)
            log.info("search ends: %d branches in %.1f s", len(result.nodes), result.seconds)
        return SearchRecord(request, opened.fps, result, shown, opened.single, opened.unread, made_by)

    async def latents(self, record: SearchRecord) -> dict[Path, StageLatent]:
        """The newest units of all branches that are finished ones; those that went with a machine are missing."""
        found: dict[Path, StageLatent] = {}
        for path, handle in record.outcome.handles.items():
            if path in record.shown and not record.shown[path].draft:
                with contextlib.suppress(ObjectLostError):
                    found[path] = await self._generators.units.latent(handle)
        return found

    async def judge(self, record: SearchRecord, *, again: bool = False) -> dict[str, float]:
        """What the panel says of a record's winner as a whole video, whether or not its search asked.

        Those who compare say nothing of one alone.

        ``again``: even if it did, as where the search was judged by another panel.

        Raises SearchFailed when a verifier keeps dying.
        """
        if record.scores and not again:
            return record.scores
        await self.start()
        winner = record.outcome.winner
        units = {path: self._generators.units.again(record, path) for path in prefixes(winner)}
        scores: dict[str, float] = {}
        with _failing_as_a_search():
            for name, member in self._panel(record.request.prompt, self._search, self._verifiers).items():
                if Assessment.FINAL in member.judges and not member.anchors:
                    work = ScoreWork(winner, Assessment.FINAL, name)
                    asked = [(functools.partial(c.score, work, units), c.recover) for c in member.clients.values()]
                    scored = await by_one_of(asked)
                    scores |= columns(scored, alone=len(self._verifiers) == 1)
        return scores

    async def _searched(
        self,
        request: GenerationRequest,
        config: SearchConfig,
        asked: Opened,
        made_by: Mapping[str, Any],
        folder: File | None,
        on_progress: OnProgress,
        watch: Callable[[Lookout], None],
        whole: bool,
    ) -> tuple[Layout, SearchResult]:
        """Run the search; where a verifier cannot be used and others can do without it, again without it.

        What was sampled, and said by the others, is kept: but for what it has cost, the outcome is that of a search
        which never had this verifier.
        """

        def tell(tally: Tally) -> None:
            on_progress(Progress(tally.share, f"{tally.done} of at most {tally.at_most} works done"))

        with contextlib.ExitStack() as stack:
            journal = None
            if folder is not None:
                journal = stack.enter_context(Journal(folder / JOURNAL, made_by, UnitStore(folder)))
            judges = self._judges(request) if policies.find(config.policy).judged else {}
            factors = request.verifiers or {}
            left_out: dict[str, str] = {}
            carried, loop = None, asyncio.get_running_loop()
            began, limit = loop.time(), config.seconds
            while True:
                if limit is not None:  # one limit for all attempts
                    config = config.model_copy(update={"seconds": max(limit + began - loop.time(), 1e-3)})
                fused = self._fused_by(judges, factors)
                policy, prices, opened = await self._planned(request, config, asked, judges, fused)
                finish = Finish(self._generators.units, opened)
                conductor = Conductor(
                    policy,
                    opened.clients,
                    self._panel(opened.prompt, config, judges, opened.decode),
                    config,
                    given=opened.given,
                    journal=journal,
                    on_progress=tell,
                    lost=finish.lost,
                    release=_nothing if whole else self._generators.units.drop,
                    observer=self._observer,
                    carried=carried,
                    shared=self._shared,
                    pack=self._generators.pack,
                    log_p=fused.log_p,
                )
                frames = functools.partial(self._frames, conductor, opened, policy.layout.last_stage)
                watch(Lookout(conductor.snapshot, opened.single, prices, frames))
                try:
                    found = await conductor.run()
                    return policy.layout, replace(found, sampling=found.sampling + finish.costs, left_out=left_out)
                except VerifierUnusable as error:
                    if not config.leave_out or not _can_do_without(error.verifier, judges, policy):
                        raise
                    log.warning("%s is left out: %s", error.verifier, error)
                    left_out[error.verifier] = str(error)
                    del judges[error.verifier]
                    carried = conductor.carried(judges)

    async def _frames(self, conductor: Conductor, opened: Opened, last_stage: int, path: Path) -> Frames | None:
        """The frames of a branch's newest unit in a running search, None where there are none.

        One that was left as a latent is decoded for whoever asks, which is no part of the search and its price.
        """
        units = {prefix: conductor.newest(prefix) for prefix in prefixes(path)}
        if None in units.values():
            return None
        await opened.decode(units)
        shown = await self._generators.units.shown({path: units[path]}, last_stage)
        return shown[path].frames if path in shown else None

    def _judges(self, request: GenerationRequest) -> dict[str, VerifierPool]:
        """The verifiers that are to judge for a request. Raises UserError for one that is not there."""
        asked = self._verifiers if request.verifiers is None else request.verifiers
        for name in asked:
            if name not in self._verifiers:
                raise UserError(f"there is no verifier {name[:60]!r}: choose among {', '.join(self._verifiers)}")
        return {name: pool for name, pool in self._verifiers.items() if name in asked}

    async def _planned(
        self,
        request: GenerationRequest,
        config: SearchConfig,
        opened: Opened,
        judges: Mapping[str, VerifierPool],
        fused: Panel,
    ) -> tuple[Policy, Prices, Opened]:
        """The policy of a search that these verifiers judge, what its works cost, and the request as they leave it.

        What no verifier looks at frames of is left as latents.
        """
        judging = await self._judging_prices(request, opened, judges)

        def made(opened: Opened) -> tuple[Policy, Prices, Opened]:
            prices = Prices(opened.cost, judging, opened.nfe, opened.finishing)
            policy, _ = policies.make_policy(
                config,
                request.units,
                opened.stages,
                prices,
                given=len(opened.given),
                panel=fused if judges else None,
                seed=request.seed,
            )
            return policy, prices, opened

        planned = made(opened)
        looking = looked_at(pool.config for pool in judges.values())
        left = left_as_latents(planned[0].layout, planned[0].assessments, looking) if judges else NOTHING_LEFT
        return made(opened.leaving(left)) if opened.leaving is not None and left.depths else planned

    def _fused_by(self, judges: Mapping[str, VerifierPool], factors: Mapping[str, float]) -> Panel:
        """What the scores of these verifiers mean, by the weights that are theirs, times the ``factors``."""
        weights = {
            name: weight
            for name, weight in self._search.weights.items()
            if name.rpartition("/")[0] in judges or "/" not in name
        }
        return Panel([pool.config for pool in judges.values()], weights, factors)

    async def _judging_prices(
        self, request: GenerationRequest, opened: Opened, judges: Mapping[str, VerifierPool]
    ) -> dict[Assessment, list[int]]:
        """FLOPs of these verifiers' judgement of a branch, by assessment and depth."""
        total: dict[Assessment, list[int]] = {}
        for name, pool in judges.items():
            insist = functools.partial(self._insist, group=self.crew[name])
            prices = await pool.prices(request, opened.prompt, opened.lengths, insist)
            for assessment, by_depth in prices.items():
                before = total.get(assessment, [0] * request.units)
                total[assessment] = [one + other for one, other in zip(before, by_depth, strict=True)]
        return total

    def _panel(
        self,
        prompt: str,
        config: SearchConfig,
        judges: Mapping[str, VerifierPool],
        decode: Decode = nothing_to_decode,
    ) -> Mapping[str, PanelMember]:
        return {
            name: PanelMember(
                pool.clients(self.crew[name], prompt, config, decode),
                pool.judges,
                config.scores_in_flight,
                pool.config.anchors,
            )
            for name, pool in judges.items()
        }

    async def identity(self, config: SearchConfig | None = None) -> dict[str, Any]:
        """What decides the outcome of this runner's searches besides their requests, as JSON values."""
        settings = config or self._search
        options = {name: given for name, given in settings.options.items() if config is None or name == config.policy}
        return {
            "model": await self._generators.identity(),
            "verifiers": {name: await pool.identity() for name, pool in self._verifiers.items()},
            "search": settings.model_dump(mode="json", exclude=_FOR_THE_TIME_ONLY) | {"options": options},
        }

    async def _whose(self, request: GenerationRequest, config: SearchConfig) -> dict[str, Any]:
        """Everything that decides the outcome of one search, for its journal and its report."""
        return {
            "prompt": request.prompt,
            "seed": request.seed,
            "units": request.units,
            "size": [request.width, request.height],
            "image": hashlib.sha256(request.image).hexdigest() if request.image is not None else None,
            **({"start": hashlib.sha256(request.start).hexdigest()} if request.start is not None else {}),
            **({"clip": hashlib.sha256(request.clip).hexdigest()} if request.clip is not None else {}),
            **({"judges": request.verifiers} if request.verifiers is not None else {}),
            **request.sampling.asked,
            **await self.identity(config),
        }

    @property
    def _group(self) -> ActorGroup:
        return self.crew[self._generators.name]

    async def _insist(self, method: Callable[[Any], Awaitable[Any]], group: ActorGroup | None = None) -> Any:
        """Ask an actor of a group (absent: a generator) something small, and again if it dies meanwhile."""
        group = group or self._group
        limit = Limit(self._search.sample_limit, "reading the request")
        calls = [
            (functools.partial(ask, group, n, method, limit), functools.partial(recovered, group, n)) for n in group.up
        ]
        return await by_one_of(calls)


def _nothing(unit: Any) -> None:
    """What is released otherwise is kept."""


def config_of(request: GenerationRequest, search: SearchConfig) -> SearchConfig:
    """The configuration of one search: what the request says, and otherwise ``search``. Raises UserError."""
    wanted = {**search.model_dump(), "policy": request.policy, "budget": request.budget}
    if request.until is not None:
        wanted["until"] = request.until
    if request.within is not None:
        wanted["seconds"] = request.within
    if request.options:
        wanted["options"] = {**wanted["options"], request.policy: request.options}
    if request.speculate is not None:
        wanted["speculate"] = request.speculate
    return validated(SearchConfig, wanted, "the request")


def _can_do_without(verifier: str, judges: Mapping[str, VerifierPool], policy: Policy) -> bool:
    """Whether others take part in everything that the policy may ask for."""
    return not unjudged(policy.assessments, [pool.judges for name, pool in judges.items() if name != verifier])


@contextlib.contextmanager
def _failing_as_a_search() -> Iterator[None]:
    """A worker that is given up, outside of any policy's work, ends the search."""
    try:
        yield
    except WorkFailed as failure:
        raise SearchFailed(str(failure)) from failure
