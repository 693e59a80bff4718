"""How a verifier is served: the shipped configuration for a GPU, and the folder of the shipped model."""

from __future__ import annotations

from pathlib import Path

import pytest

from framegrove.config.base import load
from framegrove.config.verifier import EngineConfig, environment, model_folder
from framegrove.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def test_the_configuration_of_a_general_verifier_loads() -> None:
    general = load(EngineConfig, CONFIGS / "verifier_gpu.yaml")
    assert general.dtype == "bfloat16"
    assert "HF_HUB_OFFLINE" not in environment(general)


def test_a_missing_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("framegrove.config.verifier.resources.files", lambda _: tmp_path)
    with pytest.raises(UserError, match=r"jobs\.train_verifier"):
        model_folder(EngineConfig())
