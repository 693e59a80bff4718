"""Checkpoint folders: written whole or not at all, found again by step, and only for the run that wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from framegrove.config.train import TrainConfig
from framegrove.errors import UserError
from framegrove.files import difference, identity, replacing, write_json

_KEPT = 2  # checkpoints that stay on the disk, the newest ones; they are large
RUN = "run.json"


def save(folder: Path, step: int, config: TrainConfig, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new checkpoint folder for ``step``, which appears once it is whole; remove old ones."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:07d}"
    with replacing(final) as partial:
        partial.mkdir()
        write(partial)
        describe(partial, step, config)
    for old in _all(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = _all(folder)
    return found[-1] if found else None


def describe(checkpoint: Path, step: int, config: TrainConfig, workers: int = 1) -> None:
    """Record in a checkpoint folder which run it belongs to and how many steps are done."""
    write_json(checkpoint / RUN, {"step": step, "workers": workers, "config": _identity(config)})


def step_of(checkpoint: Path, config: TrainConfig, workers: int = 1) -> int:
    """The number of steps done at a checkpoint.

    Raises UserError for a checkpoint of another configuration or number of workers, or for what is no checkpoint.
    """
    try:
        held = json.loads((checkpoint / RUN).read_text(encoding="utf-8"))
        step, theirs = int(held["step"]), dict(held["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint} is not a checkpoint of a training run ({error}): remove it") from None
    differs = difference(dict(_leaves(theirs)), dict(_leaves(_identity(config))))
    if differs is not None:
        raise UserError(
            f"{checkpoint} belongs to a run with another configuration ({differs}): give another --out, or the "
            "configuration that the run was started with"
        )
    if held.get("workers", 1) != workers:
        raise UserError(
            f"{checkpoint} belongs to a run with --workers {held['workers']}, not {workers}: continue with the same "
            "number, or give another --out"
        )
    return step


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change between sessions of a run; how often it reports and how it saves memory may."""
    return identity(config.model_dump(mode="json", exclude={"checkpoint_every", "log_every", "recompute"}))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a nested configuration under its dotted key, as ("phases.0.steps", 15)."""
    if not isinstance(value, Mapping | list) or not value:
        yield path, value
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
