"""Train the small vision-language model that judges clips of the digits world, and examine it on held-out clips.

    python -m jobs.train_verifier --config jobs/configs/digits_verifier.yaml --out runs/verifier

leaves in OUT/model the folder that vLLM and transformers load, with metrics.json and a README.md of figures beside the
weights. Interrupted, the same command continues from its newest checkpoint.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.config.base import load
from framegrove.config.verifier import VerifierTraining
from jobs.console import LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.digits.verifier_scenes import Scene
    from framegrove.digits.world import DigitObject
    from framegrove.flow.generation import Pixels

app = application()


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log.jsonl and model.")],
    config: Annotated[Path, typer.Option(help="YAML file.")] = Path("jobs/configs/digits_verifier.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value, may be repeated.")] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Train, examine, write OUT/model."""
    with one_line_errors(log_level):
        settings = load(VerifierTraining, config, overrides or [])
        make_folder(out)
        _train(settings, out, f"python -m jobs.train_verifier --config {config} --out DIR")


def _train(settings: VerifierTraining, out: Path, command: str) -> None:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from framegrove.digits.verifier_training import Progress, VerifierRun

    run = VerifierRun(settings, out)
    figures = TextColumn("{task.fields[figures]}")
    columns = ("{task.description}", BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), figures)
    with Bars(*columns, disable=not sys.stdout.isatty()) as bars:
        bar = bars.add_task("starting", total=None, figures="")

        def report(progress: Progress) -> None:
            figures = "  ".join(f"{key} {value:.4g}" for key, value in progress.figures.items())
            what = f"{progress.stage} {progress.step}/{progress.steps}"
            bars.update(bar, description=what, completed=progress.done, total=progress.total, figures=figures)
            if bars.disable and progress.step % 50 == 0:
                print(what, figures, flush=True)

        run.train(report)
    from framegrove.digits.verifier_metrics import examine, examine_scenes, save

    say = functools.partial(print, flush=True)
    model = run.finished()
    marks = {"held-out": examine(model, run.packer, settings.heldout_clips, report=say)}
    if settings.generated_clips:
        marks["generated"] = examine_scenes(model, run.packer, _generated(settings.generated_clips))
    for title, of in marks.items():
        Console().print(of.table(f"{title} clips"))
    save(run, model, marks, out / "model", command)
    say(f"wrote {out / 'model'}")


def _generated(count: int) -> list[Scene]:
    """Clips of the shipped generator, as the oracle reads them: a judge that is never shown to any training."""
    from framegrove.digits import world as digits
    from framegrove.digits.oracle import DigitsOracle
    from framegrove.flow.generation import generate
    from framegrove.models.pretrained import load_pipeline

    asked = digits.prompts(count, seed=5)
    videos = generate(load_pipeline(), [digits.caption(objects) for objects in asked], list(range(count)))
    oracle = DigitsOracle()
    scenes = [_as_read(video.frames, objects, oracle) for video, objects in zip(videos, asked, strict=True)]
    return [scene for scene in scenes if scene is not None]


_SURE, _MUSH = 0.5, 0.25  # chance of the likeliest digit from which it is one, and below which it is none


def _as_read(frames: Pixels, asked: tuple[DigitObject, ...], oracle: DigitsOracle) -> Scene | None:
    """The shown frames and what the oracle reads in the clip. None where that is no truth to go by: where it doubts a
    digit, reads another one in some unit, or sees other colours than were asked for (it tells objects apart by colour,
    so a blend of two looks like a third one to it)."""
    import torch

    from framegrove.config.request import FRAMES_PER_UNIT
    from framegrove.digits.verifier_scenes import Drawn, Fault, Quality, Scene
    from framegrove.digits.world import DigitObject
    from framegrove.verification.questions import shown_frames

    meant = {one.colour: one.digit for one in asked}
    readings, times = oracle.read(frames), shown_frames(len(frames))
    if {reading.colour for reading in readings} != set(meant):
        return None
    units = [frames[:1], *(frames[at : at + FRAMES_PER_UNIT] for at in range(1, len(frames), FRAMES_PER_UNIT))]
    by_unit = [(part.colour, part.digit) for unit in units for part in oracle.read(unit) if part.digit is not None]
    drawn = []
    for reading in readings:
        if reading.digit is not None and any(c == reading.colour and d != reading.digit for c, d in by_unit):
            return None
        if _MUSH < reading.confidence < _SURE or (reading.digit is None) != (reading.confidence < _SURE):
            return None
        name = DigitObject(
            meant[reading.colour] if reading.digit is None else reading.digit, reading.colour, reading.motion or ""
        )
        fault = Fault.MALFORMED if reading.digit is None else Fault.SWERVE if reading.motion is None else Fault.NONE
        seen, colours = (reading.digit,) * len(times), (reading.colour,) * len(times)
        drawn.append(Drawn(name, fault, 0, seen, colours, reading.motion, ((0, 0),) * len(times)))
    shown = torch.from_numpy(frames[list(times)]).permute(0, 3, 1, 2) / 255.0
    return Scene(shown, tuple(drawn), Quality.FAIR)


if __name__ == "__main__":
    app()
