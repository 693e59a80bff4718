"""The VAE trained on real videos: which clips it sees, all terms of its loss, resumption, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from framegrove.config.base import ConfigError, validated
from framegrove.config.vae import VaeTrainingConfig, VideoClipsConfig
from framegrove.errors import UserError
from framegrove.media.writing import encode_mp4
from framegrove.models.vae_files import Affine, LatentNorm, load_vae, save_vae
from framegrove.training.vae import VaeStep, train
from framegrove.training.vae_videos import VideoFrames
from jobs import train_vae
from tests.films import grey_film
from tests.tiny import tiny_vae
from tests.unit.test_vae import PATCHED


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos that pan over two photographs, one that is too short and one that is none."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(6):
        photo = load_sample_images().images[number % 2]
        top, left = 40 * number, 20 * number
        frames = [photo[top : top + 160, left + 4 * t : left + 4 * t + 240] for t in range(30)]
        (folder / f"{number}.mp4").write_bytes(encode_mp4(np.stack(frames), 24))
    grey_film(folder / "short.mp4", 3)
    (folder / "none.mp4").write_bytes(b"no video")
    return folder


def settings(films: Path, **changes: object) -> VaeTrainingConfig:
    given = {
        "model": PATCHED.model_dump(), "data": {"videos": str(films), "height": 32, "width": 48, "units": 2},
        "steps": 6, "batch": 2, "full_batch": 1, "crop": 16, "pool": 3, "warmup": 1, "log_every": 1,
        "evaluate_every": 3, "evaluate_clips": 1, "final_clips": 1, "norm_clips": 2, "strip_every": 2,
        "checkpoint_seconds": 1e-6, "foreground": 1.0, "adversarial": 0.1, "adversarial_from": 3,
        "discriminator_width": 4,
    }  # fmt: skip
    if "start" in changes:
        del given["model"]
    return VaeTrainingConfig.model_validate(given | changes)


def with_features(folder: Path) -> dict[str, object]:
    plain = Affine((0.0,), 1.0)
    save_vae(folder, tiny_vae(), LatentNorm(plain, plain))
    return {"perceptual": 0.5, "features": str(folder)}


def test_clips_are_pure_functions_of_their_index_and_held_out_videos_are_not_trained_on(films: Path) -> None:
    config = VideoClipsConfig(videos=str(films), height=32, width=48, units=2, heldout=0.3)
    one, other = (VideoFrames(config, PATCHED, seed=0) for _ in range(2))
    clips = [one.training(index) for index in range(12)]
    assert {clip.shape for clip in clips} == {(9, 32, 48, 3)}
    assert all(np.array_equal(clips[index], other.training(index)) for index in reversed(range(12)))
    assert len({clip.tobytes() for clip in clips}) > 6
    assert not np.array_equal(one.training(0), one.statistics("video", 0))
    assert len(one.held_out) == 2
    assert not set(one.held_out) & set(one.trained)
    assert not np.array_equal(VideoFrames(config, PATCHED, seed=1).training(0), clips[0])


def test_a_list_of_videos_will_do_and_useless_ones_are_named(films: Path, tmp_path: Path) -> None:
    names = ["0.mp4", "1.mp4", "2.mp4", "none.mp4"]
    (tmp_path / "clips.csv").write_text("\n".join(["video,caption", *(f"{films / name},a city" for name in names)]))
    config = VideoClipsConfig(videos=str(tmp_path / "clips.csv"), height=32, width=48, units=2)
    source = VideoFrames(config, PATCHED, seed=0)
    assert sorted(path.name for path in (*source.held_out, *source.trained)) == names
    assert source.training(0).shape == (9, 32, 48, 3)
    long = VideoFrames(config.model_copy(update={"units": 40}), PATCHED, seed=0)
    with pytest.raises(
        UserError,
        match=r"none of 50 drawn can be used \(the last: .*(it|mp4) (has 30 frames of 313|cannot be read).*\)",
    ):
        long.training(0)
    with pytest.raises(UserError, match="30x48 pixels do not fit this VAE: multiples of 8 do"):
        VideoFrames(config.model_copy(update={"height": 30}), PATCHED, seed=0)
    with pytest.raises(UserError, match="has 0 videos: two are needed, one of them to measure on"):
        VideoFrames(config.model_copy(update={"videos": str(tmp_path)}), PATCHED, seed=0)


class Stopped(Exception):
    pass


def test_all_terms_train_and_resume_to_the_bit(films: Path, tmp_path: Path) -> None:
    config = settings(films, **with_features(tmp_path / "vae"))
    assert config.data is not None
    source = VideoFrames(config.data, PATCHED, 0)
    whole: list[VaeStep] = []
    train(config, source, tmp_path / "a", whole.append)
    assert [set(step.terms) for step in whole[:3]] == [{"perceptual"}] * 3  # the discriminator comes in later
    assert [set(step.terms) for step in whole[3:]] == [{"perceptual", "adversarial", "balance", "discriminator"}] * 3
    step = whole[4]
    added = 0.5 * step.terms["perceptual"] + 0.1 * step.terms["balance"] * step.terms["adversarial"]
    assert step.loss == pytest.approx(step.reconstruction + config.kl * step.kl + added, rel=1e-4)

    def stop(done: VaeStep) -> None:
        if done.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, source, tmp_path / "b", stop)
    resumed: list[VaeStep] = []
    train(config, source, tmp_path / "b", resumed.append)
    assert [(s.step, s.loss, s.terms) for s in resumed] == [(s.step, s.loss, s.terms) for s in whole[4:]]
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert lines[5]["discriminator"] == pytest.approx(whole[5].terms["discriminator"], abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "a" / "strips").iterdir()) == [
        f"step-000000{step}.png" for step in (2, 4, 6)
    ]
    with Image.open(tmp_path / "a" / "strips" / "step-0000006.png") as strip:
        assert strip.size == (6 * (48 * 4 + 2) - 2, 4 * (32 * 4 + 2) - 2)  # two clips, each above its reconstruction
        top = np.asarray(strip)[: 32 * 4 : 4, : 48 * 4 : 4]
    assert np.array_equal(top, source.heldout("video", 0)[0])
    assert (tmp_path / "a" / "loss.png").stat().st_size > 5000


def test_a_vae_is_continued_by_the_command(films: Path, tmp_path: Path) -> None:
    with_features(tmp_path / "start")
    config = settings(
        films, start=str(tmp_path / "start"), adversarial=0.0, learning_rate=1e-4, matrix_learning_rate=1e-4
    )
    given = {key: value for key, value in config.model_dump(mode="json").items() if key != "model"}
    (tmp_path / "vae.yaml").write_text(json.dumps(given))
    out = tmp_path / "out"
    result = CliRunner().invoke(train_vae.app, ["--config", str(tmp_path / "vae.yaml"), "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    before, after = (load_vae(place)[0].state_dict() for place in (tmp_path / "start", out / "causal_video_vae"))
    assert before.keys() == after.keys()
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < moved < 0.05
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"perceptual": 0.5}, "perceptual and features belong together: give both or neither"),
        ({"start": "vae", "model": {}}, "give start or model, not both"),
        ({"data": {"height": 32}}, "the key data.videos is missing"),
    ],
)
def test_what_cannot_be_trained(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(VaeTrainingConfig, given, "vae.yaml")
