"""Pictures of a study: its Pareto front, all trials side by side, what matters, and what the money went into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patheffects import withStroke

from framegrove.config.study import Objective, StudyConfig, label_of
from framegrove.evaluation.curves import Interval
from framegrove.evaluation.figures import COLOURS, INK, MUTED, blank, plain, save, spread
from framegrove.evaluation.study_front import FrontPlace
from framegrove.evaluation.study_optuna import Importance
from framegrove.evaluation.study_results import PARTS
from framegrove.evaluation.tree_picture import PARTS as COLOUR_OF

_PALE = "#c3c8d1"
_SCALE = LinearSegmentedColormap.from_list("pale to ink blue", ["#c9d8f5", "#2f6fde", "#10265c"])
_HALO = [withStroke(linewidth=2.5, foreground="white")]
_MOST_BARS = 24
_ACROSS = 6  # parameters in a row of parallel coordinates
_UNUSED = "not used"
_NEAR = 24.0  # pixels: numbers beside points that are nearer to each other would overlap
_MOST_NUMBERED = 24  # trials, of which all have their numbers, and of more only those on the front
_MOST_LISTED = 4  # numbers in one place
_LINE = 0.05  # of an axis' height, which a line of numbers takes
_SHARES = ("score", "right", "motion")  # objectives between 0 and 1
_NARROWEST, _EDGE = 0.1, 0.02  # of an axis of shares: what it has at least, and what it shows beyond 0 and 1
_AXES = {"flops": "FLOPs of a video, all parts", "seconds": "seconds a video"}


def draw_front(found: Sequence[FrontPlace], goals: Sequence[Objective], path: Path, *, title: str) -> None:
    """Draw the first objective against each other one, with 95% bootstrap intervals; a PNG at ``path``.

    What is on the front of all objectives together is blue. Trials have their numbers, those that are not on the front
    where there are few. A single prompt has no intervals.
    """
    first = goals[0]
    others: Sequence[Objective | None] = goals[1:] or [None]  # where there is one alone, trials stand side by side
    figure = blank(5.6 * len(others) + 0.4, 4.6)
    panels = figure.subplots(1, len(others), squeeze=False, sharey=True)[0]
    for axes, other in zip(panels, others, strict=True):
        for each in sorted(found, key=lambda each: each.on_front):
            _cross(axes, each, first, other)
        if other is None:
            axes.set_xlabel("trial", color=INK)
        else:
            axes.set_xlabel(_named(other), color=INK)
            if _is_cost(other):
                axes.set_xscale("log")
            elif other.name in _SHARES:
                axes.set_xlim(*_within(*axes.get_xlim()))
                axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1])
        _dress(axes)
    if first.name in _SHARES:
        panels[0].set_ylim(*_within(*panels[0].get_ylim()))
        panels[0].set_yticks([tick for tick in panels[0].get_yticks() if 0 <= tick <= 1])
    panels[0].set_ylabel(_named(first), color=INK)
    figure.draw_without_rendering()  # from now on points have places
    beaten = [each for each in found if not each.on_front]
    for axes, other in zip(panels, others, strict=True):
        _number(axes, [each for each in found if each.on_front], first, other)
        if len(beaten) <= _MOST_NUMBERED:
            _number(axes, beaten, first, other)
    figure.suptitle(f"{title}; blue: on the Pareto front", x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")
    save(figure, path)


def draw_parallel(found: Sequence[FrontPlace], config: StudyConfig, path: Path, *, title: str) -> None:
    """Draw a line for every finished trial through all parameters and objectives; a PNG at ``path``.

    The darker, the better in the first objective; lines of the front are thick. A parameter that does not matter in a
    trial is passed at the bottom. Many parameters stand in several rows, each with the objectives at its end.
    """
    rows = _rows(config.names)
    figure = blank(1.5 * (max(map(len, rows)) + len(config.goals)) + 0.8, 3.7 * len(rows) + 0.5)
    for axes, names in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        _parallel(axes, found, config, names)
    first = config.goals[0].name
    same = len({each.means[first].mean for each in found}) < 2
    note = f"{f'{first}: all equal' if same else f'dark: better {first}'}; thick: on the Pareto front"
    figure.suptitle(f"{title}; {note}", x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")
    save(figure, path)


def draw_importance(found: Mapping[str, Importance], path: Path, *, title: str) -> None:
    """Draw how much each parameter has to do with each objective, pale where that is chance; a PNG at ``path``."""
    names = list(next(iter(found.values())).shares)
    figure = blank(3.6 * len(found) + 1.6, 0.34 * len(names) + 1.5)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    order = sorted(names, key=lambda name: sum(each.shares[name] for each in found.values()))
    for axes, (objective, each) in zip(panels, found.items(), strict=True):
        colours = [COLOURS[0] if name in each.beyond else _PALE for name in order]
        axes.barh(range(len(order)), [each.shares[name] for name in order], color=colours, height=0.62, zorder=2)
        axes.set_xlabel("share of importance", color=INK)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_title(objective, loc="left", color=INK, fontsize=10)
        axes.set_xlim(0, 1)
        _dress(axes)
        axes.grid(visible=False, axis="y")
    note = "pale: no more than chance"
    figure.suptitle(f"{title}; {note}", x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")
    save(figure, path)


def draw_costs(found: Sequence[FrontPlace], path: Path, *, title: str) -> None:
    """Draw what the FLOPs of a video go into, a bar for each trial, the cheapest first; a PNG at ``path``.

    Of many trials those on the front come first, and of the others as many as there is room for.
    """
    chosen = sorted(found, key=lambda each: (not each.on_front, each.trial.mean("flops").mean))[:_MOST_BARS]
    chosen.sort(key=lambda each: each.trial.mean("flops").mean)
    figure = blank(0.36 * len(chosen) + 3.4, 4.2)
    axes = figure.add_subplot()
    base = np.zeros(len(chosen))
    for part in PARTS:
        share = np.array([each.trial.share(part) for each in chosen])
        axes.bar(range(len(chosen)), share, bottom=base, color=COLOUR_OF[part], width=0.68, label=part, zorder=2)
        base += share
    axes.set_xticks(range(len(chosen)), [str(each.trial.number) for each in chosen], fontsize=8)
    for label, each in zip(axes.get_xticklabels(), chosen, strict=True):
        label.set_fontweight("bold" if each.on_front else "normal")
    axes.set_xlim(-0.7, len(chosen) - 0.3)
    axes.set_xlabel("trial; bold: on the Pareto front", color=INK)
    axes.set_ylabel("FLOPs of a video", color=INK)
    _dress(axes)
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    save(figure, path)


def _number_lines(
    axes: Axes,
    found: Sequence[FrontPlace],
    name: str,
    goal: Objective,
    scales: tuple[_Scale, _Scale],
    last: int,
) -> None:
    """Write trials' numbers where their lines begin or end, wherever more of these are apart."""
    some = found if len(found) <= _MOST_NUMBERED else [each for each in found if each.on_front]
    starts: dict[float, list[str]] = {}
    ends: dict[float, list[str]] = {}
    for each in some:
        number = str(each.trial.number)
        starts.setdefault(scales[0].at(each.trial.params.get(name, _UNUSED)), []).append(number)
        ends.setdefault(scales[1].at(each.means[goal.name].mean), []).append(number)
    at_start, at_end = _apart(starts), _apart(ends)
    x, placed, shift, side = (0, at_start, -6, "right") if len(at_start) >= len(at_end) else (last, at_end, 44, "left")
    for height, numbers in placed:
        axes.annotate(
            _listed(numbers), (x, height), (shift, 0), textcoords="offset points", fontsize=7, ha=side, va="center",
            color=MUTED,
        )  # fmt: skip


