"""Where the cards of a search tree stand in its picture, and what is written on them. No drawing in here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framegrove.evaluation.report import Frames, SearchRecord, Shown
from framegrove.search.result import Fate, Node
from framegrove.types import Assessment, GenerationRequest, Path, prefixes

UNUSED = Fate.SPECULATIVE  # sampled on speculation only
STRIP = 4  # thumbnails of a unit of several frames
PAD = 0.09  # inside a card
SIDE = 0.8  # margin beside the thumbnails, where the verdicts stand
TEXT = 0.3  # height of a card's line of text
ASSESSED = {"potential": "preview", "image": "image", "motion": "motion", "final": "video"}  # in words
FATE_MEANS = {
    Fate.WON: "winner, and the branches it grew from",
    Fate.KEPT: "kept at every cut it met, but another branch won",
    Fate.DROPPED: "cut, or given up when the winner was found",
    UNUSED: "sampled early on speculation, not needed",
}

_INTEREST = (Fate.WON, Fate.KEPT, Fate.DROPPED, UNUSED)  # which branches a large tree keeps, first to last
_GAP_X, _GAP_Y = 0.95, 0.2
_VERDICT = 0.42  # height of a verdict in the margin


@dataclass(frozen=True)
class Look:
    """How cards look. Lengths are in thumbnail heights.

    A card has at most ``strip`` thumbnails side by side, a margin beside them for its verdicts and room below for
    ``text``, and is at least so wide. The thumbnail of a preview that was cut is ``small``: there are many of them.
    """

    strip: int = STRIP
    side: float = 0.0
    text: float = 0.0
    least: float = 0.0
    small: float = 1.0


PAGE = Look(side=SIDE, text=TEXT, small=0.62)


@dataclass(frozen=True)
class CardScore:
    """How a branch was judged once: the panel's probability that it is right, its place among those judged with it."""

    assessment: Assessment
    score: float
    place: str  # "2/8"; empty where its round was never complete


@dataclass(frozen=True)
class Card:
    """A branch in the picture. Lengths are in thumbnail heights, y grows downwards."""

    node: Node
    draft: bool
    strip: npt.NDArray[np.uint8]
    verdicts: tuple[CardScore, ...]
    x: float
    y: float
    width: float
    height: float
    thumb: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def lay_out(record: SearchRecord, look: Look = PAGE, chosen: Collection[Path] | None = None) -> dict[Path, Card]:
    """A card for every branch that can be shown: columns are depths, leaves stand one below another.

    Parents stand beside their children. Branches that were cut, and then lost with a machine, have no card, nor have
    those that are not ``chosen`` where some are.
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
    lefts = columns(record.request, look)
    cards: dict[Path, Card] = {}
    bottom = 0.0

    def place(path: Path) -> None:
        nonlocal bottom
        node, shown = nodes[path], record.look(path)
        below = children[path]
        verdicts = tuple(
            CardScore(asked, chance, places.get((path, asked), ""))
            for (asked, _), chance in zip(node.scores, node.chances, strict=True)
        )
        thumb = look.small if shown.draft and not below else 1.0
        text = look.text if thumb == 1.0 else 0.0
        height = max(thumb + text, len(verdicts) * _VERDICT if look.side else 0.0) + 2 * PAD
        top = bottom
        for child in below:
            place(child)
        if below:
            y = (cards[below[0]].y + cards[below[-1]].y) / 2
        else:
            y, bottom = top, top + height + _GAP_Y
        depth = len(path) - 1
        strip = strip_of(shown, look.strip, pale=node.fate in (Fate.DROPPED, UNUSED))
        width = _width(record.request, look, depth, thumb)
        cards[path] = Card(node, shown.draft, strip, verdicts, lefts[depth], y, width, height, thumb)

    for root in sorted(path for path in nodes if path[:-1] not in nodes):
        place(root)
    return cards


def columns(request: GenerationRequest, look: Look) -> list[float]:
    """Where the column of each unit begins and, at last, where that of the last one ends.

    Units that were given, as those of a clip, have no branches, and take no room.
    """
    lefts = [0.0]
    for depth in range(request.units):
        lefts.append(lefts[-1] + (_width(request, look, depth) + _GAP_X if depth >= request.given else 0.0))
    return [*lefts[:-1], lefts[-1] - _GAP_X]


def row_height(look: Look) -> float:
    """From one card of full size to the next below it, where no verdict stands beside its thumbnails."""
    return 1.0 + look.text + 2 * PAD + _GAP_Y


def _width(request: GenerationRequest, look: Look, depth: int, thumb: float = 1.0) -> float:
    count = 1 if depth == 0 else look.strip
    return max(count * request.width / request.height * thumb + 2 * PAD, look.least) + look.side


# ---- what a large tree shows


def by_interest(record: SearchRecord) -> list[Path]:
    """The branches that can be shown: by fate, the winner first; of equals the deepest first, then the best."""

    def order(node: Node) -> tuple[int, int, float, Path]:
        chance = node.chances[-1] if node.chances else 0.0
        return _INTEREST.index(node.fate), -len(node.path), -chance, node.path

    return [node.path for node in sorted(record.outcome.nodes, key=order) if node.path in record.shown]


def with_ancestors(order: Iterable[Path], most: int) -> set[Path]:
    """The first of these branches with all that they grew from, ``most`` of them."""
    known, chosen = list(order), set[Path]()
    there = set(known)
    for path in known:
        needed = set(prefixes(path)) & there - chosen
        if len(chosen) + len(needed) <= most:
            chosen |= needed
    return chosen


def in_rows(order: Iterable[Path], most: int) -> set[Path]:
    """The first of these branches with all that they grew from, in ``most`` rows: a row for each that has no child."""
    known, chosen, leaves = list(order), set[Path](), set[Path]()
    there = set(known)
    for path in known:
        if path in chosen:
            continue
        above = next((p for p in reversed(prefixes(path[:-1])) if p in chosen), ())
        after = leaves - {above} | {path}
        if len(after) <= most:
            leaves = after
            chosen |= set(prefixes(path)) & there
    return chosen


def rows_of(chosen: Collection[Path]) -> int:
    """How many of the branches have no child among them."""
    return len(set(chosen) - {path[:-1] for path in chosen})


def left_out(nodes: Iterable[Node], chosen: Collection[Path]) -> dict[Path, list[Node]]:
    """The branches that are not chosen, under the nearest one above them that is: () where there is none."""
    found: dict[Path, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.path not in chosen:
            found[next((p for p in reversed(prefixes(node.path[:-1])) if p in chosen), ())].append(node)
    return found


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
