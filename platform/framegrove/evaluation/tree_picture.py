"""The picture of a search: every branch a card that shows its unit, joined to its parent, in the colour of its fate.

Below the tree stand what the budget went on and who worked when. Lengths are in thumbnail heights until the last step.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path as Outline

from framegrove.evaluation.report import SearchRecord, Shown, lost, was_needed
from framegrove.search.result import Fate, Node, Span
from framegrove.types import Cost, Path, SampleWork

INK, MUTED, PAPER, RULE = "#22262e", "#7c8492", "#f6f7f9", "#dfe3e8"
FATE_COLOUR = {Fate.WON: "#1e9e5a", Fate.KEPT: "#2f6fde", Fate.DROPPED: "#c6394c", Fate.BET: "#a0a6b1"}
FATE_MEANS = {
    Fate.WON: "the winner's path",
    Fate.KEPT: "kept, another path won",
    Fate.DROPPED: "cut",
    Fate.BET: "bet lost: sampled early, not needed",
}
SAMPLED, LOST, DECODED, SCORED = "#2f6fde", "#c3c8d0", "#6aa84f", "#d9822b"
ASSESSED = {"potential": "preview", "image": "image", "motion": "motion", "final": "video"}

_STRIP = 4  # thumbnails of a unit of several frames
_SMALL = 0.62  # side of the thumbnail of a preview that was cut: there are many of them
_PAD = 0.09  # inside a card
_SIDE = 0.66  # the margin beside the thumbnails, where the verdicts stand
_TEXT = 0.36  # height of a card's line of text
_GAP_X, _GAP_Y = 0.95, 0.2
_INCH = 0.62  # a thumbnail's height
_MARGIN = 0.3  # inches around the picture


@dataclass(frozen=True)
class _Card:
    node: Node
    draft: bool
    strip: npt.NDArray[np.uint8]
    x: float
    y: float
    width: float
    height: float
    thumb: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def draw(record: SearchRecord, path: File) -> None:
    """Write the picture of a finished search as PNG at ``path``."""
    cards = _lay_out(record)
    columns = max(card.x + card.width for card in cards.values())
    rows = max(card.y + card.height for card in cards.values())
    lanes = sorted({span.worker for span in record.outcome.spans})
    inches = [0.95, 0.5 + rows * _INCH, 0.62, 0.26 * max(len(lanes), 1)]
    width = max(9.0, columns * _INCH + 2 * _MARGIN)
    figure = Figure(figsize=(width, sum(inches) + 1.0), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    header, tree, budget, timeline = _rows_of(figure, inches, width)
    _draw_header(header, record, width)
    _draw_tree(tree, cards, columns, rows, record.request.units)
    _draw_budget(budget, record)
    _draw_timeline(timeline, record, lanes)
    figure.savefig(path)


def _rows_of(figure: Figure, inches: Sequence[float], width: float) -> list[Axes]:
    """One axes a row, of the given heights, top down; the last one leaves room for its labels on the left."""
    total = float(figure.get_figheight())
    rows, top = [], total - 0.2
    for index, height in enumerate(inches):
        left = 1.15 if index == len(inches) - 1 else _MARGIN
        rows.append(
            figure.add_axes((left / width, (top - height) / total, (width - left - _MARGIN) / width, height / total))
        )
        top -= height + 0.1
    return rows


def _lay_out(record: SearchRecord) -> dict[Path, _Card]:
    """Columns are depths; leaves stand one below another in the order of their paths, parents beside their children."""
    nodes = {node.path: node for node in record.outcome.nodes}
    aspect = record.request.width / record.request.height
    thumbs = [1 if depth == 0 else _STRIP for depth in range(record.request.units)]
    lefts = [sum(n * aspect + 2 * _PAD + _SIDE + _GAP_X for n in thumbs[:depth]) for depth in range(len(thumbs))]
    cards: dict[Path, _Card] = {}
    bottom = 0.0

    def place(path: Path) -> None:
        nonlocal bottom
        node, shown = nodes[path], record.shown[path]
        children = sorted(p for p in nodes if p[:-1] == path)
        thumb = _SMALL if shown.draft and not children else 1.0
        height = thumb + 2 * _PAD + (_TEXT if thumb == 1.0 else 0.0)
        top = bottom
        for child in children:
            place(child)
        if children:
            y = (cards[children[0]].y + cards[children[-1]].y) / 2
        else:
            y, bottom = top, top + height + _GAP_Y
        depth = len(path) - 1
        width = thumbs[depth] * aspect * thumb + 2 * _PAD + _SIDE
        cards[path] = _Card(node, shown.draft, _strip(shown, node.fate), lefts[depth], y, width, height, thumb)

    for root in sorted(path for path in nodes if path[:-1] not in nodes):
        place(root)
    return cards


def _strip(shown: Shown, fate: Fate) -> npt.NDArray[np.uint8]:
    """A unit's frames side by side, evenly chosen; pale where the branch did not live."""
    chosen = np.linspace(0, len(shown.frames) - 1, min(_STRIP, len(shown.frames))).round().astype(int)
    strip = np.concatenate(list(shown.frames[chosen]), axis=1)
    return (strip * 0.72 + 255 * 0.28).astype(np.uint8) if fate in (Fate.DROPPED, Fate.BET) else strip


