"""What a unit costs by its place in the video: a late one is about as cheap as an early one.

The temporal pyramid keeps the newest units of the history at high resolution and all older ones at the lowest (PFM
section 3.3), so that a unit of age adds a token for every 16 that it has at full resolution. Counted for the embedded
model and for 768p, beside a history that is kept whole; timed with the embedded model.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from framegrove.config.flow import latent_size
from framegrove.evaluation.benches import Finding, in_turns
from framegrove.flow.generation import sampler_of
from framegrove.flow.history import sample_tokens, token_count
from framegrove.flow.sampler import UnitTask
from framegrove.models.pretrained import Pipeline, load_pipeline

_UNITS = (0, 1, 3, 7, 15, 30)
_MOST = 2.0  # times the price of unit 3, which already has a history of every resolution
_768P = (96, 160)  # latents of 1280x768
_STAGES, _PATCH = 3, 2  # of the released models


@torch.no_grad()
def units(device: torch.device, repeats: int) -> list[Finding]:
    """Tokens and sampling time of units 0 to 30 of the embedded model, and tokens of the same units at 768p."""
    pipeline = load_pipeline().to(device)
    recipe, patch = pipeline.recipe, pipeline.transformer.config.patch_size
    stages = recipe.pyramid.stages
    factor = pipeline.vae.config.spatial_factor
    size = latent_size(recipe.height, recipe.width, stages=stages, patch=patch, factor=factor)
    counted = [tokens(unit, size, stages, patch) for unit in _UNITS]
    large = [tokens(unit, _768P, _STAGES, _PATCH) for unit in _UNITS]
    return [*counted, *_timed(pipeline, size, device, repeats), *large]


def tokens(unit: int, size: tuple[int, int], stages: int, patch: int) -> Finding:
    """Visual tokens of a unit's forward pass at the last stage, those of all stages in words; ``size`` is (h, w).

    The plain implementation is a history at full resolution, as of full-sequence diffusion.
    """
    shapes = [(1, *size)] * (unit + 1)
    of_stage = [sample_tokens(shapes, stage, stages, patch) for stage in range(stages)]
    what = f"unit {unit}, latents {size[0]}x{size[1]}: tokens at stages {', '.join(f'{each:,}' for each in of_stage)}"
    plain = token_count(shapes, patch)
    return Finding(what, of_stage[-1], "", plain, "<= plain", of_stage[-1] <= plain)


def _timed(pipeline: Pipeline, size: tuple[int, int], device: torch.device, repeats: int) -> list[Finding]:
    """The time of sampling each unit of one video alone, decoding aside, in turns."""
    sampler = sampler_of(pipeline)
    text, negative = pipeline.text.encode(["a red 3 moves left and right", pipeline.recipe.negative_prompt])
    generator = torch.Generator().manual_seed(0)
    channels = pipeline.transformer.config.in_channels
    past: list[Tensor] = [torch.randn(channels, 1, *size, generator=generator).to(device) for _ in range(max(_UNITS))]
    tasks = [UnitTask(text, negative, tuple(past[:unit]), (1, *size), 0, (0,) * (unit + 1)) for unit in _UNITS]
    times = in_turns([partial(sampler.sample, [task]) for task in tasks], repeats, device)
    early = times[_UNITS.index(3)].median
    return [
        Finding(
            f"unit {unit} of the embedded model: sampling",
            spent.median,
            "s",
            aim=f"<= {_MOST:g}x unit 3" if unit > 3 else "",
            met=spent.median <= _MOST * early if unit > 3 else None,
            ours_range=spent.range,
        )
        for unit, spent in zip(_UNITS, times, strict=True)
    ]
