"""Train the causal video VAE, on clips of the digits world or of real videos.

    python -m jobs.train_vae --config jobs/configs/digits_vae.yaml --out runs/vae
    python -m jobs.train_vae --config jobs/configs/video_vae.yaml --set data.videos=clips.csv --out runs/vae

leaves a log in OUT/log.jsonl, its picture in OUT/loss.png, held-out clips beside what became of them in OUT/strips, and
the model folder in OUT/causal_video_vae. digits_vae.yaml takes about 40 minutes on one CPU thread. Interrupted, the
same command resumes from its newest checkpoint.
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
    """Train the VAE on clips of the digits world or of videos (the key data), or go on from the checkpoint in OUT.

    The model goes to OUT/causal_video_vae.
    """
    from framegrove.config.base import load
    from framegrove.config.vae import VaeTrainingConfig

    with one_line_errors(log_level), Display() as display:
        settings = load(VaeTrainingConfig, config, set_ or ())
        make_folder(out)
        display.begin("training the VAE")
        from framegrove.digits.clips import DigitsFrames
        from framegrove.models.vae_files import read_vae_config
        from framegrove.training.vae import CHECKPOINT, MODEL, train
        from framegrove.training.vae_clips import ClipSource
        from framegrove.training.vae_videos import VideoFrames

        shape = read_vae_config(settings.start) if settings.start is not None else settings.model
        source: ClipSource = DigitsFrames(settings.seed)
        if settings.data is not None:
            source = VideoFrames(settings.data, shape, settings.seed)

        def on_step(done: VaeStep) -> None:
            display.show(done.step / settings.steps, f"step {done.step} of {settings.steps}, loss {done.loss:.3f}")
            if done.psnr:
                display.say(_line_of(done))

        if (out / CHECKPOINT).is_file():
            display.say(f"going on from {out / CHECKPOINT}")
        last = train(settings, source, out, on_step)
        display.say(f"the saved weights: {_decibels(last)}")
        display.say(f"model: {out / MODEL}")


def _line_of(done: VaeStep) -> str:
    return f"step {done.step}: loss {done.loss:.4f}  {_decibels(done)}  ({done.seconds:.0f} s)"


def _decibels(done: VaeStep) -> str:
    return "  ".join(f"PSNR {kind} {value:.2f} dB" for kind, value in done.psnr.items())


if __name__ == "__main__":
    app()
