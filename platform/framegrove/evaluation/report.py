"""What a search did: the record of a finished search, and what report.json says of it. tree_picture.py draws it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.search.result import CostBreakdown, Ending, Node, SearchResult, Span
from framegrove.types import Cost, GenerationRequest, Path, SampleWork

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a branch's newest unit looks like, uint8 (T, H, W, 3); of a ``draft`` it is the preview."""

    frames: Frames
    draft: bool = False


@dataclass(frozen=True, eq=False)
class SearchRecord:
    """A finished search. ``shown`` has every branch of its tree, ``single`` is the cost of one unsearched sample."""

    request: GenerationRequest
    fps: float
    outcome: SearchResult
    shown: Mapping[Path, Shown]
    single: Cost

    @property
    def frames(self) -> Frames:
        """The winner's video, uint8 (T, H, W, 3)."""
        winner = self.outcome.winner
        return np.concatenate([self.shown[winner[: length + 1]].frames for length in range(len(winner))])

    @property
    def scores(self) -> dict[str, float]:
        """What each verifier of the panel says of the winner as a whole; empty when nobody was asked."""
        node = next(node for node in self.outcome.nodes if node.path == self.outcome.winner)
        return dict(node.scores[-1][1]) if node.scores else {}


def was_needed(span: Span, outcome: SearchResult) -> bool:
    """Whether an attempt is part of what had to be done; otherwise it was a lost bet or a failure."""
    return span.ending is Ending.DONE and span.work in outcome.certain


def report_json(record: SearchRecord) -> dict[str, Any]:
    """What report.json says: the request, costs by part, the winner, every branch, and who worked when."""
    request, outcome = record.request, record.outcome
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "policy": request.policy,
        "budget": request.budget,
        "size": f"{request.width}x{request.height}",
        "units": request.units,
        "frames": len(record.frames),
        "fps": record.fps,
        "winner": {"path": list(outcome.winner), "verifier": record.scores},
        "seconds": round(outcome.seconds, 3),
        "restored_works": outcome.restored,
        "overlap_seconds": round(outcome.overlap, 3),
        "cost": _costs(record),
        "branches": [_branch(node) for node in sorted(outcome.nodes, key=lambda node: (len(node.path), node.path))],
        "timeline": [_stretch(span, outcome) for span in outcome.spans],
    }


def _costs(record: SearchRecord) -> dict[str, Any]:
    """nfe: transformer evaluations; flops: from exact token counts, decoding apart; seconds: of an actor's time."""
    sampling, scoring = record.outcome.sampling, _busy(record.outcome)
    parts = {
        "generator_certain": sampling.certain,
        "generator_wasted": lost(sampling),
        "verifier_certain": scoring.certain,
        "verifier_wasted": lost(scoring),
        "total": sampling.spent + scoring.spent,
        "single_sample": record.single,
    }
    return {name: {**_cost(cost), "in_single_samples": _ratio(cost, record.single)} for name, cost in parts.items()}


def _busy(outcome: SearchResult) -> CostBreakdown:
    """The bill of scoring with the seconds in which a verifier was busy: it answers for many branches at a time."""
    spans = [span for span in outcome.spans if not isinstance(span.work, SampleWork)]
    needed = busy_seconds([span for span in spans if was_needed(span, outcome)])
    certain, wasted = outcome.scoring.certain, lost(outcome.scoring)
    return CostBreakdown(
        certain=replace(certain, seconds=needed),
        at_stake=Cost(),
        wasted=replace(wasted, seconds=busy_seconds(spans) - needed),
    )


def busy_seconds(spans: Iterable[Span]) -> float:
    """For how long workers had something to do, added up over workers."""
    total, ends = 0.0, dict[str, float]()
    for span in sorted(spans, key=lambda span: span.start):
        begin = max(span.start, ends.get(span.worker, 0.0))
        total += max(0.0, span.end - begin)
        ends[span.worker] = max(span.end, begin)
    return total


def lost(bill: CostBreakdown) -> Cost:
    """What a finished search has spent for nothing."""
    return bill.wasted + bill.at_stake


def _cost(cost: Cost) -> dict[str, float]:
    seconds = round(cost.seconds, 3)
    return {"nfe": cost.nfe, "flops": cost.flops, "decoding_flops": cost.decoding, "seconds": seconds}


def _ratio(part: Cost, single: Cost) -> float | None:
    return round(part.flops / single.flops, 3) if single.flops else None


def _branch(node: Node) -> dict[str, Any]:
    return {
        "path": list(node.path),
        "fate": str(node.fate),
        "dropped_by": str(node.dropped_by) if node.dropped_by else None,
        "verifier": {str(assessment): dict(panel) for assessment, panel in node.scores},
        "path_score": node.judgements[-1].total if node.judgements else None,
    }


def _stretch(span: Span, outcome: SearchResult) -> dict[str, Any]:
    sampling = isinstance(span.work, SampleWork)
    paths = span.work.paths if isinstance(span.work, SampleWork) else (span.work.path,)
    return {
        "who": span.worker,
        "from": round(span.start, 3),
        "to": round(span.end, 3),
        "what": "sample" if sampling else "score",
        "branches": [list(path) for path in paths],
        "ending": str(span.ending),
        "needed": was_needed(span, outcome),
    }
