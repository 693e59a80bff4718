"""tree.html: a finished search as one page for a browser, without a network: a tree to explore, a player, costs.

The page is the three files in page/, put together, with the search as JSON inside. Everything that the JSON says
reaches the page as text, never as markup (page/*.js), and cannot end the element that holds it.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File
from typing import Any

from framegrove.evaluation.pages import assembled, embedded, part
from framegrove.evaluation.report import Price, SearchRecord, report_json, warnings_of, was_needed
from framegrove.evaluation.tree_clips import LIMIT, Clip, clips_of
from framegrove.evaluation.tree_layout import (
    ASSESSED,
    FATE_MEANS,
    STRIP,
    Card,
    by_interest,
    lay_out,
    left_out,
    places_of,
    with_ancestors,
)
from framegrove.files import replacing
from framegrove.lineage import branch_name
from framegrove.search.result import Ending, Fate, Node, Span
from framegrove.types import Assessment, Path, SampleWork
from framegrove.words import counted

CARDS = 400  # branches on a page at most: browsers get slow with more
BARS = 4000  # attempts on the timeline at most

_SCRIPTS = ("tree.js", "branch.js", "charts.js")


def write(record: SearchRecord, path: File) -> None:
    """Write the page at ``path``; no name ever stands for half a file."""
    with replacing(path) as partial:
        partial.write_text(page(record), encoding="utf-8")


def page(record: SearchRecord, *, cards: int = CARDS, limit: int = LIMIT) -> str:
    """The page, with ``cards`` branches at most and ``limit`` bytes of clips."""
    return assembled(
        "tree.html",
        TITLE=html.escape(f"{record.request.prompt} · search tree"),
        STYLE=part("tree.css"),
        DATA=embedded(data_of(record, cards=cards, limit=limit)),
        SCRIPT=_script(),
    )


def script_hash() -> str:
    """The page's script, as a Content-Security-Policy names it: whoever shows the page inside another allows this."""
    text = f"\n{_script()}\n"
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _script() -> str:
    return "\n".join(map(part, _SCRIPTS))


def data_of(record: SearchRecord, *, cards: int = CARDS, limit: int = LIMIT) -> dict[str, Any]:
    """What the page shows, as JSON values."""
    request, outcome = record.request, record.outcome
    order = by_interest(record)
    laid = lay_out(record, chosen=with_ancestors(order, cards))
    clips, size = clips_of(record.shown, [path for path in order if path in laid], limit)
    single = record.single_price if outcome.verifiers else None
    lanes, bars = _timeline(record)
    return {
        "prompt": request.prompt,
        "said": f"{request.policy}, budget {request.budget:g}x, seed {request.seed}, {request.width}x{request.height}, "
        f"{counted(request.units, 'unit')}; {counted(len(outcome.nodes), 'branch')} in {outcome.seconds:.1f} s",
        "warnings": warnings_of(record),
        "notes": _notes(record, laid, clips, size.frames, len(bars)),
        "fps": record.fps,
        "winner": branch_name(outcome.winner),
        "thumbs": STRIP,
        "counts": [[str(fate), FATE_MEANS[fate], n] for fate, n in _fates(outcome.nodes)],
        "branches": _branches(record, laid, clips),
        "lanes": lanes,
        "bars": bars,
        "seconds": max([outcome.seconds, *(span.end for span in outcome.spans)]),
        "budget": request.budget,
        "prices": [_price("search", record.price), *([_price("one sample", single)] if single else [])],
        "costs": _costs(record),
    }


# ---- the tree


def _branches(record: SearchRecord, laid: Mapping[Path, Card], clips: Mapping[Path, Clip]) -> list[dict[str, Any]]:
    places = places_of(record.outcome.nodes)
    hidden = left_out(record.outcome.nodes, laid)
    counts = {path: Counter(str(node.fate) for node in nodes) for path, nodes in hidden.items()}
    return [_branch(card, places, clips.get(path), counts.get(path, {})) for path, card in sorted(laid.items())]


def _branch(
    card: Card, places: Mapping[tuple[Path, Assessment], str], clip: Clip | None, hidden: Mapping[str, int]
) -> dict[str, Any]:
    node = card.node
    parent = node.path[:-1]
    return {
        "name": branch_name(node.path),
        "parent": branch_name(parent) if parent else None,
        "depth": len(node.path) - 1,
        "fate": str(node.fate),
        "by": ASSESSED[node.dropped_by] if node.dropped_by else None,
        "draft": card.draft,
        "x": round(card.x, 3),
        "y": round(card.y, 3),
        "width": round(card.width, 3),
        "height": round(card.height, 3),
        "thumb": card.thumb,
        "aspect": round(card.strip.shape[1] / card.strip.shape[0], 4),
        "start": node.start,
        "end": node.end,
        "verdicts": [
            _verdict(node, asked, panel, chance, places)
            for (asked, panel), chance in zip(node.scores, node.chances, strict=True)
        ],
        "clip": asdict(clip) if clip else None,
        "left_out": ", ".join(f"{count} {fate}" for fate, count in hidden.items()),
    }