def _draw_header(axes: Axes, record: SearchRecord, width: float) -> None:
    axes.axis("off")
    request, fates = record.request, [node.fate for node in record.outcome.nodes]
    prompt = textwrap.shorten(request.prompt, int(width * 9), placeholder=" …")
    axes.text(0, 0.95, prompt, fontsize=13, fontweight="bold", color=INK, va="top", transform=axes.transAxes)
    said = (
        f"{request.policy}, budget {request.budget:g}x, seed {request.seed}: {len(fates)} branches, "
        f"{fates.count(Fate.DROPPED)} cut, {record.outcome.seconds:.1f} s"
    )
    axes.text(0, 0.6, said, fontsize=9, color=MUTED, va="top", transform=axes.transAxes)
    shown = [fate for fate in Fate if fate in fates]
    handles = [Patch(facecolor=FATE_COLOUR[fate], label=FATE_MEANS[fate]) for fate in shown]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.004, 0.0), ncols=4, frameon=False, fontsize=8.5,
                handlelength=1, handleheight=1, borderpad=0, columnspacing=1.6, labelcolor=INK)  # fmt: skip


def _draw_tree(axes: Axes, cards: dict[Path, _Card], columns: float, rows: float, units: int) -> None:
    axes.set_xlim(-0.05, columns + 0.05)
    axes.set_ylim(rows + 0.1, -0.75)
    axes.set_aspect("equal", anchor="NW")
    axes.axis("off")
    for depth in range(units):
        column = [card for card in cards.values() if len(card.node.path) == depth + 1]
        if column:
            axes.text(column[0].x, -0.25, f"unit {depth}", fontsize=9.5, fontweight="bold", color=INK)
    for path, card in cards.items():
        if path[:-1] in cards:
            _draw_edge(axes, cards[path[:-1]], card)
    for card in cards.values():
        _draw_card(axes, card)


def _draw_edge(axes: Axes, parent: _Card, child: _Card) -> None:
    x0, x1 = parent.x + parent.width, child.x
    bend = (x1 - x0) * 0.55
    points = [(x0, parent.middle), (x0 + bend, parent.middle), (x1 - bend, child.middle), (x1, child.middle)]
    outline = Outline(points, [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4])
    winner = child.node.fate is Fate.WON
    style = (0, (3, 2)) if child.node.fate is Fate.BET else "solid"
    colour = FATE_COLOUR[child.node.fate]
    axes.add_patch(
        PathPatch(outline, fc="none", ec=colour, lw=2.6 if winner else 1.2, ls=style, zorder=3 if winner else 1)
    )


