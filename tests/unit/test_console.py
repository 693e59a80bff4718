"""Options that several jobs share."""

from __future__ import annotations

import json
from pathlib import Path

from framegrove.config.verifier import EngineConfig, model_folder
from jobs.console import engine_config


def test_a_verifier_is_served_as_its_kind_asks_for(tmp_path: Path) -> None:
    shipped = model_folder(EngineConfig())
    assert engine_config(None) == EngineConfig()
    assert engine_config(shipped) == EngineConfig(model=shipped)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 32768}}))
    for general in (str(tmp_path), "Qwen/Qwen2.5-VL-3B-Instruct"):
        served = engine_config(general)
        assert (served.model, served.dtype, served.block_size) == (general, "bfloat16", None)
        assert served.instruction
    (tmp_path / "own.yaml").write_text("max_frames: 6")
    assert engine_config(str(tmp_path / "own.yaml")) == EngineConfig(max_frames=6)
