"""Claims for which models are compared that were trained in two ways: the spatial pyramid, block-causal attention."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError
from jobs.claims.claim import Bench, Claim, Figure, Finding

if TYPE_CHECKING:
    from framegrove.config.model import ModelSource
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.models.pretrained import Pipeline

CAUSAL, BIDIRECTIONAL, TRUE = "block-causal", "bidirectional", "true clips"
LONG = 16  # units of videos in which identity may drift
_FASTER = 2.5
_TOGETHER = 16  # videos sampled side by side
_ENCODED = 8  # true clips encoded together


@dataclass(frozen=True)
class Mark:
    """A model on the way: FLOPs of its training so far, and the distance of its pictures from the world's own."""

    step: int
    flops: float
    distance: float


def spatial(bench: Bench) -> Finding:
    """Fréchet distance over FLOPs of training, of runs that differ in their pyramid's height."""
    if len(bench.runs) != 2:
        raise UserError(
            "spatial-pyramid compares two runs of jobs.train, of one stage and of more: give --runs twice (--list says "
            "how to train them)"
        )
    found = [_marks(bench, run, part) for part, run in enumerate(bench.runs)]
    (flat_stages, flat), (stages, pyramid) = sorted(found, key=lambda each: each[0])
    if flat_stages != 1 or stages == 1:
        raise UserError(f"the runs have {flat_stages} and {stages} stages: one must have 1, the other more")
    target = min(mark.distance for mark in flat)
    slow, fast = reached(flat, target), reached(pyramid, target)
    assert slow is not None, "it reaches its own best"
    headline = f"FLOPs of training to the flat model's best distance: 1 stage / {stages} stages"
    ratio = slow / fast if fast else 0.0
    figures = (
        Figure(headline, ratio, unit="times"),
        Figure("the flat model's best distance", target),
        Figure(f"best distance with {stages} stages", min(mark.distance for mark in pyramid)),
        Figure("FLOPs to it, 1 stage", slow, unit="FLOPs"),
        *([Figure(f"FLOPs to it, {stages} stages", fast, unit="FLOPs")] if fast else []),
    )
    remarks = (
        "squared Fréchet distance of pictures by the digits teacher's features (FID-like), one seed of training a run",
        *([] if fast else [f"the run with {stages} stages never comes so close: the ratio is put at 0"]),
    )

    def draw(path: Path) -> None:
        from framegrove.evaluation.figures import COLOURS, MUTED, plain_numbers, save
        from jobs.claims.drawing import canvas, dress

        figure, (axes,) = canvas(title="Pictures while training: distance from the world's own over FLOPs")
        for height, marks, colour in ((1, flat, COLOURS[1]), (stages, pyramid, COLOURS[0])):
            label = f"{height} stage{'s' if height > 1 else ''}"
            axes.plot(
                [m.flops for m in marks], [m.distance for m in marks], color=colour, marker="o", ms=4, label=label
            )
        axes.axhline(target, color=MUTED, ls="--", lw=0.9)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        dress(axes, x="FLOPs of training, forward and backward", y="squared Fréchet distance")
        save(figure, path)

    return Finding(figures, headline, ratio >= _FASTER, draw, remarks)


def reached(marks: Sequence[Mark], target: float) -> float | None:
    """The FLOPs after which a run's distance is at most ``target``, between two marks in proportion; None: never."""
    before: Mark | None = None
    for mark in marks:
        if mark.distance <= target:
            if before is None:
                return mark.flops
            share = (before.distance - target) / (before.distance - mark.distance)
            return before.flops + share * (mark.flops - before.flops)
        before = mark
    return None


