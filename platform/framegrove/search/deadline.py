"""Which branch to finish when time is up, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from framegrove.search.tree import Layout, Plan, PlannedWork
from framegrove.types import Path, SampleWork, prefixes


def the_quickest_end(
    plan: Plan, layout: Layout, finished: Collection[Path], running: Iterable[SampleWork], given_up: Collection[Path]
) -> tuple[Path, list[PlannedWork]]:
    """A whole video, and the sample works that are to be planned for it, one after the other.

    It grows from the longest branch that leads on, and that is there with all of its units (``finished``); of equally
    long ones from one that was judged, of these from that with the best path score, of equals from the first. What is
    ``running`` already goes on. Branches that were dropped or ``given_up`` do not lead on.
    """
    dead = {*plan.dropped, *given_up}
    scores = {judgement.path: judgement.total for judgement in plan.judgements}

    def leads_on(path: Path) -> bool:
        return all(prefix in finished and prefix not in dead for prefix in prefixes(path))

    best = max(
        filter(leads_on, finished),
        key=lambda path: (len(path), path in scores, scores.get(path, 0.0), tuple(-step for step in path)),
        default=layout.prefix,
    )
    path, works = best, list[PlannedWork]()
    while len(path) < layout.units:
        under_way = next(
            (
                (child, work)
                for work in running
                for child in work.paths
                if child[:-1] == path and work.last_stage == layout.last_stage and child not in dead
            ),
            None,
        )
        if under_way is not None:
            path, work = under_way
        else:
            path = (*path, _unused(path, plan, finished, given_up))
            work = SampleWork((path,), 0, layout.last_stage)
        if work not in plan.certain:
            works.append(work)
    return path, works


def _unused(parent: Path, plan: Plan, finished: Collection[Path], given_up: Collection[Path]) -> int:
    """The number of a child that nobody has asked for yet."""
    asked = [path for work in plan.certain if isinstance(work, SampleWork) for path in work.paths]
    taken = [path[-1] for path in (*asked, *finished, *given_up) if path[:-1] == parent]
    return max(taken, default=-1) + 1
