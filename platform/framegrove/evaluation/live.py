"""A running search as JSON values, for the page that draws it while it grows (serving.live.Live)."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Any

from framegrove.evaluation.outlook import Lookout, Outlook
from framegrove.lineage import branch_name
from framegrove.media.stills import strip
from framegrove.search.result import Node, Span
from framegrove.search.snapshot import BranchNow, Snapshot
from framegrove.serving.live import LiveTree
from framegrove.types import Path, SampleWork, paths_of

_PREVIEW_SIDE = 128  # px


class LiveSearch:
    """What there is to see of a search that goes on; see serving.live.Live."""

    def __init__(self, lookout: Lookout) -> None:
        self._lookout = lookout
        self._works: list[dict[str, Any]] = []

    def look(self) -> LiveTree:
        """The tree as it stands."""
        snapshot = self._lookout.look()
        summary = _summary(snapshot, self._lookout.outlook(snapshot))
        branches = {branch_id(each.path): _branch(each) for each in snapshot.branches}
        self._works += map(_work, snapshot.spans[len(self._works) :])
        return LiveTree(branches, summary, self._works)

    async def preview(self, branch: str) -> bytes | None:
        """A strip of four frames of the branch's newest unit."""
        frames = await self._lookout.frames(path_of(branch))
        return None if frames is None else await asyncio.to_thread(strip, frames, _PREVIEW_SIDE)


def branch_id(path: Path) -> str:
    """A branch for URLs: "2-0-1"."""
    return "-".join(map(str, path))


def path_of(branch: str) -> Path:
    """The branch of an id. Raises ValueError for what is none."""
    return tuple(int(step) for step in branch.split("-"))


def branch_facts(branch: BranchNow | Node) -> dict[str, Any]:
    """What a page is told of a branch, of a running or of a finished search."""
    return {
        "name": branch_name(branch.path),
        "parent": branch_id(branch.path[:-1]) or None,
        "unit": len(branch.path) - 1,
        "standing": str(branch.standing if isinstance(branch, BranchNow) else branch.fate),
        "score": round(branch.chances[-1], 4) if branch.chances else None,
        "scores": {str(asked): dict(scores) for asked, scores in branch.scores},
    }


def _branch(branch: BranchNow) -> dict[str, Any]:
    workers = sorted(attempt.worker for attempt in branch.attempts)
    return {**branch_facts(branch), "speculative": branch.speculative, "workers": workers}


def _work(span: Span) -> dict[str, Any]:
    return {
        "who": span.worker,
        "what": "sample" if isinstance(span.work, SampleWork) else "score",
        "branches": [branch_name(path) for path in paths_of(span.work)],
        "from": round(span.start, 3),
        "to": round(span.end, 3),
        "ending": str(span.ending),
    }


def _summary(snapshot: Snapshot, outlook: Outlook) -> dict[str, Any]:
    running = Counter(attempt.worker for attempt in snapshot.running)
    price = {name: round(value, 3) for name, value in {**asdict(outlook.spent), "total": outlook.spent.total}.items()}
    return {
        "spent": price,
        "to_go": round(outlook.known, 3),
        "at_most": round(outlook.at_most, 3),
        "works": {"certain": snapshot.certain, "undone": len(snapshot.undone), "at_most": snapshot.at_most},
        "pools": {
            name: {"workers": {worker: running[worker] for worker in pool.workers}, "waiting": pool.waiting}
            for name, pool in snapshot.pools.items()
        },
        "winner": branch_id(snapshot.winner) if snapshot.winner else None,
    }
