"""jobs.prepare: clips of videos and of digits, what it reports, and what it refuses."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from framegrove.config.base import load
from framegrove.config.curate import CurateConfig
from framegrove.config.flow import latent_size
from framegrove.curation.collecting import collecting
from framegrove.data.ingest import open_catalog
from framegrove.data.schema import LatentClip, embedder_of
from framegrove.media.clips import read_clip
from framegrove.media.writing import encode_mp4, write_png
from framegrove.models.pretrained import load_pipeline
from framegrove.models.vae_files import load_vae
from framegrove.training.encode import vae_digest
from jobs.prepare import app
from jobs.train import app as train
from tests.films import grey_film, panned, scenery
from tests.public_folder import write_public_folder
from tests.shards import clips_below
from tests.tiny_training import make_world

ROOT = Path(__file__).parents[2]
SIZES = ((64, 64), (32, 96))
CASES = ROOT / "tests" / "cases"


PLAIN = ("--engine", "plain")


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
    assert "2 of 2 files: 1 clip kept, 1 rejected; " in said
    assert "probe: cannot be read as a video" in said
    said = prepare("2/2", tmp_path / "clips" / "2")
    assert "2 clips in 1 shard: " in said
    assert "2 of 2 files: 2 clips kept, 0 rejected" in said
    assert "; 0 clips ended at a gap in time" in said
    vae, _ = load_vae(world / "vae")
    assert {shard.vae for shard in open_catalog([tmp_path / "clips"]).shards} == {vae_digest(vae)}
    clips = {clip.caption: clip for clip in clips_below(tmp_path / "clips")}
    units = {caption.split()[-1]: (clip.units, clip.height, clip.width) for caption, clip in clips.items()}
    assert units == {"long": (3, 64, 64), "wide": (1, 64, 192), "short": (2, 64, 64)}
    assert {(clip.kind, clip.caption_source, clip.split, clip.start) for clip in clips.values()} == {
        ("video", "list", "train", 0.0)
    }
    assert len({clip.source for clip in clips.values()}) == len({clip.id for clip in clips.values()}) == 3
    frames = torch.from_numpy(read_clip(tmp_path / "long.mp4", 24, 17, SIZES).frames).movedim(-1, 0)[None]
    expected = vae.encode(frames.float() / 127.5 - 1).mean[0]
    torch.testing.assert_close(
        torch.from_numpy(clips["this is long"].latents.copy()).float(), expected, atol=2e-3, rtol=2e-3
    )


def prepared(lines: list[str], out: Path, *given: str) -> Result:
    path = out.parent / "list.csv"
    path.write_text("\n".join(["video,caption", *lines]) + "\n", encoding="utf-8")
    world = out.parent / "world"
    vae = (world if world.exists() else make_world(world)) / "vae"
    engine = () if "--part" in given else PLAIN
    return CliRunner().invoke(app, ["--videos", str(path), "--vae", str(vae), "--out", str(out), *engine, *given])


def rejects(out: Path) -> dict[str, str]:
    """What was rejected, by the names of the files."""
    rows = pq.read_table(out / "rejects.parquet").to_pylist()
    return {f"{Path(row['path']).name} {row['shot']}": f"{row['stage']}: {row['reason']}" for row in rows}


def clips_in(out: Path, *sizes: tuple[int, int]) -> list[LatentClip]:
    return [clip for clip in clips_below(out) if (clip.height, clip.width) in sizes]


def test_the_files_of_the_cases_become_clips_of_the_right_shape(tmp_path: Path) -> None:
    """A picture bomb among them does not end the run, and a gap is counted."""
    target = io.BytesIO()
    Image.new("1", (20000, 20000)).save(target, "PNG")
    (tmp_path / "bomb.png").write_bytes(target.getvalue())
    names = ["gap.mp4", "rotated90.mp4", "sar.mp4", "exif6.jpg", "alpha.png", "grey16.png"]
    lines = [f"{CASES / name},{name}" for name in names] + ["bomb.png,a bomb"]
    result = prepared(lines, tmp_path / "clips", "--sizes", "64x64,128x64,64x128", "--units", "9")
    assert result.exit_code == 0, result.output
    assert "7 of 7 files: 6 clips kept, 1 rejected" in result.output
    assert "; 1 clip ended at a gap in time" in result.output
    assert rejects(tmp_path / "clips") == {
        "bomb.png -1": "probe: has more than 178,956,970 pixels: make the picture smaller"
    }
    clips = clips_in(tmp_path / "clips", (64, 64), (64, 128), (128, 64))
    assert {clip.caption: (clip.height, clip.width, clip.units, clip.kind) for clip in clips} == {
        "gap.mp4": (64, 64, 3, "video"),
        "rotated90.mp4": (128, 64, 3, "video"),
        "sar.mp4": (64, 128, 3, "video"),
        "exif6.jpg": (128, 64, 1, "image"),
        "alpha.png": (64, 64, 1, "image"),
        "grey16.png": (64, 64, 1, "image"),
    }


def test_when_nothing_can_be_read_the_job_fails_in_one_line(tmp_path: Path) -> None:
    result = prepared(["absent.mp4,a", "missing.mp4,b"], tmp_path / "clips", "--sizes", "64x64")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "not one clip of the 2 files in " in result.stderr
    assert "absent.mp4 cannot be read (No such file or directory)" in result.stderr
    assert "2 of 2 files: 0 clips kept, 2 rejected" in result.stdout
    assert rejects(tmp_path / "clips").keys() == {"absent.mp4 -1", "missing.mp4 -1"}
    grey_film(tmp_path / "absent.mp4", 9)  # what was not there is looked for again
    result = prepared(["absent.mp4,a", "missing.mp4,b"], tmp_path / "clips", "--sizes", "64x64")
    assert result.exit_code == 0, result.output
    assert "1 clip kept, 1 rejected" in result.stdout


def test_a_part_that_is_empty_is_refused(tmp_path: Path) -> None:
    result = prepared(["a.mp4,a", "b.mp4,b"], tmp_path / "clips", "--sizes", "64x64", "--part", "3/4")
    assert result.exit_code == 1
    assert "list.csv is empty: the list has fewer lines than parts" in result.stderr


def test_ten_more_videos_encode_ten(tmp_path: Path) -> None:
    """And a moved file, another caption, a file listed twice, and other options."""
    for number in range(7):
        grey_film(tmp_path / f"{number}.mp4", 9 + number)
    out, size = tmp_path / "clips", ("--sizes", "64x64")
    lines = [f"{number}.mp4,film {number}" for number in range(5)]
    assert "done before: 0 files; 5 clips encoded" in prepared(lines, out, *size).output
    assert "done before: 5 files; 0 clips encoded" in prepared(lines, out, *size).output
    lines += ["5.mp4,film 5", "6.mp4,film 6", "6.mp4,film 6", "6.mp4,the same film"]
    said = prepared(lines, out, *size).output
    assert "done before: 5 files; 3 clips encoded" in said
    assert "9 of 9 files: 8 clips kept, 1 rejected" in said
    assert "read: listed twice" in said
    assert len(clips_in(out, (64, 64))) == len({clip.id for clip in clips_in(out, (64, 64))}) == 8
    (tmp_path / "0.mp4").rename(tmp_path / "moved.mp4")
    lines[:2] = ["moved.mp4,film 0", "1.mp4,another caption"]
    said = prepared(lines, out, *size).output
    assert "done before: 8 files; 1 clip encoded" in said
    assert "the folder keeps 1 clip from earlier runs" in said
    result = prepared(lines, out, *size, "--units", "2")
    assert result.exit_code == 1
    assert "was prepared with other options (its units is 4 and here it is 2): give another --out" in result.stderr


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed after two, four and six clips; in the end every clip is there once, as in an undisturbed run."""
    for number in range(8):
        grey_film(tmp_path / f"{number}.mp4", 40, fps=8)
    vae = make_world(tmp_path / "world") / "vae"
    lines = [f"{number}.mp4,film {number}" for number in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["video,caption", *lines]) + "\n")
    given = ["--videos", str(tmp_path / "list.csv"), "--vae", str(vae), "--sizes", "64x64", "--units", "2", *PLAIN]
    given += ["--fps", "8", "--set", "stride=1.125"]  # four clips a film

    command = [sys.executable, "-m", "jobs.prepare", *given, "--out", str(tmp_path / "clips")]
    journal = tmp_path / "clips" / ".prepare" / "journal.jsonl"
    for killed_at in (2, 9, 17):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if journal.exists() and journal.read_text().count('"clip"') >= killed_at:
                    process.kill()
                    break
                time.sleep(0.02)
        assert process.returncode == -signal.SIGKILL
    done = journal.read_text().count('"clip"')
    ended = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "clips")]).output
    assert f"{32 - done} clips encoded" in ended
    assert "8 of 8 files: 32 clips kept, 0 rejected" in ended
    assert CliRunner().invoke(app, [*given, "--out", str(tmp_path / "whole")]).exit_code == 0
    torn, whole = ({clip.id: clip for clip in clips_in(tmp_path / out, (64, 64))} for out in ("clips", "whole"))
    assert len(clips_in(tmp_path / "clips", (64, 64))) == 32
    assert torn.keys() == whole.keys()
    assert all(np.array_equal(torn[number].latents, whole[number].latents) for number in whole)


