"""The record of a finished search, its price, and what report.json says of it. tree_picture.py draws it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from framegrove.lineage import branch_name
from framegrove.search.result import CostBreakdown, Ending, Node, SearchResult, Span
from framegrove.types import Cost, GenerationRequest, Path, SampleWork, ScoreWork, paths_of, prefixes

Frames = npt.NDArray[np.uint8]


DOUBTFUL = 0.1  # final scores that are all below this say that the winner does not show what was asked for


@dataclass(frozen=True)
class Price:
    """What a video cost, in *samples*: multiples of the FLOPs of sampling and decoding it once, without a search.

    This is the unit of a budget. A budget of 4x bounds what the search needed, ``sampling``, ``decoding`` and
    ``judging`` together, by 4. What was ``wasted`` comes on top.
    """

    sampling: float  # denoising
    decoding: float  # turning latents into frames, previews included
    judging: float  # the verifiers
    wasted: float  # all of it that was not needed: lost speculation, and works that were cancelled or failed

    @property
    def total(self) -> float:
        """All of it."""
        return self.sampling + self.decoding + self.judging + self.wasted

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in asdict(self).items())
        return f"{self.total:.2f}x ({parts})"


@dataclass(frozen=True, eq=False)
class Shown:
    """What a branch's newest unit looks like, uint8 (T, H, W, 3); of a ``draft`` it is the preview.

    Of a branch that was dropped from a search for large videos the frames are ``small``. They are ``blank``, white,
    where it was left as a latent, since nobody who judged it looks at frames.
    """

    frames: Frames
    draft: bool = False
    small: bool = False
    blank: bool = False


@dataclass(frozen=True, eq=False)
class SearchRecord:
    """A finished search.

    ``shown`` has the branches of its tree, except for those that were cut and then lost with a machine; ``single`` is
    the cost of one sample without a search. ``unread`` are the first words of the prompt that the model did not read.
    ``made_by`` says what decided the outcome, as JSON values: the request, fingerprints of models, settings.
    """

    request: GenerationRequest
    fps: float
    outcome: SearchResult
    shown: Mapping[Path, Shown]
    single: Cost
    unread: str | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> Frames:
        """The winner's video, uint8 (T, H, W, 3)."""
        return np.concatenate([self.shown[prefix].frames for prefix in prefixes(self.outcome.winner)])

    def look(self, path: Path) -> Shown:
        """What a branch looks like: white, where its frames were lost with a machine after it was cut."""
        if path in self.shown:
            return self.shown[path]
        return Shown(np.full_like(self.shown[self.outcome.winner[: len(path)]].frames, 255))

    @property
    def scores(self) -> dict[str, float]:
        """The panel's scores of the winner as a whole, in [0, 1]; empty when nothing was judged."""
        node = next(node for node in self.outcome.nodes if node.path == self.outcome.winner)
        return dict(node.scores[-1][1]) if node.scores else {}

    @property
    def price(self) -> Price:
        """What this search cost."""
        return price_of(self.outcome.sampling, self.outcome.scoring, self.single)

    @property
    def single_price(self) -> Price:
        """What one sample without a search costs."""
        return price_of(CostBreakdown(self.single, Cost(), Cost()), CostBreakdown(Cost(), Cost(), Cost()), self.single)

    @property
    def single_frames(self) -> Frames | None:
        """The video that no search would have made, uint8 (T, H, W, 3): branch (0, 0, ..), where the tree has it."""
        branch = [(0,) * (length + 1) for length in range(self.request.units)]
        there = [self.shown[path] for path in branch if path in self.shown]
        if len(there) < len(branch) or any(each.draft or each.small or each.blank for each in there):
            return None
        return np.concatenate([self.shown[path].frames for path in branch])


def price_of(sampling: CostBreakdown, scoring: CostBreakdown, single: Cost) -> Price:
    """The price of a video from the costs of its works; ``single`` is the cost of one sample without a search."""
    one = single.all_flops
    return Price(
        sampling=sampling.certain.flops / one,
        decoding=sampling.certain.decoding / one,
        judging=scoring.certain.flops / one,
        wasted=(lost(sampling) + lost(scoring)).all_flops / one,
    )


def warnings_of(record: SearchRecord) -> list[str]:
    """What a reader of the result should know, a sentence each."""
    warnings = []
    if record.unread is not None:
        warnings.append(
            f"the prompt is too long for this model's text encoder: what begins with {record.unread!r} had no "
            "influence on the video, and was not judged"
        )
    for verifier, reason in record.outcome.left_out.items():
        warnings.append(f"the verifier {verifier} was left out, and the others have judged alone: {reason}")
    for path, reason in record.outcome.given_up.items():
        warnings.append(f"branch {branch_name(path)} was given up: {reason}")
    if record.outcome.hurried:
        warnings.append(
            "the time limit ended the search: the winner is the most promising branch by then, and another run may "
            "find another"
        )
    unjudged = _unjudged(record)
    if (
        record.outcome.verifiers
        and not any(node.scores for node in record.outcome.nodes)
        and not record.outcome.hurried
    ):
        warnings.append(
            "nothing was judged, since the budget pays for one video and not for a verdict on it: this is the video "
            "without a search; raise the budget, or take a verifier that costs less"
        )
    if unjudged > 1 and not record.outcome.hurried:
        warnings.append(
            f"the winner's last {unjudged} units were not judged, since the budget was spent: a larger one may find a "
            "better video"
        )
    scores = record.scores
    if scores and max(scores.values()) < DOUBTFUL:
        said = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
        warnings.append(
            f"the verifier finds nothing of the prompt in the winner ({said}, each out of 1): look before you use it"
        )
    return warnings


