"""Encode captioned clips into parquet shards of latents, the data that jobs.train reads.

python -m jobs.prepare --world digits --clips 6000 --out runs/digits-clips
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Display, one_line_errors

app = typer.Typer(add_completion=False)


class World(StrEnum):
    """Where clips come from."""

    DIGITS = "digits"


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist yet.")],
    clips: Annotated[int, typer.Option(min=1, help="How many clips.")] = 6000,
    world: Annotated[World, typer.Option(help="Which world.")] = World.DIGITS,
    vae: Annotated[Path | None, typer.Option(help="Folder of the VAE; the shipped one if left out.")] = None,
    units: Annotated[int, typer.Option(min=1, help="Units of a clip.")] = 4,
    pairs: Annotated[float, typer.Option(min=0, max=1, help="Share of clips that show two digits.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Which clips.")] = 0,
) -> None:
    """Draw clips, encode them with the VAE and write them as parquet shards."""
    with one_line_errors(OSError), Display() as display:
        display.begin(f"encoding {clips} clips of the {world.value} world")
        import torch

        from framegrove.models.pretrained import VAE, embedded_model
        from framegrove.models.vae_files import load_vae
        from framegrove.training.encode import prepare_digits

        torch.set_num_threads(1)
        model, _ = load_vae(vae or embedded_model() / VAE)
        paths = prepare_digits(
            model,
            out,
            clips,
            seed=seed,
            units=units,
            pairs=pairs,
            on_clips=lambda done: display.show(done / clips, f"{done} of {clips}"),
        )
        display.say(f"{clips} clips in {len(paths)} shards: {out}")


if __name__ == "__main__":
    app()