def _rows(names: Sequence[str]) -> list[Sequence[str]]:
    """Parameters in rows of nearly equal length."""
    count = -(-len(names) // _ACROSS)
    across = -(-len(names) // count)
    return [names[first : first + across] for first in range(0, len(names), across)]


def _parallel(axes: Axes, found: Sequence[FrontPlace], config: StudyConfig, names: Sequence[str]) -> None:
    """A line for every trial through some of its parameters and all objectives; its end has the trial's number."""
    goals = config.goals
    scales = [_Scale.of_parameter(name, found, log=config.space[name].log) for name in names]
    scales += [_Scale.of(goal, found) for goal in goals]
    means = [each.means[goals[0].name].mean * (1 if goals[0].up else -1) for each in found]
    shade = Normalize(min(means, default=0.0), max(max(means, default=1.0), min(means, default=0.0) + 1e-12))
    dark = (lambda mean: float(shade(mean))) if len(set(means)) > 1 else lambda _: 0.5
    rng = np.random.default_rng(0)  # trials with the same value side by side
    for each, mean in sorted(zip(found, means, strict=True), key=lambda pair: (pair[0].on_front, pair[1])):
        values = [each.trial.params.get(name, _UNUSED) for name in names]
        values += [each.means[goal.name].mean for goal in goals]
        heights = [scale.at(value) for scale, value in zip(scales, values, strict=True)]
        heights[: len(names)] = [height + rng.uniform(-0.012, 0.012) for height in heights[: len(names)]]
        width, opacity = (2.2, 0.95) if each.on_front else (0.9, 0.55)
        axes.plot(range(len(scales)), heights, color=_SCALE(dark(mean)), lw=width, alpha=opacity, zorder=2)
    for at, scale in enumerate(scales):
        axes.axvline(at, color=_PALE if at < len(names) else INK, lw=0.9, zorder=1)
        for label, height in scale.ticks:
            axes.annotate(
                label, (at, height), (4, 0), textcoords="offset points", fontsize=8, va="center", color=INK,
                path_effects=_HALO, zorder=4,
            )  # fmt: skip
    _number_lines(axes, found, names[0], goals[-1], (scales[0], scales[-1]), len(scales) - 1)
    axes.set_xlim(-0.6, len(scales) - 0.1)
    axes.set_ylim(-0.14, 1.06)
    axes.set_xticks(range(len(scales)), [_short(name) for name in (*names, *(goal.name for goal in goals))], fontsize=9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


class _Scale:
    """An axis of parallel coordinates: heights in [0, 1] of values, and what is written beside it."""

    def __init__(self, values: Sequence[Any], *, kinds: bool, log: bool = False, down: bool = False) -> None:
        self._kinds = sorted({label_of(value) for value in values}) if kinds else None
        self._log, self._down = log, down
        numbers = [] if kinds else [self._number(value) for value in values]
        self._low, self._high = min(numbers, default=0.0), max(numbers, default=1.0)
        self.ticks: list[tuple[str, float]] = []
        if self._kinds is not None:
            self.ticks = [(kind, self.at(kind)) for kind in self._kinds]
        elif values:
            self.ticks = [(f"{value:.3g}", self.at(value)) for value in sorted({min(values), max(values)})]

    @classmethod
    def of_parameter(cls, name: str, found: Sequence[FrontPlace], *, log: bool) -> _Scale:
        """That of a parameter."""
        given = [each.trial.params[name] for each in found if name in each.trial.params]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
        scale = cls(given, kinds=not numbers, log=log and numbers)
        if len(given) < len(found):
            scale.ticks.append((_UNUSED, scale.at(_UNUSED)))
        return scale

    @classmethod
    def of(cls, goal: Objective, found: Sequence[FrontPlace]) -> _Scale:
        """That of an objective: better is higher."""
        return cls([each.means[goal.name].mean for each in found], kinds=False, log=_is_cost(goal), down=not goal.up)

    def at(self, value: Any) -> float:
        """The height of a value."""
        if value == _UNUSED:
            return -0.1
        if self._kinds is not None:
            return (self._kinds.index(label_of(value)) + 0.5) / len(self._kinds)
        if self._high <= self._low:
            return 0.5
        height = (self._number(value) - self._low) / (self._high - self._low)
        return 1.0 - height if self._down else height

    def _number(self, value: Any) -> float:
        return float(np.log(max(value, 1e-12))) if self._log else float(value)


def _cross(axes: Axes, each: FrontPlace, first: Objective, other: Objective | None) -> None:
    """A trial with both of its intervals."""
    x, y = _point(each, first, other)
    colour, order = (COLOURS[0], 3) if each.on_front else (_PALE, 2)
    reach = [spread([y]), spread([x])] if len(each.trial.videos) > 1 else [None, None]
    axes.errorbar(x.mean, y.mean, *reach, color=colour, marker="o", ms=5, lw=0, elinewidth=1.0, capsize=2, zorder=order)


def _point(each: FrontPlace, first: Objective, other: Objective | None) -> tuple[Interval, Interval]:
    """Where a trial stands across and up."""
    across = each.means[other.name] if other is not None else Interval(*[float(each.trial.number)] * 3)
    return across, each.means[first.name]


def _number(axes: Axes, some: Sequence[FrontPlace], first: Objective, other: Objective | None) -> None:
    """Write trials' numbers beside their points; those of points that nearly coincide stand together.

    Those of the front are blue and stand below, others are grey and stand above, where they hide none of the former.
    """
    groups: list[tuple[npt.NDArray[np.float64], list[FrontPlace]]] = []
    for each in some:
        at = axes.transData.transform([interval.mean for interval in _point(each, first, other)])
        near = next((members for place, members in groups if np.hypot(*(place - at)) < _NEAR), None)
        if near is None:
            groups.append((at, [each]))
        else:
            near.append(each)
    for _, members in groups:
        x, y = (interval.mean for interval in _point(members[0], first, other))
        axes.annotate(
            _listed([str(each.trial.number) for each in members]), (x, y),
            (5, -11 if members[0].on_front else 5), textcoords="offset points", fontsize=8,
            color=COLOURS[0] if members[0].on_front else MUTED, path_effects=_HALO, zorder=4,
        )  # fmt: skip


def _within(low: float, high: float) -> tuple[float, float]:
    """An axis of shares: hardly beyond 0 and 1, and wide enough that what is constant stands somewhere on it."""
    if high - low < _NARROWEST:
        low, high = (low + high - _NARROWEST) / 2, (low + high + _NARROWEST) / 2
    if high > 1:
        low -= high - 1
    elif low < 0:
        high -= low
    return max(-_EDGE, low), min(1 + _EDGE, high + _EDGE)


def _apart(starts: Mapping[float, Sequence[str]]) -> list[tuple[float, list[str]]]:
    """Numbers by their heights, from below; those that would overlap stand together."""
    apart: list[tuple[float, list[str]]] = []
    for height in sorted(starts):
        if apart and height - apart[-1][0] < _LINE:
            apart[-1][1].extend(starts[height])
        else:
            apart.append((height, list(starts[height])))
    return apart


def _listed(numbers: Sequence[str]) -> str:
    """Trials' numbers, as many as there is room for."""
    return ", ".join(numbers[:_MOST_LISTED]) + (", …" if len(numbers) > _MOST_LISTED else "")


def _is_cost(goal: Objective) -> bool:
    return goal.name in _AXES


def _named(goal: Objective) -> str:
    return _AXES.get(goal.name, goal.name) + (", more is better" if goal.up else ", less is better")


def _short(name: str) -> str:
    """A dotted name over two lines."""
    head, dot, tail = name.removeprefix("options.").rpartition(".")
    return f"{head}\n{tail}" if dot else name


def _dress(axes: Axes) -> None:
    plain(axes)
    axes.spines[["left", "bottom"]].set_color(_PALE)
    axes.tick_params(which="both", colors=MUTED, labelsize=8)