def test_a_pipeline_of_every_stage(tmp_path: Path) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    for number in range(3):
        film = np.concatenate([panned(scenery(10 * number + shot), 24, 1) for shot in range(2)])
        (folder / f"{number}.mp4").write_bytes(encode_mp4(film, 12))
        (folder / f"{number}.txt").write_text(f"scene {number}")
    (folder / "copy.mp4").write_bytes(encode_mp4(panned(scenery(0), 24, 1) // 8 * 8, 12))
    (folder / "still.mp4").write_bytes(encode_mp4(panned(scenery(50), 24, 0), 12))
    (folder / "black.mp4").write_bytes(encode_mp4(panned(scenery(60), 24, 1) // 20, 12))
    (folder / "half.mp4").write_bytes((folder / "0.mp4").read_bytes()[:3000])
    write_png(scenery(70), folder / "picture.png")
    stages = {
        "sizes": [[64, 64], [64, 128]], "units": 3, "fps": 12, "shots": {}, "motion": {}, "picture": {},
        "duplicates": {}, "captions": {"required": False}, "heldout": 0.4, "text": {"model": "shipped"},
        "stages": ["tests.fakes:no_opening_of_the_second"],
    }  # fmt: skip
    (tmp_path / "curate.yaml").write_text(yaml.safe_dump(stages))
    vae = make_world(tmp_path / "world") / "vae"
    given = ["--videos", str(folder), "--vae", str(vae), "--config", str(tmp_path / "curate.yaml"), *PLAIN]
    result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "clips"), "--most-rejected", "0.2"])
    assert result.exit_code == 1
    assert "of the clips were rejected, and --most-rejected allows 20.0%" in result.stderr
    found = {name: reason.partition(" (")[0] for name, reason in rejects(tmp_path / "clips").items()}
    assert found == {
        "half.mp4 -1": "probe: cannot be read as a video",
        "still.mp4 0": "motion: too still",
        "black.mp4 0": "picture: black",
        "2.mp4 0": "opening: begins the second film",
        "copy.mp4 0": "duplicates: near-duplicate",
    }
    clips = clips_in(tmp_path / "clips", (64, 64), (64, 128))
    by_caption = Counter((clip.caption, clip.caption_source, clip.kind) for clip in clips)
    assert by_caption == {
        ("scene 0", "sidecar", "video"): 2,
        ("scene 1", "sidecar", "video"): 2,
        ("scene 2", "sidecar", "video"): 1,
        ("", "", "image"): 1,
    }
    splits = {source: {clip.split for clip in clips if clip.source == source} for source in {c.source for c in clips}}
    assert all(len(of_one) == 1 for of_one in splits.values())
    assert {clip.start for clip in clips if clip.kind == "video"} == {0.0, 2.0}
    told = embedder_of(pq.read_schema(tmp_path / "clips" / "clips-00000.parquet"))
    (nothing,) = load_pipeline().text.encode([""])
    assert told is not None
    np.testing.assert_array_equal(told.no_caption.tokens, nothing.tokens_LD.detach().half().numpy())
    (first,) = {clip.text.tokens.tobytes() for clip in clips if clip.caption == "scene 1" and clip.text is not None}
    (expected,) = load_pipeline().text.encode(["scene 1"])
    np.testing.assert_array_equal(np.frombuffer(first, "<f2"), expected.tokens_LD.detach().half().numpy().ravel())


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("curate_*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = load(CurateConfig, path)
    for height, width in config.sizes:
        assert latent_size(height, width, factor=8, stages=3, patch=2)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    grey_film(tmp_path / "a.mp4", 9)
    with collecting(tmp_path / "clips", {}, "v"):
        result = prepared(["a.mp4,a"], tmp_path / "clips", "--sizes", "64x64")
    assert "another process prepares clips in" in result.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    result = prepared(["a.mp4,a"], tmp_path / "other", "--sizes", "64x64")
    assert "already exists and was not made by this command" in result.stderr


def test_digits_become_clips(tmp_path: Path) -> None:
    vae = make_world(tmp_path / "world") / "vae"
    given = ["--clips", "5", "--units", "2", "--pairs", "0.4", "--vae", str(vae), "--out", str(tmp_path / "clips")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "5 clips in 1 shard:" in result.output
    again = CliRunner().invoke(app, given)
    assert "already exists: give another --out, or --overwrite to replace it" in again.stderr
    other = CliRunner().invoke(app, [*given, "--overwrite", "--seed", "1"])
    assert other.exit_code == 0, other.output
    clips = clips_below(tmp_path / "clips")
    assert [(clip.units, clip.fps, clip.kind) for clip in clips] == [(2, 8.0, "video")] * 5
    assert len({clip.id for clip in clips}) == 5
    assert sum(" and a " in clip.caption for clip in clips) == 2


def test_footage_is_never_overwritten(tmp_path: Path) -> None:
    result = prepared(["a.mp4,a"], tmp_path / "clips", "--overwrite")
    assert result.exit_code == 1
    assert "--overwrite is for digits" in result.stderr


def test_help_explains_units_and_sizes() -> None:
    said = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output.split())
    assert "4 units are 25 frames" in said.replace("\u2502 ", "")
    assert "write height first" in said.replace("\u2502 ", "")


def test_the_shipped_configuration_trains_on_what_prepare_makes(tmp_path: Path) -> None:
    public = write_public_folder(tmp_path / "public", "miniflux")
    grey_film(tmp_path / "long.mp4", 9, height=384, width=640)
    (tmp_path / "list.csv").write_text("video,caption\nlong.mp4,a grey sheet\n")
    given = ["--videos", str(tmp_path / "list.csv"), "--vae", str(public / "causal_video_vae"), "--sizes", "640x384"]
    given += PLAIN
    result = CliRunner().invoke(app, [*given, "--units", "16", "--part", "1/1", "--out", str(tmp_path / "clips" / "1")])
    assert result.exit_code == 0, result.output
    small = ["phases.0.units=2", "phases.0.steps=1", "phases.0.batch=2", "phases.0.warmup=0"]
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
        (["--set", "motion.least=3"], "motion.least must be below motion.most, 2"),
        (["--set", "stages=[nowhere:stage]"], "stages: the module nowhere cannot be imported"),
        (["--set", "captions.model=nowhere"], "no verifier at nowhere"),
        (["--set", "motion.fastest=3"], "unknown key 'motion.fastest'"),
        (["--set", "duplicates={}", "--part", "1/2"], "near-duplicates are looked for in the whole list"),
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--sizes", "64x64"], "--sizes is for footage: give --videos"),
        (["--most-rejected", "0.5"], "--most-rejected is for footage"),
        (["--videos", "films", "--clips", "9"], "--clips is for drawn digits"),
        (["--videos", "films", "--heldout", "0.1"], "for footage write --set heldout=0.02"),
    ],
)
def test_options_of_the_other_kind_are_refused(tmp_path: Path, given: list[str], said: str) -> None:
    result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "clips")])
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
