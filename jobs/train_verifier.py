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

if TYPE_CHECKING:
    from framegrove.data.digits import DigitObject
    from framegrove.evaluation.digits_oracle import DigitsOracle
    from framegrove.flow.generation import Pixels
    from framegrove.training.verifier_scenes import Scene

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log.jsonl and model.")],
    config: Annotated[Path, typer.Option(help="YAML file.")] = Path("jobs/configs/digits_verifier.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value, may be repeated.")] = None,
) -> None:
    """Train, examine, write OUT/model."""
    try:
        settings = load(VerifierTraining, config, overrides or [])
        _train(settings, out, f"python -m jobs.train_verifier --config {config} --out {out}")
    except ValueError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


def _train(settings: VerifierTraining, out: Path, command: str) -> None:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from framegrove.training.verifier import Progress, VerifierRun

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
    from framegrove.training.verifier_exam import examine, examine_scenes, save

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
    from framegrove.data import digits
    from framegrove.evaluation.digits_oracle import DigitsOracle
    from framegrove.flow.generation import generate
    from framegrove.models.pretrained import load_pipeline

    asked = digits.prompts(count, seed=5)
    videos = generate(load_pipeline(), [digits.caption(objects) for objects in asked], list(range(count)))
    oracle = DigitsOracle()
    scenes = [_as_read(video.frames, objects, oracle) for video, objects in zip(videos, asked, strict=True)]
    return [scene for scene in scenes if scene is not None]


_SURE = 0.8  # chance of the likeliest digit below which what the oracle reads is no truth to examine by


def _as_read(frames: Pixels, asked: tuple[DigitObject, ...], oracle: DigitsOracle) -> Scene | None:
    """The shown frames, and what the oracle reads in the units they stand for; None where it is not sure of that."""
    import torch

    from framegrove.data.digits import FRAMES_PER_UNIT, DigitObject
    from framegrove.training.verifier_scenes import Drawn, Fault, Quality, Scene
    from framegrove.verification.questions import shown_frames

    units = [frames[:1], *(frames[at : at + FRAMES_PER_UNIT] for at in range(1, len(frames), FRAMES_PER_UNIT))]
    by_unit = [{reading.colour: reading for reading in oracle.read(unit)} for unit in units]
    meant = {one.colour: one.digit for one in asked}
    drawn = []
    for whole in oracle.read(frames):
        found = [unit.get(whole.colour) for unit in by_unit]
        if any(one is not None and one.digit is not None and one.confidence < _SURE for one in found):
            return None
        seen = tuple(one.digit if one is not None else None for one in found)
        named = [digit for digit in seen if digit is not None]
        fault = Fault.NONE if len(set(seen)) == 1 else Fault.MORPH
        if not named:
            fault = Fault.MALFORMED
        elif whole.motion is None:
            fault = Fault.SWERVE if fault is Fault.NONE else fault
        name = DigitObject(named[0] if named else meant.get(whole.colour, 0), whole.colour, whole.motion or "")
        drawn.append(Drawn(name, fault, 1, seen, (whole.colour,) * len(units), whole.motion, ((0, 0),) * len(units)))
    shown = torch.from_numpy(frames[list(shown_frames(len(frames)))]).permute(0, 3, 1, 2) / 255.0
    return Scene(shown, tuple(drawn), Quality.FAIR) if drawn else None


if __name__ == "__main__":
    app()
