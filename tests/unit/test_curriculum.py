"""Phases, learning-rate scales and the plans of steps; and what does not fit is refused before a run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framegrove.config.base import ConfigError, load
from framegrove.config.flow import latent_size
from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.ingest import Catalog, DataError, Shard
from framegrove.data.schema import LatentClip, to_table
from framegrove.errors import UserError
from framegrove.flow.schedule import PyramidSchedule
from framegrove.training.curriculum import PhaseClips, Position, StepPlan, plan_step
from framegrove.training.setup import Setup
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


def catalog_of(*data_sets: Sequence[int], size: tuple[int, int] = (64, 64)) -> Catalog:
    """A catalog of folders, each given by the units of its clips; a clip of one unit is a picture."""
    units = [unit for folder in data_sets for unit in folder]
    folders = [number for number, folder in enumerate(data_sets) for _ in folder]
    shard = Shard(Path("s.parquet"), (len(units),), "v")
    sides = (np.full(len(units), side, np.int32) for side in size)
    rows = np.arange(len(units), dtype=np.int32)
    numbers = np.array(folders, np.int32), np.array(units, np.int32)
    pairs = np.zeros(len(units), np.bool_)
    return Catalog((shard,), np.zeros_like(rows), rows, *numbers, *sides, np.array(units) == 1, pairs)


def planned(
    catalog: Catalog, step: int = 0, seed: int = 0, weights: Sequence[float | None] = (None,), **changes: Any
) -> StepPlan:
    given = {"name": "only", "steps": 1000, "units": 4, "batch": 40} | changes
    (phase,) = TrainConfig.model_validate({"data": "x", "phases": [PHASE | given]}).phases
    clips = PhaseClips.of(phase, catalog, weights, "the data")
    position = Position(0, phase, step)
    return plan_step(position, clips, catalog, PyramidSchedule(), seed, factor=8, patch=2, text_tokens=10)


def test_a_plan_depends_on_seed_and_step_alone() -> None:
    catalog = catalog_of([4] * 50)

    def of(step: int = 9, seed: int = 0) -> tuple[Any, ...]:
        plan = planned(catalog, step, seed)
        return plan.rows_N.tolist(), plan.choices.cells, plan.choices.steps_N.tolist(), plan.choices.dropped

    assert of() == of()
    for other in (of(step=10), of(seed=1)):
        assert all(one != another for one, another in zip(of(), other, strict=True))


@pytest.mark.parametrize("images", [0.0, 0.125, 0.5, 1.0])
@pytest.mark.parametrize("pictures", [0, 30, 300])
def test_the_share_of_first_units_holds_whatever_the_data_is_made_of(images: float, pictures: int) -> None:
    catalog = catalog_of([1] * pictures + [4] * 30)
    firsts = 0
    for step in range(25):
        plan = planned(catalog, step, images=images)
        first = np.array([cell.unit == 0 for cell in plan.choices.cells])
        firsts += int(first.sum())
        assert abs(first.mean() - images) <= 1 / 40
        assert not catalog.picture_N[plan.rows_N[~first]].any(), "a picture has no later unit"
    assert firsts == pytest.approx(images * 25 * 40, abs=12)


def test_a_video_that_is_too_short_is_not_a_picture() -> None:
    catalog = replace(catalog_of([1, 1, 4]), picture_N=np.array([True, False, False]))
    for step in range(10):
        plan = planned(catalog, step, images=0.5)
        later = [row for row, cell in zip(plan.rows_N, plan.choices.cells, strict=True) if cell.unit]
        assert set(later) == {2}
    with pytest.raises(DataError, match="trains later units in 50% of its samples, and no video in the data has one"):
        planned(catalog_of([1, 4]), images=0.5, objective={"unit_weights": [1, 0, 0, 0]})


def test_units_follow_their_weights_as_far_as_a_clip_reaches() -> None:
    objective = {"unit_weights": [7, 0, 1, 3]}
    catalog = catalog_of([2, 3, 4])
    found: dict[int, Counter[int]] = {row: Counter() for row in range(3)}
    for step in range(60):
        plan = planned(catalog, step, images=0.0, objective=objective)
        for row, cell in zip(plan.rows_N.tolist(), plan.choices.cells, strict=True):
            found[row][cell.unit] += 1
    assert not found[0], "its only later unit has no weight"
    assert set(found[1]) == {2}
    assert found[2][3] == pytest.approx(3 * found[2][2], rel=0.2)
    assert sum(found[1].values()) == pytest.approx(1200, abs=60)


def test_data_sets_are_drawn_from_by_weight_or_by_clip() -> None:
    catalog = catalog_of([4] * 90, [4] * 10, [1] * 50)
    counts = Counter[int]()
    for step in range(50):
        counts.update(catalog.folder_N[planned(catalog, step, images=0.0, weights=(1.0, 3.0, 9.0)).rows_N].tolist())
    assert counts == {0: 500, 1: 1500}, "pictures have no later units"
    counts.clear()
    for step in range(50):
        counts.update(catalog.folder_N[planned(catalog, step, images=0.0, weights=(None,) * 3).rows_N].tolist())
    assert counts == {0: 1800, 1: 200}


def test_every_clip_is_drawn_in_the_long_run() -> None:
    catalog = catalog_of([4] * 77)
    seen = {int(row) for step in range(60) for row in planned(catalog, step).rows_N}
    assert seen == set(range(77))


@settings(max_examples=30, deadline=None)
@given(workers=st.integers(1, 9), pack=st.sampled_from([None, 60, 120]), step=st.integers(0, 999))
def test_workers_share_one_plan(workers: int, pack: int | None, step: int) -> None:
    plan = planned(catalog_of([1, 2, 3, 4] * 10), step, pack_tokens=pack)
    shares = plan.share_out(workers)
    assert sorted(i for share in shares for members in share for i in members) == list(range(40))
    if pack:
        assert max(sum(plan.tokens[i] for i in members) for share in shares for members in share) <= pack


def test_a_batch_of_tokens_fills_its_passes_whoever_makes_them() -> None:
    catalog = catalog_of([1, 2, 3, 4] * 10, size=(128, 128))
    for step in range(20):
        plan = planned(catalog, step, batch=None, batch_tokens=4800, pack_tokens=600, sizes=None)
        assert 0.9 * 4800 < sum(plan.tokens) <= 4800
        for workers in (1, 2, 4, 8):
            shares = plan.share_out(workers)
            assert sum(map(len, shares)) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": None}, "give batch .* or batch_tokens, one of them"),
        ({"batch_tokens": 100}, "give batch .* or batch_tokens, one of them"),
        ({"batch": None, "batch_tokens": 100}, "batch_tokens 100 must be a multiple of pack_tokens, not None"),
        ({"batch": None, "batch_tokens": 100, "pack_tokens": 30}, "must be a multiple of pack_tokens, not 30"),
    ],
)
def test_a_batch_is_given_in_one_way(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(catalog_of([4]), **changes)


def test_data_sets_have_weights_or_none_has() -> None:
    phases = [PHASE | {"name": "only", "steps": 1}]
    with pytest.raises(ValueError, match="every data set a weight or none"):
        TrainConfig.model_validate({"data": [{"path": "a", "weight": 1}, {"path": "b"}], "phases": phases})


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
    with pytest.raises(UserError, match="a batch of 6 samples cannot be shared by 7 workers"):
        setup.check_workers(7)


def test_muon_is_for_all_phases_or_none(world: Path) -> None:
    phases = [phase.model_dump(mode="json") for phase in make_config(world).phases]
    phases[0]["matrix_learning_rate"] = 0.02
    with pytest.raises(ValueError, match="every phase or to none"):
        make_config(world, phases=phases)


@pytest.mark.parametrize("path", [path for path in CONFIGS if "\nphases:" in path.read_text()], ids=lambda p: p.stem)
def test_shipped_training_configurations_load(path: Path) -> None:
    assert load(TrainConfig, path, ["data=somewhere"]).steps > 0


def test_the_published_curriculum_is_that_of_the_paper() -> None:
    """PFM appendix B, hyper-parameter table."""
    config = load(TrainConfig, next(path for path in CONFIGS if path.stem == "pyramid_flow_sd3"))
    table = [(p.steps, _mean_batch(p), p.learning_rate, p.betas[1], p.units) for p in config.phases]
    assert table == [
        (50_000, pytest.approx(1536, rel=0.02), 1e-4, 0.999, 1),
        (80_000, pytest.approx(768, rel=0.02), 1e-4, 0.95, 7),
        (120_000, pytest.approx(768, rel=0.02), 1e-4, 0.95, 16),
        (50_000, pytest.approx(384, rel=0.02), 5e-5, 0.95, 31),
    ]
    for phase in config.phases:
        assert (phase.betas[0], phase.eps, phase.warmup, phase.weight_decay, phase.clip) == (0.9, 1e-6, 1000, 1e-4, 1)
        assert phase.images == (1.0 if phase.units == 1 else 0.125)
        for height, width in phase.sizes:
            latent_size(height, width, stages=3, patch=2, factor=8)
    assert config.phases[1].sizes == config.phases[2].sizes == ((384, 640),)
    assert config.phases[3].sizes == ((768, 1280),)


def _mean_batch(phase: PhaseConfig) -> float:
    """Stage-samples in a step where all videos are as long as the phase's clips, or longer."""
    assert phase.sizes is not None
    parts = [catalog_of([1] * 100, [phase.units] * 100, size=size) for size in phase.sizes]
    columns = [f"{name}_N" for name in ("shard", "row", "folder", "units", "height", "width", "picture", "pair")]
    catalog = Catalog(parts[0].shards, **{c: np.concatenate([getattr(part, c) for part in parts]) for c in columns})
    clips = PhaseClips.of(phase, catalog, (None, None), "the data")
    plans = [
        plan_step(Position(0, phase, step), clips, catalog, PyramidSchedule(), 0, factor=8, patch=2, text_tokens=128)
        for step in range(4)
    ]
    return float(np.mean([len(plan.tokens) for plan in plans]))


def test_an_unknown_key_is_named() -> None:
    phase = "{name: a, sizes: [[64, 64]], steps: 1, batch: 1, warmup: 0, unit: 1}"
    with pytest.raises(ConfigError, match=r"unknown key 'phases\.0\.unit', did you mean 'units'"):
        load(TrainConfig, None, ["data=x", f"phases=[{phase}]"])
