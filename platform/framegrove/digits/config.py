"""Configuration of the verifier that is trained for the digits world. Torch-free, so that ``--help`` is instant."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from framegrove.config.base import Config


class VerifierArchitecture(Config):
    """A small Idefics3: a vision tower over patches, and a llama text model that reads cells of patches as tokens."""

    image_size: int = Field(64, ge=16, description="side of a picture, in pixels")
    patch_size: int = Field(8, ge=2, description="side of a patch, in pixels")
    scale_factor: int = Field(2, ge=1, description="side of a cell, in patches; a cell is one token of the text model")
    vision_width: int = Field(128, ge=16)
    vision_layers: int = Field(5, ge=1)
    vision_heads: int = Field(4, ge=1)
    text_width: int = Field(192, ge=32)
    text_layers: int = Field(4, ge=1)
    text_heads: int = Field(6, ge=1)


class VerifierPhase(Config):
    """One phase of the verifier's training."""

    steps: int = Field(ge=0, description="optimizer steps; 0 leaves the phase out")
    batch: int = Field(ge=1, description="items per step: windows, frames or clips, depending on the phase")
    learning_rate: float = Field(gt=0, description="peak learning rate, of matrices and of everything else")
    final_share: float = Field(0.0, ge=0, description="share of the peak learning rate that remains at the last step")


class JointPhase(VerifierPhase):
    """The last phase, on pictures. Many of its clips can be siblings from a generator."""

    siblings: str | None = Field(None, description="folder of groups that jobs.siblings sampled; none if left out")


class VerifierTraining(Config):
    """Training of the verifier. The phases run in the order below; digits/verifier_training.py explains why."""

    seed: int = 0
    start: str | None = Field(
        None, description="verifier to start from: shipped, or a folder; random weights if left out"
    )
    model: VerifierArchitecture = VerifierArchitecture()
    reading: VerifierPhase = VerifierPhase(steps=3500, batch=12, learning_rate=2e-3, final_share=0.05)
    windows: VerifierPhase = VerifierPhase(steps=700, batch=256, learning_rate=3e-3, final_share=0.3)
    frames: VerifierPhase = VerifierPhase(steps=1000, batch=96, learning_rate=2e-3, final_share=0.1)
    joint: JointPhase = JointPhase(steps=4000, batch=12, learning_rate=6e-4, final_share=0.0)
    questions_per_clip: int = Field(12, ge=4)
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the average of the weights, per step of the last phase")
    heldout_clips: int = Field(1500, ge=10, description="clips of held-out scans for the final evaluation")
    checkpoint_every: int = Field(200, ge=1, description="optimizer steps")
    threads: int = Field(1, ge=1, description="CPU threads")
    precision: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="of forward and backward passes; the weights that are optimized are float32"
    )
