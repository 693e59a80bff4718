"""Where the cards of a search tree stand in its picture, and what is written on them. No drawing in here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.evaluation.report import Frames, SearchRecord, Shown
from framegrove.search.result import Fate, Node
from framegrove.types import Assessment, Path

UNUSED = Fate.SPECULATIVE  # sampled on speculation only
STRIP = 4  # thumbnails of a unit of several frames
PAD = 0.09  # inside a card
SIDE = 0.8  # margin beside the thumbnails, where the verdicts stand
TEXT = 0.3  # height of a card's line of text
ASSESSED = {"potential": "preview", "image": "image", "motion": "motion", "final": "video"}  # in words
FATE_MEANS = {
    Fate.WON: "winner, and the branches it grew from",
    Fate.KEPT: "kept at every cut it met, but another branch won",
    Fate.DROPPED: "cut",
    UNUSED: "sampled early on speculation, not needed",
}

_SMALL = 0.62  # side of the thumbnail of a preview that was cut: there are many of them
_GAP_X, _GAP_Y = 0.95, 0.2
_VERDICT = 0.42  # height of a verdict in the margin


@dataclass(frozen=True)
class Verdict:
    """How a branch was judged once: the panel's mean score in [0, 1], and its place among those judged with it."""

    assessment: Assessment
    score: float
    place: str  # "2/8"; empty where its round was never complete


@dataclass(frozen=True)
class Card:
    """A branch in the picture. Lengths are in thumbnail heights, y grows downwards."""

    node: Node
    draft: bool
    strip: npt.NDArray[np.uint8]
    verdicts: tuple[Verdict, ...]
    x: float
    y: float
    width: float
    height: float
    thumb: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def lay_out(record: SearchRecord, words: bool = True, chosen: Collection[Path] | None = None) -> dict[Path, Card]:
    """A card for every branch that can be shown: columns are depths, leaves stand one below another.

    Parents stand beside their children. Branches that were cut, and then lost with a machine, have no card, nor have
    those that are not ``chosen`` where some are. Without ``words`` cards are as small as their thumbnails.
    """
    nodes = {
        node.path: node
        for node in record.outcome.nodes
        if node.path in record.shown and (chosen is None or node.path in chosen)
    }
    children: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(nodes):
        children[path[:-1]].append(path)
    places = places_of(record.outcome.nodes)
    aspect = record.request.width / record.request.height
    thumbs = [1 if depth == 0 else STRIP for depth in range(record.request.units)]
    side, text = (SIDE, TEXT) if words else (0.0, 0.0)
    lefts = [sum(n * aspect + 2 * PAD + side + _GAP_X for n in thumbs[:depth]) for depth in range(len(thumbs))]
    cards: dict[Path, Card] = {}
    bottom = 0.0

    def place(path: Path) -> None:
        nonlocal bottom
        node, shown = nodes[path], record.look(path)
        below = children[path]
        verdicts = tuple(
            Verdict(asked, sum(score for _, score in panel) / len(panel), places.get((path, asked), ""))
            for asked, panel in node.scores
        )
        thumb = _SMALL if shown.draft and not below else 1.0
        height = max(thumb + (text if thumb == 1.0 else 0.0), len(verdicts) * _VERDICT if words else 0.0) + 2 * PAD
        top = bottom
        for child in below:
            place(child)
        if below:
            y = (cards[below[0]].y + cards[below[-1]].y) / 2
        else:
            y, bottom = top, top + height + _GAP_Y
        depth = len(path) - 1
        width = thumbs[depth] * aspect * thumb + 2 * PAD + side
        strip = strip_of(shown, STRIP, pale=node.fate in (Fate.DROPPED, UNUSED))
        cards[path] = Card(node, shown.draft, strip, verdicts, lefts[depth], y, width, height, thumb)

    for root in sorted(path for path in nodes if path[:-1] not in nodes):
        place(root)
    return cards


def places_of(nodes: Iterable[Node]) -> Mapping[tuple[Path, Assessment], str]:
    """For every judgement the branch's place in its round, "2/8", best first; equal totals share a place.

    A round is all branches of one length that were judged in the same way. Ranks themselves are relative to their
    round, so that a picture must not set them side by side.
    """
    rounds: dict[tuple[Assessment, int], list[tuple[float, Path]]] = {}
    for node in nodes:
        for judgement in node.judgements:
            rounds.setdefault((judgement.assessment, len(node.path)), []).append((judgement.total, node.path))
    return {
        (path, assessment): f"{1 + sum(other > total for other, _ in members)}/{len(members)}"
        for (assessment, _), members in rounds.items()
        for total, path in members
    }


def strip_of(shown: Shown | Frames, count: int, *, pale: bool = False) -> npt.NDArray[np.uint8]:
    """At most ``count`` frames side by side, evenly chosen, uint8 (H, W * count, 3)."""
    frames = shown.frames if isinstance(shown, Shown) else shown
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    strip = np.concatenate(list(frames[chosen]), axis=1)
    return (strip * 0.72 + 255 * 0.28).astype(np.uint8) if pale else strip
