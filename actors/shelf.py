"""Finished units on disk, so that a search goes on where it was when its process died (search.journal.LatentStore)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path as File
from typing import Any

import ray
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from actors.clients import UnitRef
from framegrove.flow.sampler import StageLatent
from framegrove.search.tree import Latent
from framegrove.types import Path


class Shelf:
    """Keeps latents and frames in a folder, a file per unit; decoder states are large and quickly made again.

    ``given`` are the units that are not searched for, oldest first; ``last_stage`` is that of a finished unit.
    """

    def __init__(self, folder: File, last_stage: int, given: tuple[UnitRef, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._last_stage = folder, last_stage
        self._units: dict[str, UnitRef] = {
            Latent((0,) * (n + 1), last_stage).name: unit for n, unit in enumerate(given)
        }

    async def save(self, name: str, handle: UnitRef) -> None:
        """Write a unit; when this returns it is on the disk."""
        self._units[name] = handle
        latent, frames = await handle.latent, await handle.frames
        tensors = {"x": latent.x, "frames": torch.from_numpy(frames.copy())}
        await asyncio.to_thread(_write, tensors, self._folder / f"{name}.safetensors")

    async def load(self, name: str) -> Any | None:
        """A handle for a unit, or None when it, or the branch before it, is not whole on the disk."""
        path, stage = _parse(name)
        before = self._units.get(Latent(path[:-1], self._last_stage).name)
        file = self._folder / f"{name}.safetensors"
        if (len(path) > 1 and before is None) or not file.is_file():
            return None
        try:
            tensors = await asyncio.to_thread(load_file, file)
        except (OSError, SafetensorError):
            return None
        latent = StageLatent(stage, tensors["x"])
        self._units[name] = UnitRef(stage, ray.put(latent), ray.put(tensors["frames"].numpy()), None, before)
        return self._units[name]


def _write(tensors: dict[str, torch.Tensor], file: File) -> None:
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(file)


def _parse(name: str) -> tuple[Path, int]:
    """The inverse of ``tree.Latent.name``."""
    path, _, stage = name.partition(".stage")
    return tuple(int(child) for child in path.split("-")), int(stage)
