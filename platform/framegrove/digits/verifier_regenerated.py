"""Regenerated scenes: painted with known faults, then passed through the shipped generator.

The generator's strokes are softer and shakier than painted ones, and a verifier that has never seen such strokes takes
many sound digits for malformed ones. A part of the clips in its last training phase therefore has been encoded and
decoded by the generator's VAE. Half of these have also been through the end of its last pyramid stage: noise too weak
to change what the digits are is added and removed again, without a caption, unit after unit. The oracle has no part in
this.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from framegrove.digits.verifier_scenes import Fault, Quality, Scene, draw_scene
from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.flow.generation import to_pixels
from framegrove.flow.history import history_clips
from framegrove.flow.noise import double, halve
from framegrove.flow.schedule import GRID, PyramidSchedule
from framegrove.models.packed import Prefix, Sample, TextEmbedding
from framegrove.models.pretrained import Pipeline, load_pipeline
from framegrove.verification.views import shown_frames

UNITS = 4
_BATCH = 32
_STEPS = 3
# How far back into the last pyramid stage a clip is taken, as a share of that stage; 0 is the VAE alone. At 0.5 digits
# still are what they were: of 32 flawless clips the oracle read 28 correctly, and 30 after the VAE alone.
_STRENGTHS = (0.2, 0.5)
_LATER_FAULTS = {Fault.RESTYLE, Fault.MORPH, Fault.MELT, Fault.RECOLOUR, Fault.VANISH, Fault.SWERVE, Fault.STILL}


def regenerated_scenes(
    count: int, seed: int, kept_in: Path, on_scenes: Callable[[int], None] = lambda _: None
) -> tuple[Scene, ...]:
    """``count`` scenes of four shown frames, a pure function of ``count`` and ``seed``.

    Their pixels are kept in the file ``kept_in``, which a resumed run reads. ``on_scenes`` is told how many are done.
    Raises UserError where the file holds other scenes or is damaged.
    """
    if not kept_in.exists():
        pixels = _regenerated(count, seed, on_scenes)
        with replacing(kept_in) as partial, partial.open("wb") as file:
            np.savez(file, pixels=pixels, seed=seed)
    try:
        with np.load(kept_in) as kept:
            pixels, kept_seed = kept["pixels"], int(kept["seed"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{kept_in} is not readable ({error}): remove it to make its clips anew") from error
    if len(pixels) != count or kept_seed != seed:
        raise UserError(
            f"{kept_in} holds {len(pixels)} clips of seed {kept_seed}, not {count} of seed {seed}: remove it"
        )
    frames = torch.from_numpy(pixels).movedim(-1, 2) / 255.0
    return tuple(replace(_scene(seed, index, painted=False), frames=frames[index]) for index in range(count))


def first_frame(scene: Scene) -> Scene:
    """The first frame alone, without the faults that begin after it."""
    drawn = tuple(
        replace(
            one,
            fault=Fault.NONE if one.fault in _LATER_FAULTS else one.fault,
            start=0,
            digits=one.digits[:1],
            colours=one.colours[:1],
            motion=one.name.motion,
            centres=one.centres[:1],
        )
        for one in scene.drawn
    )
    return Scene(scene.frames[:1], drawn, scene.quality)


def _scene(seed: int, index: int, *, painted: bool) -> Scene:
    rng = np.random.default_rng([seed, index, 2])
    return draw_scene(rng, shown=UNITS, quality=Quality.FAIR, painted=painted, whole=True)


def _regenerated(count: int, seed: int, on_scenes: Callable[[int], None]) -> np.ndarray:
    """The shown frames of every scene, uint8 (count, 4, H, W, 3)."""
    pipeline = load_pipeline()
    empty = pipeline.text.encode([""])[0]
    batches = []
    for first in range(0, count, _BATCH):
        indices = range(first, min(count, first + _BATCH))
        painted = [_scene(seed, index, painted=True).frames for index in indices]
        rng = np.random.default_rng([seed, first, 1])
        strengths = np.where(rng.random(len(painted)) < 0.5, 0.0, rng.uniform(*_STRENGTHS, len(painted)))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        video = torch.stack(painted).movedim(2, 1) * 2 - 1
        frames = _regenerate(pipeline, empty, video, strengths.tolist(), noise)
        batches.append(frames[:, list(shown_frames(frames.shape[1]))])
        on_scenes(indices.stop)
    return np.concatenate(batches)


@torch.no_grad()
def _regenerate(
    pipeline: Pipeline, text: TextEmbedding, video_BCTHW: Tensor, strengths: Sequence[float], noise: torch.Generator
) -> np.ndarray:
    """The clips, given in [-1, 1], as the generator would draw them, uint8 (B, T, H, W, 3).

    Clips of strength 0 only pass through the VAE.
    """
    latents = pipeline.latent_norm.normalise(pipeline.vae.encode(video_BCTHW).mean)
    chosen = [at for at, strength in enumerate(strengths) if strength > 0]
    histories: list[tuple[Tensor, ...]] = [() for _ in chosen]
    for unit in range(latents.shape[2] if chosen else 0):
        clean = [latents[at, :, unit : unit + 1] for at in chosen]
        denoised = _denoised(pipeline, text, histories, clean, [strengths[at] for at in chosen], noise)
        histories = [(*history, latent) for history, latent in zip(histories, denoised, strict=True)]
    for at, history in zip(chosen, histories, strict=True):
        latents[at] = torch.cat(history, 1)
    return to_pixels(pipeline.vae.decode(pipeline.latent_norm.denormalise(latents)))


def _denoised(
    pipeline: Pipeline,
    text: TextEmbedding,
    histories: Sequence[tuple[Tensor, ...]],
    clean: Sequence[Tensor],
    strengths: Sequence[float],
    noise: torch.Generator,
) -> list[Tensor]:
    """Units, noised by ``strengths`` within the last pyramid stage and denoised again, without guidance."""
    schedule = PyramidSchedule.of(pipeline.recipe.pyramid)
    last = schedule.stages - 1
    sigma = schedule.start_sigma(last)
    timesteps = schedule.training_timesteps(last)
    states = []
    for unit, ratio in zip(clean, strengths, strict=True):
        start = (1 - sigma) * double(halve(unit)) + sigma * torch.randn(unit.shape, generator=noise)
        states.append(ratio * start + (1 - ratio) * unit)
    prefixes = [Prefix(text, history_clips(history, last, schedule.stages)) for history in histories]
    for step in range(_STEPS):
        ratios = [strength * (1 - step / _STEPS) for strength in strengths]
        samples = [
            Sample(prefix, state, float(timesteps[round((1 - ratio) * (GRID - 1))]))
            for prefix, state, ratio in zip(prefixes, states, ratios, strict=True)
        ]
        velocities = pipeline.transformer(pipeline.transformer.pack(samples))
        states = [
            state - strength / _STEPS * velocity.float()
            for state, strength, velocity in zip(states, strengths, velocities, strict=True)
        ]
    return states