def _marks(bench: Bench, run: Path, part: int) -> tuple[int, list[Mark]]:
    """The number of stages of a run's model, and what its checkpoints are worth, in order."""
    from framegrove.config.model import ModelSource
    from framegrove.config.train import CHECKPOINTS
    from framegrove.digits import world
    from framegrove.digits.teacher_features import TeacherFeatures, reference_clips
    from framegrove.evaluation.frechet import Gaussian, frechet_distance
    from framegrove.flow.generation import generate
    from framegrove.models.pretrained import load_source
    from framegrove.training import curve
    from framegrove.training.export import export

    steps = sorted(int(path.name.removeprefix("step-")) for path in (run / CHECKPOINTS).glob("step-*"))
    if not steps:
        raise UserError(f"{run} holds no checkpoints of a run: give the --out of jobs.train, with keep_last large")
    asked = world.prompts(bench.prompts, bench.seed)
    network, found, stages = TeacherFeatures(), [], 0
    lines = curve.read(run / curve.LINES)
    for done, step in enumerate(steps):
        bench.display.show((part + done / len(steps)) / 2, f"{run.name}, step {step}")
        with tempfile.TemporaryDirectory() as folder:
            export(run, Path(folder) / "model", which=str(step))
            pipeline = load_source(ModelSource(name=str(Path(folder) / "model")))
            units, stages = pipeline.recipe.units, pipeline.recipe.pyramid.stages
            captions = [world.caption(objects) for objects in asked]
            seeds = range(bench.seed, bench.seed + len(asked))
            videos = generate(pipeline, captions, seeds, units=units, batch=_TOGETHER)
        real = Gaussian.of(network.of(reference_clips(asked, units)).pictures)
        ours = Gaussian.of(network.of(video.frames for video in videos).pictures)
        found.append(Mark(step, curve.flops_of(lines, step), frechet_distance(ours, real)))
    return stages, found


def drift(bench: Bench) -> Finding:
    """How often the digits or colours of a video are no longer those of its beginning, unit by unit."""
    sources: dict[str, ModelSource] = {CAUSAL: bench.model}
    if bench.other is not None:
        sources[BIDIRECTIONAL] = bench.other
    models = {name: _loaded(source, causal=name == CAUSAL) for name, source in sources.items()}
    read = {name: _identities(bench, model, part / len(models)) for part, (name, model) in enumerate(models.items())}
    read[TRUE] = _true_identities(bench)
    return found_of_drift({name: kept(each) for name, each in read.items()})


