"""What a search did: the record of a finished search, and what report.json says of it. tree_picture.py draws it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.types import Cost, Path

Frames = npt.NDArray[np.uint8]


class Fate(enum.StrEnum):
    """What became of a branch."""

    WINNER = "winner"  # on the winning path
    KEPT = "kept"  # survived its assessments, but another path won
    CUT = "cut"  # dropped by the policy
    BET = "lost bet"  # sampled before it was certain, and not needed in the end


class Kind(enum.StrEnum):
    """What a stretch of an actor's time went on."""

    CERTAIN = "sampling"
    WASTED = "sampling, bet lost"
    SCORING = "scoring"


@dataclass(frozen=True, eq=False)
class BranchView:
    """A branch as the picture shows it. ``frames``: its own unit, uint8 (T, H, W, 3); a preview if it is a ``draft``.

    ``verdicts`` are the verifiers' answers, (assessment, probability); ``score`` is the path's, as the policy used it.
    """

    path: Path
    fate: Fate
    frames: Frames | None = None
    draft: bool = False
    score: float | None = None
    verdicts: tuple[tuple[str, float], ...] = ()
    flops: int = 0


@dataclass(frozen=True)
class Span:
    """A stretch of one actor's time, in seconds since the search began."""

    lane: str
    start: float
    end: float
    kind: Kind


@dataclass(frozen=True, eq=False)
class SearchRecord:
    """A finished search. ``frames`` is the winner's video; ``single`` what one unsearched sample of it costs."""

    prompt: str
    seed: int
    policy: str
    budget: float
    units: int
    fps: float
    frames: Frames
    winner: Path
    scores: tuple[tuple[str, float], ...]
    branches: tuple[BranchView, ...]
    spans: tuple[Span, ...]
    certain: Cost
    wasted: Cost
    verifier: Cost
    single: Cost
    seconds: float


def report_json(record: SearchRecord) -> dict[str, Any]:
    """What report.json says: the request, the costs by part, the winner and every branch."""
    total = record.certain + record.wasted + record.verifier
    return {
        "prompt": record.prompt,
        "seed": record.seed,
        "policy": record.policy,
        "budget": record.budget,
        "units": record.units,
        "fps": record.fps,
        "size": f"{record.frames.shape[2]}x{record.frames.shape[1]}",
        "frames": len(record.frames),
        "winner": {"path": list(record.winner), "scores": dict(record.scores)},
        "seconds": round(record.seconds, 3),
        "cost": {
            "unit": {
                "nfe": "transformer evaluations",
                "flops": "from exact token counts",
                "seconds": "of an actor's time",
            },
            "single_sample": _cost(record.single),
            "generator_certain": _cost(record.certain),
            "generator_wasted": _cost(record.wasted),
            "verifier": _cost(record.verifier),
            "total": _cost(total),
            "in_single_samples": {
                "generator_certain": _ratio(record.certain, record.single),
                "generator_wasted": _ratio(record.wasted, record.single),
                "verifier": _ratio(record.verifier, record.single),
                "total": _ratio(total, record.single),
            },
        },
        "branches": [
            {
                "path": list(branch.path),
                "fate": str(branch.fate),
                "draft": branch.draft,
                "score": branch.score,
                "verdicts": dict(branch.verdicts),
                "flops": branch.flops,
            }
            for branch in sorted(record.branches, key=lambda b: (len(b.path), b.path))
        ],
        "timeline": [
            {"who": span.lane, "from": round(span.start, 3), "to": round(span.end, 3), "what": str(span.kind)}
            for span in record.spans
        ],
    }


def overlap_seconds(spans: Sequence[Span]) -> float:
    """For how long a verifier scored while some generator sampled."""
    scoring = _union([(s.start, s.end) for s in spans if s.kind is Kind.SCORING])
    sampling = _union([(s.start, s.end) for s in spans if s.kind is not Kind.SCORING])
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in scoring for b in sampling)


def _union(stretches: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(stretches):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _cost(cost: Cost) -> dict[str, float]:
    return {"nfe": cost.nfe, "flops": cost.flops, "seconds": round(cost.seconds, 3)}


def _ratio(part: Cost, single: Cost) -> float | None:
    return round(part.flops / single.flops, 3) if single.flops else None
