"""How evenly a training step is shared out to many workers, by counting tokens: no model, no clips.

The phases of the published curriculum (jobs/configs/pyramid_flow_sd3.yaml) over a catalog of pictures and of videos of
4 to 39 units, half and half; beside workers that each draw their own part of the batch, as evenly spread over stages
and units as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from framegrove.config.base import load
from framegrove.config.train import PhaseConfig, TrainConfig

if TYPE_CHECKING:
    import torch

    from framegrove.data.ingest import Catalog
    from framegrove.evaluation.benches import Finding
    from framegrove.training.curriculum import PhaseClips, Position, StepPlan

_CONFIG = Path(__file__).parents[1] / "configs" / "pyramid_flow_sd3.yaml"
_WORKERS = (16, 128)
_STEPS = 12
_CLIPS = 200_000
_TEXT, _FACTOR, _PATCH = 128, 8, 2  # tokens of T5; of the released VAE and transformer


def packs(device: torch.device, repeats: int) -> list[Finding]:
    """Balance and fill for 16 and for 128 workers, phase by phase; the arguments are not heeded.

    The balance is the mean load of a worker over the largest: for the rest of the time it waits for that one. The fill
    is the tokens in all passes over those that there would be room for.
    """
    from framegrove.evaluation.benches import Finding
    from framegrove.training.curriculum import PhaseClips, Position

    findings = []
    for number, phase in enumerate(load(TrainConfig, _CONFIG).phases):
        catalog = _catalog(phase)
        clips = PhaseClips.of(phase, catalog, (None,), "the catalog")
        plans = [_plan(Position(number, phase, step), clips, catalog) for step in range(_STEPS)]
        for workers in _WORKERS:
            shares = [plan.share_out(workers) for plan in plans]
            ours = fmean(map(_balance, (_loads(plan, share) for plan, share in zip(plans, shares, strict=True))))
            plain = fmean(_balance(_each_alone(plan, workers, clips, catalog)) for plan in plans)
            fill = sum(sum(plan.tokens) for plan in plans) / sum(
                (phase.pack_tokens or 0) * len(passes) for share in shares for passes in share
            )
            name = f"{phase.name}, {workers} workers"
            findings.append(Finding(f"{name}: balance", ours, "", plain, ">= 0.97", ours >= 0.97))
            findings.append(Finding(f"{name}: fill of the passes", fill, "", None, ">= 0.95", fill >= 0.95))
    return findings


def plans_of(name: str, steps: int, *, samples: int, shrunk: int, text_tokens: int) -> list[StepPlan]:
    """The first steps of a phase, of so many samples each, of heights and widths ``shrunk`` times smaller."""
    from framegrove.training.curriculum import PhaseClips, Position

    number, published = next(
        (number, phase) for number, phase in enumerate(load(TrainConfig, _CONFIG).phases) if phase.name == name
    )
    assert published.pack_tokens is not None
    fewer = {"batch": samples, "batch_tokens": None, "pack_tokens": published.pack_tokens // shrunk**2}
    phase, catalog = published.model_copy(update=fewer), _catalog(published)
    clips = PhaseClips.of(phase, catalog, (None,), "the catalog")
    return [
        _plan(Position(number, phase, step), clips, catalog, factor=shrunk * _FACTOR, text_tokens=text_tokens)
        for step in range(steps)
    ]


def _loads(plan: StepPlan, shares: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    return [sum(plan.tokens[i] for members in share for i in members) for share in shares]


def _balance(loads: Sequence[int]) -> float:
    return fmean(loads) / max(loads)


def _plan(
    position: Position,
    clips: PhaseClips,
    catalog: Catalog,
    seed: int = 0,
    factor: int = _FACTOR,
    text_tokens: int = _TEXT,
) -> StepPlan:
    from framegrove.flow.schedule import PyramidSchedule
    from framegrove.training.curriculum import plan_step

    schedule = PyramidSchedule()
    return plan_step(position, clips, catalog, schedule, seed, factor=factor, patch=_PATCH, text_tokens=text_tokens)


def _each_alone(plan: StepPlan, workers: int, clips: PhaseClips, catalog: Catalog) -> list[int]:
    """The loads of workers that each draw their part of as many samples."""
    loads = []
    for rank in range(workers):
        count = len(plan.tokens) * (rank + 1) // workers - len(plan.tokens) * rank // workers
        phase = plan.position.phase.model_copy(update={"batch": count, "batch_tokens": None})
        loads.append(sum(_plan(replace(plan.position, phase=phase), clips, catalog, seed=rank + 1).tokens))
    return loads


def _catalog(phase: PhaseConfig) -> Catalog:
    import numpy as np

    from framegrove.data.ingest import Catalog, Shard

    rng = np.random.default_rng(0)
    buckets = np.array(phase.sizes, dtype=np.int32)
    sizes = buckets[rng.integers(len(buckets), size=_CLIPS)]
    lengths = rng.integers(4, 40, size=_CLIPS) if phase.units > 1 else np.ones(_CLIPS)
    units = np.where(rng.random(_CLIPS) < 0.5, 1, lengths).astype(np.int32)
    rows, zeros = np.arange(_CLIPS, dtype=np.int32), np.zeros(_CLIPS, np.int32)
    shard = Shard(Path("clips.parquet"), (_CLIPS,), "")
    pairs = np.zeros(_CLIPS, np.bool_)
    return Catalog((shard,), zeros, rows, zeros, units, sizes[:, 0], sizes[:, 1], units == 1, pairs)
