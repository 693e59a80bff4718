"""Training samples: the flow's end points, what is drawn how often, and the loss."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from framegrove.config.flow import ObjectiveConfig
from framegrove.flow.history import history_clips
from framegrove.flow.noise import double, noise_pyramid, pyramid
from framegrove.flow.objective import Draws, StageSample, build, choose, sample_losses, stage_batch
from framegrove.flow.schedule import PyramidSchedule

SCHEDULE = PyramidSchedule()


def clips_of(count: int, units: int, channels: int = 2) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(channels, 1, 8, 8, generator=generator) for _ in range(units)] for _ in range(count)]


def batch_of(
    clips: list[list[torch.Tensor]],
    config: ObjectiveConfig,
    seed: int = 0,
    members: list[int] | None = None,
) -> list[StageSample]:
    """A sample of each clip; of some ``members`` of the batch alone, if given."""
    weights = [(config.unit_weights or (1.0,) * len(clip))[: len(clip)] for clip in clips]
    choices = choose(weights, SCHEDULE, config, torch.Generator().manual_seed(seed))
    chosen = list(range(len(clips))) if members is None else members
    return build(
        [clips[index] for index in chosen],
        [f"prompt {index}" for index in chosen],
        choices.of(chosen),
        SCHEDULE,
        [torch.Generator().manual_seed(100 * seed + index) for index in chosen],
    )


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_step_along_the_velocity_reaches_the_clean_end(stages: int) -> None:
    """noisy - ratio * velocity is the stage's end: with no noise left at the last stage, the clean unit itself."""
    schedule = PyramidSchedule(stages=stages)
    units = [torch.randn(4, 2, 1, 8, 8) for _ in range(3)]
    noise = torch.randn(4, 2, 1, 8, 8)
    for stage in range(stages):
        history_noises = _history_noises(units[:-1], stage, stages)
        draws = Draws(noise, torch.tensor([0, 10, 500, 999]), torch.rand(4) / 3, history_noises)
        batch = stage_batch(units, stage, schedule, draws)
        ratio = batch.ratios_B.view(-1, 1, 1, 1, 1).float()
        level, white = pyramid(units[-1], stages), noise_pyramid(noise, stages)[stage]
        end = schedule.end_sigma(stage) * white + (1 - schedule.end_sigma(stage)) * level[stage]
        torch.testing.assert_close(batch.noisy - ratio * batch.velocity, end, atol=1e-5, rtol=1e-5)
        start = white if stage == 0 else _mixed(white, double(level[stage - 1]), schedule.start_sigma(stage))
        torch.testing.assert_close(batch.noisy[0], start[0])
        assert batch.timesteps_B[0].item() == pytest.approx(schedule.training_timesteps(stage)[0])


def _mixed(noise: torch.Tensor, clean: torch.Tensor, sigma: float) -> torch.Tensor:
    return sigma * noise + (1 - sigma) * clean


def _history_noises(units: list[torch.Tensor], stage: int, stages: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn_like(clip) for clip in reversed(history_clips(units, stage, stages)))


def test_corruption_is_shared_by_a_samples_history_and_spares_the_current_unit() -> None:
    units = [torch.ones(2, 1, 1, 8, 8) for _ in range(3)]
    noises = tuple(torch.zeros_like(noise) for noise in _history_noises(units[:-1], 2, 3))
    draws = Draws(torch.zeros(2, 1, 1, 8, 8), torch.tensor([999, 999]), torch.tensor([0.0, 0.25]), noises)
    batch = stage_batch(units, 2, SCHEDULE, draws)
    for clip in batch.history:
        torch.testing.assert_close(clip[0], torch.ones_like(clip[0]))
        torch.testing.assert_close(clip[1], torch.full_like(clip[1], 0.75))
    assert torch.equal(batch.noisy[0], batch.noisy[1])


def test_image_phase_trains_the_first_unit_only() -> None:
    batch = batch_of(clips_of(12, 4), ObjectiveConfig(unit_weights=(1,)))
    assert {sample.cell.unit for sample in batch} == {0}
    assert all(sample.history == () for sample in batch)


def test_ratios_are_met_in_every_batch() -> None:
    batch = batch_of(clips_of(80, 4), ObjectiveConfig(stage_weights=(1, 2, 1), unit_weights=(1, 1, 1, 5)))
    assert Counter(sample.cell.stage for sample in batch) == {0: 20, 1: 40, 2: 20}
    assert Counter(sample.cell.unit for sample in batch) == {0: 10, 1: 10, 2: 10, 3: 50}
    assert sum(sample.prompt == "" for sample in batch) == 8
    for index, sample in enumerate(batch):
        assert sample.prompt in ("", f"prompt {index}")
        assert sum(clip.shape[1] for clip in sample.history) == sample.cell.unit
        side = 2 * 2**sample.cell.stage
        assert sample.noisy.shape == sample.target.shape == (2, 1, side, side)


def test_images_and_videos_mix() -> None:
    clips = [*clips_of(4, 1), *clips_of(8, 3)]
    batch = batch_of(clips, ObjectiveConfig(unit_weights=(1, 1, 1, 1)))
    assert {sample.cell.unit for sample in batch[:4]} == {0}
    assert {sample.cell.unit for sample in batch[4:]} == {0, 1, 2}


def test_same_generator_same_batch() -> None:
    first, again = (batch_of(clips_of(10, 3), ObjectiveConfig(), seed=5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.noisy, other.noisy)
        assert (one.timestep, one.prompt, one.cell) == (other.timestep, other.prompt, other.cell)
        assert all(map(torch.equal, one.history, other.history))


def test_a_sample_is_the_same_in_whatever_company_it_is_built() -> None:
    clips = [*clips_of(6, 1), *clips_of(6, 3)]
    whole = batch_of(clips, ObjectiveConfig(), seed=3)
    for members in ([7], [11, 2, 5], [0, 1, 2, 6, 8]):
        for index, alone in zip(members, batch_of(clips, ObjectiveConfig(), 3, members), strict=True):
            assert torch.equal(alone.noisy, whole[index].noisy)
            assert torch.equal(alone.target, whole[index].target)
            assert all(map(torch.equal, alone.history, whole[index].history))
            assert (alone.timestep, alone.prompt) == (whole[index].timestep, whole[index].prompt)


def test_each_sample_belongs_to_its_own_clip() -> None:
    """A sample stepped to the end of its stage shows its clip: grouping by shape must not mix clips up."""
    clips = [[torch.full((1, 1, 8, 8), float(index * 10 + unit)) for unit in range(3)] for index in range(9)]
    batch = batch_of(clips, ObjectiveConfig(stage_weights=(0, 0, 1), corruption=0))
    for index, sample in enumerate(batch):
        end = sample.noisy - _ratio(sample.timestep) * sample.target
        torch.testing.assert_close(end, clips[index][sample.cell.unit], atol=1e-3, rtol=1e-4)
        for place, clip in enumerate(sample.history):
            assert torch.all(clip == index * 10 + place)


def _ratio(timestep: float) -> float:
    grid = torch.from_numpy(SCHEDULE.training_timesteps(2))
    return float(SCHEDULE.training_ratios()[int((grid - timestep).abs().argmin())])


def test_loss_is_a_mean_per_sample_then_over_samples() -> None:
    predictions = [torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 8, 8)]
    targets = [torch.ones(2, 1, 2, 2), torch.full((2, 1, 8, 8), 2.0)]
    losses = sample_losses(predictions, targets)
    assert losses.tolist() == [1, 4]


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one weight per stage, 3"):
        batch_of(clips_of(2, 2), ObjectiveConfig(stage_weights=(1, 1)))
