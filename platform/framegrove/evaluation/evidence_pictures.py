"""Pictures of what a suite shows: a small one for every family of settings, each beside linear search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from framegrove.config.suite import Setting, SuiteConfig
from framegrove.evaluation.evidence import Chapter, Outcome
from framegrove.evaluation.figures import COLOURS, INK, MUTED, blank, plain, save, spread

_LINEAR, _SINGLE = "linear", "single"
_ACROSS = 5  # small pictures side by side
_REACHED = "#e3f1e6"  # the corner in which the aim is met
_PALE = "#b9bec8"
_HALO = [withStroke(linewidth=2.0, foreground="white")]  # so that names can be read across lines
_COLOURS_MEAN = "black, and grey elsewhere: best of N; star: no search; blue: tree policies; orange: other searches"
_CHEAPEST = 1e-3  # samples: left of everything
_NUMBERS = (1, 2, 4, 8, 16, 32, 64)  # on the axis of costs


def draw_costs(found: Chapter, suite: SuiteConfig, path: Path, *, title: str) -> None:
    """Draw the share of right videos against total cost, a small picture for each family; a PNG at ``path``.

    Each also has best of N and the single sample. The dashed line is what counts as reaching the plateau of best of N,
    and in the green corner that is worth its compute, as the suite's first aim has it.
    """
    families = _families(found.outcomes)
    linear, single = families.get(_LINEAR, []), families.pop(_SINGLE, [])
    figure, panels = _grid(len(families) or 1, height=2.35)
    plateau = found.find(found.plateau) if found.plateau else None
    for axes, (name, outcomes) in zip(panels, families.items(), strict=False):
        colour = _colour(outcomes[0].setting, suite)
        if plateau is not None:
            _goal(axes, plateau, suite)
        if name != _LINEAR:
            _curve(axes, linear, _PALE)
        for point in single:
            axes.plot(point.cost.mean, point.right.mean, marker="*", ms=9, color=MUTED, zorder=2)
        _curve(axes, outcomes, colour, named=True)
        _dress(axes, name, colour)
    _share_costs(panels, found.outcomes)
    note = _COLOURS_MEAN
    if plateau is not None:
        note += f"\ndashed: the plateau of best of N ({plateau.setting}) less the margin; green: reached for at most "
        note += f"{suite.aims.of_plateau:.2f} of its cost"
    _caption(
        figure,
        title,
        x=f"total FLOPs of a video in samples; 1 = sampling and decoding it once, without a search\n{note}",
        y="fully right, by the oracle",
    )
    save(figure, path)


def draw_scores(found: Chapter, suite: SuiteConfig, path: Path, *, title: str) -> None:
    """Draw what the search's judge believes of its winners against what the oracle says, a small picture for each
    family; a PNG at ``path``.

    Points are joined from the cheapest setting to the dearest. On the diagonal the judge is calibrated; a search
    that deceives its judge moves to the right without rising.
    """
    families = _families(found.outcomes)
    linear, single = families.get(_LINEAR, []), families.pop(_SINGLE, [])
    figure, panels = _grid(len(families) or 1, height=2.7)
    lowest = min(min(outcome.right.low, outcome.believed.low) for outcome in found.outcomes)
    low = _below(lowest)
    for axes, (name, outcomes) in zip(panels, families.items(), strict=False):
        colour = _colour(outcomes[0].setting, suite)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls="--", zorder=1)
        if name != _LINEAR:
            _path(axes, linear, _PALE)
        for point in single:
            axes.plot(point.believed.mean, point.right.mean, marker="*", ms=9, color=MUTED, zorder=2)
        _path(axes, outcomes, colour, named=True)
        _dress(axes, name, colour)
        axes.set_xlim(low, 1.03)
        axes.set_ylim(low, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    note = f"{_COLOURS_MEAN}; dashed: a calibrated judge"
    _caption(
        figure, title, x=f"P(right) of the winners, by the search's own judge\n{note}", y="fully right, by the oracle"
    )
    save(figure, path)


def _families(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Settings by family, the cheapest first."""
    families: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.cost.mean):
        families.setdefault(outcome.setting.family, []).append(outcome)
    order = dict.fromkeys(outcome.setting.family for outcome in outcomes)
    return {name: families[name] for name in order}


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many small pictures with the same axes, in rows of nearly equal length."""
    across = -(-count // -(-count // _ACROSS))
    down = -(-count // across)
    width, high = 2.45 * max(3, across) + 0.4, height * down + 0.9
    figure = blank(width, high, layout=None)
    # Margins in inches that fit the captions, as a layout that looks for them takes longer than all the rest.
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.2 / width, bottom=0.85 / high, top=1 - 0.6 / high, wspace=0.2, hspace=0.35
    )
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for spare in grid.flat[count:]:
        spare.set_visible(False)
    for lowest in grid.flat[max(0, count - across) : count]:
        lowest.tick_params(labelbottom=True)
    return figure, list(grid.flat[:count])


def _colour(setting: Setting, suite: SuiteConfig) -> str:
    if setting.family == _LINEAR:
        return INK
    return COLOURS[0] if setting.policy in suite.trees else COLOURS[1]


def _goal(axes: Axes, plateau: Outcome, suite: SuiteConfig) -> None:
    """What counts as reaching the plateau, and the corner in which that is worth its compute."""
    level = plateau.right.mean - suite.margin
    axes.axhline(level, color=MUTED, lw=0.9, ls="--", zorder=1)
    axes.fill_between(
        [_CHEAPEST, plateau.cost.mean * suite.aims.of_plateau], level, 2.0, color=_REACHED, lw=0, zorder=0
    )


def _curve(axes: Axes, outcomes: Sequence[Outcome], colour: str, *, named: bool = False) -> None:
    """Shares of right videos with their intervals against cost, joined; if ``named`` with what tells them apart."""
    reach = spread(outcome.right for outcome in outcomes)
    x, y = [outcome.cost.mean for outcome in outcomes], [outcome.right.mean for outcome in outcomes]
    axes.errorbar(x, y, reach, color=colour, marker="o", ms=4, lw=1.4, elinewidth=0.9, capsize=2, zorder=3)
    if named:
        _name(axes, outcomes, x, y, colour)


def _path(axes: Axes, outcomes: Sequence[Outcome], colour: str, *, named: bool = False) -> None:
    """The same against what the search's judge believes."""
    x, y = [outcome.believed.mean for outcome in outcomes], [outcome.right.mean for outcome in outcomes]
    across, up = (spread(getattr(o, what) for o in outcomes) for what in ("believed", "right"))
    axes.errorbar(x, y, up, across, color=colour, marker="o", ms=4, lw=1.4, elinewidth=0.7, zorder=3)
    if named:
        _name(axes, outcomes, x, y, colour)


