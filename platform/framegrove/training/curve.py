"""The loss curve of a run: a line of JSON every few steps, by stage and kind of unit, and a picture of it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framegrove.training.curriculum import StageSample

LINES, PICTURE = "loss.jsonl", "loss.png"


@dataclass
class Tally:
    """Sums of losses between two lines: all together, by stage, and by unit kind (image: unit 0; video: the others)."""

    stages: int
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2, self.stages + 2, dtype=torch.float64)

    def add(self, samples: Sequence[StageSample], losses: Tensor) -> None:
        """Count the losses of a pass's samples."""
        for sample, loss in zip(samples, losses.tolist(), strict=True):
            for column in (sample.cell.stage, self.stages + (sample.cell.unit > 0)):
                self.sums[0, column] += loss
                self.sums[1, column] += 1

    def means(self, totals: Tensor) -> dict[str, float]:
        """Mean losses by name, out of sums over all workers; what had no sample is left out."""
        names = [*(f"stage{stage}" for stage in range(self.stages)), "image", "video"]
        sums, counts = totals.tolist()
        found = {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n}
        return {"loss": sum(sums[self.stages :]) / sum(counts[self.stages :]), **found}


class Curve:
    """The lines of one run's loss.jsonl; opened anew at a step, it forgets what came after it."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / LINES
        self.lines = [line for line in read(self.path) if line["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        os.replace(partial, self.path)

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, on disk at once."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def draw(self) -> None:
        """Write the picture."""
        if self.lines:
            draw(self.lines, self.path.with_name(PICTURE))


class Follower:
    """Reads a curve that another process writes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LINES
        self.lines = read(self.path)

    def news(self) -> tuple[int | None, list[dict[str, Any]]]:
        """Lines that came since the last call, and, where the run has gone back to a checkpoint, the step of that."""
        lines, before = read(self.path), self.lines
        self.lines = lines
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(lines, before, strict=False))))
        went_back = same < len(before)
        return (lines[same - 1]["step"] if same else 0) if went_back else None, lines[same:]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss.jsonl; none where there is no such file, and a torn last line is passed over."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses over steps, one panel by stage and one by kind of unit, phases marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line["losses"].items():
            series[name].append((line["step"], value))
    by_stage = ["loss", *sorted(name for name in series if name.startswith("stage"))]
    for panel, names in zip(panels, (by_stage, ["image", "video"]), strict=True):
        for name in names:
            if name in series:
                panel.plot(*zip(*series[name], strict=True), label=name, linewidth=1)
        for previous, line in pairwise(lines):
            if previous["phase"] != line["phase"]:
                panel.axvline(previous["step"], color="grey", linewidth=0.6, linestyle="--")
        panel.set(xlabel="step", ylabel="flow matching loss", yscale="log")
        panel.legend()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)
