"""Train the causal video VAE on clips of the digits world.

    python -m jobs.train_vae --config jobs/configs/digits_vae.yaml --out runs/vae

leaves a log in OUT/log.jsonl and the model folder in OUT/causal_video_vae. The shipped configuration takes about 40
minutes on one CPU thread. Interrupted, the same command goes on from its newest checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.training.vae import VaeStep

app = application()
_DEFAULT = Path("jobs/configs/digits_vae.yaml")


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of log, checkpoint and model; an unfinished run is resumed.")],
    config: Annotated[Path, typer.Option(help="YAML file of the model and its training.")] = _DEFAULT,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in steps=100 (optimizer steps); repeatable.")
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Train the VAE on clips of the digits world, or go on from the checkpoint in OUT.

    The model goes to OUT/causal_video_vae.
    """
    from framegrove.config.base import load
    from framegrove.config.vae import VaeTrainingConfig

    with one_line_errors(log_level), Display() as display:
        settings = load(VaeTrainingConfig, config, set_ or ())
        make_folder(out)
        display.begin("training the VAE")
        from framegrove.digits.clips import DigitsFrames
        from framegrove.training.vae import MODEL, train

        def on_step(done: VaeStep) -> None:
            display.show(done.step / settings.steps, f"step {done.step} of {settings.steps}, loss {done.loss:.3f}")
            if done.psnr:
                display.say(_line_of(done))

        last = train(settings, DigitsFrames(settings.seed), out, on_step)
        display.say(f"the saved weights: {_decibels(last)}")
        display.say(f"model: {out / MODEL}")


def _line_of(done: VaeStep) -> str:
    return f"step {done.step}: loss {done.loss:.4f}  {_decibels(done)}  ({done.seconds:.0f} s)"


def _decibels(done: VaeStep) -> str:
    return "  ".join(f"PSNR {kind} {value:.2f} dB" for kind, value in done.psnr.items())


if __name__ == "__main__":
    app()
