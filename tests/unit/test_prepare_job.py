"""jobs.prepare: clips of videos and of digits, what it reports, and what it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from framegrove.data.ingest import open_shards, read_shard
from framegrove.media.clips import read_clip
from framegrove.models.pretrained import load_pipeline
from framegrove.models.vae_files import load_vae
from framegrove.training.encode import vae_digest
from jobs.prepare import app
from jobs.train import app as train
from tests.films import grey_film
from tests.public_folder import write_public_folder
from tests.tiny_training import make_world

ROOT = Path(__file__).parents[2]
SIZES = ((64, 64), (32, 96))
CASES = ROOT / "tests" / "cases"


def test_prepare_makes_clips_of_videos(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    grey_film(tmp_path / "long.mp4", 24)
    grey_film(tmp_path / "wide.mp4", 8, height=64, width=192)
    grey_film(tmp_path / "short.mp4", 12)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "long.mp4").read_bytes()[:500])
    lines = [f"{name}.mp4,this is {name}" for name in ("long", "wide", "torn", "short")]
    (tmp_path / "list.csv").write_text("\n".join(["video,caption", *lines]) + "\n")

    def prepare(part: str, out: Path) -> str:
        given = ["--videos", str(tmp_path / "list.csv"), "--vae", str(world / "vae"), "--part", part, "--out", str(out)]
        result = CliRunner().invoke(app, [*given, "--sizes", "64x64,192x64", "--units", "3"])
        assert result.exit_code == 0, result.output
        return result.output

    said = prepare("1/2", tmp_path / "clips" / "1")
    assert (
        f"2 files read: 1 encoded, 1 unreadable (the first: {tmp_path / 'torn.mp4'} cannot be read as a video" in said
    )
    said = prepare("2/2", tmp_path / "clips" / "2")
    assert "2 clips in 1 shards" in said
    assert "2 files read: 2 encoded, 0 unreadable; 0 clips ended at a gap in time" in said
    vae, _ = load_vae(world / "vae")
    sizes = ((64, 64), (64, 192))
    shards = open_shards(tmp_path / "clips", sizes)
    assert {shard.vae for shard in shards} == {vae_digest(vae)}
    clips = {clip.caption: clip for shard in shards for clip in read_shard(shard.path, sizes)}
    units = {caption.split()[-1]: (clip.id, clip.units, clip.height, clip.width) for caption, clip in clips.items()}
    assert units == {"long": (0, 3, 64, 64), "wide": (1, 1, 64, 192), "short": (3, 2, 64, 64)}
    frames = torch.from_numpy(read_clip(tmp_path / "long.mp4", 24, 17, SIZES).frames).movedim(-1, 0)[None]
    expected = vae.encode(frames.float() / 127.5 - 1).mean[0]
    torch.testing.assert_close(
        torch.from_numpy(clips["this is long"].latents.copy()).float(), expected, atol=2e-3, rtol=2e-3
    )


def prepared(lines: list[str], out: Path, *given: str) -> Result:
    path = out.parent / "list.csv"
    path.write_text("\n".join(["video,caption", *lines]) + "\n", encoding="utf-8")
    vae = make_world(out.parent / "world") / "vae"
    return CliRunner().invoke(app, ["--videos", str(path), "--vae", str(vae), "--out", str(out), *given])


def test_the_files_of_the_cases_become_clips_of_the_right_shape(tmp_path: Path) -> None:
    """A picture bomb among them does not end the run, and a gap is counted."""
    target = io.BytesIO()
    Image.new("1", (20000, 20000)).save(target, "PNG")
    (tmp_path / "bomb.png").write_bytes(target.getvalue())
    names = ["gap.mp4", "rotated90.mp4", "sar.mp4", "exif6.jpg", "alpha.png", "grey16.png"]
    lines = [f"{CASES / name},{name}" for name in names] + ["bomb.png,a bomb"]
    result = prepared(lines, tmp_path / "clips", "--sizes", "64x64,128x64,64x128", "--units", "9")
    assert result.exit_code == 0, result.output
    assert "7 files read: 6 encoded, 1 unreadable (the first: " in result.output
    assert "bomb.png has more than 178,956,970 pixels" in result.output
    assert "; 1 clips ended at a gap in time" in result.output
    sizes = ((64, 64), (64, 128), (128, 64))
    clips = [clip for shard in open_shards(tmp_path / "clips", sizes) for clip in read_shard(shard.path, sizes)]
    assert {clip.caption: (clip.height, clip.width, clip.units) for clip in clips} == {
        "gap.mp4": (64, 64, 3),
        "rotated90.mp4": (128, 64, 3),
        "sar.mp4": (64, 128, 3),
        "exif6.jpg": (128, 64, 1),
        "alpha.png": (64, 64, 1),
        "grey16.png": (64, 64, 1),
    }


def test_when_nothing_can_be_read_the_job_fails_in_one_line(tmp_path: Path) -> None:
    result = prepared(["absent.mp4,a", "missing.mp4,b"], tmp_path / "clips", "--sizes", "64x64")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "not one of the 2 files in " in result.stderr
    assert "absent.mp4 cannot be read (No such file or directory)" in result.stderr
    assert "2 files read: 0 encoded, 2 unreadable" in result.stdout
    assert not (tmp_path / "clips").exists()


def test_a_part_that_is_empty_is_refused(tmp_path: Path) -> None:
    result = prepared(["a.mp4,a", "b.mp4,b"], tmp_path / "clips", "--sizes", "64x64", "--part", "3/4")
    assert result.exit_code == 1
    assert "list.csv is empty: the list has fewer lines than parts" in result.stderr


def test_digits_become_clips(tmp_path: Path) -> None:
    vae = make_world(tmp_path / "world") / "vae"
    given = ["--clips", "5", "--units", "2", "--pairs", "0.4", "--vae", str(vae), "--out", str(tmp_path / "clips")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "5 clips in 1 shards" in result.output
    (shard,) = open_shards(tmp_path / "clips", {(64, 64)})
    clips = list(read_shard(shard.path, {(64, 64)}))
    assert [(clip.id, clip.units, clip.fps) for clip in clips] == [(number, 2, 8.0) for number in range(5)]
    assert sum(" and a " in clip.caption for clip in clips) == 2


def test_help_explains_units_and_sizes() -> None:
    said = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output.split())
    assert "4 units are 25 frames" in said.replace("\u2502 ", "")
    assert "write height first" in said.replace("\u2502 ", "")


def test_the_shipped_configuration_trains_on_what_prepare_makes(tmp_path: Path) -> None:
    public = write_public_folder(tmp_path / "public", "miniflux")
    grey_film(tmp_path / "long.mp4", 9, height=384, width=640)
    (tmp_path / "list.csv").write_text("video,caption\nlong.mp4,a grey sheet\n")
    given = ["--videos", str(tmp_path / "list.csv"), "--vae", str(public / "causal_video_vae"), "--sizes", "640x384"]
    result = CliRunner().invoke(app, [*given, "--units", "16", "--part", "1/1", "--out", str(tmp_path / "clips" / "1")])
    assert result.exit_code == 0, result.output
    small = ["phases.0.units=2", "phases.0.steps=1", "phases.0.batch=2", "phases.0.warmup=0", "pool.clips=1"]
    settings = [f"data={tmp_path / 'clips'}", f"model.start={public}", *small]
    overrides = [part for setting in settings for part in ("--set", setting)]
    config = str(ROOT / "jobs" / "configs" / "miniflux_384p.yaml")
    given = ["--config", config, *overrides, "--engine", "plain", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(train, given)
    assert result.exit_code == 0, result.output
    assert load_pipeline(tmp_path / "out" / "model").variant == "diffusion_transformer_384p"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--part", "3/2"], "the part '3/2' is not of the form K/N with K from 1 to N"),
        (["--sizes", "640x360"], "width and height must be multiples of 64, for example 640x384"),
        (["--sizes", "large"], "the size 'large' is not of the form WIDTHxHEIGHT"),
    ],
)
def test_bad_input_is_one_line(given: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--videos", "list.csv", "--out", str(tmp_path / "out"), *given])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
