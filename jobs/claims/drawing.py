"""How the claims' pictures look: one figure, plain axes, the house's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from framegrove.evaluation.curves import Interval


def canvas(panels: int = 1, *, title: str, width: float = 4.6, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """A figure of some panels side by side."""
    from framegrove.evaluation.figures import INK, blank

    figure = blank(max(6.4, width * panels), height, dpi=130)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def dress(axes: Axes, *, x: str, y: str, title: str = "", legend: bool = True) -> None:
    """Labels, grid and legend."""
    from framegrove.evaluation.figures import INK, MUTED, plain

    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.set_title(title, loc="left", color=INK, fontsize=9.5)
    plain(axes)
    axes.tick_params(which="both", colors=MUTED, labelsize=8)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def banded(axes: Axes, x: Sequence[float], points: Sequence[Interval], **line: Any) -> None:
    """Means joined by a line, with their intervals."""
    from framegrove.evaluation.figures import spread

    means = [point.mean for point in points]
    axes.errorbar(x, means, spread(points), **{"marker": "o", "ms": 4, "lw": 1.5, "capsize": 3, **line})


def bars(axes: Axes, places: Sequence[str], kinds: Mapping[str, Sequence[Interval]]) -> None:
    """At each of some named places a bar for each kind, side by side, with their intervals."""
    from framegrove.evaluation.figures import COLOURS, spread

    for shift, (kind, found) in enumerate(kinds.items()):
        at, means = [place + 0.36 * shift for place in range(len(places))], [each.mean for each in found]
        axes.bar(at, means, 0.34, yerr=spread(found), capsize=3, color=COLOURS[shift], label=kind, alpha=0.85)
    axes.set_xticks([place + 0.18 * (len(kinds) - 1) for place in range(len(places))], places)
