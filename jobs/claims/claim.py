"""What a claim is, and what a measurement of it finds. No torch in here: ``jobs.evidence --list`` is instant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framegrove.config.model import ModelSource
    from framegrove.evaluation.curves import Interval
    from jobs.console import Display

VERSION = 1  # of a result's file
SEED = 150_000  # of the prompts: those of no training, tuning or suite


@dataclass(frozen=True)
class Bench:
    """What a measurement is given.

    ``out`` is its folder, and ``cache`` that of branches and verdicts. ``prompts`` says how many, ``seed`` which.
    ``model`` is measured, and ``other``, where a claim compares two, is the one that it is compared with. ``runs`` are
    the folders of training runs, where it compares such.
    """

    out: Path
    cache: Path
    seed: int
    prompts: int
    model: ModelSource
    other: ModelSource | None
    display: Display
    runs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Figure:
    """One number; ``low`` and ``high`` are the ends of its 95% bootstrap interval, None for what is exact."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @classmethod
    def of(cls, name: str, interval: Interval, unit: str = "") -> Figure:
        """A mean with its interval."""
        return cls(name, interval.mean, interval.low, interval.high, unit)

    def __str__(self) -> str:
        known = "" if self.low is None or self.high is None else f" [{_number(self.low)}, {_number(self.high)}]"
        return f"{_number(self.value)}{known}{' ' if self.unit else ''}{self.unit}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 999.5 or abs(value) >= 1e9 else f"{value:,.0f}"


@dataclass(frozen=True)
class Finding:
    """What was found. ``headline`` names the figure that the aim is about, ``met`` is None where it cannot be decided.

    ``draw`` writes the picture, a PNG. ``remarks`` are what must be known to read it.
    """

    figures: tuple[Figure, ...]
    headline: str
    met: bool | None
    draw: Callable[[Path], None]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [figure.name for figure in self.figures]
        if self.headline not in names or len(set(names)) < len(names):
            raise ValueError(f"{self.headline!r} must be one of the figures, whose names differ: {names}")


@dataclass(frozen=True)
class Claim:
    """A claim and how it is measured.

    ``source`` is the paper with its equation or figure, ``measured`` what is measured, ``aim`` what was aimed at before
    anything was, ``takes`` about how long on two cores, ``missing`` what is not measured, "" for nothing. ``prompts``
    says how many there are by default, 0 where there are none.
    """

    name: str
    question: str
    source: str
    measured: str
    aim: str
    takes: str
    run: Callable[[Bench], Finding] = field(repr=False)
    missing: str = ""
    prompts: int = 0


def result_of(claim: Claim, finding: Finding, facts: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a measurement, as JSON values; ``facts`` say how it was made (command, seed, prompts ..)."""
    return {
        "version": VERSION,
        "claim": claim.name,
        "question": claim.question,
        "source": claim.source,
        **facts,
        "figures": [asdict(figure) for figure in finding.figures],
        "headline": finding.headline,
        "aim": claim.aim,
        "met": finding.met,
        "remarks": list(finding.remarks),
        "missing": claim.missing,
    }
