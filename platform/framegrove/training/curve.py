"""The loss curve of a run: a line of JSON every few steps, by stage and by kind of unit, and a picture of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framegrove.files import replacing, write_lines
from framegrove.flow.objective import StageSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES, PICTURE = "loss.jsonl", "loss.png"

_REDRAW_S = 10.0  # seconds between two pictures, which take half a second


@dataclass
class LossTally:
    """Sums of losses between two lines, by stage, by kind of unit (image: unit 0; video: the others), and by unit.

    ``sums`` has two rows, losses and counts, and a column for each stage, for pairs, whose losses are of another kind,
    for image and video, and for each unit but the first of clips of up to ``units`` units.
    """

    stages: int
    units: int
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2, self.stages + 3 + self.units - 1, dtype=torch.float64)

    def add(self, samples: Sequence[StageSample], losses: Tensor) -> None:
        """Add the losses of one forward pass."""
        for sample, loss in zip(samples, losses.tolist(), strict=True):
            stage, unit = sample.cell.stage, sample.cell.unit
            pairs, image, video = range(self.stages, self.stages + 3)
            columns = (stage, video, video + unit) if unit else (stage, image)
            for column in columns if sample.rival is None else (pairs,):
                self.sums[0, column] += loss
                self.sums[1, column] += 1

    def means(self, totals: Tensor) -> dict[str, float]:
        """Mean losses by name, from sums over all workers; a stage or kind without samples is left out."""
        stages, units = [f"stage{stage}" for stage in range(self.stages)], [f"unit{n}" for n in range(1, self.units)]
        sums, counts = totals.tolist()
        names = [*stages, "pairs", "image", "video", *units]
        found = {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n}
        return {"loss": sum(sums[: self.stages + 1]) / self.count(totals), **found}

    def count(self, totals: Tensor) -> float:
        """How many samples there are in sums over all workers."""
        return float(totals[1, : self.stages + 1].sum())


class Curve:
    """The lines of one run's loss.jsonl. Opened at a step, it drops the lines of later steps, which are run again."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / LINES
        self._drawn = -math.inf
        self.lines = [line for line in read(self.path) if line["step"] <= step]
        write_lines(self.path, self.lines)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    @property
    def skipped(self) -> int:
        """Steps so far that were skipped."""
        return int(self.lines[-1].get("skipped", 0)) if self.lines else 0

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, visible to readers at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)

    def draw(self, *, at_the_end: bool) -> None:
        """Write the picture, unless one was drawn less than 10 seconds ago and the run goes on."""
        if self.lines and (at_the_end or time.monotonic() - self._drawn >= _REDRAW_S):
            draw(self.lines, self.path.with_name(PICTURE))
            self._drawn = time.monotonic()


