"""How a verifier is served."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field

from framegrove.config.base import Config, ConfigError


class EngineConfig(Config):
    """How vLLM serves the verifier. The defaults serve the shipped small model on a CPU; jobs/configs/verifier_gpu.yaml
    is for a model of the Qwen2.5-VL class on a GPU."""

    model: str | None = None  # a folder or a name on the Hugging Face hub; None is the shipped model
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: int = Field(1024, ge=64)
    max_frames: int = Field(4, ge=2)
    max_questions: int = Field(64, ge=1)  # answered at a time; the engine queues more
    block_size: int | None = Field(32, ge=1)  # tokens; prompts shorter than one never share; None: the engine's own
    cache_gib: int = Field(1, ge=1)  # room for keys and values on a CPU
    gpu_memory: float = Field(0.9, gt=0, le=1)  # share of a GPU's memory
    tensor_parallel: int = Field(1, ge=1)
    instruction: str = ""  # what follows every question, " Answer yes or no." for a general model
    yes_words: tuple[str, ...] = ("yes",)
    no_words: tuple[str, ...] = ("no",)


def model_folder(config: EngineConfig) -> str:
    """What to hand vLLM: the configured model, or the folder of the shipped one.

    Raises ConfigError for a folder that is not there; a name that could be one on the hub is left to the engine.
    """
    if config.model is not None:
        if not Path(config.model).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", config.model) is None:
            raise ConfigError(f"no verifier at {config.model}: give a folder, or a name on the hub as in owner/name")
        return config.model
    folder = Path(str(resources.files("framegrove"))) / "assets" / "verifier"
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"no shipped verifier in {folder}: train one with python -m jobs.train_verifier, or name a model"
        )
    return str(folder)


def environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables vLLM reads when it is imported: they belong into the verifier actor's runtime_env."""
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(config.cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        # On a CPU this keeps the model in the engine's own process, rather than in a third one that starts as slowly.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # One helper of vLLM's sampler would be compiled at the first question, by a C++ compiler, which takes half a
        # minute and fails in a path with a space.
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.model is None or Path(config.model).exists():
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return variables
