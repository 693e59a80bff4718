"""Configuration of the engine that serves a verifier's model, and where that model lies."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from framegrove.config.base import Config, ConfigError


class EngineConfig(Config):
    """How vLLM serves a verifier's model. The defaults serve the shipped small model on a CPU."""

    model: str | None = None  # a folder or a name on the Hugging Face hub; None is the shipped model
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: int = Field(1024, ge=64)
    max_frames: int = Field(6, ge=2)
    max_questions: int = Field(64, ge=1)  # answered at a time; the engine queues more
    block_size: int | None = Field(32, ge=1)  # tokens; prompts shorter than one never share; None: the engine's own
    cache_gib: int = Field(1, ge=1)  # memory for keys and values on a CPU
    # Memory for prepared frames. Without it every question prepares its frames again: 1 ms for four of 64 x 64, 120 ms
    # for eight of 640 x 384. With it vLLM is reported to lose a question under load now and then.
    frame_cache_gib: float = Field(0.0, ge=0)
    gpu_memory: float = Field(0.9, gt=0, le=1)  # fraction of a GPU's memory
    tensor_parallel: int = Field(1, ge=1)
    instruction: str = ""  # what follows every yes/no question, " Answer yes or no." for a general model
    yes_words: tuple[str, ...] = ("yes",)
    no_words: tuple[str, ...] = ("no",)


def model_folder(config: EngineConfig) -> str:
    """What to hand vLLM: the configured model, or the folder of the shipped one.

    Raises ConfigError for a folder that is not there; whether a name exists on the hub is left to the engine.
    """
    if config.model is not None:
        if not Path(config.model).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", config.model) is None:
            raise ConfigError(f"no verifier at {config.model}: give a folder, or a name on the hub as in owner/name")
        return config.model
    folder = shipped_folder()
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"no shipped verifier in {folder}: train one with python -m jobs.train_verifier, or name a model"
        )
    return str(folder)


def shipped_folder() -> Path:
    """The folder of the verifier that comes with the package."""
    return Path(str(resources.files("framegrove"))) / "assets" / "verifier"
