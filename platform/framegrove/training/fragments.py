"""What a checkpoint is made of: fragments of flat parameters, written by every worker, read by any number of them.

ZeRO cuts the state of a training into pieces that depend on its stage and on the number of workers. A fragment says
what a piece is of: so many consecutive values of one parameter, seen as flat and without padding. Whoever loads asks
for the values it needs by name and offset, however they were cut when they were saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framegrove.files import sync

# Kinds of values: float32 weights, their running average, AdamW's two moments, Muon's one.
WEIGHTS, AVERAGED, MEAN, SQUARE, MOMENTUM = "weights", "averaged", "exp_avg", "exp_avg_sq", "momentum_buffer"

_FILE_BYTES = 2**30  # of a file at most, unless a single fragment is larger: a file is serialised in memory


@dataclass(frozen=True, eq=False)
class Fragment:
    """``values``, flat float32, are those of parameter ``name`` from its flat position ``first`` on."""

    kind: str
    name: str
    first: int
    values: Tensor

    @property
    def key(self) -> str:
        """The fragment's name in a file."""
        return f"{self.kind}/{self.name}/{self.first}"


@dataclass(frozen=True)
class Counts:
    """Numbers that are not cut: optimizer steps of the run, and those that AdamW has made of each parameter."""

    updates: int
    steps: Mapping[str, int]


@dataclass(frozen=True)
class File:
    """A file of fragments: its size in bytes and SHA-256, and of every fragment in it kind, name, first and length."""

    name: str
    size: int
    sha256: str
    fragments: tuple[tuple[str, str, int, int], ...]

    @classmethod
    def of(cls, held: Mapping[str, Any]) -> File:
        """A file as JSON has kept it."""
        return cls(**{**held, "fragments": tuple((k, n, f, c) for k, n, f, c in held["fragments"])})

    def damage(self, folder: Path) -> str | None:
        """What is wrong with the file in ``folder``, for a sentence; None where nothing is. Reads all of it."""
        path = folder / self.name
        if not path.exists():
            return f"{self.name} is missing"
        size = path.stat().st_size
        if size != self.size:
            return f"{self.name} has {size} bytes in place of {self.size}"
        return None if _sha256(path) == self.sha256 else f"{self.name} is not what was written (SHA-256)"


def write(folder: Path, rank: int, fragments: Sequence[Fragment]) -> list[File]:
    """Write a worker's fragments, which lie in host memory, to files of its own; they are on the disk afterwards."""
    from safetensors.torch import save

    files = []
    for number, members in enumerate(_by_size(fragments)):
        path = folder / f"worker-{rank:05d}-{number:03d}.safetensors"
        content = save({fragment.key: fragment.values for fragment in members})
        path.write_bytes(content)
        sync(path)
        listed = tuple((each.kind, each.name, each.first, each.values.numel()) for each in members)
        files.append(File(path.name, len(content), hashlib.sha256(content).hexdigest(), listed))
    return files


class Fragments:
    """The fragments of a checkpoint, read from its files as they are asked for."""

    def __init__(self, folder: Path, files: Iterable[File]) -> None:
        self._folder = folder
        self._held: dict[tuple[str, str], list[tuple[int, int, str]]] = {}  # (first, length, file), by kind and name
        for file in files:
            for kind, name, first, length in file.fragments:
                self._held.setdefault((kind, name), []).append((first, length, file.name))
        self._open: dict[str, Any] = {}

    def sizes(self) -> dict[str, int]:
        """The number of values of every parameter."""
        return {name: sum(part[1] for part in parts) for (kind, name), parts in self._held.items() if kind == WEIGHTS}

    def read(self, kind: str, name: str, first: int, length: int) -> Tensor | None:
        """Values ``first`` to ``first + length`` of a parameter, flat; None where the checkpoint has none of the kind.

        Raises ValueError where it has some of the parameter and not these.
        """
        parts = self._held.get((kind, name))
        if parts is None:
            return None
        values, filled = torch.empty(length), 0
        for start, count, file in parts:
            begin, end = max(first, start), min(first + length, start + count)
            if begin < end:
                piece = self._file(file).get_slice(f"{kind}/{name}/{start}")[begin - start : end - start]
                values[begin - first : end - first] = piece
                filled += end - begin
        if filled != length:
            raise ValueError(f"{self._folder} has {filled} of the values {first} to {first + length} of {kind} {name}")
        return values

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, "pt")
        return self._open[name]


def _by_size(fragments: Sequence[Fragment]) -> Iterator[list[Fragment]]:
    members: list[Fragment] = []
    size = 0
    for fragment in fragments:
        if members and size + fragment.values.nbytes > _FILE_BYTES:
            yield members
            members, size = [], 0
        members.append(fragment)
        size += fragment.values.nbytes
    if members:
        yield members


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