def found_of_drift(videos: Mapping[str, list[list[bool]]]) -> Finding:
    """What kept identities, by model, video and unit, say together."""
    from framegrove.evaluation.curves import bootstrap, compare

    lost = {
        name: [bootstrap([float(not video[unit]) for video in some]) for unit in range(LONG)]
        for name, some in videos.items()
    }
    drifted = "videos that no longer show what they began with, unit"
    figures = [
        Figure.of(f"{drifted} {unit}, {name}", by_unit[unit])
        for name, by_unit in lost.items()
        for unit in (LONG // 2, LONG - 1)
    ]
    figures += [
        Figure.of(f"drift per unit, {name}", bootstrap([(not video[-1]) / (LONG - 1) for video in some]))
        for name, some in videos.items()
    ]
    headline = figures[1].name
    met: bool | None = None
    remarks = [
        "what a video shows is read unit by unit, by the oracle: the set of digits with their colours",
        "true clips, behind the VAE, are the floor: what is read differently of those has not drifted",
    ]
    if BIDIRECTIONAL in videos:
        ends = {name: {n: float(not video[-1]) for n, video in enumerate(some)} for name, some in videos.items()}
        difference = compare(BIDIRECTIONAL, CAUSAL, ends).difference
        figures.append(Figure.of(f"{drifted} {LONG - 1}, bidirectional minus block-causal", difference))
        headline, met = figures[-1].name, difference.low > 0
    else:
        remarks.append("no bidirectional model was given (--other): the drift of the block-causal one stands alone")

    def draw(path: Path) -> None:
        from framegrove.evaluation.figures import COLOURS, save
        from jobs.claims.drawing import banded, canvas, dress

        figure, (axes,) = canvas(title=f"Identity drift, {len(next(iter(videos.values())))} videos without a search")
        for (name, by_unit), colour in zip(lost.items(), COLOURS, strict=False):
            banded(axes, range(LONG), by_unit, color=colour, label=name)
        axes.set_ylim(0, None)
        dress(axes, x="unit", y="share that no longer shows what it began with")
        save(figure, path)

    return Finding(tuple(figures), headline, met, draw, tuple(remarks))


Identity = frozenset[tuple[int | None, str]]


def kept(videos: Sequence[Sequence[Identity]]) -> list[list[bool]]:
    """Of each video and unit, whether it shows the digits and colours of the video's first picture."""
    return [[unit == video[0] for unit in video] for video in videos]


def _loaded(source: ModelSource, *, causal: bool) -> Pipeline:
    """A model. Raises UserError for one with the other kind of attention."""
    from framegrove.models.pretrained import load_source

    pipeline = load_source(source)
    if pipeline.transformer.config.use_temporal_causal is not causal:
        raise UserError(
            f"{source.name or 'the shipped model'} has {'bidirectional' if causal else 'block-causal'} attention: "
            "--model takes a block-causal model, --other a bidirectional one"
        )
    return pipeline


def _identities(bench: Bench, pipeline: Pipeline, done: float) -> list[list[Identity]]:
    """What is seen in each unit of some videos."""
    from framegrove.digits import world
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.flow.generation import generate

    oracle = DigitsOracle()
    captions = [world.caption(objects) for objects in world.prompts(bench.prompts, bench.seed)]
    seeds = range(bench.seed, bench.seed + len(captions))

    def on_unit(count: int, total: int) -> None:
        bench.display.show(done + count / total / 2)

    videos = generate(pipeline, captions, seeds, units=LONG, batch=_TOGETHER, on_unit=on_unit)

    return [_seen(oracle, video.frames) for video in videos]


def _true_identities(bench: Bench) -> list[list[Identity]]:
    """The same of the world's own clips of these prompts, encoded and decoded."""
    import numpy as np

    from framegrove.digits import world
    from framegrove.digits.clips import seen_through
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.digits.teacher_features import reference_clips
    from framegrove.models.pretrained import load_source

    oracle, vae = DigitsOracle(), load_source(bench.model).vae
    clips = list(reference_clips(world.prompts(bench.prompts, bench.seed), LONG, bench.seed))
    batches = (np.stack(clips[first : first + _ENCODED]) for first in range(0, len(clips), _ENCODED))
    return [_seen(oracle, video) for batch in batches for video in seen_through(vae, batch)]


def _seen(oracle: DigitsOracle, frames: Any) -> list[Identity]:
    """What is seen in each unit of a video."""
    from framegrove.config.request import frames_of
    from framegrove.digits.unit_readings import newest_unit

    read = [oracle.read(newest_unit(frames[: frames_of(unit + 1)])) for unit in range(LONG)]
    return [frozenset((each.digit, each.colour) for each in some) for some in read]


_PREPARE = "python -m jobs.prepare --clips 2000 --out runs/digits-clips"
_TRAIN = "python -m jobs.train --config jobs/configs/digits_sweep.yaml --set keep_last=99 --engine plain"
_FLAT = "--set model.recipe.pyramid.stages=1 --set model.recipe.steps.first=[30] --set model.recipe.steps.others=[30]"

CLAIMS = (
    Claim(
        name="spatial-pyramid",
        question="Does a spatial pyramid reach a quality with less training than full resolution alone?",
        source="PFM figure 7: almost 3 times faster convergence of FID at equal compute",
        measured="FLOPs of training until the flat model's best Fréchet distance of pictures, by the digits teacher's "
        "features, of two runs given by --runs",
        aim=f"at least {_FASTER} times fewer FLOPs with a pyramid",
        takes="20 min for 128 prompts, besides hours of training",
        run=spatial,
        missing=f"the training, which is yours: {_PREPARE}; {_TRAIN} --out runs/pyramid; {_TRAIN} {_FLAT} --set "
        "phases.0.steps=.. --set phases.1.steps=.. --out runs/flat (steps for about the same FLOPs); or python -m "
        "jobs.sweep --study stages, which trains them for equal FLOPs",
        prompts=128,
    ),
    Claim(
        name="block-causal",
        question="Do subjects keep their identity longer with block-causal than with bidirectional attention?",
        source="PFM figure 11",
        measured=f"share of videos of {LONG} units without a search whose digits and colours are no longer those of "
        "the first picture, unit by unit, by the oracle",
        aim=f"fewer have drifted at unit {LONG - 1} than with bidirectional attention (interval)",
        takes="15 min for 32 prompts and a model",
        run=drift,
        missing="the training of both models, --model and --other: tests/evidence/claims/block-causal.yaml has the "
        "commands",
        prompts=32,
    ),
)
