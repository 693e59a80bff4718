"""Units on disk, without Ray: what is written is what a draft and a finished unit hold."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from actors.unit_store import _stage_of, _write
from framegrove.search.tree import Latent


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    x = torch.randn(16, 1, 8, 8).transpose(2, 3)
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    _write({"x": x, "frames": frames}, tmp_path / "unit.safetensors")
    read = load_file(tmp_path / "unit.safetensors")
    assert torch.equal(read["x"], x)
    assert [file.name for file in tmp_path.iterdir()] == ["unit.safetensors"]


def test_a_name_tells_the_stage_however_long_the_path() -> None:
    long = tuple(46_060_000 + unit for unit in range(31))
    names = {Latent(path, 2).name for path in ((2, 0, 11), long, (*long[:-1], 0))}
    assert "2-0-11.stage2" in names
    assert len(names) == 3
    for name in names:
        assert _stage_of(name) == 2
        assert len(f".{name}.safetensors.partial") <= 255
