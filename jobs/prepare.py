"""Encode captioned clips into parquet shards of latents, the data that jobs.train reads.

    python -m jobs.prepare --clips 6000 --out runs/digits-clips
    python -m jobs.prepare --videos footage/ --config jobs/configs/curate_general.yaml --out /shared/clips
    python -m jobs.prepare --videos clips.csv --vae pyramid-flow-sd3/causal_video_vae --allow-pickle \\
        --sizes 640x384 --units 16 --part 3/8 --out /shared/clips/part-3

Without --videos, clips of the digits world are drawn. Otherwise it may be stopped, or killed, at any time: run again
with the same --out it continues, and does only what is new. Parts of a list can be encoded by several jobs at once:
jobs.train reads every shard below the folder that it is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.config.curate import (
    CaptionsConfig,
    CurateConfig,
    DuplicatesConfig,
    MotionConfig,
    PictureConfig,
    ShotsConfig,
    TextConfig,
)
from framegrove.errors import UserError
from framegrove.words import counted
from jobs.console import (
    Display,
    LogLevelOption,
    OverwriteOption,
    PickleOption,
    application,
    given_options,
    make_folder,
    one_line_errors,
    refuse,
    refuse_taken,
    when_stopped,
)
from jobs.keys import keys_help

if TYPE_CHECKING:
    from jobs.preparing import Order

app = application()
SHARDS = "clips-*.parquet"


class EngineName(StrEnum):
    """Where footage is prepared."""

    RAY = "ray"
    PLAIN = "plain"


_KEYS = keys_help(
    ("Keys of the configuration file, which --set overrides (--set duplicates.bits=12):", CurateConfig, ""),
    ("Of shots:", ShotsConfig, "shots."),
    ("Of motion:", MotionConfig, "motion."),
    ("Of picture:", PictureConfig, "picture."),
    ("Of duplicates:", DuplicatesConfig, "duplicates."),
    ("Of captions:", CaptionsConfig, "captions."),
    ("Of text:", TextConfig, "text."),
)


@app.command(epilog=_KEYS)
def main(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(help="Folder to write; of videos, an unfinished one is continued."),
    ],
    videos: Annotated[
        str | None,
        typer.Option(
            help="Footage, on this machine or at a URL (s3://, gs://, https://): a folder; a WebDataset tar, or "
            "NAME-{0000..0041}.tar; the output folder of NeMo Curator; or a list: a .csv, .jsonl or .parquet file in "
            "UTF-8 with the columns video (a file or URL, relative to the list's folder; a picture is a clip of one "
            "frame) and caption, and perhaps start and end in seconds. Without it, digits are drawn."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="With --videos: YAML file that names stages and thresholds, see jobs/configs/curate_*.yaml."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="With --videos: override a key, as in heldout=0.02 (repeatable).")
    ] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder of the VAE. Without it, the shipped one.")] = None,
    allow_pickle: PickleOption = False,
    units: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest clip to keep, in units: the first unit is one frame, each later one 8 frames, so that 4 "
            "units are 25 frames. Of a shorter video all whole units are kept. Without it, the configuration's, or 4.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="With --videos: WIDTHxHEIGHT in pixels, several separated by commas; each video is scaled to the one "
            "with the closest aspect ratio and cut to its middle. Multiples of 64 for the released VAE. Without it, "
            "the configuration's, or 640x384. (Configurations write height first.)"
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="With --videos: frames a second of the clips; the videos' own may differ. Without it, the "
            "configuration's, or 24.",
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            help="With --videos: K/N encodes every N-th line, from the K-th on; 1/1 is the whole list. A part is "
            "prepared in this process, without Ray."
        ),
    ] = "1/1",
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="With --videos: ray decodes and encodes side by side on the cluster at RAY_ADDRESS, or on a local "
            "one; plain does everything in this process. Without it, ray, but plain for a part."
        ),
    ] = None,
    most_rejected: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="With --videos: fail at the end if a larger share of the clips than this is rejected."
        ),
    ] = 1.0,
    clips: Annotated[int, typer.Option(min=1, help="Digits: number of clips.")] = 6000,
    pairs: Annotated[float, typer.Option(min=0, max=1, help="Digits: share of clips that show two.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Digits: seed of the clips.")] = 0,
    heldout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Digits: share of clips of held-out scans, on which loss is measured.")
    ] = 0.0,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Encode clips with the VAE and write them as parquet shards.

    What is not kept is in rejects.parquet beside them, with its reason. A clip ends where two frames are more than a
    second apart.
    """
    with one_line_errors(log_level), Display() as display:
        given = given_options(context)
        if videos is None:
            of_footage = {"sizes", "fps", "part", "engine", "most_rejected"}
            refuse(given & of_footage, "is for footage: give --videos, or leave it out to draw digits")
        else:
            refuse(given & {"clips", "pairs", "seed"}, "is for drawn digits: leave it, or --videos, out")
            refuse(given & {"heldout"}, "is for drawn digits: for footage write --set heldout=0.02")
        first, parts = _part(part)
        from framegrove.models.pretrained import VAE, embedded_model

        vae_folder = vae or embedded_model() / VAE
        if videos is None:
            if config is not None or set_:
                raise UserError("--config and --set are for footage: give --videos, or leave them out to draw digits")
            refuse_taken(out, SHARDS, overwrite)
            with when_stopped("drawn clips are kept together or not at all, and nothing was kept"):
                _digits(Drawing(clips, units or 4, seed, pairs, heldout), vae_folder, allow_pickle, out, display)
            return
        if overwrite:
            raise UserError(
                "--overwrite is for digits; an unfinished --out of footage is continued: leave --overwrite out"
            )
        from jobs.preparing import Order

        chosen = engine or (EngineName.RAY if parts == 1 else EngineName.PLAIN)
        order = Order(videos, out, vae_folder, allow_pickle, first, parts, chosen is EngineName.RAY)
        _footage(order, _settings(config, set_ or [], sizes, units, fps), most_rejected, display)


