"""Pictures of a finished search: tree.png has everything, slide.png what fits on a 16:9 slide.

Every branch is a card that shows its newest unit, joined to its parent, in the colour of what became of it. Lengths in
the tree are in thumbnail heights.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path as Outline

from framegrove.evaluation.report import Frames, SearchRecord, was_needed
from framegrove.evaluation.tree_layout import ASSESSED, FATE_MEANS, PAD, SIDE, UNUSED, Card, lay_out, strip_of
from framegrove.files import replacing
from framegrove.lineage import branch_name
from framegrove.search.result import Fate
from framegrove.types import Path, SampleWork
from framegrove.words import counted

INK, MUTED, PAPER, RULE = "#22262e", "#7c8492", "#f6f7f9", "#dfe3e8"
FATE_COLOUR = {Fate.WON: "#1e9e5a", Fate.KEPT: "#2f6fde", Fate.DROPPED: "#c6394c", UNUSED: "#a0a6b1"}
PARTS = {"sampling": "#2f6fde", "wasted": "#c3c8d0", "decoding": "#6aa84f", "judging": "#d9822b"}  # of a price
READING = (
    "A card shows the frames of a branch's newest unit. Beside them, each time it was judged: what was judged "
    "(preview: unit 0 from the coarse stages alone, marked so where it was never refined; image: unit 0; motion: a "
    "middle unit; video: the whole), the verifiers' mean score from 0 to 1, and its place among the branches judged "
    "together, such as 2/8. Cuts go by places, and places of different rounds cannot be compared."
)
_INCH = 0.62  # a thumbnail's height
_MARGIN = 0.3  # inches around the picture
_ABOVE = (0.2, 0.15, 0.15, 0.4, 0.4)  # inches above header, videos, tree, price and timeline
_LEFT = (_MARGIN, _MARGIN, _MARGIN, 1.15, 1.15)  # the last two have labels on their left
_WIDE = 1.5  # a tree's width over its height from which it is below everything else on a slide
_STRIP = 12  # frames of a video beside another video


def draw(record: SearchRecord, path: File, single: Frames | None = None) -> None:
    """Write the whole picture as PNG at ``path``.

    ``single`` are the frames of the sample without a search, uint8 (T, H, W, 3); absent, they are taken from the tree
    where it has them.
    """
    cards = lay_out(record)
    columns, rows = _extent(cards)
    lanes = sorted({span.worker for span in record.outcome.spans})
    width = max(10.0, columns * _INCH + 2 * _MARGIN)
    reading = textwrap.wrap(READING, int((width - 2 * _MARGIN) * 15))
    videos = _videos(record, single)
    strip = _strip_height(record, videos, width - 2 * _MARGIN)
    inches = [0.95 + 0.16 * len(reading), strip, 0.5 + rows * _INCH, 0.6, 0.26 * max(len(lanes), 1)]
    figure = _figure(width, sum(inches) + sum(_ABOVE) + 0.75)
    header, shown, tree, price, timeline = _rows_of(figure, inches, width)
    _draw_header(header, record, inches[0], reading, width)
    _draw_videos(shown, videos)
    _draw_tree(tree, cards, record.request.units)
    _draw_price(price, record)
    _draw_timeline(timeline, record, lanes)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def draw_slide(record: SearchRecord, path: File, single: Frames | None = None) -> None:
    """Write winner, sample without a search, price and tree as a PNG of 1920 x 1080 pixels at ``path``."""
    width, height, margin, half = 12.8, 7.2, 0.4, 5.6
    figure = _figure(width, height)

    def area(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, (height - top - high) / height, wide / width, high / height))

    _draw_title(area(margin, 0.3, width - 2 * margin, 0.7), record, 0.7, 18, 10)
    videos = _videos(record, single)
    _draw_videos(area(margin, 1.25, half, _strip_height(record, videos, half)), videos)
    cards, left = lay_out(record, words=False), margin + half + 0.5
    columns, rows = _extent(cards)
    if columns < _WIDE * rows:  # beside everything else, else below it
        price = area(margin + 0.8, 5.1, half - 0.8, 0.8)
        tree = area(left, 1.15, width - left - margin, height - 1.15 - margin)
        fates, lines = area(margin, 3.2, half, 1.0), 1
    else:
        price = area(left + 0.8, 1.7, width - left - margin - 0.8, 0.8)
        tree = area(margin, 3.2, width - 2 * margin, 3.2)
        fates, lines = area(margin, 6.6, width - 2 * margin, 0.2), 4
    _draw_price(price, record, narrow=True)
    _draw_tree(tree, cards, record.request.units, words=False)
    _draw_fates(fates, record, ncols=lines)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


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


def _draw_title(axes: Axes, record: SearchRecord, inches: float, large: int, small: int, characters: int = 90) -> None:
    axes.axis("off")
    request, fates = record.request, [node.fate for node in record.outcome.nodes]
    prompt = textwrap.shorten(request.prompt, characters, placeholder=" …")
    axes.text(0, 1, prompt, fontsize=large, fontweight="bold", color=INK, va="top", transform=axes.transAxes)
    said = (
        f"{request.policy}, budget {request.budget:g}x, seed {request.seed}: {counted(len(fates), 'branch')}, "
        f"{fates.count(Fate.DROPPED)} cut, {record.outcome.seconds:.1f} s"
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
    videos = {"winner": record.frames}
    if single is not None and (len(record.outcome.nodes) > len(record.outcome.winner) or single is not record.frames):
        videos["sample without a search"] = single
    return videos


def _strip_height(record: SearchRecord, videos: Mapping[str, Frames], inches: float) -> float:
    """Inches for the videos' strips, one below another, each with a line of text."""
    count = min(_STRIP, max(map(len, videos.values())))
    frame = min(_INCH, inches / count * record.request.height / record.request.width)
    return len(videos) * (frame + 0.28)


