"""Where a run stands in its phases, and what a step of a phase is trained on: pure functions of (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.schema import LatentClip
from framegrove.errors import UserError
from framegrove.flow.noise import generator_for
from framegrove.flow.objective import Cell, training_batch
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.packed import TextEmbedding
from framegrove.models.vae_files import LatentNorm


@dataclass(frozen=True)
class Position:
    """A step of a run: which phase, and the how-manieth step of that phase, from 0."""

    phase_index: int
    phase: PhaseConfig
    step: int

    @classmethod
    def of(cls, config: TrainConfig, step: int) -> Position:
        """The position of step ``step`` of the whole run."""
        for index, phase in enumerate(config.phases):
            if step < phase.steps:
                return cls(index, phase, step)
            step -= phase.steps
        raise UserError(f"the run has {config.steps} steps, there is none beyond the last")


@dataclass(frozen=True, eq=False)
class StageSample:
    """One stage-sample: what the transformer sees (prompt, corrupted history, noisy unit) and should answer."""

    prompt: str
    history: tuple[Tensor, ...]
    noisy: Tensor
    timestep: float
    target: Tensor
    cell: Cell

    def visual_tokens(self, patch: int) -> int:
        """Tokens of history and current unit."""
        return sum(clip[0].numel() for clip in (*self.history, self.noisy)) // patch**2


def draw_samples(
    clips: Sequence[LatentClip],
    position: Position,
    schedule: PyramidSchedule,
    norm: LatentNorm,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> list[StageSample]:
    """Worker ``rank``'s share of a step's batch, from the clips at hand."""
    phase = position.phase
    generator = generator_for(seed, (position.phase_index, position.step, rank), "training")
    count = phase.batch * (rank + 1) // world - phase.batch * rank // world
    chosen = [clips[i] for i in torch.randint(len(clips), (count,), generator=generator).tolist()]
    # Prompts are encoded inside the trained module, where their gradient is; here each stands for its embedding.
    captions = [clip.caption for clip in chosen]
    prompts = {prompt: TextEmbedding(torch.empty(0, 0), torch.empty(0)) for prompt in ("", *captions)}
    prompt_of = {id(embedding): prompt for prompt, embedding in prompts.items()}
    batch = training_batch(
        [_units(clip, phase.units, norm) for clip in chosen],
        [prompts[caption] for caption in captions],
        prompts[""],
        schedule,
        phase.drawn(),
        generator,
    )
    return [
        StageSample(prompt_of[id(s.prefix.text)], s.prefix.history, s.current, s.timestep, target, cell)
        for s, target, cell in zip(batch.samples, batch.targets, batch.cells, strict=True)
    ]


def check_sizes(config: TrainConfig, vae_factor: int, patch: int, stages: int) -> None:
    """Raise UserError, in one line, where a phase's size or stage weights do not fit the model."""
    multiple = vae_factor * patch * 2 ** (stages - 1)
    for phase in config.phases:
        for height, width in phase.sizes:
            if height % multiple or width % multiple:
                raise UserError(
                    f"phase {phase.name}: {height}x{width} pixels do not fit, height and width must be multiples of "
                    f"{multiple} (VAE {vae_factor} x patch {patch} x {2 ** (stages - 1)} for {stages} pyramid stages)"
                )
        weights = phase.objective.stage_weights
        if weights is not None and len(weights) != stages:
            raise UserError(
                f"phase {phase.name}: {len(weights)} stage_weights for a pyramid of {stages} stages; give one per "
                "stage, coarsest first"
            )


def _units(clip: LatentClip, most: int, norm: LatentNorm) -> list[Tensor]:
    """A clip's first units, normalised, each (C, 1, h, w)."""
    latents = torch.from_numpy(clip.latents[:, :most].astype("float32"))
    return list(norm.normalise(latents).split(1, dim=1))
