"""Where a run is in its phases, and the samples that a step is trained on: pure functions of (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from framegrove.config.train import PhaseConfig, TrainConfig
from framegrove.data.schema import LatentClip
from framegrove.errors import UserError
from framegrove.flow.noise import generator_for
from framegrove.flow.objective import StageSample, training_batch
from framegrove.flow.schedule import PyramidSchedule
from framegrove.models.vae_files import LatentNorm


@dataclass(frozen=True)
class Position:
    """A step of a run: its phase, and the zero-based step within the phase."""

    phase_index: int
    phase: PhaseConfig
    step: int

    @classmethod
    def of(cls, config: TrainConfig, step: int) -> Position:
        """The position of the zero-based ``step`` of the whole run. Raises ValueError beyond the last one."""
        within = step
        for index, phase in enumerate(config.phases):
            if within < phase.steps:
                return cls(index, phase, within)
            within -= phase.steps
        raise ValueError(f"a run of {config.steps} steps has no step {step}")


def draw_samples(
    clips: Sequence[LatentClip],
    position: Position,
    schedule: PyramidSchedule,
    norm: LatentNorm,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> list[StageSample]:
    """Worker ``rank``'s share of a step's batch, drawn with replacement from the clips in its pool.

    Where ``world`` does not divide the batch, shares differ by one sample.
    """
    phase = position.phase
    generator = generator_for(seed, (position.phase_index, position.step, rank), "training")
    count = phase.batch * (rank + 1) // world - phase.batch * rank // world
    chosen = [clips[i] for i in torch.randint(len(clips), (count,), generator=generator).tolist()]
    return training_batch(
        [_units(clip, phase.units, norm) for clip in chosen],
        [clip.caption for clip in chosen],
        schedule,
        phase.drawn(),
        generator,
    )


def check_sizes(config: TrainConfig, vae_factor: int, patch: int, stages: int) -> None:
    """Raise UserError where a phase's size or stage weights do not fit the model.

    ``vae_factor`` is how many pixels one latent pixel stands for on each side, ``patch`` the side of a token in latent
    pixels; the coarsest of the ``stages`` must still consist of whole patches.
    """
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
