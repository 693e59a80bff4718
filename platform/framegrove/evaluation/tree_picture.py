"""Pictures of a finished search: tree.png has everything, slide.png what fits on a 16:9 slide.

Every branch is a card that shows its newest unit, joined to its parent, in the colour of what became of it. Lengths in
the tree are in thumbnail heights.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path as Outline

from framegrove.evaluation.figures import blank, save
from framegrove.evaluation.report import Frames, SearchRecord, was_needed
from framegrove.evaluation.tree_layout import (
    FATE_MEANS,
    PAD,
    STRIP,
    UNUSED,
    Card,
    Look,
    by_interest,
    columns,
    in_rows,
    lay_out,
    left_out,
    row_height,
    rows_of,
    strip_of,
)
from framegrove.lineage import branch_name
from framegrove.search.result import Fate
from framegrove.types import GenerationRequest, Path, SampleWork
from framegrove.words import counted

INK, MUTED, PAPER, RULE = "#22262e", "#7c8492", "#f6f7f9", "#dfe3e8"
FATE_COLOUR = {Fate.WON: "#1e9e5a", Fate.KEPT: "#2f6fde", Fate.DROPPED: "#c6394c", UNUSED: "#a0a6b1"}
PARTS = {"sampling": "#2f6fde", "wasted": "#c3c8d0", "decoding": "#6aa84f", "judging": "#d9822b"}  # of a price
_SHOWS = "A card shows the frames of a branch's newest unit."
_JUDGED = (
    "Below them stand the panel's probability that it is right, and its place among the branches that were judged "
    "together, as in 2/8; places of different rounds cannot be compared."
)
_DRAFT = "Dotted: a preview of unit 0 from the coarse stages alone, which was never refined."
_LEFT_OUT = "A + counts the branches behind a card, or below all, that are left out here: tree.html shows more of them."
ROWS = 8  # of a tree: more are too small to read once the picture fits on a screen
_WIDTH = 12.8  # inches of the picture, unless the video has very many units
_HEIGHT = 4.8  # inches of a tree of so many rows
_LARGEST, _SMALLEST = 0.62, 0.26  # inches of a thumbnail's height
_WORDS, _LINE, _CHARACTER = 7, 0.14, 0.066  # of the text on a card: points, and inches
_ON_A_LINE = 16  # characters: a branch's name and its verdict
_MARGIN = 0.3  # inches around the picture
_ABOVE = (0.2, 0.1, 0.1, 0.35, 0.4)  # inches above header, videos, tree, price and timeline
_LEFT = (_MARGIN, _MARGIN, _MARGIN, 1.15, 1.15)  # the last two have labels on their left
_WIDE = 1.5  # a tree's width over its height from which it is below everything else on a slide
_STRIP = 12  # frames of a video beside another video


def draw(record: SearchRecord, path: File, single: Frames | None = None) -> None:
    """Write the whole picture as PNG at ``path``: of a large tree, the branches that fit on a screen.

    ``single`` are the frames of the sample without a search, uint8 (T, H, W, 3); absent, they are taken from the tree
    where it has them.
    """
    chosen = _chosen(record)
    look, inch = _fitting(record.request, rows_of(chosen))
    cards = lay_out(record, look, chosen)
    rows = _extent(cards)[1]
    lanes = sorted({span.worker for span in record.outcome.spans})
    width = max(_WIDTH, columns(record.request, look)[-1] * inch + 2 * _MARGIN)
    reading = textwrap.wrap(_reading(record, cards), int((width - 2 * _MARGIN) * 15))
    videos = _videos(record, single)
    strip, frames = _side_by_side(record, videos, width - 2 * _MARGIN)
    inches = [0.85 + 0.16 * len(reading), strip, 0.6 + rows * inch, 0.6, 0.26 * max(len(lanes), 1)]
    figure = blank(width, sum(inches) + sum(_ABOVE) + 0.75, layout=None)
    header, shown, tree, price, timeline = _rows_of(figure, inches, width)
    _draw_header(header, record, inches[0], reading, width)
    _draw_videos(shown, videos, frames, across=True)
    _draw_tree(tree, cards, record, inch)
    _draw_price(price, record)
    _draw_timeline(timeline, record, lanes)
    save(figure, path)


def draw_slide(record: SearchRecord, path: File, single: Frames | None = None) -> None:
    """Write winner, sample without a search, price and tree as a PNG of 1920 x 1080 pixels at ``path``."""
    width, height, margin, half = 12.8, 7.2, 0.4, 5.6
    figure = blank(width, height, layout=None)

    def area(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, (height - top - high) / height, wide / width, high / height))

    cards, left = lay_out(record, Look(), _chosen(record)), margin + half + 0.5
    across, down = _extent(cards)
    more = " (+ counts branches that are left out below)" if len(cards) < len(record.outcome.nodes) else ""
    _draw_title(area(margin, 0.3, width - 2 * margin, 0.7), record, 0.7, 18, 10, more=more)
    videos = _videos(record, single)
    _draw_videos(area(margin, 1.25, half, _strip_height(record, videos, half)), videos)
    if across < _WIDE * down:  # beside everything else, else below it
        price = area(margin + 0.8, 5.1, half - 0.8, 0.8)
        tree = area(left, 1.15, width - left - margin, height - 1.15 - margin)
        fates, lines = area(margin, 3.2, half, 1.0), 1
    else:
        price = area(left + 0.8, 1.7, width - left - margin - 0.8, 0.8)
        tree = area(margin, 3.2, width - 2 * margin, 3.2)
        fates, lines = area(margin, 6.6, width - 2 * margin, 0.2), 4
    _draw_price(price, record, narrow=True)
    _draw_tree(tree, cards, record)
    _draw_fates(fates, record, ncols=lines)
    save(figure, path)


def _chosen(record: SearchRecord) -> set[Path]:
    return in_rows(by_interest(record), ROWS)


def _fitting(request: GenerationRequest, rows: int) -> tuple[Look, float]:
    """How cards look if a tree of so many rows, and all units of a video, are to fit: and a thumbnail's inches."""
    for strip in (STRIP, 2, 1):
        for hundredths in range(round(100 * _LARGEST), round(100 * _SMALLEST) - 1, -2):
            inch = hundredths / 100
            room = (strip * request.width / request.height + 2 * PAD) * inch / _CHARACTER
            lines = 1 if room >= _ON_A_LINE else 2
            characters = 15 if lines == 1 else 9  # of a unit 0, as in 39 0.17 39/45, or of a verdict
            look = Look(strip, text=lines * _LINE / inch, least=characters * _CHARACTER / inch)
            low = rows * row_height(look) * inch <= _HEIGHT
            if low and columns(request, look)[-1] * inch <= _WIDTH - 2 * _MARGIN:
                return look, inch
    return look, inch


