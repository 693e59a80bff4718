"""Train the small vision-language model that judges clips of the digits world, and evaluate it on held-out clips.

    python -m jobs.train_verifier --config jobs/configs/digits_verifier.yaml --out runs/verifier

leaves in OUT/model the folder that vLLM and transformers load, with metrics.json and a README.md of figures beside the
weights. The shipped configuration takes about 70 minutes on one CPU thread. Interrupted, the same command goes on from
its newest checkpoint.
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
        from framegrove.digits.verifier_training import VerifierRun

        run = VerifierRun(settings, out)
        run.train(lambda done: _show(display, done))
        _evaluate(run, out / "model", f"python -m jobs.train_verifier --config {config} --out DIR", display)
        display.say(f"model: {out / 'model'}")


def _show(display: Display, done: VerifierStep) -> None:
    figures = "  ".join(f"{name} {value:.4g}" for name, value in done.figures.items())
    display.show(done.done / done.total, f"{done.phase} {done.step} of {done.steps}  {figures}")


def _evaluate(run: VerifierRun, out: Path, command: str, display: Display) -> None:
    """Measure the finished model on held-out clips, and on generated ones if the configuration wants any; write it."""
    from framegrove.digits.verifier_generated import generated_scenes
    from framegrove.digits.verifier_metrics import evaluate, evaluate_scenes, save

    model = run.finished()
    heldout_clips, generated_clips = run.config.heldout_clips, run.config.generated_clips
    display.begin("evaluating on held-out clips")
    heldout = evaluate(
        model,
        run.packer,
        heldout_clips,
        on_clips=lambda done: display.show(min(1.0, done / heldout_clips), f"{done} clips"),
    )
    display.console.print(heldout.table("held-out clips"))
    generated = None
    if generated_clips:
        display.begin(f"generating {generated_clips} clips")
        scenes = generated_scenes(
            generated_clips, lambda done: display.show(done / generated_clips, f"{done} of {generated_clips}")
        )
        generated = evaluate_scenes(model, run.packer, scenes)
        display.console.print(generated.table("generated clips"))
    save(run, model, heldout, generated, out, command)


if __name__ == "__main__":
    app()
