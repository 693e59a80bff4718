"""A model folder from any checkpoint of a run, with the weights that were trained or with their average."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from framegrove.config.base import validated
from framegrove.config.train import CHECKPOINTS, TrainConfig
from framegrove.errors import UserError
from framegrove.training import checkpoint
from framegrove.training.fragments import AVERAGED, WEIGHTS, Fragments
from framegrove.training.resume import at_hand
from framegrove.training.setup import Setup, outline

_KINDS = {"averaged": AVERAGED, "raw": WEIGHTS}


def export(
    run: Path,
    folder: Path,
    weights: Literal["averaged", "raw"] = "averaged",
    which: str = "newest",
) -> int:
    """Write the model of a checkpoint of ``run`` to ``folder``; the number of steps it was trained.

    ``which`` is newest, best, or a number of steps. The run may be going on. Raises UserError where there is no such
    checkpoint, and where it is damaged.
    """
    found = _found(run / CHECKPOINTS, which)
    for file in found.files:
        if (damage := file.damage(found.path)) is not None:
            raise UserError(f"{found.path} is damaged ({damage}): export another checkpoint")
    config = at_hand(validated(TrainConfig, found.about.config, f"the configuration in {found.path}"), run)
    _, _, recipe = outline(config.model)
    setup = Setup(config, recipe, found.about.words, found.about.vae)
    held = Fragments(found.path, found.files)
    trained = dict(setup.trainable().named_parameters())
    values = {}
    for name, count in held.sizes().items():
        flat = held.read(_KINDS[weights], name, 0, count)
        if flat is None or name not in trained or trained[name].numel() != count:
            raise UserError(f"{found.path} is of another model than its configuration describes ({name})")
        values[name] = flat.view(trained[name].shape)
    setup.write_model(values, folder)
    return found.about.step


def _found(folder: Path, which: str) -> checkpoint.Checkpoint:
    path = checkpoint.best(folder) if which == "best" else None
    if which.isdecimal():
        path = checkpoint.path_of(folder, int(which))
    if path is None:
        newest = checkpoint.newest(folder) if which == "newest" else None
        if newest is None:
            raise UserError(f"there is no {which} checkpoint in {folder}: give newest, best or a number of steps")
        return newest
    try:
        return checkpoint.opened(path)
    except checkpoint.Damaged as error:
        held = ", ".join(sorted(each.name for each in folder.glob("step-*"))) or "none"
        raise UserError(f"{path} cannot be read ({error}); checkpoints there: {held}") from None