def _reading(record: SearchRecord, cards: Mapping[Path, Card]) -> str:
    """How the picture is read, as far as there is something to explain."""
    nodes = record.outcome.nodes
    parts = {
        _SHOWS: True,
        _JUDGED: any(node.scores for node in nodes),
        _DRAFT: any(card.draft for card in cards.values()),
        _LEFT_OUT: len(cards) < len(nodes),
    }
    return " ".join(part for part, needed in parts.items() if needed)


def _extent(cards: Mapping[Path, Card]) -> tuple[float, float]:
    return max(card.x + card.width for card in cards.values()), max(card.y + card.height for card in cards.values())


def _rows_of(figure: Figure, inches: Sequence[float], width: float) -> list[Axes]:
    """One axes a row, of the given heights, top down."""
    total = float(figure.get_figheight())
    rows, top = [], total
    for height, above, left in zip(inches, _ABOVE, _LEFT, strict=True):
        top -= above
        rows.append(
            figure.add_axes((left / width, (top - height) / total, (width - left - _MARGIN) / width, height / total))
        )
        top -= height
    return rows


def _draw_header(axes: Axes, record: SearchRecord, inches: float, reading: Sequence[str], width: float) -> None:
    _draw_title(axes, record, inches, 13, 9, characters=int(width * 9))
    _draw_fates(axes, record, y=1 - 0.82 / inches)
    text = "\n".join(reading)
    axes.text(0, 0, text, fontsize=7.5, color=MUTED, va="bottom", linespacing=1.35, transform=axes.transAxes)


