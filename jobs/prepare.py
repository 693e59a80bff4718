"""Encode captioned clips into parquet shards of latents, the data that jobs.train reads.

    python -m jobs.prepare --clips 6000 --out runs/digits-clips
    python -m jobs.prepare --videos clips.csv --vae pyramid-flow-sd3/causal_video_vae --allow-pickle \\
        --sizes 640x384 --units 16 --part 3/8 --out /shared/clips/part-3

Without --videos, clips of the digits world are drawn. Parts of a list can be encoded by several jobs at once:
jobs.train reads every shard below the folder that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.errors import UserError
from jobs.console import Display, LogLevelOption, PickleOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.data.schema import LatentClip
    from framegrove.models.vae import CausalVideoVae
    from framegrove.training.encode import VideoCounts

app = application()
PYRAMID = {"stages": 3, "patch": 2}  # of the released models; sizes that they could not be trained on are refused


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    videos: Annotated[
        Path | None,
        typer.Option(
            help="List of videos: a .csv, .jsonl or .parquet file in UTF-8 with the columns video (a file, relative to "
            "the list's folder; a picture is a clip of one frame) and caption. Without it, digits are drawn."
        ),
    ] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder of the VAE. Without it, the shipped one.")] = None,
    allow_pickle: PickleOption = False,
    units: Annotated[
        int,
        typer.Option(
            min=1,
            help="Longest clip to keep, in units: the first unit is one frame, each later one 8 frames, so that 4 "
            "units are 25 frames. Of a shorter video all whole units are kept.",
        ),
    ] = 4,
    sizes: Annotated[
        str,
        typer.Option(
            help="With --videos: WIDTHxHEIGHT in pixels, several separated by commas; each video is scaled to the one "
            "with the closest aspect ratio and cut to its middle. Multiples of 64 for the released VAE. "
            "(Training configurations write height first.)"
        ),
    ] = "640x384",
    fps: Annotated[
        float, typer.Option(min=1, help="With --videos: frames a second of the clips; the videos' own may differ.")
    ] = 24,
    part: Annotated[
        str, typer.Option(help="With --videos: K/N encodes every N-th line, from the K-th on; 1/1 is the whole list.")
    ] = "1/1",
    clips: Annotated[int, typer.Option(min=1, help="Digits: number of clips.")] = 6000,
    pairs: Annotated[float, typer.Option(min=0, max=1, help="Digits: share of clips that show two.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Digits: seed of the clips.")] = 0,
    log_level: LogLevelOption = None,
) -> None:
    """Encode clips with the VAE and write them as parquet shards.

    Files that cannot be read are skipped and counted. A clip ends where two frames are more than a second apart.
    """
    with one_line_errors(log_level), Display() as display:
        from framegrove.config.request import parse_size

        first, parts = _part(part)
        make_folder(out.parent)
        wanted = [parse_size(size) for size in sizes.split(",")]
        from framegrove.models.pretrained import VAE, embedded_model
        from framegrove.models.vae_files import read_vae
        from framegrove.training.encode import vae_digest

        model = read_vae(vae or embedded_model() / VAE, allow_pickle=allow_pickle)
        digest = vae_digest(model)  # before the weights change their type
        if videos is None:
            _write(display, _digits(model, clips, seed, units, pairs), digest, out, clips)
            return
        from framegrove.data.lists import read_list
        from framegrove.training.encode import NoClips, VideoCounts, video_clips

        _check(wanted, model.config.spatial_factor)
        listed = read_list(videos)[first::parts]
        if not listed:
            raise UserError(f"part {part} of {videos} is empty: the list has fewer lines than parts")
        counts = VideoCounts()
        encoded = video_clips(_on_gpu(model), listed, wanted, units, fps, counts)
        try:
            _write(display, encoded, digest, out, len(listed), counts)
        except NoClips:
            raise UserError(
                f"not one of the {counts.read} files in {videos} could be read, the first: {counts.first_problem}"
            ) from None
        finally:
            if counts.read:
                display.say(_summary(counts))


def _digits(model: CausalVideoVae, clips: int, seed: int, units: int, pairs: float) -> Iterator[LatentClip]:
    import torch

    from framegrove.digits.clips import digits_clips

    torch.set_num_threads(1)  # for pictures this small a second thread costs more than it brings
    return digits_clips(model, clips, seed=seed, units=units, pairs=pairs)


def _on_gpu(model: CausalVideoVae) -> CausalVideoVae:
    import torch

    return model.to("cuda", torch.bfloat16) if torch.cuda.is_available() else model


def _write(
    display: Display,
    encoded: Iterator[LatentClip],
    digest: str,
    out: Path,
    total: int,
    counts: VideoCounts | None = None,
) -> None:
    """Write the clips and show progress: by the files read so far, some of which may have given no clip."""
    from framegrove.training.encode import write_clips

    def show(done: int) -> None:
        read = counts.read if counts else done
        display.show(read / total, f"{read} of {total}")

    display.begin(f"encoding {total} clips")
    paths = write_clips(encoded, digest, out, show)
    display.say(f"{counts.encoded if counts else total} clips in {len(paths)} shards: {out}")


def _summary(counts: VideoCounts) -> str:
    """What became of the files, in one line."""
    line = f"{counts.read} files read: {counts.encoded} encoded, {counts.unreadable} unreadable"
    if counts.unreadable:
        line += f" (the first: {counts.first_problem})"
    return line + f"; {counts.ended_by_gap} clips ended at a gap in time"


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
