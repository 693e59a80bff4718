"""Tree search beside linear search: the kept results of the suite digits-long, drawn again."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framegrove.errors import UserError
from jobs.claims.claim import Bench, Claim, Figure, Finding

RESULTS = Path(__file__).parents[2] / "tests" / "evidence" / "RESULTS.md"
UNITS = 16
_OF_PLATEAU = 1 / 3
_HEADING = re.compile(r"^## `digits-long`: (\d+) units, (\d+) prompts$", re.MULTILINE)
_INTERVAL = re.compile(r"([+-]?[\d.]+)%? \[([+-]?[\d.]+), ([+-]?[\d.]+)\]")
_AIM = re.compile(r"^- at most [\d.]+ of what (?P<plateau>.+?) costs: (?P<verdict>.*)$", re.MULTILINE)
_RATIO = r"(?P<ratio>[\d.]+ \[[\d., ]+\])"
_VERDICTS = (
    re.compile(rf"\*\*met\*\* by (?P<setting>[^:]+): {_RATIO}"),
    re.compile(
        rf"\*\*missed\*\* by [\d.]+: the cheapest that reaches the plateau, (?P<setting>.+?), costs {_RATIO} of it"
    ),
)


@dataclass(frozen=True)
class Row:
    """A setting: its share of fully right videos and its total cost in samples, each (mean, low, high)."""

    setting: str
    right: tuple[float, float, float]
    cost: tuple[float, float, float]

    @property
    def family(self) -> str:
        """Settings that differ in their budget alone."""
        return re.sub(r" \d+x?$", "", self.setting)


@dataclass(frozen=True)
class Kept:
    """What the results say of one length. The ratio is of costs: the best tree setting's to the plateau's."""

    prompts: int
    rows: Sequence[Row]
    setting: str
    plateau: str
    ratio: tuple[float, float, float]


def read(text: str, units: int) -> Kept:
    """The table and the first aim of one length. Raises UserError where a text has none."""
    heads = {int(head[1]): head for head in _HEADING.finditer(text)}
    if units not in heads:
        raise UserError(
            f"the results have no length of {units} units: run the suite digits-long, and keep its evidence.md"
        )
    head = heads[units]
    section, *_ = text[head.end() :].partition("\n## ")
    rows = []
    for line in section.split("\n\n")[1].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append(Row(cells[0], _interval(cells[1]), _interval(cells[4])))
    aim = _AIM.search(section)  # the first one: that of the costs, with the panel as the judge
    verdict = next(filter(None, (each.match(aim["verdict"]) for each in _VERDICTS)), None) if aim is not None else None
    if aim is None or verdict is None or not rows:
        raise UserError(
            f"the results of {units} units have no setting that reaches the plateau, to hold against the aim: run the "
            "suite again"
        )
    return Kept(int(head[2]), rows, verdict["setting"], aim["plateau"], _interval(verdict["ratio"]))


def _interval(cell: str) -> tuple[float, float, float]:
    found = _INTERVAL.search(cell)
    assert found is not None, cell
    mean, low, high = map(float, found.groups())
    scale = 100 if "%" in cell else 1
    return mean / scale, low / scale, high / scale


def run(bench: Bench) -> Finding:
    """The figures of 16 units, as kept."""
    if not RESULTS.is_file():
        raise UserError(f"there are no results at {RESULTS}: run this in the checkout")
    kept = read(RESULTS.read_text(encoding="utf-8"), UNITS)
    by_name = {row.setting: row for row in kept.rows}
    headline = f"cost of {kept.setting} / cost of {kept.plateau}"
    figures = [Figure(headline, *kept.ratio)]
    for name in ("single", kept.plateau, "linear with stop", "tof 4x", "beam 4x", kept.setting):
        row = by_name[name]
        figures.append(Figure(f"fully right, {name}", *row.right))
        figures.append(Figure(f"cost, {name}", *row.cost, unit="samples"))
    published = by_name["tof 4x"].right[0] - by_name["linear 4"].right[0]
    figures.append(Figure("fully right, tof 4x minus linear 4", published))
    remarks = (
        "nothing was run: these are the kept results of the suite, read from tests/evidence/RESULTS.md",
        "the paper's own tree, tof, is no better than best of N at its cost; the ratio is that of depth-first search",
    )
    met = kept.ratio[0] <= _OF_PLATEAU
    return Finding(tuple(figures), headline, met, lambda path: _draw(kept, path), remarks)


def _draw(kept: Kept, path: Path) -> None:
    from framegrove.evaluation.curves import Interval
    from framegrove.evaluation.figures import COLOURS, INK, save
    from jobs.claims.drawing import banded, canvas, dress

    figure, (axes,) = canvas(
        title=f"Tree and linear search, {UNITS} units, {kept.prompts} prompts", height=4.6, width=7.4
    )
    families = list(dict.fromkeys(row.family for row in kept.rows))
    colours = itertools.cycle(COLOURS)
    markers = itertools.cycle("oooooosD^v")
    for family in families:
        rows = sorted((row for row in kept.rows if row.family == family), key=lambda row: row.cost[0])
        colour = INK if family.startswith("linear") or family == "single" else next(colours)
        line = {"ls": "--"} if family == "linear with stop" else {}
        points = [Interval(*row.right) for row in rows]
        banded(axes, [row.cost[0] for row in rows], points, color=colour, label=family, marker=next(markers), **line)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 12], ["1", "2", "4", "8", "12"])
    dress(axes, x="total FLOPs, in samples without a search", y="videos fully right, by the oracle")
    axes.legend(frameon=False, fontsize=7.5, ncols=2, loc="lower right")
    save(figure, path)


CLAIM = Claim(
    name="tree-vs-linear",
    question="Does a tree search give what best of N gives for less compute?",
    source="VT1 table 1: 3.2 times fewer FLOPs at comparable scores",
    measured="the kept results of the suite digits-long, 16 units, 100 prompts, as tests/evidence/PLAN.md has it",
    aim="the best tree setting costs at most a third of best of N at its plateau (PLAN.md, aim 1)",
    takes="5 s",
    run=run,
    missing="nothing is run anew: python -m jobs.evaluate --suite digits-long does that, in days",
)