def _draw_card(axes: Axes, card: _Card) -> None:
    node, colour = card.node, FATE_COLOUR[card.node.fate]
    box = FancyBboxPatch(
        (card.x, card.y), card.width, card.height, boxstyle="round,pad=0,rounding_size=0.09",
        fc="white" if node.fate in (Fate.WON, Fate.KEPT) else PAPER, ec=colour,
        lw=2.6 if node.fate is Fate.WON else 1.2, ls=(0, (3, 2)) if node.fate is Fate.BET else "solid", zorder=4,
    )  # fmt: skip
    axes.add_patch(box)
    left, top = card.x + _PAD, card.y + _PAD
    side = card.x + card.width - _SIDE - _PAD / 2
    wide = card.thumb * card.strip.shape[1] / card.strip.shape[0]
    axes.imshow(card.strip, extent=(left, left + wide, top + card.thumb, top), interpolation="nearest", zorder=5)
    name = "·".join(map(str, node.path))
    if card.thumb < 1.0:
        axes.text(side, top, name, fontsize=6.5, color=MUTED, va="top", zorder=6)
        _draw_verdicts(axes, node, side, top + 0.22, colour)
        return
    _draw_verdicts(axes, node, side, top, colour)
    base = top + 1.0 + _TEXT * 0.62
    axes.text(left, base, name + (" preview" if card.draft else ""), fontsize=7, color=MUTED, va="center", zorder=6)
    if node.judgements:
        score = f"rank {node.judgements[-1].total:.2f}"
        right = card.x + card.width - _PAD
        axes.text(right, base, score, fontsize=7.5, color=colour, va="center", ha="right", fontweight="bold", zorder=6)


def _draw_verdicts(axes: Axes, node: Node, x: float, top: float, colour: str) -> None:
    """The panel's mean probability at each assessment, one below another, in the margin beside the thumbnails."""
    for row, (assessment, panel) in enumerate(node.scores):
        y = top + 0.02 + row * 0.37
        mean = sum(score for _, score in panel) / len(panel)
        axes.text(x, y, ASSESSED[assessment], fontsize=5.2, color=MUTED, va="top", zorder=6)
        axes.text(x, y + 0.13, f"{mean:.2f}", fontsize=7.5, color=colour, va="top", fontweight="bold", zorder=6)


def _draw_budget(axes: Axes, record: SearchRecord) -> None:
    """What was spent, in multiples of sampling one video, against what sampling was allowed."""
    single = record.single.flops or 1
    sampling, scoring = record.outcome.sampling, record.outcome.scoring
    parts: list[tuple[str, Cost, str]] = [
        ("generator", sampling.certain, SAMPLED),
        ("bets lost", lost(sampling), LOST),
        ("decoding", Cost(flops=sampling.spent.decoding), DECODED),
        ("verifier", scoring.spent, SCORED),
    ]
    total = sum(part.flops for _, part, _ in parts) / single
    end = max(total, record.request.budget)
    axes.set_xlim(0, end * 1.002)
    axes.set_ylim(0, 1.6)
    axes.axis("off")
    left = 0.0
    for _, part, colour in parts:
        axes.barh(0.35, part.flops / single, left=left, height=0.4, color=colour)
        left += part.flops / single
    said = ", ".join(f"{name} {part.flops / single:.2f}x ({part.flops:.2e} FLOPs)" for name, part, _ in parts)
    axes.text(0, 0.78, f"Budget {record.request.budget:g}x of one sample: {said}", fontsize=8.5, color=INK, va="bottom")
    axes.plot([record.request.budget] * 2, [0.05, 0.65], color=INK, lw=1.4)


def _draw_timeline(axes: Axes, record: SearchRecord, lanes: Sequence[str]) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    axes.tick_params(axis="x", labelsize=8, colors=MUTED)
    rows = {lane: row for row, lane in enumerate(lanes)}
    for span in record.outcome.spans:
        needed = was_needed(span, record.outcome)
        bar = axes.barh(rows[span.worker], span.end - span.start, left=span.start, height=0.62, color=_colour(span))
        bar[0].set(edgecolor="white", linewidth=0.5, hatch=None if needed else "////", alpha=1.0 if needed else 0.45)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, max((span.end for span in record.outcome.spans), default=1.0) * 1.002)
    axes.grid(axis="x", color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    said = "seconds since the search began: who worked when (hatched: not needed in the end)"
    axes.set_xlabel(said, fontsize=8.5, color=MUTED, loc="left")


def _colour(span: Span) -> str:
    return SAMPLED if isinstance(span.work, SampleWork) else SCORED
