"""Units on disk, without Ray: what is written is what a draft and a finished unit hold."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from actors.unit_store import _parse, _write
from framegrove.search.tree import Latent


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    x = torch.randn(16, 1, 8, 8).transpose(2, 3)
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    _write({"x": x, "frames": frames}, tmp_path / "unit.safetensors")
    read = load_file(tmp_path / "unit.safetensors")
    assert torch.equal(read["x"], x)
    assert [file.name for file in tmp_path.iterdir()] == ["unit.safetensors"]


def test_names_are_read_back() -> None:
    assert _parse(Latent((2, 0, 11), 2).name) == ((2, 0, 11), 2)
