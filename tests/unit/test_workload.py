"""FLOPs of questions, in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from framegrove.verification.workload import Workload

IMAGE = 2
TEXT, VISION = 3 * 4 + 5, 7  # parameters


def test_shared_tokens_patches_and_written_tokens_are_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"image_token_id": IMAGE, "scale_factor": 2}))
    weights = {
        "layer.weight": torch.zeros(3, 4),
        "layer.bias": torch.zeros(5),
        "vision.weight": torch.zeros(7),
        "embed_tokens.weight": torch.zeros(100, 3),  # looked up, not multiplied
    }
    save_file(weights, tmp_path / "model.safetensors")
    work = Workload(tmp_path)
    prompts = [[IMAGE, IMAGE, 5, 6], [IMAGE, IMAGE, 5, 7, 8]]  # three tokens in common
    assert work.flops(prompts) == 2 * (TEXT * (3 + 1 + 2) + VISION * 4 * 2)
    assert work.flops(prompts, written=10) - work.flops(prompts) == 2 * TEXT * 10
    assert work.flops(prompts[:1]) == 2 * (TEXT * 4 + VISION * 4 * 2)
