"""Pyramids of different heights, trained for equal FLOPs and compared on the way: ``jobs.sweep --what stages``.

The comparison of PFM's figure 7 in small: how right the samples are that a model makes after so many FLOPs of training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framegrove.config.train import TrainConfig
    from framegrove.evaluation.curves import Interval

_MARKS = 8  # times that samples are made in a run
_COUNTED = 4  # steps of a phase whose FLOPs are counted
_SHOWN = 3  # prompts in the picture of samples


@dataclass(frozen=True)
class Mark:
    """A model in the middle of its training: after how many FLOPs, how right its samples are, and where they lie."""

    flops: float
    score: Interval
    pictures: tuple[Path, ...]


def name_of(stages: int) -> str:
    """What a pyramid of so many stages is called in tables and pictures."""
    return f"{stages} stage{'s' if stages > 1 else ''}"


def of_height(config: TrainConfig, stages: int) -> TrainConfig:
    """The same run for a pyramid of ``stages`` stages, which share the same total of denoising steps evenly."""
    from framegrove.config.train import TrainConfig

    data = config.model_dump(mode="json")
    recipe = data["model"]["recipe"]
    recipe["pyramid"] = {**recipe["pyramid"], "stages": stages, "boundaries": None}
    for kind in ("first", "others"):
        steps = recipe["steps"][kind]
        share, rest = divmod(max(sum(steps), stages), stages)
        recipe["steps"][kind] = [share + (stage < rest) for stage in range(stages)]
    for phase in data["phases"]:
        phase["objective"]["stage_weights"] = None
    return TrainConfig.model_validate(data)


def comparable(config: TrainConfig, heights: Sequence[int], prompts: Sequence[str]) -> dict[int, TrainConfig]:
    """The runs to compare, by the number of their stages.

    Each phase costs what it costs as configured, forward and backward, by as many steps as that takes; on the way,
    videos of ``prompts`` are made and read by the oracle. Raises UserError where data and model do not fit together.
    """
    wanted = [phase.steps * flops for phase, flops in zip(config.phases, _flops_of_steps(config), strict=True)]
    runs = {}
    for stages in heights:
        run = of_height(config, stages)
        counts = [max(1, round(all_ / one)) for all_, one in zip(wanted, _flops_of_steps(run), strict=True)]
        phases = [
            phase.model_copy(update={"steps": count, "warmup": min(phase.warmup, count // 2)})
            for phase, count in zip(run.phases, counts, strict=True)
        ]
        every = math.ceil(sum(counts) / _MARKS)
        shown = {"prompts": tuple(prompts), "every": every, "units": None, "scorer": "jobs.oracle_score:score"}
        samples = run.samples.model_copy(update=shown)
        runs[stages] = run.model_copy(update={"phases": tuple(phases), "samples": samples})
    return runs


def _flops_of_steps(config: TrainConfig) -> list[float]:
    """FLOPs of a step of each phase, the mean of the first few."""
    from framegrove.training.meter import Meter
    from framegrove.training.setup import Setup

    setup = Setup.of(config)
    meter, feed = Meter(setup.trainable()), setup.feed()
    found, begin = [], 0
    for phase in config.phases:
        counted = range(begin, begin + min(_COUNTED, phase.steps))
        meter.restart()
        for step in counted:
            meter.add(feed.at(step).packs, 0.0)
        found.append(meter.flops / len(counted))
        begin += phase.steps
    return found


def marks(out: Path) -> list[Mark]:
    """What the run in ``out`` has shown, in the order of its steps."""
    from framegrove.evaluation.curves import bootstrap
    from framegrove.training import curve
    from framegrove.training.samples import INDEX, SAMPLES

    lines = curve.read(out / curve.LINES)
    found = []
    for folder in sorted((out / SAMPLES).glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        speeds = [line["speed"] for line in lines if line["step"] <= step]
        flops = sum(speed["flops_per_second"] * speed["seconds"] for speed in speeds)
        shown = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        score = bootstrap([each["score"] for each in shown])
        found.append(Mark(flops, score, tuple(folder / each["picture"] for each in shown)))
    return found


def draw(runs: Mapping[int, Sequence[Mark]], out: Path) -> list[Path]:
    """Write learning.png, scores over FLOPs of training, and samples.png, what the models make on the way."""
    from framegrove.evaluation.curves import CurvePoint, draw_curves

    curves = {
        name_of(stages): [CurvePoint("", mark.flops, mark.score) for mark in found] for stages, found in runs.items()
    }
    learning, samples = out / "learning.png", out / "samples.png"
    title = "Samples on the way, by the oracle"
    draw_curves(curves, learning, title=title, score="oracle score", cost="FLOPs of training")
    _draw_samples(runs, samples)
    return [learning, samples]


def _draw_samples(runs: Mapping[int, Sequence[Mark]], path: Path) -> None:
    """A column for each pyramid, a row for each mark and prompt."""
    import matplotlib.image
    from matplotlib.figure import Figure

    from framegrove.evaluation.curves import INK, MUTED
    from framegrove.files import replacing

    rows = min(len(found) for found in runs.values())
    prompts = min(_SHOWN, *(len(mark.pictures) for found in runs.values() for mark in found))
    figure = Figure(figsize=(4.6 * len(runs), 0.62 * rows * prompts + 0.8), dpi=130, facecolor="white")
    grid = figure.subplots(rows * prompts, len(runs), squeeze=False)
    for column, (stages, found) in enumerate(runs.items()):
        for row, mark in enumerate(found[:rows]):
            for prompt in range(prompts):
                axes = grid[row * prompts + prompt][column]
                axes.imshow(matplotlib.image.imread(mark.pictures[prompt]))
                axes.set_axis_off()
            grid[row * prompts][column].set_title(f"{mark.flops:.2g} FLOPs", loc="left", fontsize=7, color=MUTED, pad=2)
        grid[0][column].annotate(
            name_of(stages), (0, 1), (0, 14), "axes fraction", textcoords="offset points", color=INK, weight="bold"
        )
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.4 / figure.get_figheight(), hspace=0.35)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