def _verdict(
    node: Node,
    asked: Assessment,
    panel: Sequence[tuple[str, float]],
    chance: float,
    places: Mapping[tuple[Path, Assessment], str],
) -> dict[str, Any]:
    """How a branch was judged once: by column of scores, and by question where its verifiers tell."""
    total = next((judged.total for judged in node.judgements if judged.assessment is asked), None)
    return {
        "what": ASSESSED[asked],
        "score": round(chance, 4),
        "place": places.get((node.path, asked), ""),
        "total": round(total, 4) if total is not None else None,
        "columns": [[name, round(score, 4)] for name, score in panel],
        "answers": [
            [scored.work.verifier, question, round(probability, 4)]
            for scored in node.scored
            if scored.work.assessment is asked
            for question, probability in scored.answers
        ],
    }


def _fates(nodes: Iterable[Node]) -> list[tuple[Fate, int]]:
    counts = Counter(node.fate for node in nodes)
    return [(fate, counts[fate]) for fate in Fate if counts[fate]]


def _notes(record: SearchRecord, laid: Collection[Path], clips: Collection[Path], frames: int, bars: int) -> list[str]:
    """What the page leaves out, a sentence each."""
    nodes = record.outcome.nodes
    lost_ = sum(node.path not in record.shown for node in nodes)
    hidden = len(nodes) - lost_ - len(laid)
    notes = []
    if hidden:
        notes.append(
            f"This page shows {len(laid)} of {len(nodes)} branches: the winner first, then those that were kept, "
            "deepest first. The others are counted where they would stand, and are all in report.json."
        )
    if lost_:
        notes.append(f"{lost_} branches that were cut, and then lost with a machine, have no pictures.")
    if blank := sum(shown.blank for shown in record.shown.values()):
        notes.append(f"{blank} branches are white: no verifier looks at their frames, so they were left as latents.")
    if len(clips) < len(laid):
        notes.append(f"To keep the file small, {len(laid) - len(clips)} branches have no clip to play.")
    longest = max((len(shown.frames) for shown in record.shown.values()), default=0)
    if frames < longest:
        notes.append(f"To keep the file small, clips have {frames} of the {longest} frames of a unit.")
    if bars < len(record.outcome.spans):
        notes.append(f"The timeline shows the longest {bars} of {len(record.outcome.spans)} attempts.")
    return notes


# ---- timeline and costs


def _timeline(record: SearchRecord) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Lanes, one for each worker, and bars: [lane, row in it, start, end, kind, what]. Bars of a row do not overlap."""
    spans = sorted(record.outcome.spans, key=lambda span: span.start - span.end)[:BARS]
    workers = sorted({span.worker for span in record.outcome.spans})
    rows: list[list[float]] = [[] for _ in workers]  # when each row of a lane is free again
    bars = []
    for span in sorted(spans, key=lambda span: span.start):
        lane = workers.index(span.worker)
        row = next((n for n, free in enumerate(rows[lane]) if free <= span.start), len(rows[lane]))
        rows[lane][row : row + 1] = [span.end]
        needed = was_needed(span, record.outcome)
        bars.append([lane, row, round(span.start, 3), round(span.end, 3), _kind(span, needed), _what(span)])
    return [{"name": worker, "rows": len(free)} for worker, free in zip(workers, rows, strict=True)], bars


def _kind(span: Span, needed: bool) -> str:
    """What an attempt was: failed, lost, early (a bet that was won), or plain sampling and judging."""
    if span.ending is Ending.FAILED:
        return "failed"
    if not needed:
        return "lost"
    if span.speculative:
        return "early"
    return "sampling" if isinstance(span.work, SampleWork) else "judging"


def _what(span: Span) -> str:
    if isinstance(span.work, SampleWork):
        return "sampling " + ", ".join(map(branch_name, span.work.paths))
    return f"{ASSESSED[span.work.assessment]} of {branch_name(span.work.path)}"


def _price(name: str, price: Price) -> dict[str, Any]:
    return {"name": name, "total": price.total, "parts": list(asdict(price).items())}


def _costs(record: SearchRecord) -> list[list[Any]]:
    """Rows of a table: what, NFE, FLOPs, FLOPs of decoding, seconds of an actor's time."""
    said = report_json(record)["cost"]
    rows = {"generators, needed": said["generator_certain"], "generators, wasted": said["generator_wasted"]}
    for name, costs in said["verifiers"].items():
        rows |= {f"{name}, needed": costs["certain"], f"{name}, wasted": costs["wasted"]}
    rows |= {"all together": said["total"], "one sample without a search": said["single_sample"]}
    return [[name, row["nfe"], row["flops"], row["decoding_flops"], row["seconds"]] for name, row in rows.items()]
