"""Pyramids that are trained for equal FLOPs and compared on the way: how right a model's samples are, after how much
training (the comparison of PFM's figure 7 in small)."""

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

MARKS = 8  # times that samples are made in a run, at most
_COUNTED = 4  # steps of a phase whose FLOPs are counted
_SHOWN = 3  # prompts in the picture of samples
_COLUMNS = 4  # runs in it


@dataclass(frozen=True)
class Mark:
    """A model in the middle of its training: after how many steps and FLOPs, how right its samples are, and where they
    lie."""

    step: int
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


def of_equal_cost(run: TrainConfig, flops: Sequence[float], prompts: Sequence[str], seed: int) -> TrainConfig:
    """The run with as many steps of each phase as cost about ``flops``, forward and backward, but one at least.

    On the way, videos of ``prompts`` are made and read by the oracle, each time with a checkpoint. Raises UserError
    where data and model do not fit together.
    """
    counts = [max(1, round(all_ / one)) for all_, one in zip(flops, _flops_of_steps(run), strict=True)]
    phases = [
        phase.model_copy(
            update={"steps": count, "warmup": min(phase.warmup, count // 2, int(count * (1 - phase.decay)))}
        )
        for phase, count in zip(run.phases, counts, strict=True)
    ]
    every = math.ceil(sum(counts) / MARKS)
    shown = {"prompts": tuple(prompts), "every": every, "units": None, "seed": seed}
    samples = run.samples.model_copy(update={**shown, "scorer": "jobs.oracle_score:score"})
    return run.model_copy(update={"phases": tuple(phases), "samples": samples, "checkpoint_every": every})


def mark_of(step: int, steps: int) -> int:
    """How many of a run's `MARKS` equal shares are done after a step.

    Rounded down, since samples are made every so many whole steps, mostly later than a share is done: a run is never
    taken to be further than it is.
    """
    return MARKS * step // steps


def flops_of_phases(config: TrainConfig) -> list[float]:
    """FLOPs of each phase as configured, forward and backward."""
    return [phase.steps * flops for phase, flops in zip(config.phases, _flops_of_steps(config), strict=True)]


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
        shown = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        score = bootstrap([each["score"] for each in shown])
        found.append(Mark(step, curve.flops_of(lines, step), score, tuple(folder / each["picture"] for each in shown)))
    return found


def draw(runs: Mapping[str, Sequence[Mark]], out: Path) -> list[Path]:
    """Write learning.png, scores over FLOPs of training, and samples.png, what the models make on the way."""
    from framegrove.evaluation.curves import CurvePoint, draw_curves

    runs = dict(sorted(runs.items()))
    curves = {name: [CurvePoint("", mark.flops, mark.score) for mark in found] for name, found in runs.items()}
    learning, samples = out / "learning.png", out / "samples.png"
    title = "Samples on the way, by the oracle (an image phase shows pictures)"
    draw_curves(curves, learning, title=title, score="oracle score", cost="FLOPs of training")
    _draw_samples(dict(list(runs.items())[:_COLUMNS]), samples)
    return [learning, samples]


def _draw_samples(runs: Mapping[str, Sequence[Mark]], path: Path) -> None:
    """A column for each run, a row for each mark and prompt."""
    import matplotlib.image

    from framegrove.evaluation.figures import INK, MUTED, blank, save

    rows = min(len(found) for found in runs.values())
    prompts = min(_SHOWN, *(len(mark.pictures) for found in runs.values() for mark in found))
    figure = blank(4.6 * len(runs), 0.62 * rows * prompts + 0.8, dpi=130, layout=None)
    grid = figure.subplots(rows * prompts, len(runs), squeeze=False)
    for column, (name, found) in enumerate(runs.items()):
        for row, mark in enumerate(found[:rows]):
            for prompt in range(prompts):
                axes = grid[row * prompts + prompt][column]
                axes.imshow(matplotlib.image.imread(mark.pictures[prompt]))
                axes.set_axis_off()
            grid[row * prompts][column].set_title(f"{mark.flops:.2g} FLOPs", loc="left", fontsize=7, color=MUTED, pad=2)
        grid[0][column].annotate(
            name, (0, 1), (0, 14), "axes fraction", textcoords="offset points", color=INK, weight="bold"
        )
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.4 / figure.get_figheight(), hspace=0.35)
    save(figure, path)