def _below(lowest: float) -> float:
    """Where an axis of shares begins that must show this one, and half of all shares at least."""
    return min(0.5, math.floor(10 * lowest) / 10)


def _name(axes: Axes, outcomes: Sequence[Outcome], x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """What tells the settings of a family apart, where there are several."""
    for outcome, place in zip(outcomes, zip(x, y, strict=True), strict=True):
        text = outcome.setting.label.removeprefix(outcome.setting.family).strip()
        axes.annotate(
            text, place, (4, -9), textcoords="offset points", fontsize=7, color=colour, path_effects=_HALO, zorder=5
        )


def _dress(axes: Axes, name: str, colour: str) -> None:
    axes.set_title(
        "linear: best of N" if name == _LINEAR else name, loc="left", color=colour, fontsize=10, fontweight="bold"
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    plain(axes)
    axes.spines[["left", "bottom"]].set_color(_PALE)
    axes.tick_params(which="both", colors=MUTED, labelsize=8)


def _caption(figure: Figure, title: str, *, x: str, y: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    figure.supxlabel(x, color=INK, fontsize=9)
    figure.supylabel(y, color=INK, fontsize=9)


def _share_costs(panels: Sequence[Axes], outcomes: Sequence[Outcome]) -> None:
    """The same axes for all, costs logarithmic, with as many numbers as can be read."""
    lowest = min(outcome.right.low for outcome in outcomes)
    costs = [outcome.cost.mean for outcome in outcomes]
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlim(0.85 * min(costs), 1.35 * max(costs))
        axes.set_ylim(_below(lowest), 1.03)
        axes.xaxis.set_major_locator(FixedLocator(_NUMBERS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
