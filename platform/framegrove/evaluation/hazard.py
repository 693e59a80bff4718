"""How often a unit goes wrong although everything before it is right: by unit, with intervals, as a picture.

Errors compound: a video of n units is right with the product of its units' chances. The *hazard* of unit u is the share
of wrong units among those with a right parent (a branch whose every unit before u is right); unit 0 has no parent, so
all of its readings count.

Readings of one prompt are alike, and children of one parent more so. Intervals therefore count prompts rather than
units: Wilson's interval for as many independent units as would vary as much as the prompts' shares do (the effective
sample size of Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts",
1998), at least as many as there are prompts. Where all units are right or all wrong nothing can be seen to vary, and
the prompts themselves are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from framegrove.evaluation.curves import Interval
from framegrove.evaluation.figures import COLOURS, GRID, INK, MUTED, blank, plain, save, spread

_UPPER = 0.975  # of a distribution: 95% lie between here and there on the other side
_Z = float(stats.norm.ppf(_UPPER))


@dataclass(frozen=True)
class UnitReading:
    """One unit with a right parent, as a judge read it: the newest one of branch ``path``; ``faults`` as it names them.

    Where every index of the path but the first is 0, it belongs to a video without a search.
    """

    prompt: int
    path: tuple[int, ...]
    faults: tuple[str, ...] = ()

    @property
    def unit(self) -> int:
        return len(self.path) - 1

    @property
    def unsearched(self) -> bool:
        """Whether it is of a video whose every unit was sampled once, none replaced."""
        return not any(self.path[1:])


@dataclass(frozen=True)
class UnitHazard:
    """One unit's share of ``wrong`` among ``units`` with a right parent, of so many ``prompts``.

    ``faults`` are the shares of units with each fault; a unit may have several. ``unsearched`` is the share of the
    videos without a search that are right up to this unit, it included.
    """

    unit: int
    units: int
    prompts: int
    wrong: Interval
    faults: Mapping[str, float]
    unsearched: Interval


def hazards(readings: Iterable[UnitReading]) -> list[UnitHazard]:
    """The hazard of every unit that was read, in order; nothing of no readings."""
    by_unit: dict[int, list[UnitReading]] = {}
    for reading in readings:
        by_unit.setdefault(reading.unit, []).append(reading)
    found = []
    for unit, group in sorted(by_unit.items()):
        counts = Counter(fault for reading in group for fault in reading.faults)
        found.append(
            UnitHazard(
                unit=unit,
                units=len(group),
                prompts=len({reading.prompt for reading in group}),
                wrong=share([bool(reading.faults) for reading in group], [reading.prompt for reading in group]),
                faults={fault: count / len(group) for fault, count in sorted(counts.items())},
                unsearched=_unsearched(by_unit[0], group),
            )
        )
    return found


def _unsearched(roots: Sequence[UnitReading], group: Sequence[UnitReading]) -> Interval:
    right = {(reading.prompt, reading.path[0]) for reading in group if reading.unsearched and not reading.faults}
    return share([(root.prompt, root.path[0]) in right for root in roots], [root.prompt for root in roots])


def share(yes: Sequence[bool], prompts: Sequence[int]) -> Interval:
    """The share of ``yes`` with its 95% interval; ``prompts`` says which values belong together.

    Raises ValueError where there are no values, or not as many of one as of the other.
    """
    if not yes:
        raise ValueError("a share needs at least one value")
    mean, count, of = sum(yes) / len(yes), len(yes), len(set(prompts))
    excess: dict[int, float] = dict.fromkeys(prompts, 0.0)  # a prompt's yeses beyond what the mean would have
    for value, prompt in zip(yes, prompts, strict=True):
        excess[prompt] += value - mean
    effective = float(of)
    variance = sum(each**2 for each in excess.values()) / count**2
    if of > 1 and variance > 0:
        independent = mean * (1 - mean) / (variance * of / (of - 1))
        # Few prompts tell little of how much prompts vary.
        independent *= (stats.t.ppf(_UPPER, count - 1) / stats.t.ppf(_UPPER, of - 1)) ** 2
        effective = min(max(independent, float(of)), float(count))
    return wilson(mean, effective)


def wilson(mean: float, count: float) -> Interval:
    """Wilson's 95% interval of a share ``mean`` of ``count`` independent values."""
    centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    # Rounding must not put the mean outside its interval.
    return Interval(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))


def draw_hazards(
    generated: Mapping[str, Sequence[UnitHazard]], floor: Sequence[UnitHazard], path: Path, *, title: str
) -> None:
    """Draw a PNG at ``path``: hazard by unit, a line a kind of prompt, above the share of unsearched videos left.

    ``floor`` is what the judge calls wrong of videos that are right.
    """
    figure = blank(7.6, 6.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    last = max((each.unit for group in (*generated.values(), floor) for each in group), default=0)
    _band(above, floor)
    for index, (name, group) in enumerate(generated.items()):
        aside = 0.12 * (index - (len(generated) - 1) / 2)  # intervals side by side, not one on the other
        units = [each.unit + aside for each in group]
        _line(above, units, [each.wrong for each in group], COLOURS[index], name)
        _line(below, units, [each.unsearched for each in group], COLOURS[index], name)
    above.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    above.set_ylabel("wrong, given a right parent", color=INK)
    below.set_ylabel("videos without a search\nright so far", color=INK)
    below.set_xlabel("unit (0 is one frame, every later one is eight)", color=INK)
    above.legend(frameon=False, fontsize=9)
    below.set_ylim(0, 1.02)
    above.set_ylim(bottom=-0.01)
    below.set_xlim(-0.5, last + 0.5)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    for axes in (above, below):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        plain(axes)
        axes.tick_params(which="both", colors=MUTED)
    save(figure, path)


def _line(axes: Axes, units: Sequence[float], shares: Sequence[Interval], colour: str, name: str) -> None:
    means = [each.mean for each in shares]
    axes.errorbar(units, means, spread(shares), color=colour, marker="o", ms=5, lw=1.6, capsize=3, label=name, zorder=3)


def _band(axes: Axes, floor: Sequence[UnitHazard]) -> None:
    """The floor as a dashed line; its interval, which is as wide as few prompts make it, as a pale band."""
    units = [each.unit for each in floor]
    axes.plot(
        units, [each.wrong.mean for each in floor], color=MUTED, ls="--", lw=1.4, zorder=2, label="true clips (floor)"
    )
    axes.fill_between(
        units, [each.wrong.low for each in floor], [each.wrong.high for each in floor], color=GRID, lw=0, zorder=1
    )
