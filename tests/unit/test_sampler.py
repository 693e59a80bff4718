"""Sampling with a small real transformer: a unit is a function of its task, however it is packed, split or repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from framegrove.config.flow import GuidanceConfig, StepsConfig
from framegrove.config.model import TransformerConfig
from framegrove.flow.noise import double, noise_pyramid, pyramid
from framegrove.flow.sampler import CancelledSampling, Sampler, StageLatent, UnitTask
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.mmdit import MMDiT
from framegrove.models.packed import Packed, Sample, TextEmbedding

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def transformer() -> MMDiT:
    torch.manual_seed(0)
    config = TransformerConfig(
        in_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=6,
        joint_attention_dim=12,
        sample_size=16,
        pos_embed_max_size=16,
    )
    return MMDiT(config).eval()


def sampler_of(transformer: MMDiT, **changes: object) -> Sampler:
    settings = {
        "schedule": PyramidSchedule(),
        "guidance": GuidanceConfig(first=3, others=2),
        "steps": StepsConfig(first=(3, 2, 2), others=(2, 2, 1)),
        **changes,
    }
    return Sampler(transformer, **settings)


def a_text(tokens: int) -> TextEmbedding:
    return TextEmbedding(torch.randn(tokens, 12), torch.randn(6))


TEXT, NEGATIVE = a_text(5), a_text(2)


def task_of(path: tuple[int, ...], history: tuple[torch.Tensor, ...] | None = None, seed: int = 3) -> UnitTask:
    if history is None:
        generator = torch.Generator().manual_seed(len(path))
        history = tuple(torch.randn(4, *SHAPE, generator=generator) for _ in path[1:])
    return UnitTask(TEXT, NEGATIVE, history, SHAPE, seed, path)


def siblings_and_strangers() -> list[UnitTask]:
    """Three siblings sharing a history, another branch with its own, and two first units."""
    shared = tuple(torch.randn(4, *SHAPE) for _ in range(3))
    siblings = [task_of((0, 1, 0, child), shared) for child in range(3)]
    return [*siblings, task_of((1, 0)), task_of((0,)), replace(task_of((1,)), text=a_text(7))]


def test_packed_together_or_apart_gives_the_same(transformer: MMDiT) -> None:
    sampler, tasks = sampler_of(transformer), siblings_and_strangers()
    together = sampler.sample(tasks)
    for task, latent in zip(tasks, together, strict=True):
        torch.testing.assert_close(latent.x, sampler.sample([task])[0].x, atol=1e-5, rtol=1e-5)


def test_the_same_work_twice_is_bit_identical(transformer: MMDiT) -> None:
    tasks = siblings_and_strangers()
    first, again = sampler_of(transformer).sample(tasks), sampler_of(transformer).sample(tasks)
    assert all(torch.equal(one.x, other.x) for one, other in zip(first, again, strict=True))


def test_siblings_and_seeds_differ(transformer: MMDiT) -> None:
    shared = (torch.randn(4, *SHAPE),)
    latents = sampler_of(transformer).sample(
        [task_of((0, 0), shared), task_of((0, 1), shared), task_of((0, 0), shared, seed=4)]
    )
    assert (latents[0].x - latents[1].x).abs().max() > 0.1
    assert (latents[0].x - latents[2].x).abs().max() > 0.1


def test_the_seed_and_the_path_are_in_the_noise_that_a_unit_starts_from(transformer: MMDiT) -> None:
    """With one stage nothing else is random: later stages' jumps, which draw noise of their own, cannot hide it."""
    schedule, steps = PyramidSchedule(stages=1), StepsConfig(first=(2,), others=(2,))
    sampler = sampler_of(transformer, schedule=schedule, steps=steps)
    tasks = [task_of((0,)), task_of((0,), seed=4), task_of((1,)), task_of((0,))]
    one, seed, path, again = (latent.x for latent in sampler.sample(tasks))
    assert (one - seed).abs().max() > 0.1
    assert (one - path).abs().max() > 0.1
    torch.testing.assert_close(again, one, atol=1e-5, rtol=1e-5)


def test_the_seed_and_the_path_are_in_the_noise_of_a_jump(transformer: MMDiT) -> None:
    """From one and the same draft nothing else is random."""
    sampler = sampler_of(transformer)
    (draft,) = sampler.sample([task_of((0,))], range(1))
    tasks = [task_of((0,)), task_of((0,), seed=4), task_of((1,)), task_of((0,))]
    one, seed, path, again = (
        latent.x for latent in sampler.sample([replace(task, start=draft) for task in tasks], range(1, 2))
    )
    assert (one - seed).abs().max() > 0.1
    assert (one - path).abs().max() > 0.1
    torch.testing.assert_close(again, one, atol=1e-5, rtol=1e-5)


def test_stopping_at_a_stage_and_going_on_changes_nothing(transformer: MMDiT) -> None:
    sampler, tasks = sampler_of(transformer), [task_of((0, 0)), task_of((0, 1))]
    drafts = sampler.sample(tasks, range(1))
    assert [tuple(draft.x.shape) for draft in drafts] == [(4, 1, 2, 2)] * 2
    rest = sampler.sample([replace(task, start=draft) for task, draft in zip(tasks, drafts, strict=True)], range(1, 3))
    for latent, whole in zip(rest, sampler.sample(tasks), strict=True):
        assert torch.equal(latent.x, whole.x)
        assert latent.stage == 2


