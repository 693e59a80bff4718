"""Checkpoint folders: written whole or not at all, found again by step, of one configuration only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from framegrove.config.train import TrainConfig
from framegrove.errors import UserError

_KEPT = 2  # the newest ones stay; more would fill a disk unseen
RUN = "run.json"


def save(folder: Path, step: int, config: TrainConfig, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new checkpoint folder for ``step``, give it its name only then, and remove old ones."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".step-{step:07d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write(partial)
    describe(partial, step, config)
    final = folder / f"step-{step:07d}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in _all(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    found = _all(folder)
    return found[-1] if found else None


def describe(checkpoint: Path, step: int, config: TrainConfig, workers: int = 1) -> None:
    """Write down which step of which run a checkpoint folder belongs to."""
    held = {"step": step, "workers": workers, "config": _identity(config)}
    (checkpoint / RUN).write_text(json.dumps(held), encoding="utf-8")


def step_of(checkpoint: Path, config: TrainConfig, workers: int = 1) -> int:
    """Steps done at a checkpoint.

    Raises UserError where it is of another configuration or number of workers, or no checkpoint.
    """
    try:
        held = json.loads((checkpoint / RUN).read_text(encoding="utf-8"))
        step, identity = int(held["step"]), held["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint} is not a checkpoint of a training run ({error}): remove it") from None
    if identity != _identity(config):
        ours = _identity(config)
        changed = [key for key in ours if identity.get(key) != ours[key]]
        raise UserError(
            f"{checkpoint} is of a run with another configuration ({', '.join(changed)} differ): give another --out, "
            "or the configuration it was started with"
        )
    if held.get("workers", 1) != workers:
        raise UserError(
            f"{checkpoint} is of a run with --workers {held['workers']}, not {workers}: go on with as many, or give "
            "another --out"
        )
    return step


def _identity(config: TrainConfig) -> dict[str, object]:
    """What must agree for a run to go on; how often it reports and what it keeps in memory may change."""
    free = {"checkpoint_every", "log_every", "recompute"}
    identity: dict[str, object] = config.model_dump(mode="json", exclude=free)
    return identity


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