def _unjudged(record: SearchRecord) -> int:
    """How many units of the winner are newer than the last that was judged; 0 where a search judges nothing."""
    winner = record.outcome.winner
    judged = {node.path for node in record.outcome.nodes if node.scores}
    last = max((length for length in range(1, len(winner) + 1) if winner[:length] in judged), default=0)
    return len(winner) - max(last, record.request.given) if judged else 0


def was_needed(span: Span, outcome: SearchResult) -> bool:
    """Whether an attempt is part of what had to be done; otherwise it was lost speculation or a failure."""
    return span.ending is Ending.DONE and span.work in outcome.certain


def report_json(record: SearchRecord) -> dict[str, Any]:
    """What report.json says: the request, the price, the winner, warnings, every branch, and who worked when."""
    request, outcome = record.request, record.outcome
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "policy": request.policy,
        "options": dict(request.options),
        "budget": request.budget,
        "until": request.until,
        "given_units": request.given,
        "size": f"{request.width}x{request.height}",
        "units": request.units,
        "frames": len(record.frames),
        "fps": record.fps,
        "made_by": dict(record.made_by),
        "winner": {"path": list(outcome.winner), "verifier": record.scores},
        "seconds": round(outcome.seconds, 3),
        "restored_works": outcome.restored,
        "overlap_seconds": round(outcome.overlap, 3),
        "warnings": warnings_of(record),
        "price": {
            "unit": "the FLOPs of sampling and decoding this video once, without a search",
            "search": _price(record.price),
            "single_sample": _price(record.single_price),
        },
        "cost": _costs(record),
        "branches": [_branch(node) for node in sorted(outcome.nodes, key=lambda node: (len(node.path), node.path))],
        "timeline": [_stretch(span, outcome) for span in outcome.spans],
    }


def _price(price: Price) -> dict[str, float]:
    return {name: round(value, 4) for name, value in {**asdict(price), "total": price.total}.items()}


def _costs(record: SearchRecord) -> dict[str, Any]:
    """nfe: transformer evaluations; flops: from exact token counts, decoding apart; seconds: of an actor's time."""
    outcome = record.outcome
    busy = {name: _busy(outcome, name) for name in outcome.verifiers}
    scoring = sum(busy.values(), CostBreakdown(Cost(), Cost(), Cost()))
    parts = {
        "generator_certain": outcome.sampling.certain,
        "generator_wasted": lost(outcome.sampling),
        "verifier_certain": scoring.certain,
        "verifier_wasted": lost(scoring),
        "total": outcome.sampling.spent + scoring.spent,
        "single_sample": record.single,
    }
    verifiers = {
        name: {
            "certain": _cost(costs.certain),
            "wasted": _cost(lost(costs)),
            "least_probability_of_yes_or_no": outcome.mass.get(name),
        }
        for name, costs in busy.items()
    }
    return {**{name: _cost(cost) for name, cost in parts.items()}, "verifiers": verifiers}


def _busy(outcome: SearchResult, name: str) -> CostBreakdown:
    """A verifier's costs, with the seconds in which it was busy: it answers for many branches at a time."""
    spans = [span for span in outcome.spans if isinstance(span.work, ScoreWork) and span.work.verifier == name]
    needed = busy_seconds([span for span in spans if was_needed(span, outcome)])
    costs = outcome.verifiers[name]
    return CostBreakdown(
        certain=replace(costs.certain, seconds=needed),
        at_stake=Cost(),
        wasted=replace(lost(costs), seconds=busy_seconds(spans) - needed),
    )


def busy_seconds(spans: Iterable[Span]) -> float:
    """Seconds in which workers had something to do, added up over workers."""
    total, ends = 0.0, dict[str, float]()
    for span in sorted(spans, key=lambda span: span.start):
        begin = max(span.start, ends.get(span.worker, 0.0))
        total += max(0.0, span.end - begin)
        ends[span.worker] = max(span.end, begin)
    return total


def lost(breakdown: CostBreakdown) -> Cost:
    """What a finished search has spent for nothing."""
    return breakdown.wasted + breakdown.at_stake


def _cost(cost: Cost) -> dict[str, float]:
    seconds = round(cost.seconds, 3)
    return {"nfe": cost.nfe, "flops": cost.flops, "decoding_flops": cost.decoding, "seconds": seconds}


def _branch(node: Node) -> dict[str, Any]:
    return {
        "path": list(node.path),
        "fate": str(node.fate),
        "dropped_by": str(node.dropped_by) if node.dropped_by else None,
        "score": {
            str(assessment): round(chance, 4) for (assessment, _), chance in zip(node.scores, node.chances, strict=True)
        },
        "verifier": {str(assessment): dict(panel) for assessment, panel in node.scores},
        "answers": _answers(node),
        "path_score": node.judgements[-1].total if node.judgements else None,
    }


def _answers(node: Node) -> dict[str, dict[str, dict[str, float]]]:
    """P(yes) of every question, by assessment and verifier, for the verifiers that ask questions."""
    said: dict[str, dict[str, dict[str, float]]] = {}
    for scored in node.scored:
        if scored.answers:
            said.setdefault(str(scored.work.assessment), {})[scored.work.verifier] = dict(scored.answers)
    return said


def _stretch(span: Span, outcome: SearchResult) -> dict[str, Any]:
    return {
        "who": span.worker,
        "from": round(span.start, 3),
        "to": round(span.end, 3),
        "what": "sample" if isinstance(span.work, SampleWork) else "score",
        "branches": [list(path) for path in paths_of(span.work)],
        "ending": str(span.ending),
        "needed": was_needed(span, outcome),
    }