def _draw_title(
    axes: Axes, record: SearchRecord, inches: float, large: int, small: int, *, characters: int = 90, more: str = ""
) -> None:
    axes.axis("off")
    request, fates = record.request, [node.fate for node in record.outcome.nodes]
    prompt = textwrap.shorten(request.prompt, characters, placeholder=" …")
    axes.text(0, 1, prompt, fontsize=large, fontweight="bold", color=INK, va="top", transform=axes.transAxes)
    given = f"going on from {counted(request.given, 'unit')}, " if request.given else ""
    said = (
        f"{given}{request.policy}, budget {request.budget:g}x, seed {request.seed}: {counted(len(fates), 'branch')}, "
        f"{fates.count(Fate.DROPPED)} cut, {record.outcome.seconds:.1f} s{more}"
    )
    below = 1 - (large * 1.7 / 72) / inches
    axes.text(0, below, said, fontsize=small, color=MUTED, va="top", transform=axes.transAxes)


def _draw_fates(axes: Axes, record: SearchRecord, y: float = 0.0, ncols: int = 4) -> None:
    axes.axis("off")
    fates = {node.fate for node in record.outcome.nodes}
    handles = [Patch(facecolor=FATE_COLOUR[fate], label=FATE_MEANS[fate]) for fate in Fate if fate in fates]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.004, y), ncols=ncols, frameon=False, fontsize=8.5,
                handlelength=1, handleheight=1, borderpad=0, columnspacing=1.6, labelcolor=INK)  # fmt: skip


def _videos(record: SearchRecord, single: Frames | None) -> dict[str, Frames]:
    """The winner, and the sample without a search where it is known and another video."""
    if single is None:
        single = record.single_frames
    if single is None or not record.outcome.verifiers:
        return {"winner": record.frames}
    if np.array_equal(single, record.frames):
        return {"winner, which is the sample without a search": record.frames}
    return {"winner": record.frames, "sample without a search": single}


def _strip_height(record: SearchRecord, videos: Mapping[str, Frames], inches: float) -> float:
    """Inches for the videos' strips, one below another, each with a line of text."""
    count = min(_STRIP, max(map(len, videos.values())))
    frame = min(_LARGEST, inches / count * record.request.height / record.request.width)
    return len(videos) * (frame + 0.28)


def _side_by_side(record: SearchRecord, videos: Mapping[str, Frames], inches: float) -> tuple[float, int]:
    """Inches for the videos' strips beside each other, with a line of text, and how many frames each has."""
    aspect = record.request.width / record.request.height
    each = inches / 2 - 0.2
    count = min(_STRIP, max(1, int(each / (0.45 * aspect))), max(map(len, videos.values())))
    return min(_LARGEST, each / count / aspect) + 0.28, count


def _draw_videos(axes: Axes, videos: Mapping[str, Frames], count: int = _STRIP, *, across: bool = False) -> None:
    """Strips of whole videos below or beside each other, each under its name. Lengths are in frame heights."""
    axes.axis("off")
    line, row = 0.42, 1.42
    widest = max(min(count, len(f)) * f.shape[2] / f.shape[1] for f in videos.values())
    for index, (name, frames) in enumerate(videos.items()):
        left, top = (index * (widest + line), 0.0) if across else (0.0, index * row)
        strip = strip_of(frames, count)
        colour = FATE_COLOUR[Fate.WON] if index == 0 else MUTED
        axes.text(left, top + line / 2, name, fontsize=8.5, fontweight="bold", color=colour, va="center")
        extent = (left, left + strip.shape[1] / strip.shape[0], top + row, top + line)
        axes.imshow(strip, extent=extent, interpolation="nearest", aspect="equal")
    axes.set_xlim(0, 2 * widest + line if across else widest)
    axes.set_ylim(row if across else len(videos) * row, 0)
    axes.set_aspect("equal", anchor="NW")


