"""What trainers of small models share: an average of the weights, a checkpoint in one file, a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framegrove.errors import UserError
from framegrove.files import difference, replacing


@torch.no_grad()
def update_average(averaged: Sequence[Tensor], weights: Sequence[Tensor], decay: float, updates: int) -> None:
    """Move ``averaged`` in place towards the ``weights`` after update number ``updates`` (from 1).

    An exponential average whose decay starts at 0.1 and rises to ``decay``: the first weights are worth nothing.
    """
    share = 1 - min(decay, updates / (9 + updates))
    torch._foreach_lerp_(list(averaged), list(weights), share)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and strings in dicts and lists, whole or not at all."""
    with replacing(path) as partial:
        torch.save(dict(state), partial)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What ``save_checkpoint`` wrote, or None where there is no such file. Raises UserError where it is unreadable."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file makes torch raise half a dozen unrelated types
        raise UserError(f"{path} is not a readable checkpoint ({error}): remove it to start afresh") from error
    return state


def check_same_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise UserError where the checkpoint at ``path`` has another identity (`framegrove.files.identity`) than ours."""
    found = difference(theirs, ours)
    if found is not None:
        raise UserError(f"{path} is of another configuration ({found}): give another --out, or remove it")
