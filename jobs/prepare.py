"""Encode captioned clips into parquet shards of latents, the data that jobs.train reads.

    python -m jobs.prepare --clips 6000 --out runs/digits-clips
    python -m jobs.prepare --videos clips.csv --vae pyramid-flow-sd3/causal_video_vae --allow-pickle \\
        --sizes 640x384 --units 16 --part 3/8 --out /shared/clips/part-3

Without --videos clips of the digits world are drawn. A list of videos is a .csv, .jsonl or .parquet file with the
columns video (a file, as seen from the list's folder; an image is a clip of one frame) and caption. Parts can be
encoded by as many jobs; jobs.train reads a folder with all that lie in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.errors import UserError
from jobs.console import Display, LogLevelOption, PickleOption, one_line_errors

if TYPE_CHECKING:
    from framegrove.media.video_reading import Listed

app = typer.Typer(add_completion=False)
PYRAMID = {"stages": 3, "patch": 2}  # of the released models: sizes that training could not use are refused


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist yet.")],
    videos: Annotated[Path | None, typer.Option(help="List of videos; clips of the digits world if absent.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder of the VAE; the shipped one if absent.")] = None,
    allow_pickle: PickleOption = False,
    units: Annotated[int, typer.Option(min=1, help="Units of a clip; of a short video as many as it has.")] = 4,
    sizes: Annotated[
        str,
        typer.Option(
            help="Videos: comma-separated WIDTHxHEIGHT (configurations have [height, width]), multiples of 64 with the "
            "released VAE; each video takes the one most like its shape."
        ),
    ] = "640x384",
    fps: Annotated[float, typer.Option(min=1, help="Videos: frames a second.")] = 24,
    part: Annotated[str, typer.Option(help="Videos: K/N encodes the K-th of N parts of the list.")] = "1/1",
    clips: Annotated[int, typer.Option(min=1, help="Digits: how many clips.")] = 6000,
    pairs: Annotated[float, typer.Option(min=0, max=1, help="Digits: share of clips that show two.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Digits: which clips.")] = 0,
    log_level: LogLevelOption = None,
) -> None:
    """Encode clips with the VAE and write them as parquet shards."""
    with one_line_errors(log_level), Display() as display:
        from framegrove.config.request import parse_size

        first, parts = _part(part)
        wanted = [parse_size(size) for size in sizes.split(",")]
        import torch

        from framegrove.digits.clips import digits_clips
        from framegrove.media.video_reading import read_list
        from framegrove.models.pretrained import VAE, embedded_model
        from framegrove.models.vae_files import read_vae
        from framegrove.training.encode import vae_digest, video_clips, write_clips

        model = read_vae(vae or embedded_model() / VAE, allow_pickle=allow_pickle)
        digest = vae_digest(model)
        unreadable: list[str] = []

        def pass_over(line: Listed, reason: str) -> None:
            unreadable.append(reason)

        if videos is None:
            torch.set_num_threads(1)  # small pictures: two are slower
            drawn, total = digits_clips(model, clips, seed=seed, units=units, pairs=pairs), clips
        else:
            _check(wanted, model.config.spatial_factor)
            listed = read_list(videos)[first::parts]
            if torch.cuda.is_available():
                model = model.to("cuda", torch.bfloat16)
            drawn, total = video_clips(model, listed, wanted, units, fps, pass_over), len(listed)
        display.begin(f"encoding {total} clips")

        def show(done: int) -> None:
            display.show((done + len(unreadable)) / total, f"{done} of {total}")

        try:
            paths = write_clips(drawn, digest, out, show)
        finally:
            if unreadable:
                display.say(f"{len(unreadable)} of {total} videos were passed over, the first: {unreadable[0]}")
        display.say(f"{total - len(unreadable)} clips in {len(paths)} shards: {out}")


def _check(sizes: list[tuple[int, int]], factor: int) -> None:
    """Raise UserError for a size that no model could be trained on."""
    from framegrove.config.flow import latent_size

    for height, width in sizes:
        latent_size(height, width, factor=factor, **PYRAMID)


def _part(text: str) -> tuple[int, int]:
    """Where a part of a list begins, and its stride."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"the part {text!r} is not of the form K/N with K from 1 to N, for example 3/8")
    return int(match[1]) - 1, int(match[2])


if __name__ == "__main__":
    app()
