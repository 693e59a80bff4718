"""Captions by a vision-language model: the engine of a verifier, asked to describe instead of to judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from actors.verifier import VllmVerifier
from framegrove.config.base import ConfigError
from framegrove.config.curate import CaptionsConfig
from framegrove.config.engine import model_folder
from framegrove.config.verifier import VerifierConfig, environment, load_panel
from framegrove.curation.clip import Clip, Frames, Rejection


class Describer(Protocol):
    """What describes clips: `VllmVerifier`, for one."""

    async def describe(self, prompt: str, frames: Frames, max_tokens: int) -> str:
        """A sentence or two about uint8 frames (T, H, W, 3)."""

    def close(self) -> None:
        """Stop what is running."""


class CaptionStage:
    """Gives a caption to clips that have none; rejects those about which the model says nothing."""

    def __init__(self, config: CaptionsConfig, make: Callable[[VerifierConfig], Describer] = VllmVerifier) -> None:
        self._config = config
        self._verifier = captioner(config)
        self._describer = make(self._verifier)
        self._runner = asyncio.Runner()  # one loop for the engine's whole life

    def __call__(self, clip: Clip) -> Clip | Rejection:
        (outcome,) = self.several([clip])
        return outcome

    def several(self, clips: Sequence[Clip]) -> list[Clip | Rejection]:
        """What becomes of some clips, which the engine describes together."""

        async def all_of_them() -> list[Clip | Rejection]:
            return await asyncio.gather(*(self._one(clip) for clip in clips))

        return self._runner.run(all_of_them())

    def close(self) -> None:
        """Stop the engine."""
        self._describer.close()
        self._runner.close()

    async def _one(self, clip: Clip) -> Clip | Rejection:
        if clip.caption:
            return clip
        config = self._config
        shown = np.unique(np.linspace(0, len(clip.frames) - 1, config.frames).round().astype(int))
        said = await self._describer.describe(config.prompt, clip.frames[shown], config.max_tokens)
        caption = " ".join(said.split())
        if not caption and config.required:
            return clip.rejected("captions", "no caption (the model has said nothing)")
        return replace(clip, caption=caption, caption_source=self._verifier.name if caption else "")


def captioner(config: CaptionsConfig) -> VerifierConfig:
    """The verifier that describes. Raises ConfigError unless the configuration names exactly one with an engine."""
    verifiers = load_panel(config.model).verifiers
    if len(verifiers) != 1 or verifiers[0].kind != "vllm":
        raise ConfigError(f"captions.model {config.model} must name one verifier of kind vllm, not {len(verifiers)}")
    (verifier,) = verifiers
    model_folder(verifier.engine)  # is it there?
    if verifier.engine.max_frames < config.frames:
        raise ConfigError(
            f"captions.frames is {config.frames}, and {config.model} sees {verifier.engine.max_frames} at a time: "
            "lower it, or raise the verifier's engine.max_frames"
        )
    return verifier


def caption_environment(config: CaptionsConfig) -> dict[str, str]:
    """Environment variables for the actors that describe."""
    return environment(captioner(config))
