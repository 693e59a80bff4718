"""Write a model folder from a checkpoint of a training run, which may still be going on.

    python -m jobs.export --run runs/train --out runs/raw --weights raw

OUT/model of a run holds the averaged weights at the end of its last finished phase. This is for any other moment, and
for the weights themselves.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import (
    Display,
    LogLevelOption,
    OverwriteOption,
    application,
    make_folder,
    one_line_errors,
    refuse_taken,
)

app = application()


class Weights(StrEnum):
    """Which weights are written."""

    AVERAGED = "averaged"
    RAW = "raw"


@app.command()
def main(
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    weights: Annotated[
        Weights, typer.Option(help="averaged: the running average; raw: the weights as they were trained.")
    ] = Weights.AVERAGED,
    checkpoint: Annotated[
        str, typer.Option(help="newest, best (lowest held-out or else training loss), or a number of steps.")
    ] = "newest",
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Write a model folder from a checkpoint of a run."""
    with one_line_errors(log_level), Display() as display:
        refuse_taken(out, "framegrove.json", overwrite)
        make_folder(out.parent)
        display.begin("reading the checkpoint")
        from framegrove.training.export import export

        step = export(run, out, weights.value, checkpoint)
        display.say(f"model: {out}   ({weights.value} weights after step {step})")


if __name__ == "__main__":
    app()