def _draw_tree(axes: Axes, cards: Mapping[Path, Card], record: SearchRecord, inch: float | None = None) -> None:
    """The cards and what joins them; with words on them where a thumbnail's height in inches is given."""
    across, down = _extent(cards)
    axes.axis("off")
    axes.set_xlim(-0.05, across + 0.05)
    axes.set_ylim(down + 0.05, -0.8)
    axes.set_aspect("equal", anchor="NW")
    first = record.request.given
    for depth in range(first, record.request.units):
        column = [card for path, card in cards.items() if len(path) == depth + 1]
        if column:
            size, label = (9.5, f"unit {depth}") if inch else (8, f"unit\n{depth}" if depth == first else str(depth))
            axes.text(column[0].x, -0.25, label, fontsize=size, fontweight="bold", color=INK)
    for path, card in cards.items():
        if path[:-1] in cards:
            _draw_edge(axes, cards[path[:-1]], card)
    for card in cards.values():
        _draw_card(axes, card, inch)
    for path, nodes in left_out(record.outcome.nodes, cards).items():
        x, y = (cards[path].x + cards[path].width + 0.08, cards[path].middle - 0.08) if path else (0.0, down + 0.05)
        axes.text(x, y, f"+{len(nodes)}", fontsize=7, color=MUTED, va="bottom" if path else "top", zorder=6)


def _draw_edge(axes: Axes, parent: Card, child: Card) -> None:
    x0, x1 = parent.x + parent.width, child.x
    bend = (x1 - x0) * 0.55
    points = [(x0, parent.middle), (x0 + bend, parent.middle), (x1 - bend, child.middle), (x1, child.middle)]
    outline = Outline(points, [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4])
    winner = child.node.fate is Fate.WON
    style = (0, (3, 2)) if child.node.fate is UNUSED else "solid"
    colour = FATE_COLOUR[child.node.fate]
    axes.add_patch(
        PathPatch(outline, fc="none", ec=colour, lw=2.6 if winner else 1.2, ls=style, zorder=3 if winner else 1)
    )


def _draw_card(axes: Axes, card: Card, inch: float | None) -> None:
    node, colour = card.node, FATE_COLOUR[card.node.fate]
    box = FancyBboxPatch(
        (card.x, card.y), card.width, card.height, boxstyle="round,pad=0,rounding_size=0.09",
        fc="white" if node.fate in (Fate.WON, Fate.KEPT) else PAPER, ec=colour,
        lw=2.6 if node.fate is Fate.WON else 1.2, zorder=4,
        ls=":" if card.draft else (0, (3, 2)) if node.fate is UNUSED else "solid", clip_on=False,
    )  # fmt: skip
    axes.add_patch(box)
    left, top = card.x + PAD, card.y + PAD
    wide = card.thumb * card.strip.shape[1] / card.strip.shape[0]
    axes.imshow(card.strip, extent=(left, left + wide, top + card.thumb, top), interpolation="nearest", zorder=5)
    if inch is not None:
        _draw_words(axes, card, inch)