class Follower:
    """Reads a curve, or a run's history, as another process writes it; each call reads only what was appended."""

    def __init__(self, folder: Path, name: str = LINES) -> None:
        self.path = folder / name
        self.lines: list[dict[str, Any]] = []
        self._read = 0  # bytes of the file that have been read, always whole lines
        self._last = b""  # the last of these lines: while it is still in its place, the file has only grown
        self.news()

    def news(self) -> tuple[int | None, list[dict[str, Any]]]:
        """New lines since the last call, and the step of the checkpoint that the run went back to, if it did."""
        appended = self._from(self._read - len(self._last))
        if appended.startswith(self._last):
            return None, self._take(appended[len(self._last) :])
        # The file was written anew: a run that goes on from a checkpoint drops the lines after it.
        before, self.lines = self.lines, []
        self._read, self._last = 0, b""
        self._take(self._from(0))
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.lines, before, strict=False)))
        back_to = self.lines[same - 1]["step"] if same else 0
        return back_to if same < len(before) else None, self.lines[same:]

    def _from(self, start: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return b""

    def _take(self, text: bytes) -> list[dict[str, Any]]:
        """Keep the whole lines of ``text``; the start of one that is still being written is read again next time."""
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            return []
        came = _parsed(whole)
        self.lines += came
        self._read += len(whole)
        self._last = whole.splitlines(keepends=True)[-1]
        return came


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss.jsonl; empty where there is no such file. An incomplete last line is skipped."""
    return _parsed(path.read_bytes()) if path.exists() else []


def cost(folder: Path) -> dict[str, float]:
    """What a run took: steps, seconds, and FLOPs of its passes (see meter.Speed); zeros where it has no curve."""
    lines = read(folder / LINES)
    last = lines[-1] if lines else {"step": 0, "seconds": 0.0}
    return {"steps": last["step"], "seconds": last["seconds"], "flops": flops_of(lines)}


def flops_of(lines: Sequence[Mapping[str, Any]], until: float = math.inf) -> float:
    """FLOPs of the passes that a curve's lines tell of, as far as the step ``until``."""
    speeds = (line["speed"] for line in lines if line["step"] <= until)
    return float(sum(speed["seconds"] * speed["flops_per_second"] for speed in speeds))


def _parsed(text: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a picture of the losses over steps."""
    with replacing(path) as partial:
        figure_of(lines).savefig(partial, format="png", dpi=110)


def figure_of(lines: Sequence[dict[str, Any]]) -> Figure:
    """Losses over steps, one panel by stage and one by kind of unit, every phase a named band."""
    figure, panels = two_panels(top=0.94)
    series = _series(lines)
    by_stage = ["loss", *sorted(name for name in series if name.startswith("stage"))]
    for panel, names in zip(panels, (by_stage, ["image", "video", "pairs"]), strict=True):
        for name in names:
            if name in series:
                panel.plot(*zip(*series[name], strict=True), label=name, linewidth=1)
            if measured := [
                (line["step"], line["held_out"][name]) for line in lines if name in line.get("held_out", ())
            ]:
                steps, losses = zip(*measured, strict=True)
                panel.plot(steps, losses, "x", color=panel.lines[-1].get_color(), label=f"{name}, held out")
        _mark_phases(panel, lines)
        panel.set(xlabel="step", ylabel="loss", yscale="log")
        panel.legend(fontsize=8, ncols=2)
    return figure


def two_panels(*, top: float) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure of two panels over the steps of a training, which end at ``top``, a fraction of its height."""
    from matplotlib.figure import Figure  # here, because workers that draw nothing need not wait for it

    # Margins that fit, as a layout that looks for them takes longer than all the rest.
    figure = Figure(figsize=(11, 4.2))
    figure.subplots_adjust(left=0.085, right=0.975, bottom=0.12, top=top, wspace=0.22)
    left, right = figure.subplots(1, 2, sharex=True)
    return figure, (left, right)


def _series(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of every name; a phase that does not train it is a gap, not a line across."""
    names = dict.fromkeys(name for line in lines for name in line["losses"])
    series: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for _, its_lines in groupby(lines, key=lambda line: line["phase"]):
        phase = list(its_lines)
        for name in names:
            trained = [(line["step"], line["losses"][name]) for line in phase if name in line["losses"]]
            series[name] += trained or [(phase[0]["step"], math.nan)]
    return series


def _mark_phases(panel: Any, lines: Sequence[dict[str, Any]]) -> None:
    """Shade every other phase and write its name above it."""
    start = 0
    for index, (phase, its_lines) in enumerate(groupby(lines, key=lambda line: line["phase"])):
        end = list(its_lines)[-1]["step"]
        if index % 2:
            panel.axvspan(start, end, color="grey", alpha=0.12, linewidth=0)
        middle = (start + end) / 2
        above = panel.get_xaxis_transform()  # x in steps, y as a share of the panel's height
        panel.text(middle, 1.01, phase, transform=above, ha="center", va="bottom", fontsize=8)
        start = end
    panel.set_xlim(0, start)
