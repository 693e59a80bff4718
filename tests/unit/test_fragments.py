"""Fragments: whoever reads gets the values that were written, however both have cut them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framegrove.training import fragments
from framegrove.training.fragments import AVERAGED, WEIGHTS, Fragment, Fragments, write

LENGTH = 30
CUTS = st.sets(st.integers(1, LENGTH - 1), max_size=6).map(lambda cuts: [0, *sorted(cuts), LENGTH])


def values(kind: str, name: str) -> torch.Tensor:
    return torch.arange(LENGTH, dtype=torch.float32) + 100 * len(name) + (1000 if kind == AVERAGED else 0)


def written(folder: Path, cuts: Sequence[int], workers: int) -> Fragments:
    """Two parameters in two kinds, cut at the same places, the pieces dealt out to workers."""
    pieces = [
        Fragment(kind, name, start, values(kind, name)[start:end])
        for kind in (WEIGHTS, AVERAGED)
        for name in ("a", "bb")
        for start, end in itertools.pairwise(cuts)
    ]
    return Fragments(folder, [file for rank in range(workers) for file in write(folder, rank, pieces[rank::workers])])


@given(CUTS, CUTS, st.integers(1, 4))
def test_what_is_read_is_what_was_written(saved: list[int], asked: list[int], workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        held = written(Path(folder), saved, workers)
        for kind, name in itertools.product((WEIGHTS, AVERAGED), ("a", "bb")):
            for start, end in itertools.pairwise(asked):
                found = held.read(kind, name, start, end - start)
                assert found is not None
                assert torch.equal(found, values(kind, name)[start:end])
        assert held.sizes() == {"a": LENGTH, "bb": LENGTH}


def test_what_was_not_written_is_told_apart_from_what_is_missing(tmp_path: Path) -> None:
    held = Fragments(tmp_path, write(tmp_path, 0, [Fragment(WEIGHTS, "a", 0, torch.zeros(5))]))
    assert held.read(AVERAGED, "a", 0, 5) is None
    with pytest.raises(ValueError, match="has 5 of the values 0 to 6 of weights a"):
        held.read(WEIGHTS, "a", 0, 6)


def test_files_stay_small_and_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "_FILE_BYTES", 100)
    pieces = [Fragment(WEIGHTS, name, 0, torch.ones(20)) for name in ("a", "b", "c")]
    files = write(tmp_path, 3, pieces)
    assert [file.name for file in files] == [f"worker-00003-00{n}.safetensors" for n in range(3)]
    assert [file.damage(tmp_path) for file in files] == [None] * 3
    path = tmp_path / files[0].name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert "bytes in place of" in str(files[0].damage(tmp_path))
    path.write_bytes(content[:-1] + b"x")
    assert "SHA-256" in str(files[0].damage(tmp_path))
    path.unlink()
    assert "is missing" in str(files[0].damage(tmp_path))
