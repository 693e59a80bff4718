"""Train the small vision-language model that judges clips of the digits world, and evaluate it on held-out clips.

    python -m jobs.train_verifier --config jobs/configs/digits_verifier.yaml --out runs/verifier

leaves in OUT/model the folder that vLLM and transformers load, with metrics.json and a README.md of figures beside the
weights. That configuration trains one from random weights on drawn clips, in about 70 minutes on one CPU thread;
digits_verifier_siblings.yaml goes on from there with groups of siblings of a generator (jobs.siblings), and calibrates
the result. Interrupted, the same command resumes from its newest checkpoint. jobs.examine examines it among siblings.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.config.base import load
from framegrove.digits.config import VerifierTraining
from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.digits.verifier_training import VerifierRun, VerifierStep

app = application()
_DEFAULT = Path("jobs/configs/digits_verifier.yaml")


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of log, checkpoint and model; an unfinished run is resumed.")],
    config: Annotated[Path, typer.Option(help="YAML file of the model and its four training phases.")] = _DEFAULT,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key, as in joint.steps=100 (optimizer steps); repeatable."),
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Train the verifier of the digits world, or go on from the checkpoint in OUT, and evaluate it.

    The model goes to OUT/model.
    """
    with one_line_errors(log_level), Display() as display:
        settings = load(VerifierTraining, config, set_ or ())
        make_folder(out)
        display.begin("training the verifier")
        from framegrove.digits.verifier_training import CHECKPOINT, VerifierRun

        if (out / CHECKPOINT).is_file():
            display.say(f"going on from {out / CHECKPOINT}")
        run = VerifierRun(settings, out)
        run.train(lambda done: _show(display, done))
        _evaluate(run, out / "model", f"python -m jobs.train_verifier --config {config} --out DIR", display)
        display.say(f"model: {out / 'model'}")


def _show(display: Display, done: VerifierStep) -> None:
    figures = "  ".join(f"{name} {value:.4g}" for name, value in done.figures.items())
    display.show(done.done / done.total, f"{done.phase} {done.step} of {done.steps}  {figures}")


def _evaluate(run: VerifierRun, out: Path, command: str, display: Display) -> None:
    """Measure the finished model on held-out clips and write it; then calibrate it on siblings kept apart."""
    from framegrove.digits.verifier_metrics import evaluate, save

    model = run.finished()
    clips = run.config.heldout_clips
    display.begin("evaluating on held-out clips")
    heldout = evaluate(
        model, run.packer, clips, on_clips=lambda done: display.show(min(1.0, done / clips), f"{done} clips")
    )
    display.console.print(heldout.table("held-out clips"))
    save(run, model, heldout, out, command)
    if run.config.joint.siblings is not None:
        _calibrate(Path(run.config.joint.siblings), out, display)


def _calibrate(siblings: Path, out: Path, display: Display) -> None:
    """Fit the calibration of the verifier in ``out`` to the groups kept apart from its training, and write it there."""
    from framegrove.digits.questions import write_settings
    from framegrove.digits.sibling_files import read_groups, shards_in
    from framegrove.digits.verifier_judge import Judge, calibrated

    display.begin("calibrating on siblings kept apart")
    groups = [group for path in shards_in(siblings, apart=True) for group in read_groups(path)]
    calibration = calibrated(Judge(out), groups)
    write_settings(out, calibration)
    for assessment, each in calibration.items():
        display.say(f"{assessment.value}: bias {each.bias}, slopes {each.slopes}")


if __name__ == "__main__":
    app()
