"""What pictures of figures share: their colours, plain axes, intervals as bars of error, and a PNG that is whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from framegrove.files import replacing

if TYPE_CHECKING:
    from framegrove.evaluation.curves import Interval

INK = "#22262e"
MUTED = "#8a919e"
GRID = "#e6e8ec"
COLOURS = ("#2f6fde", "#d9822b", "#2e9e62", "#9b51c4", "#c6394c", "#5b6573")


def blank(
    width: float, height: float, *, dpi: int = 150, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """A white figure of so many inches, which needs no display. ``layout`` of None: its axes are placed by hand."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, *, grid: Literal["major", "both"] = "major") -> None:
    """A pale grid behind what is drawn, and no frame above and to the right of it."""
    axes.grid(True, which=grid, color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_numbers(axis: Axis, unit: str = "") -> None:
    """Write 2 and not 2 x 10^0 on a logarithmic axis, where a number begins with 1, 2, 3 or 5."""
    for set_formatter in (axis.set_major_formatter, axis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}{unit}" if f"{value:e}"[0] in "1235" else "")


def spread(intervals: Iterable[Interval]) -> list[list[float]]:
    """How far intervals reach below and above their means, as matplotlib takes bars of error."""
    reach = [(max(0.0, each.mean - each.low), max(0.0, each.high - each.mean)) for each in intervals]
    return [[below for below, _ in reach], [above for _, above in reach]]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; no name ever stands for half of one."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