@dataclass(frozen=True)
class Drawing:
    """Which clips of the digits world are drawn."""

    clips: int
    units: int
    seed: int
    pairs: float
    heldout: float


def _digits(drawing: Drawing, vae: Path, allow_pickle: bool, out: Path, display: Display) -> None:
    """Draw clips, encode them and write them to ``out``, in the place of those that are there."""
    import torch

    from framegrove.digits.clips import digits_clips
    from framegrove.models.vae_files import read_vae
    from framegrove.training.encode import vae_digest, write_clips

    torch.set_num_threads(1)  # for pictures this small a second thread costs more than it brings
    make_folder(out.parent)
    model, count = read_vae(vae, allow_pickle=allow_pickle), drawing.clips
    display.begin(f"drawing and encoding {counted(count, 'clip')} of the digits world")
    drawn = digits_clips(
        model, count, seed=drawing.seed, units=drawing.units, pairs=drawing.pairs, heldout=drawing.heldout
    )

    def on_clips(done: int) -> None:
        display.show(done / count, f"{done} of {count}")

    paths = write_clips(drawn, vae_digest(model), out, on_clips, overwrite=True)
    display.say(f"{counted(count, 'clip')} in {counted(len(paths), 'shard')}: {out}")


def _footage(order: Order, settings: CurateConfig, most_rejected: float, display: Display) -> None:
    """Prepare footage. Raises UserError, also where more was rejected than is allowed."""
    from jobs.preparing import prepare

    if settings.duplicates is not None and order.parts > 1:
        raise UserError(
            "near-duplicates are looked for in the whole list, which a part does not know: remove duplicates from "
            "the configuration, or prepare the list without --part"
        )
    report = prepare(order, settings, display)
    if report.rejected_share > most_rejected:
        raise UserError(
            f"{report.rejected_share:.1%} of the clips were rejected, and --most-rejected allows "
            f"{most_rejected:.1%}: see {order.out / 'rejects.parquet'}"
        )


def _settings(
    path: Path | None, overrides: list[str], sizes: str | None, units: int | None, fps: float | None
) -> CurateConfig:
    """The configuration with what the command line says besides. Raises UserError."""
    from framegrove.config.base import load
    from framegrove.config.request import parse_size

    given = list(overrides)
    if sizes is not None:
        given.append(f"sizes={[list(parse_size(size)) for size in sizes.split(',')]}")
    if units is not None:
        given.append(f"units={units}")
    if fps is not None:
        given.append(f"fps={fps}")
    return load(CurateConfig, path, given)


def _part(text: str) -> tuple[int, int]:
    """Where a part of a list begins, and its stride."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"the part {text!r} is not of the form K/N with K from 1 to N, for example 3/8")
    return int(match[1]) - 1, int(match[2])


if __name__ == "__main__":
    app()
