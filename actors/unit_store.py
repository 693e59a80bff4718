"""Finished units on disk, so that a search resumes when its process has died (search.journal.LatentStore)."""

from __future__ import annotations

import asyncio
from pathlib import Path as File
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from actors.clients import UnitRef
from actors.generator import SMALL
from framegrove.files import replacing
from framegrove.flow.sampler import StageLatent
from framegrove.media.pictures import small_copy
from framegrove.search.protocols import WorkFailed

_MORE = "more."  # begins the names of what an adapted system needs besides


class UnitStore:
    """Keeps latents, and frames where there are any, in a folder, a file for each unit.

    Decoder states are not kept: they are large.
    """

    def __init__(self, folder: File) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    async def save(self, name: str, handle: UnitRef) -> None:
        """Write a unit; when this returns it is on the disk. Raises WorkFailed if it died with its machine."""
        try:
            latent = await handle.latent
            frames = await handle.frames if handle.frames is not None else None
        except ObjectLostError as error:
            raise WorkFailed("the machine that held a finished unit was lost") from error
        more = {_MORE + key: tensor for key, tensor in latent.more.items()}
        tensors = {"x": latent.x, **more}
        if frames is not None:
            tensors["frames"] = torch.from_numpy(frames.copy())
        await asyncio.to_thread(_write, tensors, self._folder / f"{name}.safetensors")

    async def load(self, name: str) -> Any | None:
        """A handle for a unit, or None when it is not whole on the disk."""
        file = self._folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            tensors = await asyncio.to_thread(load_file, file)
        except (OSError, SafetensorError):
            return None
        stage = _stage_of(name)
        more = {key.removeprefix(_MORE): tensor for key, tensor in tensors.items() if key.startswith(_MORE)}
        unit = UnitRef(stage, ray.put(StageLatent(stage, tensors["x"], more)), None, None)
        if "frames" in tensors:
            frames = tensors["frames"].numpy()
            small = await asyncio.to_thread(small_copy, frames, SMALL)
            unit.decoded(ray.put(frames), ray.put(small) if small is not None else None)
        return unit


def _write(tensors: dict[str, torch.Tensor], file: File) -> None:
    with replacing(file) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def _stage_of(name: str) -> int:
    """The stage in a name, a ``tree.Latent.name``."""
    return int(name.rpartition(".stage")[2])