def _draw_videos(axes: Axes, videos: Mapping[str, Frames]) -> None:
    """Strips of whole videos, one below another, each under its name. Lengths are in frame heights."""
    axes.axis("off")
    line, row = 0.42, 1.42
    for index, (name, frames) in enumerate(videos.items()):
        top = index * row
        strip = strip_of(frames, _STRIP)
        colour = FATE_COLOUR[Fate.WON] if index == 0 else MUTED
        axes.text(0, top + line / 2, name, fontsize=8.5, fontweight="bold", color=colour, va="center")
        extent = (0, strip.shape[1] / strip.shape[0], top + row, top + line)
        axes.imshow(strip, extent=extent, interpolation="nearest", aspect="equal")
    widest = max(min(_STRIP, len(f)) * f.shape[2] / f.shape[1] for f in videos.values())
    axes.set_xlim(0, widest)
    axes.set_ylim(len(videos) * row, 0)
    axes.set_aspect("equal", anchor="NW")


def _draw_tree(axes: Axes, cards: Mapping[Path, Card], units: int, words: bool = True) -> None:
    """The cards and what joins them; without ``words`` where they would be too small to read."""
    columns, rows = _extent(cards)
    axes.axis("off")
    axes.set_xlim(-0.05, columns + 0.05)
    axes.set_ylim(rows + 0.05, -0.8)
    axes.set_aspect("equal", anchor="NW")
    for depth in range(units):
        column = [card for path, card in cards.items() if len(path) == depth + 1]
        if column:
            size, label = (9.5, f"unit {depth}") if words else (8, "unit\n0" if depth == 0 else str(depth))
            axes.text(column[0].x, -0.25, label, fontsize=size, fontweight="bold", color=INK)
    for path, card in cards.items():
        if path[:-1] in cards:
            _draw_edge(axes, cards[path[:-1]], card)
    for card in cards.values():
        _draw_card(axes, card, words)


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


def _draw_card(axes: Axes, card: Card, words: bool) -> None:
    node, colour = card.node, FATE_COLOUR[card.node.fate]
    box = FancyBboxPatch(
        (card.x, card.y), card.width, card.height, boxstyle="round,pad=0,rounding_size=0.09",
        fc="white" if node.fate in (Fate.WON, Fate.KEPT) else PAPER, ec=colour,
        lw=2.6 if node.fate is Fate.WON else 1.2, ls=(0, (3, 2)) if node.fate is UNUSED else "solid", zorder=4,
    )  # fmt: skip
    axes.add_patch(box)
    left, top = card.x + PAD, card.y + PAD
    wide = card.thumb * card.strip.shape[1] / card.strip.shape[0]
    axes.imshow(card.strip, extent=(left, left + wide, top + card.thumb, top), interpolation="nearest", zorder=5)
    if not words:
        return
    _draw_verdicts(axes, card, card.x + card.width - SIDE - PAD / 2, top, colour)
    if card.thumb == 1.0:
        name = "branch " + branch_name(node.path) + (", preview" if card.draft else "")
        axes.text(left, card.y + card.height - 0.17, name, fontsize=6.5, color=MUTED, va="center", zorder=6)


def _draw_verdicts(axes: Axes, card: Card, x: float, top: float, colour: str) -> None:
    """What was judged, the mean score and the place, a block for each time, in the margin beside the thumbnails."""
    for row, verdict in enumerate(card.verdicts):
        y = top + 0.02 + row * 0.42
        axes.text(x, y, ASSESSED[verdict.assessment], fontsize=5.5, color=MUTED, va="top", zorder=6)
        axes.text(x, y + 0.14, f"{verdict.score:.2f}", fontsize=7, color=colour, va="top", fontweight="bold", zorder=6)
        axes.text(x + 0.45, y + 0.155, verdict.place, fontsize=6, color=INK, va="top", zorder=6)


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