def test_siblings_carry_their_past_once(transformer: MMDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    pack = transformer.pack

    def counting(samples: list[Sample]) -> Packed:
        packed = pack(samples)
        tokens.append(packed.patches_LP.shape[0])
        return packed

    monkeypatch.setattr(transformer, "pack", counting)
    shared = tuple(torch.randn(4, *SHAPE) for _ in range(2))
    sampler_of(transformer).sample([task_of((0, 0, child), shared) for child in range(5)], range(1))
    assert tokens == [2 * (2 + 5)] * 2  # guidance x (two history tokens + five siblings), two steps


def test_guidance_is_off_at_zero(transformer: MMDiT) -> None:
    off = sampler_of(transformer, guidance=GuidanceConfig(first=0, others=0))
    one = sampler_of(transformer, guidance=GuidanceConfig(first=1, others=1))
    task = task_of((0, 0))
    assert torch.equal(off.sample([task])[0].x, off.sample([replace(task, negative=a_text(4))])[0].x)
    torch.testing.assert_close(off.sample([task])[0].x, one.sample([task])[0].x, atol=1e-5, rtol=1e-5)


def test_a_scale_of_0_is_the_negative_prompt_alone(transformer: MMDiT) -> None:
    task = task_of((0, 0), (torch.randn(4, *SHAPE),))
    against = sampler_of(transformer, guidance=GuidanceConfig(first=3, others=0)).sample([task])[0].x
    alone = sampler_of(transformer, guidance=GuidanceConfig(first=0)).sample([replace(task, text=task.negative)])[0].x
    torch.testing.assert_close(against, alone, atol=1e-5, rtol=1e-5)


def test_cancelled_between_steps(transformer: MMDiT) -> None:
    seen: list[tuple[int, int]] = []
    with pytest.raises(CancelledSampling) as cancelled:
        sampler_of(transformer).sample(
            [task_of((0,))], should_stop=lambda: len(seen) >= 4, on_step=lambda done, total: seen.append((done, total))
        )
    assert cancelled.value.steps == 4
    assert seen == [(1, 7), (2, 7), (3, 7), (4, 7)]


class Ideal(torch.nn.Module):
    """A world in which everything is known: the clean unit, its noise, therefore each stage's start, end and velocity.

    It is the perfect model of that unit, and also the noise source that makes every jump land on the next true start.
    """

    def __init__(self, unit: torch.Tensor, noise: torch.Tensor, schedule: PyramidSchedule) -> None:
        super().__init__()
        self.config = TransformerConfig(in_channels=unit.shape[0])
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.noise, self.schedule = noise, schedule
        self.clean, noises = pyramid(unit, schedule.stages), noise_pyramid(noise, schedule.stages)
        self.starts, self.ends = [], []
        for stage, level in enumerate(self.clean):
            start, end = schedule.start_sigma(stage), schedule.end_sigma(stage)
            before = double(self.clean[stage - 1]) if stage else torch.zeros_like(level)
            self.starts.append(start * noises[stage] + (1 - start) * before)
            self.ends.append(end * noises[stage] + (1 - end) * level)

    def pack(self, samples: list[Sample]) -> list[Sample]:
        return samples

    def forward(self, samples: list[Sample]) -> list[torch.Tensor]:
        velocities = {end.shape: start - end for start, end in zip(self.starts, self.ends, strict=True)}
        return [velocities[sample.current.shape] for sample in samples]

    def initial(self, seed: int, path: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        return self.noise

    def jump(self, seed: int, path: tuple[int, ...], stage: int, shape: tuple[int, ...]) -> torch.Tensor:
        alpha, beta = self.schedule.jump(stage)
        return (self.starts[stage] - alpha * double(self.ends[stage - 1])) / beta


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_perfect_model_reaches_its_unit_and_previews_it_after_every_stage(stages: int) -> None:
    schedule = PyramidSchedule(stages=stages)
    ideal = Ideal(torch.randn(4, *SHAPE), torch.randn(4, *SHAPE), schedule)
    settings = {
        "guidance": GuidanceConfig(first=0, others=0),
        "steps": StepsConfig(first=(4,) * stages, others=(1,) * stages),
    }
    sampler = sampler_of(ideal, schedule=schedule, noise=ideal, **settings)
    latent: StageLatent | None = None
    for stage in range(stages):
        (latent,) = sampler.sample([replace(task_of((0,)), start=latent)], range(stage, stage + 1))
        torch.testing.assert_close(latent.x, ideal.ends[stage], atol=1e-5, rtol=1e-5)
        if stage + 1 < stages:
            (preview,) = sampler.preview([replace(task_of((0,)), start=latent)])
            torch.testing.assert_close(preview.x, ideal.clean[-1], atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(transformer: MMDiT) -> None:
    sampler = sampler_of(transformer)
    with pytest.raises(ValueError, match="multiples of 4"):
        sampler.sample([replace(task_of((0,)), shape=(1, 8, 10))])
    with pytest.raises(ValueError, match="has not been started, so it cannot continue at stage 1"):
        sampler.sample([task_of((0,))], range(1, 3))
    with pytest.raises(ValueError, match="rising range inside 0 to 2"):
        sampler.sample([task_of((0,))], range(4))
    with pytest.raises(ValueError, match="steps name 1 stages, the pyramid has 3"):
        sampler_of(transformer, steps=StepsConfig(first=(3,), others=(3,)))
