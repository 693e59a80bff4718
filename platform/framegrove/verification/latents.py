"""The ``latent`` verifier: a latent judge (models/latent_judge.py), which is shown latents and needs no decoding."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.models.latent_judge import LatentJudge, LatentSpace, load_judge, read_space, sight_of
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.scoring import probability

SCORE = "right"


class Latent(Protocol):
    """A finished unit: ``x`` is (C, 1, h, w), normalised."""

    @property
    def x(self) -> Tensor: ...


class LatentVerifier:
    """Scores branches by ``config.latent``: one score, the probability that the newest unit is right."""

    def __init__(self, config: VerifierConfig) -> None:
        """Nothing is read yet, so that what goes wrong comes out of ``ready`` as it is."""
        assert config.latent is not None, "VerifierConfig checks it"
        self._name, self._assessments, self._config = config.name, config.assessments, config.latent
        self._loading = asyncio.Lock()
        self._judge: tuple[LatentJudge, LatentSpace] | None = None
        self._prices: dict[tuple[str, int, int], int] = {}

    async def ready(self) -> str:
        """The name of the judge's folder, once it is read. Raises UserError where it cannot be."""
        await self._loaded()
        return Path(self._config.model).name

    async def score(self, work: ScoreWork, prompt: str, *units: Latent) -> Scored:
        """Judge the branch whose latents are ``units``, oldest first."""
        began = time.monotonic()
        judge, _ = await self._loaded()
        odds = await asyncio.to_thread(_odds, judge, prompt, units)
        flops = await self._flops(judge, prompt, *units[-1].x.shape[-2:])
        return Scored(work, ((SCORE, probability(odds)),), Cost(flops=flops, seconds=time.monotonic() - began))

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: the same at all of them."""
        judge, space = await self._loaded()
        flops = await self._flops(judge, prompt, height // space.factor, width // space.factor)
        return dict.fromkeys(self._assessments, (flops,) * len(lengths))

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Nothing to stop."""

    async def _loaded(self) -> tuple[LatentJudge, LatentSpace]:
        async with self._loading:
            if self._judge is None:
                if self._config.device == "cuda" and not torch.cuda.is_available():
                    raise UserError(
                        f"verifier {self._name} is to run on cuda and there is no GPU here: set latent.device to cpu"
                    )
                judge, space = await asyncio.to_thread(load_judge, Path(self._config.model))
                self._judge = judge.to(self._config.device), space
            return self._judge

    async def _flops(self, judge: LatentJudge, prompt: str, height: int, width: int) -> int:
        key = prompt, height, width
        if key not in self._prices:
            if len(self._prices) >= 256:
                self._prices.clear()
            self._prices[key] = await asyncio.to_thread(judge.flops, *key)
        return self._prices[key]


@torch.inference_mode()
def _odds(judge: LatentJudge, prompt: str, units: tuple[Latent, ...]) -> float:
    device = judge.enter.weight.device
    return float(judge(sight_of([unit.x.to(device) for unit in units])[None], [prompt]))


def check_latents(config: VerifierConfig, space: LatentSpace) -> None:
    """Raise UserError, which names both VAEs, where a verifier judges other latents than those that are sampled."""
    if config.latent is None:
        return
    own = read_space(Path(config.latent.model))
    who = f"verifier {config.name} ({config.latent.model})"
    todo = "train a judge for it with python -m jobs.train_judge, or leave the verifier out"
    if own.vae != space.vae:
        raise UserError(f"{who} judges latents of the VAE {own.vae}, and the model has the VAE {space.vae}: {todo}")
    if own.norm != space.norm:
        raise UserError(f"{who} judges latents that are normalised in another way than the model's: {todo}")
