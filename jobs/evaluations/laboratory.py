"""Where jobs.evaluate runs its searches: on Ray, or over a cache in this process; and who reads the results."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, TypeVar

from framegrove.errors import UserError
from framegrove.words import counted

if TYPE_CHECKING:
    from actors.local_generators import LocalUnit, Speeds
    from actors.local_pools import LocalPyramidPool, LocalVerifierPool
    from actors.pools import VerifierPool
    from actors.searches import SearchRunner
    from framegrove.config.generator import AnySource
    from framegrove.config.model import ModelSource
    from framegrove.config.search import SearchConfig
    from framegrove.config.verifier import PanelConfig
    from framegrove.digits.oracle import Verdict
    from framegrove.digits.readings import BranchReading
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.branch_cache import BranchCache
    from framegrove.evaluation.report import SearchRecord
    from framegrove.search.fusion import Panel
    from framegrove.types import Assessment, Path, Scored
    from jobs.console import Display

PANEL, ORACLE = "panel", "oracle"
Names = Collection[str] | None
_READ = "reading"  # what the oracle is asked of every branch, as a cache has it


async def _nobody(record: SearchRecord) -> dict[str, float]:
    return {}


async def _no_opinion(record: SearchRecord, path: Path, assessment: Assessment) -> dict[str, Scored]:
    return {}


@dataclass(frozen=True)
class Laboratory:
    """A runner of searches, how to run what it is asked, and how to read what comes out.

    ``search`` is how it searches where a setting does not say otherwise, ``panel`` what the verifiers' scores mean.
    ``searching`` makes a runner that searches in another way, judged by verifiers of these names (None: by all), and
    ``searches`` searches go on at a time. ``verdict`` says how right a record's winner is. ``workers`` are the numbers
    of generators and of verifiers. ``run`` runs a coroutine to its end, inside ``connected`` if actors take part.
    ``facts``, JSON values, decide the rows besides the runner's identity. ``effort`` tells what had to be computed,
    where that says anything. ``reading`` is the oracle's of any branch, where those are kept. ``held_out`` asks a judge
    that takes no part in the searches about a record's winner; ``opinions`` are those of such judges, by name, of any
    branch of a search over a cache, with the seconds that they took. ``journals``: whether searches should keep them,
    since what they have sampled is kept nowhere else.
    """

    runner: SearchRunner
    search: SearchConfig
    panel: Panel
    searching: Callable[[SearchConfig, Names], SearchRunner]
    searches: int
    verdict: Callable[[SearchRecord, Sequence[DigitObject]], Verdict]
    workers: tuple[int, int]
    run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run
    connected: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    facts: Mapping[str, Any] = field(default_factory=dict)
    effort: Callable[[], str | None] = lambda: None
    reading: Callable[[SearchRecord, Path, Sequence[DigitObject]], BranchReading] | None = None
    held_out: Callable[[SearchRecord], Awaitable[dict[str, float]]] = _nobody
    opinions: Callable[[SearchRecord, Path, Assessment], Awaitable[dict[str, Scored]]] = _no_opinion
    journals: bool = False


Wanted = TypeVar("Wanted")


async def side_by_side(
    lab: Laboratory, wanted: Iterable[Wanted], make: Callable[[Wanted], Awaitable[None]], display: Display, what: str
) -> None:
    """Make everything that is wanted, as many at a time as ``lab`` searches at a time, with its workers up.

    An error of one ends the others. ``what`` is said once the workers are there.
    """
    left = iter(wanted)

    async def make_some() -> None:
        for each in left:
            await make(each)

    try:
        display.begin("starting generators and verifier")
        await lab.runner.start()
        display.begin(what)
        async with asyncio.TaskGroup() as group:
            for _ in range(lab.searches):
                group.create_task(make_some())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # one search's; the others were cancelled for it
    finally:
        await lab.runner.close()


@contextlib.contextmanager
def on_ray(
    source: AnySource,
    panel: PanelConfig,
    search: SearchConfig,
    generators: int,
    *,
    searches: int = 1,
    held_out: PanelConfig | None = None,
) -> Iterator[Laboratory]:
    """Real actors. Where there are more ``searches`` than generators, these sample for several of them together."""
    from actors.adapted import generator_pool
    from actors.crew import Crew
    from actors.pools import VerifierPool
    from actors.searches import SearchRunner
    from framegrove.cluster.session import connect
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.search.fusion import Panel

    oracle = DigitsOracle()
    generator = generator_pool(source, generators, pack=math.ceil(searches / generators))
    pools = [VerifierPool(each) for each in panel.verifiers]
    apart = [VerifierPool(each) for each in (held_out.verifiers if held_out else ())]
    crew = Crew([generator, *pools, *apart], search)
    runner = SearchRunner(generator, pools, search, crew=crew)
    judge = SearchRunner(generator, apart, search, crew=crew)
    yield Laboratory(
        runner,
        search,
        Panel(panel.verifiers, search.weights),
        lambda search, panel: runner.searching(search),
        searches,
        lambda record, asked: oracle.judge(record.frames, asked),
        (generators, sum(each.actors.most for each in panel.verifiers)),
        connected=connect,
        facts=_identities(apart),
        held_out=functools.partial(_judged_apart, judge, [pool.name for pool in apart]) if apart else _nobody,
        journals=True,
    )


async def _judged_apart(judge: SearchRunner, names: Sequence[str], record: SearchRecord) -> dict[str, float]:
    """The scores of verifiers that took no part in a search on actors, by verifier and name."""
    scores = await judge.judge(record, again=True)
    return {f"{names[0]}/{name}": score for name, score in scores.items()} if len(names) == 1 else scores


@contextlib.contextmanager
def over_cache(
    folder: File,
    source: ModelSource,
    panel: PanelConfig,
    search: SearchConfig,
    generators: int,
    *,
    verifier_speed: float = 1.0,
    judge: str = PANEL,
    held_out: PanelConfig | None = None,
    whole_trees: bool = True,
    searches: int = 1,
) -> Iterator[Laboratory]:
    """Virtual workers in this process, over the branches in ``folder``; what is missing is added.

    Each search has workers of its own; what ``searches`` of them lack is sampled together.
    With ``whole_trees`` the oracle reads every branch of a search and keeps that; otherwise the winners alone.
    """
    from actors.local_generators import Speeds
    from actors.local_pools import LocalCrew, LocalPyramidPool, LocalVerifierPool
    from actors.searches import SearchRunner
    from actors.verifier_kinds import set_environment
    from framegrove.evaluation.branch_cache import BranchCache
    from framegrove.evaluation.virtual_time import run_virtual
    from framegrove.search.fusion import Panel

    speeds = Speeds(verifier=verifier_speed)
    apart_from_it = held_out.verifiers if held_out else ()
    set_environment([*(() if judge == ORACLE else panel.verifiers), *apart_from_it])
    with BranchCache(folder) as cache, contextlib.ExitStack() as stack:
        pools = (
            [_oracle_alone(cache, speeds)]
            if judge == ORACLE
            else [LocalVerifierPool(cache, each, speeds=speeds) for each in panel.verifiers]
        )
        apart = [LocalVerifierPool(cache, each) for each in apart_from_it]
        for pool in (*pools, *apart):  # an engine that is left to the end of the process would never let it end
            stack.callback(pool.close)
        oracle = CachedOracle(cache, whole_trees=whole_trees)
        generator = LocalPyramidPool(cache, source, generators, pack=searches * generators, speeds=speeds)

        def searching(search: SearchConfig, panel: Names) -> SearchRunner:
            judges = pools if panel is None or judge == ORACLE else [pool for pool in pools if pool.name in panel]
            return SearchRunner(generator, judges, search, crew=LocalCrew(judges))

        yield Laboratory(
            searching(search, None),
            search,
            Panel([pool.config for pool in pools], search.weights),
            searching,
            searches,
            oracle.verdict,
            (generators, sum(pool.config.actors.most for pool in pools)),
            run=run_virtual,
            facts={"virtual": {**asdict(speeds), "generators": generators}} | _identities(apart),
            effort=lambda: _effort(cache, folder),
            reading=oracle.reading,
            held_out=functools.partial(_asked_apart, generator, apart),
            opinions=functools.partial(_opinions, generator, apart),
        )


def _identities(held_out: Sequence[LocalVerifierPool | VerifierPool]) -> dict[str, Any]:
    from framegrove.verification.identity import verifier_identity

    return {"held_out": {pool.name: verifier_identity(pool.config) for pool in held_out}} if held_out else {}


async def _asked_apart(
    generator: LocalPyramidPool, pools: Sequence[LocalVerifierPool], record: SearchRecord
) -> dict[str, float]:
    """The scores of verifiers that took no part in a search over a cache, by verifier and name."""
    from framegrove.types import Assessment

    found = await _opinions(generator, pools, record, record.outcome.winner, Assessment.FINAL)
    return {f"{judge}/{name}": score for judge, scored in found.items() for name, score in scored.scores}


async def _opinions(
    generator: LocalPyramidPool,
    pools: Sequence[LocalVerifierPool],
    record: SearchRecord,
    path: Path,
    assessment: Assessment,
) -> dict[str, Scored]:
    """What each of some verifiers that judge so says of a branch of a search over a cache.

    One that compares does so with the first of the branch's siblings, and says nothing of an only child.
    """
    from actors.pools import check_latents
    from framegrove.types import ScoreWork

    await check_latents(generator, pools)
    found = {}
    for pool in pools:
        others = _siblings(record, path, assessment)[: pool.config.anchors]
        work = ScoreWork(path, assessment, pool.name, tuple(each for each in others if each != path))
        if assessment in pool.judges and (work.against or not pool.config.anchors):
            units = [record.outcome.handles[prefix] for prefix in work.shown]
            found[pool.name] = await pool.verdict(work, record.request.prompt, units)
    return found


def _siblings(record: SearchRecord, path: Path, assessment: Assessment) -> list[Path]:
    """The branches with the same history that a search had judged so, this one among them."""
    return sorted(
        node.path
        for node in record.outcome.nodes
        if node.path[:-1] == path[:-1] and any(scored.work.assessment is assessment for scored in node.scored)
    )


def check_judge(judge: str, cached: bool) -> None:
    """Raise UserError for a judge that there is not, or not here."""
    if judge not in (PANEL, ORACLE):
        raise UserError(f"there is no judge {judge!r}: it is {PANEL} or {ORACLE}")
    if judge == ORACLE and not cached:
        raise UserError("the oracle judges only searches over a cache, for a ceiling: add --cache DIR")


def _effort(cache: BranchCache, folder: File) -> str:
    units, verdicts = cache.added["units"], cache.added["verdicts"]
    return (
        f"sampled {counted(units, 'unit')} and gave {counted(verdicts, 'verdict')}; whatever else was needed, "
        f"{folder} had"
    )


def _oracle_alone(cache: BranchCache, speeds: Speeds) -> LocalVerifierPool:
    """The oracle as the only member of a panel."""
    from actors.local_pools import LocalVerifierPool
    from framegrove.digits.oracle import oracle_fingerprint
    from framegrove.digits.readings import OracleJudge, oracle_config

    facts = {"oracle": oracle_fingerprint()}
    return LocalVerifierPool(cache, oracle_config(), worker=OracleJudge, speeds=speeds, facts=facts)


class CachedOracle:
    """The oracle's readings of the branches of finished searches, kept in the cache.

    ``whole_trees``: of all branches, drafts included, so that judges and cuts can be held against them later. That
    takes longer than the search where videos are long: a reading of a branch is one of the whole clip up to there.
    """

    def __init__(self, cache: BranchCache, *, whole_trees: bool = True) -> None:
        from framegrove.digits.oracle import DigitsOracle, oracle_fingerprint

        self._oracle = DigitsOracle()
        self._whole_trees = whole_trees
        self._number = cache.judge({"oracle": oracle_fingerprint(), "asked": _READ})

    def verdict(self, record: SearchRecord, asked: Sequence[DigitObject]) -> Verdict:
        """How right the winner is."""
        if self._whole_trees:
            for path in record.outcome.handles:
                self._said(record, path, asked)
        return self.reading(record, record.outcome.winner, asked).whole

    def reading(self, record: SearchRecord, path: Path, asked: Sequence[DigitObject]) -> BranchReading:
        """The reading of one branch."""
        from framegrove.digits.readings import BranchReading

        return BranchReading.from_json(self._said(record, path, asked))

    def _said(self, record: SearchRecord, path: Path, asked: Sequence[DigitObject]) -> Any:
        from framegrove.digits.readings import read_branch
        from framegrove.types import prefixes

        unit: LocalUnit = record.outcome.handles[path]
        said = unit.ground.verdict(unit.branch, self._number, _READ)
        if said is None:
            frames = [record.shown[prefix].frames for prefix in prefixes(path)]
            said = read_branch(self._oracle, frames, asked).as_json()
            unit.ground.keep_verdict(unit.branch, self._number, _READ, said)
        return said