def _draw_words(axes: Axes, card: Card, inch: float) -> None:
    """Name and last verdict, on one line where there is room, otherwise the verdict below the name."""
    line, character = _LINE / inch, _CHARACTER / inch
    left, right, top = card.x + PAD, card.x + card.width - PAD, card.y + PAD + card.thumb + 0.02 / inch
    below = card.height - 2 * PAD - card.thumb > 1.8 * line
    verdict = card.verdicts[-1] if card.verdicts else None
    score, place = (f"{verdict.score:.2f}", verdict.place) if verdict else ("", "")
    name = branch_name(card.node.path)
    room = int((right - left) / character) - (0 if below or not verdict else len(f"{score} {place} "))
    if len(name) > room:
        name = f"{name[:3]}…{name[len(name) - room + 4 :].lstrip('.')}"
    axes.text(left, top, name, fontsize=_WORDS, color=MUTED, va="top", zorder=6)
    if verdict is not None:
        x, y = (left, top + line) if below else (right - (len(score) + len(place) + 0.6) * character, top)
        colour = FATE_COLOUR[card.node.fate]
        axes.text(x, y, score, fontsize=_WORDS, fontweight="bold", color=colour, va="top", zorder=6)
        axes.text(x + (len(score) + 0.6) * character, y, place, fontsize=_WORDS, color=INK, va="top", zorder=6)


def _draw_price(axes: Axes, record: SearchRecord, narrow: bool = False) -> None:
    """What was spent, in samples, above one sample without a search; the budget bounds all but what was wasted."""
    searched, single = record.price, record.single_price
    searching = bool(record.outcome.verifiers)
    rows = {"search": searched, "one sample": single} if searching else {"one sample": single}
    end = max(searched.total, record.request.budget) * 1.01
    for row, price in enumerate(rows.values()):
        left = 0.0
        for part, value in asdict(price).items():
            axes.barh(row, value, left=left, height=0.62, color=PARTS[part])
            left += value
        if row == 0 and 0 <= record.request.budget - left < 0.06 * end:  # not across the budget's line
            left = record.request.budget
        axes.text(left + end * 0.005, row, f"{price.total:.2f}x", fontsize=8, color=INK, va="center")
    if searching:
        axes.plot([record.request.budget] * 2, [-0.45, 0.45], color=INK, lw=1.4)
    parts = {name: value for name, value in asdict(searched).items() if value}
    handles = [Patch(facecolor=PARTS[name], label=f"{name} {value:.2f}x") for name, value in parts.items()]
    said = ["price, 1x = sampling and decoding this video once, without a search"]
    if searching:
        said.append(f"the line is the budget, {record.request.budget:g}x")
    axes.set_title(("\n" if narrow else "; ").join(said), fontsize=8.5, color=INK, loc="left")
    place = (
        {"loc": "upper left", "bbox_to_anchor": (0, -0.3)}
        if narrow
        else {"loc": "lower right", "bbox_to_anchor": (1, 1)}
    )
    axes.legend(handles=handles, **place, ncols=4, frameon=False, fontsize=8, handlelength=1, handleheight=1,
                borderpad=0, columnspacing=1.2, labelcolor=INK)  # fmt: skip
    axes.set_xlim(0, end * 1.06)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.tick_params(axis="x", labelsize=8, colors=MUTED)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _draw_timeline(axes: Axes, record: SearchRecord, lanes: Sequence[str]) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    axes.tick_params(axis="x", labelsize=8, colors=MUTED)
    rows = {lane: row for row, lane in enumerate(lanes)}
    for span in record.outcome.spans:
        needed = was_needed(span, record.outcome)
        colour = PARTS["sampling"] if isinstance(span.work, SampleWork) else PARTS["judging"]
        bar = axes.barh(rows[span.worker], span.end - span.start, left=span.start, height=0.62, color=colour)
        bar[0].set(edgecolor="white", linewidth=0.5, hatch=None if needed else "////", alpha=1.0 if needed else 0.45)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, max((span.end for span in record.outcome.spans), default=1.0) * 1.002)
    axes.grid(axis="x", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    said = "seconds since the search began: who sampled and who judged, and when (hatched: not needed in the end)"
    axes.set_xlabel(said, fontsize=8.5, color=MUTED, loc="left")
