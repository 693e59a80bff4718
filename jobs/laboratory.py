"""Where jobs.evaluate runs its searches: on Ray, or over a cache in this process; and who reads the results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError

if TYPE_CHECKING:
    from actors.local import LocalUnit, Speeds
    from actors.searches import SearchRunner
    from framegrove.config.model import ModelSource
    from framegrove.config.search import SearchConfig
    from framegrove.config.verifier import PanelConfig
    from framegrove.digits.oracle import Verdict
    from framegrove.digits.readings import BranchReading
    from framegrove.digits.world import DigitObject
    from framegrove.evaluation.branch_cache import BranchCache
    from framegrove.evaluation.report import SearchRecord
    from framegrove.types import Path

PANEL, ORACLE = "panel", "oracle"
_READ = "reading"  # what the oracle is asked of every branch, as a cache has it


@dataclass(frozen=True)
class Laboratory:
    """A runner of searches, how to run what it is asked, and how to read what comes out.

    ``verdict`` says how right a record's winner is. ``workers`` are the numbers of generators and of verifiers. ``run``
    runs a coroutine to its end, inside ``connected`` if actors take part. ``facts``, JSON values, decide the rows
    besides the runner's identity. ``effort`` tells what had to be computed, where that says anything.
    """

    runner: SearchRunner
    verdict: Callable[[SearchRecord, Sequence[DigitObject]], Verdict]
    workers: tuple[int, int]
    run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run
    connected: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    facts: Mapping[str, Any] = field(default_factory=dict)
    effort: Callable[[], str | None] = lambda: None


@contextlib.contextmanager
def on_ray(source: ModelSource, panel: PanelConfig, search: SearchConfig, generators: int) -> Iterator[Laboratory]:
    """Real actors."""
    from actors.searches import search_runner
    from framegrove.cluster.session import connect
    from framegrove.digits.oracle import DigitsOracle

    oracle = DigitsOracle()
    yield Laboratory(
        search_runner(source, panel, search, generators=generators),
        lambda record, asked: oracle.judge(record.frames, asked),
        (generators, sum(each.actors for each in panel.verifiers)),
        connected=connect,
    )


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
) -> Iterator[Laboratory]:
    """Virtual workers in this process, over the branches in ``folder``; what is missing is added."""
    from actors.local import Speeds
    from actors.local_pools import local_runner
    from framegrove.evaluation.branch_cache import BranchCache
    from framegrove.evaluation.virtual_time import run_virtual

    speeds = Speeds(verifier=verifier_speed)
    verifiers = 1 if judge == ORACLE else sum(each.actors for each in panel.verifiers)
    with BranchCache(folder) as cache:
        yield Laboratory(
            local_runner(
                cache,
                source,
                panel,
                search,
                generators=generators,
                speeds=speeds,
                verifiers=_oracle_alone(cache, speeds) if judge == ORACLE else None,
            ),
            CachedOracle(cache).verdict,
            (generators, verifiers),
            run=run_virtual,
            facts={"virtual": {**asdict(speeds), "generators": generators}},
            effort=lambda: _effort(cache, folder),
        )


def check_judge(judge: str, cached: bool) -> None:
    """Raise UserError for a judge that there is not, or not here."""
    if judge not in (PANEL, ORACLE):
        raise UserError(f"there is no judge {judge!r}: it is {PANEL} or {ORACLE}")
    if judge == ORACLE and not cached:
        raise UserError("the oracle judges only searches over a cache, for a ceiling: add --cache DIR")


def _effort(cache: BranchCache, folder: File) -> str:
    units, verdicts = cache.added["units"], cache.added["verdicts"]
    return f"{units} units were sampled and {verdicts} verdicts given; whatever else was needed, {folder} had"


def _oracle_alone(cache: BranchCache, speeds: Speeds) -> list[Any]:
    """The oracle as the only member of a panel."""
    from actors.local_pools import LocalVerifierPool
    from framegrove.digits.oracle import oracle_fingerprint
    from framegrove.digits.readings import OracleJudge, oracle_config

    facts = {"oracle": oracle_fingerprint()}
    return [LocalVerifierPool(cache, oracle_config(), worker=OracleJudge, speeds=speeds, facts=facts)]


class CachedOracle:
    """The oracle's readings of the branches of finished searches, kept in the cache."""

    def __init__(self, cache: BranchCache) -> None:
        from framegrove.digits.oracle import DigitsOracle, oracle_fingerprint

        self._oracle = DigitsOracle()
        self._number = cache.judge({"oracle": oracle_fingerprint(), "asked": _READ})

    def verdict(self, record: SearchRecord, asked: Sequence[DigitObject]) -> Verdict:
        """How right the winner is; every branch of the tree, drafts included, is read on the way if it never was."""
        for path in record.outcome.handles:
            self._said(record, path, asked)
        return self.reading(record, record.outcome.winner, asked).whole

    def reading(self, record: SearchRecord, path: Path, asked: Sequence[DigitObject]) -> BranchReading:
        """The reading of one branch."""
        from framegrove.digits.readings import BranchReading

        return BranchReading.from_json(self._said(record, path, asked))

    def _said(self, record: SearchRecord, path: Path, asked: Sequence[DigitObject]) -> Any:
        from framegrove.digits.readings import read_branch

        unit: LocalUnit = record.outcome.handles[path]
        said = unit.ground.verdict(unit.branch, self._number, _READ)
        if said is None:
            frames = [record.shown[path[: n + 1]].frames for n in range(len(path))]
            said = read_branch(self._oracle, frames, asked).as_json()
            unit.ground.keep_verdict(unit.branch, self._number, _READ, said)
        return said
