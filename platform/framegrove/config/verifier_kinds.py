"""Configuration of the verifiers that run a model of their own on frames or on latents (VerifierConfig's kinds)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from framegrove.config.base import Config, ConfigError, absolute

Computes = Literal["similarity", "aesthetic", "reward"]
Device = Literal["cpu", "cuda"]

# Bias and slope that put one half at a middling picture: the cosine of a picture and a caption that fits it so-so by
# CLIP, and 5.5 of LAION's ten points. A reward is taken to be the log-odds already. None of them is a calibration.
_USUAL: dict[Computes, tuple[float, float]] = {
    "similarity": (-7.5, 30.0),
    "aesthetic": (-5.5, 1.0),
    "reward": (0.0, 1.0),
}


class FramesConfig(Config):
    """A model of transformers that judges single frames, and how its numbers become a score in [0, 1].

    What it ``computes``: ``similarity``, the cosine between a frame and the prompt, by a model of the CLIP class (CLIP,
    SigLIP, PickScore and HPSv2 in their transformers form); ``aesthetic``, a linear ``head`` on such a model's
    normalised picture features, as LAION's predictors (the prompt does not matter); ``reward``, the logit of a
    sequence classifier that reads picture and prompt (of two logits, how far the second is above the first).

    The score is 1 / (1 + exp(-(bias + slope * value))) of the value's mean over frames. ``bias`` and ``slope`` may be
    left out; what is usual then is no calibration: fit one by ``python -m jobs.evaluate --calibrate``.
    """

    model: str  # a folder or a name on the Hugging Face hub
    computes: Computes = "similarity"
    head: str | None = None  # .safetensors or .pt: a weight (1, features) and a bias, or several linear layers in a row
    # Which frames (verification/views.py). None: the newest unit of an unfinished video, all units of a finished one.
    view: Literal["video", "recent", "unit", "dense"] | None = None
    max_frames: int = Field(4, ge=2)  # in each selection of a view
    bias: float | None = None
    slope: float | None = Field(None, gt=0)
    device: Device = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _has_a_head(self) -> Self:
        if (self.head is None) == (self.computes == "aesthetic"):
            raise ValueError(
                "aesthetic needs a head: name a .safetensors or .pt file"
                if self.head is None
                else f"{self.computes} takes no head: only aesthetic does"
            )
        return self

    @property
    def usual_bias(self) -> float:
        """The bias as given, or the usual one."""
        return _USUAL[self.computes][0] if self.bias is None else self.bias

    @property
    def usual_slope(self) -> float:
        """The slope as given, or the usual one."""
        return _USUAL[self.computes][1] if self.slope is None else self.slope

    def at_absolute_paths(self) -> Self:
        """The same for processes that have another working folder."""
        return self.model_copy(update={"model": absolute(self.model), "head": absolute(self.head)})

    def check_files(self, verifier: str) -> None:
        """Raise ConfigError for a folder or a head that is not there. Whether a hub name exists is left to the hub."""
        if not Path(self.model).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", self.model) is None:
            raise ConfigError(
                f"verifier {verifier}: there is no model at {self.model}: give a folder, or a name on the hub as in "
                "owner/name"
            )
        if self.head is not None and not Path(self.head).is_file():
            raise ConfigError(f"verifier {verifier}: there is no head at {self.head}")


class LatentConfig(Config):
    """A latent judge that ``python -m jobs.train_judge`` has trained: the folder of its files."""

    model: str
    device: Device = "cpu"

    def at_absolute_paths(self) -> Self:
        """The same for processes that have another working folder."""
        return self.model_copy(update={"model": absolute(self.model)})

    def check_files(self, verifier: str) -> None:
        """Raise ConfigError where there is no latent judge."""
        if not (Path(self.model) / "judge.json").is_file():
            raise ConfigError(
                f"verifier {verifier}: there is no latent judge at {self.model} (no judge.json): train one with "
                "python -m jobs.train_judge"
            )
