"""Configuration of the verifier: the engine that serves one, the architecture and the training of the small one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from framegrove.config.base import Config


class VerifierArchitecture(Config):
    """A small Idefics3: a vision tower over patches, cells of 2x2 patches as tokens of a llama text model."""

    image_size: int = Field(64, ge=16)
    patch_size: int = Field(8, ge=2)
    scale_factor: int = Field(2, ge=1)
    vision_width: int = Field(128, ge=16)
    vision_layers: int = Field(5, ge=1)
    vision_heads: int = Field(4, ge=1)
    text_width: int = Field(192, ge=16)
    text_layers: int = Field(4, ge=1)
    text_heads: int = Field(6, ge=1)


class TrainingStage(Config):
    """One of the four stages: optimiser steps, items a step (windows, frames or clips), peak learning rates."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    rate: float = Field(gt=0)
    final_rate: float = Field(0.0, ge=0)  # fraction of the peak that the rate decays to


class VerifierTraining(Config):
    """How the small verifier is trained; stages run in the order written here (training/verifier.py says why)."""

    seed: int = 0
    model: VerifierArchitecture = VerifierArchitecture()
    windows: TrainingStage = TrainingStage(steps=1000, batch=256, rate=2e-3, final_rate=0.3)
    frames: TrainingStage = TrainingStage(steps=1500, batch=96, rate=1.5e-3, final_rate=0.1)
    reading: TrainingStage = TrainingStage(steps=2000, batch=32, rate=1.5e-3, final_rate=0.3)
    joint: TrainingStage = TrainingStage(steps=2500, batch=32, rate=8e-4, final_rate=0.0)
    questions_per_clip: int = Field(12, ge=4)
    ema: float = Field(0.998, ge=0, lt=1)
    heldout_clips: int = Field(1500, ge=10)
    checkpoint_every: int = Field(200, ge=1)
    threads: int = Field(1, ge=1)
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of the forward pass; weights are float32
