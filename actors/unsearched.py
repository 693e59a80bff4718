"""One sample as it comes, by a single generator: what every search is measured against."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from actors.clients import RemoteGenerator, UnitRef, lost_of
from framegrove.search.protocols import UnitsLost, WorkCancelled, WorkFailed
from framegrove.search.result import CostBreakdown, Ending, Fate, Node, SearchResult, Span
from framegrove.search.tree import Layout
from framegrove.types import Cost, Path, Sampled, SampleWork


async def sample_once(
    layout: Layout,
    generators: Mapping[str, RemoteGenerator],
    given: tuple[UnitRef, ...],
    on_progress: Callable[[float], None],
) -> SearchResult:
    """Sample branch (0, 0, ..) unit by unit, a unit again if the generator dies or the unit is lost.

    Raises WorkFailed if the generator is gone.
    """
    worker, generator = next(iter(generators.items()))
    clock = asyncio.get_running_loop().time
    began = clock()
    units: dict[Path, UnitRef] = {(0,) * (n + 1): unit for n, unit in enumerate(given)}
    spans: list[Span] = []
    costs: dict[Path, Cost] = {}
    wasted, most = Cost(), 0

    def forget(lost: Iterable[Path]) -> None:
        nonlocal wasted
        for path in [path for path in costs if any(len(path) >= len(gone) for gone in lost)]:
            del units[path]
            wasted += costs.pop(path)

    while len(units) < layout.units:
        most = max(most, len(units) - len(given))
        on_progress(most / (layout.units - len(given)))
        path = (0,) * (len(units) + 1)
        work, start = SampleWork((path,), 0, layout.last_stage), clock() - began
        try:
            sampled = await _sample(generator, work, units)
        except WorkFailed as failure:
            wasted += failure.cost
            spans.append(Span(work, worker, start, clock() - began, Ending.FAILED, failure.cost))
            await generator.recover()
            continue
        except UnitsLost as loss:
            spans.append(Span(work, worker, start, clock() - began, Ending.FAILED, loss.cost))
            forget(loss.paths)
            continue
        units[path], costs[path] = sampled.handles[0], sampled.cost
        spans.append(Span(work, worker, start, clock() - began, Ending.DONE, sampled.cost))
        if len(units) == layout.units:
            forget(await lost_of(units))
    on_progress(1.0)
    paths = [path for path in units if len(path) > len(given)]
    return SearchResult(
        winner=paths[-1],
        nodes=tuple(Node(path, Fate.WON, None, (), (), None, None) for path in paths),
        certain=frozenset(span.work for span in spans),
        sampling=CostBreakdown(sum(costs.values(), Cost()), Cost(), wasted),
        scoring=CostBreakdown(Cost(), Cost(), Cost()),
        spans=tuple(spans),
        handles=units,
        seconds=clock() - began,
        restored=0,
    )


async def _sample(generator: RemoteGenerator, work: SampleWork, units: dict[Path, UnitRef]) -> Sampled:
    try:
        return await generator.sample(work, units)
    except WorkCancelled as stopped:  # nobody asked for that
        raise WorkFailed("it stopped without being cancelled", stopped.cost) from stopped
