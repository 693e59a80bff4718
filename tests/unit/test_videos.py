"""A lab's own videos as training clips: lists, frames at a rate and a size, and what jobs.prepare makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from framegrove.data.ingest import DataError, open_shards, read_shard
from framegrove.media.video_reading import nearest_size, read_frames, read_list
from framegrove.media.writing import encode_mp4, write_png
from framegrove.models.pretrained import load_pipeline
from framegrove.models.vae_files import load_vae
from framegrove.training.encode import vae_digest
from jobs.prepare import app
from jobs.train import app as train
from tests.public_folder import write_public_folder
from tests.tiny_training import make_world

ROOT = Path(__file__).parents[2]
SIZES = ((64, 64), (32, 96))


def film(path: Path, frames: int, height: int = 64, width: int = 64, fps: float = 24) -> Path:
    """A video whose frames are grey, each 8 levels lighter than the one before."""
    greys = 16 + 8 * np.arange(frames, dtype=np.uint8)
    path.write_bytes(encode_mp4(np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy(), fps))
    return path


def seen(path: Path, fps: float, most: int = 99) -> list[int]:
    """Numbers of the frames of such a film that are read."""
    return [round((float(frame.mean()) - 16) / 8) for frame in read_frames(path, fps, most, SIZES)]


def test_frames_are_those_nearest_in_time(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 24)
    assert seen(path, 24) == list(range(24))
    assert seen(path, 8) == list(range(0, 24, 3))
    assert seen(path, 12, most=5) == [0, 2, 4, 6, 8]
    assert seen(film(tmp_path / "b.mp4", 3, fps=8), 16) in ([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2])


def test_pictures_cover_the_size_that_suits_them(tmp_path: Path) -> None:
    assert nearest_size(480, 640, SIZES) == (64, 64)
    assert nearest_size(720, 1280, SIZES) == (32, 96)
    picture = np.zeros((80, 240, 3), np.uint8)
    picture[:, 60:180] = 255  # the middle half
    write_png(picture, tmp_path / "wide.png")
    (frame,) = read_frames(tmp_path / "wide.png", 24, 9, SIZES)
    assert frame.shape == (32, 96, 3)
    assert frame[:, 30:66].min() > 250
    assert frame[:, :18].max() < 5
    (frame,) = read_frames(tmp_path / "wide.png", 24, 9, SIZES[:1])
    assert frame.shape == (64, 64, 3)
    assert frame.min() > 250  # its sides were cut off


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists(suffix: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    lines = [{"video": "a.mp4", "caption": "a, b"}, {"video": "/far/b.mp4", "caption": "c"}]
    path = tmp_path / f"list{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    else:
        {".csv": pyarrow.csv.write_csv, ".parquet": pq.write_table}[suffix](pa.Table.from_pylist(lines), path)
    first, second = read_list(path)
    assert (first.id, first.path, first.caption) == (0, tmp_path / "a.mp4", "a, b")
    assert (second.id, second.path) == (1, Path("/far/b.mp4"))


def test_a_list_or_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,caption\na.mp4,b\n")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"give a \.parquet, \.csv"):
        read_list(tmp_path / "list.txt")
    with pytest.raises(DataError, match="columns video and caption"):
        read_list(tmp_path / "list.csv")
    with pytest.raises(DataError, match="cannot be read as a list"):
        read_list(tmp_path / "absent.csv")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a video"):
            read_frames(tmp_path / name, 24, 9, SIZES)


def test_prepare_makes_clips_of_videos(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    film(tmp_path / "long.mp4", 24)
    film(tmp_path / "wide.mp4", 8, height=64, width=192)
    film(tmp_path / "short.mp4", 12)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "long.mp4").read_bytes()[:500])
    lines = [f"{name}.mp4,this is {name}" for name in ("long", "wide", "torn", "short")]
    (tmp_path / "list.csv").write_text("\n".join(["video,caption", *lines]) + "\n")

    def prepare(part: str, out: Path) -> str:
        given = ["--videos", str(tmp_path / "list.csv"), "--vae", str(world / "vae"), "--part", part, "--out", str(out)]
        result = CliRunner().invoke(app, [*given, "--sizes", "64x64,192x64", "--units", "3"])
        assert result.exit_code == 0, result.output
        return result.output

    assert "1 of 2 videos were passed over, the first: " in prepare("1/2", tmp_path / "clips" / "1")
    assert "2 clips in 1 shards" in prepare("2/2", tmp_path / "clips" / "2")
    vae, _ = load_vae(world / "vae")
    sizes = ((64, 64), (64, 192))
    shards = open_shards(tmp_path / "clips", sizes)
    assert {shard.vae for shard in shards} == {vae_digest(vae)}
    clips = {clip.caption: clip for shard in shards for clip in read_shard(shard.path, sizes)}
    units = {caption.split()[-1]: (clip.id, clip.units, clip.height, clip.width) for caption, clip in clips.items()}
    assert units == {"long": (0, 3, 64, 64), "wide": (1, 1, 64, 192), "short": (3, 2, 64, 64)}
    frames = torch.from_numpy(read_frames(tmp_path / "long.mp4", 24, 17, SIZES)).movedim(-1, 0)[None]
    expected = vae.encode(frames.float() / 127.5 - 1).mean[0]
    torch.testing.assert_close(
        torch.from_numpy(clips["this is long"].latents.copy()).float(), expected, atol=2e-3, rtol=2e-3
    )


def test_the_shipped_configuration_trains_on_what_prepare_makes(tmp_path: Path) -> None:
    public = write_public_folder(tmp_path / "public", "miniflux")
    film(tmp_path / "long.mp4", 9, height=384, width=640)
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
