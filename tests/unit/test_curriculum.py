"""Phases, learning-rate scales and workers' shares; and what does not fit is refused before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from framegrove.config.base import ConfigError, load
from framegrove.config.flow import latent_size
from framegrove.config.train import TrainConfig
from framegrove.data.schema import LatentClip, to_table
from framegrove.errors import UserError
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.vae_files import Affine, LatentNorm
from framegrove.training.curriculum import Position, draw_samples
from framegrove.training.run import Setup
from tests.tiny_training import PHASE, make_config, make_world

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_steps_walk_through_the_phases(world: Path) -> None:
    config = make_config(world)
    walked = [(Position.of(config, step).phase.name, Position.of(config, step).step) for step in (0, 3, 4, 8, 13)]
    assert walked == [("image", 0), ("image", 3), ("low", 0), ("high", 0), ("high", 5)]
    assert config.steps == 14
    with pytest.raises(ValueError, match="a run of 14 steps has no step 14"):
        Position.of(config, 14)


def test_the_learning_rate_rises_holds_and_falls() -> None:
    phase = {"name": "a", "steps": 10, "warmup": 2, "decay": 0.4}
    (only,) = TrainConfig.model_validate({"data": "x", "phases": [PHASE | phase]}).phases
    assert [only.learning_rate_scale(step) for step in (0, 1, 2, 6, 7, 9)] == [0.5, 1, 1, 1, 0.75, 0.25]


def test_draws_depend_on_seed_step_and_rank_alone(world: Path) -> None:
    config = make_config(world)
    clips = [LatentClip(i, f"a {i}", 64, 64, 8.0, np.full((16, 3, 8, 8), i, np.float16)) for i in range(9)]
    schedule, plain = PyramidSchedule(), Affine((0.0,) * 16, 1.0)

    def draw(step: int = 9, rank: int = 0, workers: int = 1, seed: int = 0) -> list[torch.Tensor]:
        norm, position = LatentNorm(plain, plain), Position.of(config, step)
        return [sample.noisy for sample in draw_samples(clips, position, schedule, norm, seed, rank, workers)]

    def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
        return len(left) == len(right) and all(map(torch.equal, left, right))

    assert same(draw(), draw())
    for other in (draw(step=10), draw(seed=1), draw(rank=1)):
        assert not same(draw(), other)
    assert [len(draw(rank=rank, workers=4)) for rank in range(4)] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"sizes": [[64, 64], [72, 64]]}, "72x64 pixels do not fit.*multiples of 64"),
        ({"objective": {"stage_weights": [1, 1]}}, "2 stage_weights for a pyramid of 3"),
        ({"units": 9}, "trains 9 units, the longest clip .* has 3"),
        ({"sizes": [[128, 128]]}, "no clips of 128x128"),
    ],
)
def test_what_does_not_fit_is_refused(world: Path, phase: dict[str, Any], message: str) -> None:
    config = make_config(world, phases=[PHASE | {"name": "only", "steps": 2} | phase])
    with pytest.raises(UserError, match=message) as caught:
        Setup.of(config)
    assert "\n" not in str(caught.value)


def test_clips_of_another_vae_are_refused(world: Path, tmp_path: Path) -> None:
    clip = LatentClip(0, "a red 3 moves up and down", 64, 64, 8.0, np.zeros((16, 3, 8, 8), np.float16))
    pq.write_table(to_table([clip], "somebody else's"), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="encoded by another VAE"):
        Setup.of(make_config(world, data=str(tmp_path)))


def test_workers_that_would_have_nothing_to_do_are_refused(world: Path) -> None:
    setup = Setup.of(make_config(world))
    setup.check_workers(6)
    with pytest.raises(UserError, match="a batch of 6 samples and 24 clips cannot be shared by 7 workers"):
        setup.check_workers(7)


def test_muon_is_for_all_phases_or_none(world: Path) -> None:
    phases = [phase.model_dump(mode="json") for phase in make_config(world).phases]
    phases[0]["matrix_learning_rate"] = 0.02
    with pytest.raises(ValueError, match="every phase or to none"):
        make_config(world, phases=phases)


@pytest.mark.parametrize("path", [path for path in CONFIGS if "phases:" in path.read_text()], ids=lambda p: p.stem)
def test_shipped_training_configurations_load(path: Path) -> None:
    assert load(TrainConfig, path, ["data=somewhere"]).steps > 0


def test_the_published_curriculum_is_that_of_the_paper() -> None:
    """PFM appendix B, hyper-parameter table."""
    config = load(TrainConfig, next(path for path in CONFIGS if path.stem == "pyramid_flow_sd3"))
    table = [(p.steps, p.batch, p.learning_rate, p.betas[1], p.units) for p in config.phases]
    assert table == [
        (50_000, 1536, 1e-4, 0.999, 1),
        (80_000, 768, 1e-4, 0.95, 7),
        (120_000, 768, 1e-4, 0.95, 16),
        (50_000, 384, 5e-5, 0.95, 31),
    ]
    for phase in config.phases:
        assert (phase.betas[0], phase.eps, phase.warmup, phase.weight_decay, phase.clip) == (0.9, 1e-6, 1000, 1e-4, 1)
        assert phase.images == (1.0 if phase.units == 1 else 0.125)
        for height, width in phase.sizes:
            latent_size(height, width, stages=3, patch=2, factor=8)
    assert config.phases[1].sizes == config.phases[2].sizes == ((384, 640),)
    assert config.phases[3].sizes == ((768, 1280),)


def test_an_unknown_key_is_named() -> None:
    phase = "{name: a, sizes: [[64, 64]], steps: 1, batch: 1, warmup: 0, unit: 1}"
    with pytest.raises(ConfigError, match=r"unknown key 'phases\.0\.unit', did you mean 'units'"):
        load(TrainConfig, None, ["data=x", f"phases=[{phase}]"])
