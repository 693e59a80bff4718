"""Pools whose workers are in this process, over a cache of branches: a search's runner without a cluster.

``local_runner`` makes a SearchRunner that has these in place of actors, so that everything above the workers (policies,
dispatcher, conductor, records) is what runs on Ray. Run it in virtual time.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any
from weakref import WeakKeyDictionary

from actors.clients import Decode, nothing_to_decode
from actors.generator import Generator
from actors.local_generators import USUAL_SPEEDS, HostedGenerator, LocalGenerator, LocalUnit, Speeds
from actors.local_verifiers import Desk, HostedVerifier, LocalVerifier
from actors.model_files import ModelFiles
from actors.pools import (
    Ask,
    Opened,
    PyramidPool,
    Units,
    VerifierPool,
    context_of,
    opened,
)
from actors.searches import SearchRunner
from actors.verifier_kinds import set_environment
from framegrove import files
from framegrove.config.model import ModelSource
from framegrove.config.request import unit_lengths
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig, VerifierConfig
from framegrove.evaluation.branch_cache import BranchCache, Ground
from framegrove.evaluation.report import SearchRecord, Shown
from framegrove.flow.cost import SamplingCosts
from framegrove.flow.sampler import StageLatent
from framegrove.search.protocols import VerifierClient
from framegrove.types import Assessment, Cost, GenerationRequest, Path, Scored, ScoreWork
from framegrove.verification.identity import model_of, verifier_identity

# Facts of a verifier that decide what is asked of it and how that counts, and not what it says.
_NOT_THE_VERDICT = {"name", "weight", "judges", "calibration"}


def local_runner(
    cache: BranchCache,
    model: ModelSource | None = None,
    panel: PanelConfig | None = None,
    search: SearchConfig | None = None,
    *,
    generators: int = 2,
    speeds: Speeds = USUAL_SPEEDS,
    verifiers: Sequence[LocalVerifierPool] | None = None,
) -> SearchRunner:
    """A runner over a cache, with so many virtual generators; ``verifiers`` take the place of the panel's own."""
    pool = LocalPyramidPool(cache, model, generators, speeds=speeds)
    if verifiers is None:
        configs = (panel or PanelConfig()).verifiers
        set_environment(configs)
        verifiers = [LocalVerifierPool(cache, each, speeds=speeds) for each in configs]
    return SearchRunner(pool, verifiers, search, crew=LocalCrew(verifiers))


class LocalCrew:
    """Those who work in this process (crew.Workplace): they come up by themselves, when something is missing.

    Virtual verifiers are busy for all searches of a crew. Two crews may well have the same pools.
    """

    def __init__(self, verifiers: Sequence[LocalVerifierPool]) -> None:
        self._verifiers = {pool.name: pool for pool in verifiers}
        # Searches share the workers while they share a clock: each event loop has its own, from 0.
        self._desks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Desk]] = WeakKeyDictionary()

    def __getitem__(self, name: str) -> Any:
        """Where the workers of all verifiers work; generators need nothing but their pool, which a runner has."""
        return self._desks.setdefault(asyncio.get_running_loop(), {})

    async def start(self, names: Iterable[str] | None = None) -> None:
        """Nothing yet."""

    async def close(self) -> None:
        """Stop the engines that were started."""
        for pool in self._verifiers.values():
            pool.close()


class LocalUnits:
    """Units in a cache (pools.Units). None is ever lost, and pictures are unpacked when somebody looks."""

    async def shown(self, units: Mapping[Path, LocalUnit], last_stage: int) -> Mapping[Path, Shown]:
        """What the branches look like."""
        return _Pictures(units, last_stage)

    async def lost(self, units: Mapping[Path, LocalUnit]) -> Collection[Path]:
        """None."""
        return ()

    async def latent(self, unit: LocalUnit) -> StageLatent:
        """A unit's latent."""
        return unit.latent

    def drop(self, unit: LocalUnit) -> None:
        """Nothing: all of it is on the disk."""

    def again(self, record: SearchRecord, path: Path) -> LocalUnit:
        """The search's own handle."""
        unit: LocalUnit = record.outcome.handles[path]
        return unit


class LocalPyramidPool(PyramidPool):
    """``size`` virtual generators of one pyramidal model, over a cache. ``worker`` samples what is missing.

    Up to ``pack`` works of all its searches are sampled together.
    """

    units: Units = LocalUnits()

    def __init__(
        self,
        cache: BranchCache,
        model: ModelSource | None = None,
        size: int = 2,
        *,
        threads: int = 1,
        pack: int = 1,
        worker: Callable[[ModelSource, int], Generator] = Generator,
        speeds: Speeds = USUAL_SPEEDS,
    ) -> None:
        super().__init__(model, size, threads=threads)
        self._cache, self._speeds = cache, speeds
        # Virtual generators take one work at a time; what is packed is the real work behind them.
        self._host = HostedGenerator(lambda: worker(self._files.source if self._files else self._source, threads), pack)
        self._contents: str | None = None

    async def open(self, request: GenerationRequest, group: Any, ask: Ask, config: SearchConfig) -> Opened:
        """Price the request, by what was once read of its prompt; encode its image, if any."""
        if request.start is not None or request.clip is not None:
            raise ValueError("a video that goes on from another one has no place in a cache of branches")
        model = await self._read()
        model.check(request)
        context, ground = context_of(model, request), self.ground(model, request)
        read = self._host.read(ground, context, request.prompt)
        given = []
        if request.image is not None:
            given = [self._host.given(ground, context, request.image, model.recipe.pyramid.stages - 1)]

        def client(costs: SamplingCosts) -> LocalGenerator:
            return LocalGenerator(self._host, ground, replace(context, left=costs.left), costs, self._speeds)

        def decode(costs: SamplingCosts) -> Decode:
            seconds = self._speeds.sampling(Cost(decoding=costs.left_over(request.units)))
            return functools.partial(_decode, seconds)

        return opened(model, request, read, given, [client] * self.size, decode)

    def ground(self, model: ModelFiles, request: GenerationRequest) -> Ground:
        """Where in the cache the branches of a request are: with those of its longer and shorter videos."""
        if self._contents is None:
            self._contents = "+".join(map(files.contents, model.place.files))
        facts = {
            "model": self._contents,
            "variant": model.source.variant,
            "dtype": model.source.dtype,
            "prompt": request.prompt,
            "seed": request.seed,
            "size": [request.width, request.height],
            "image": hashlib.sha256(request.image).hexdigest() if request.image is not None else None,
            **request.sampling.asked,
        }
        return self._cache.ground(facts)


class LocalVerifierPool(VerifierPool):
    """The virtual workers of one verifier, over a cache; ``worker``, by its kind, gives the verdicts that are missing.

    ``facts``, JSON values, decide its verdicts too.
    """

    def __init__(
        self,
        cache: BranchCache,
        config: VerifierConfig,
        *,
        worker: type[Any] | None = None,
        speeds: Speeds = USUAL_SPEEDS,
        facts: Mapping[str, Any] = {},
    ) -> None:
        super().__init__(config, worker=worker)
        self._cache, self._speeds, self._facts = cache, speeds, facts
        self._host: HostedVerifier | None = None

    async def identity(self) -> dict[str, Any]:
        """What decides its scores and how they count, as JSON values."""
        return {**await super().identity(), **self._facts}

    async def prices(
        self, request: GenerationRequest, prompt: str, lengths: Sequence[int], ask: Ask
    ) -> Mapping[Assessment, Sequence[int]]:
        """As the verifier says, which is asked once for each prompt, lengths of units, and size."""
        facts = {"judged": prompt, "units": len(lengths), "height": request.height, "width": request.width}
        if tuple(lengths) != unit_lengths(sum(lengths)):  # a pyramidal model's follow from their number
            facts["lengths"] = list(lengths)
        return self._hosted().prices(self._cache.ground(facts), prompt, lengths, request.height, request.width)

    def clients(
        self,
        group: Any,
        prompt: str,
        config: SearchConfig,
        decode: Decode = nothing_to_decode,
    ) -> dict[str, VerifierClient]:
        """Virtual workers that judge videos made for this prompt; ``group`` has their desks, by name."""
        host = self._hosted()
        return {
            name: LocalVerifier(host, prompt, self._speeds, group.setdefault(name, Desk()))
            for name in self.worker_names
        }

    async def verdict(self, work: ScoreWork, prompt: str, units: Sequence[LocalUnit]) -> Scored:
        """What the verifier says of a branch, given its units, oldest first, with the seconds that it really took."""
        return await self._hosted().score(work, prompt, units)

    def close(self) -> None:
        """Stop the verifier, if it was started."""
        if self._host is not None:
            self._host.close()

    def _hosted(self) -> HostedVerifier:
        if self._host is None:
            identity = {**verifier_identity(self.config), **self._facts}
            verdict = {name: fact for name, fact in identity.items() if name not in _NOT_THE_VERDICT}
            if (model := model_of(self.config)) is not None and (folder := File(model)).is_dir():
                verdict["model"] = files.contents(folder)  # a cache may outlive the folder, and travel
            self._host = HostedVerifier(self.config, self._worker, self._cache.judge(verdict))
        return self._host


async def _decode(seconds: float, units: Mapping[Path, LocalUnit]) -> None:
    """Have the units of a winner decoded that have no frames yet, which takes so many seconds."""
    if seconds:
        await asyncio.sleep(seconds)
    for unit in units.values():
        unit.decoded()


class _Pictures(Mapping[Path, Shown]):
    def __init__(self, units: Mapping[Path, LocalUnit], last_stage: int) -> None:
        self._units, self._last_stage = units, last_stage

    def __getitem__(self, path: Path) -> Shown:
        unit = self._units[path]
        return Shown(unit.frames, draft=unit.branch.stage < self._last_stage)

    def __iter__(self) -> Iterator[Path]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)
