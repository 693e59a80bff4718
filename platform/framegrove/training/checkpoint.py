"""Checkpoint folders: whole or not there at all, checked when they are read, and no more of them than wanted.

A checkpoint is OUT/checkpoints/step-NNNNNNN: files of fragments from every worker, and an index that says what they
hold, with sizes and checksums. It is written under another name, flushed to the disk, and then renamed. Nothing in it
depends on where it lies, on the engine, or on the number of workers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from framegrove.errors import UserError
from framegrove.files import patiently, replacing, sync, write_json
from framegrove.training.fragments import Counts, File

_log = logging.getLogger(__name__)

INDEX = "index.json"
HELD_OUT, TRAINED = "held_out", "loss"  # names of losses; the first that a checkpoint has says how good it is
_FORMAT = 1
_OWNER = "owner.json"
_NONE_YET, _NONE_LEFT = -1, -2  # in place of a number of steps
_ABANDONED_S = 3600.0  # without a change, what another machine was writing is given up


class Damaged(Exception):
    """A checkpoint that cannot be used; the message says why, for a sentence."""


@dataclass(frozen=True)
class About:
    """What a checkpoint is of: steps done, the configuration, and on what it was trained up to there.

    ``words`` are the vocabulary of a new text encoder, ``vae`` is the digest of the VAE that made the latents.
    """

    step: int
    phase: str
    config: Mapping[str, Any]
    engine: str
    workers: int
    words: tuple[str, ...]
    vae: str
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and what stands in its index."""

    path: Path
    about: About
    counts: Counts
    files: tuple[File, ...]


class Workers(Protocol):
    """The workers of a run, who load a checkpoint together."""

    rank: int
    world: int

    def most(self, count: int) -> int: ...

    def gathered(self, texts: Sequence[str]) -> list[str]: ...


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint with a readable index. Its files are not read."""
    for path in reversed(_all(folder)):
        with contextlib.suppress(Damaged):
            return opened(path)
    return None


def newest_whole(folder: Path, workers: Workers) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is undamaged, and a sentence about every newer one; every worker reads its share.

    A damaged one is named in a warning and set aside, under another name, until there is a new one. Raises UserError
    where none is left: a run that had come some way does not begin anew unasked.
    """
    warnings: list[str] = []
    while True:
        # Worker 0 decides: on network storage, others may see a folder later.
        step = workers.most(_newest_step(folder) if workers.rank == 0 else _NONE_LEFT)
        if step == _NONE_LEFT:
            raise UserError(
                f"every checkpoint in {folder} is damaged: put a good one there, or remove them all to begin anew"
            )
        if step == _NONE_YET:
            return None, warnings
        path = path_of(folder, step)
        checkpoint, reason = patiently(f"reading {path}", partial(_checked, path, workers.rank, workers.world))
        reasons = workers.gathered([reason] if reason else [])
        if not reasons:
            return checkpoint, warnings
        warnings.append(f"{path} is damaged ({reasons[0]}): going on from the checkpoint before it")
        if workers.rank == 0:
            _log.warning(warnings[-1])
            _set_aside(path)


def _newest_step(folder: Path) -> int:
    held = _all(folder)
    if held:
        return _step_of(held[-1])
    return _NONE_LEFT if any(folder.glob("damaged-*")) else _NONE_YET


def _checked(path: Path, rank: int, world: int) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint, and what is wrong with a worker's share of its files."""
    try:
        checkpoint = opened(path)
    except Damaged as error:
        return None, str(error)
    return checkpoint, next((found for file in checkpoint.files[rank::world] if (found := file.damage(path))), None)


def opened(path: Path) -> Checkpoint:
    """A checkpoint's index. Raises Damaged, and UserError for a checkpoint of an earlier version of this program."""
    try:
        held = json.loads((path / INDEX).read_text(encoding="utf-8"))
        if held["format"] != _FORMAT:
            raise UserError(f"{path} has the format {held['format']}, this version reads {_FORMAT}: give another --out")
        about = About(**held["about"] | {"words": tuple(held["about"]["words"])})
        return Checkpoint(path, about, Counts(**held["counts"]), tuple(map(File.of, held["files"])))
    except FileNotFoundError:
        if (path / "run.json").exists():
            raise UserError(f"{path} was written by an earlier version: give another --out, or remove it") from None
        raise Damaged(f"{INDEX} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{INDEX} cannot be read: {error}") from None


def unfinished_path(folder: Path, step: int, session: int) -> Path:
    """Where a checkpoint is written. ``session`` tells runs apart that write at the same time."""
    return folder / f".{_name(step)}.{session:08x}.partial"


def begin(unfinished: Path, rank: int) -> None:
    """Make the folder in which a checkpoint is written; any number of workers may.

    The folder around it is never made here: where that is missing, storage is gone, and nothing must be written in its
    place.
    """
    unfinished.mkdir(exist_ok=True)
    if rank == 0:
        write_json(unfinished / _OWNER, _me())


def finish(unfinished: Path, checkpoint: Checkpoint) -> None:
    """Give a checkpoint whose files are all written its index and its name, ``checkpoint.path``."""
    held = {"format": _FORMAT, "about": asdict(checkpoint.about), "counts": asdict(checkpoint.counts)}
    held["files"] = [asdict(file) for file in checkpoint.files]
    if unfinished.exists():  # otherwise it was renamed by a try that failed later
        with replacing(unfinished / INDEX) as index:
            index.write_text(json.dumps(held), encoding="utf-8")
        (unfinished / _OWNER).unlink(missing_ok=True)
        sync(unfinished)
        if checkpoint.path.exists():
            _set_aside(checkpoint.path)
        os.rename(unfinished, checkpoint.path)
    sync(checkpoint.path.parent)


def tidy(folder: Path, keep_last: int, keep_best: int) -> None:
    """Remove all but the last checkpoints and the best of the current phase, and what had been set aside."""
    held = _all(folder)
    keep = set(held[-keep_last:])
    if keep_best:
        keep |= set(_best(held)[:keep_best])
    for path in (*(path for path in held if path not in keep), *folder.glob("damaged-*")):
        shutil.rmtree(path, ignore_errors=True)  # what stays is removed next time
    remove_orphans(folder)


def best(folder: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss, or training loss where there is none, of the newest one's phase."""
    return next(iter(_best(_all(folder))), None)


def remove_orphans(folder: Path) -> None:
    """Remove what runs that were killed had begun to write; what a living one is writing stays."""
    for unfinished in folder.glob(".step-*.partial"):
        if not _is_written(unfinished):
            _log.info("removing %s, which a run that was killed has left", unfinished)
            shutil.rmtree(unfinished, ignore_errors=True)


def _best(held: Sequence[Path]) -> list[Path]:
    """Checkpoints of the newest one's phase that have a loss, best first."""
    found = []
    for path in held:
        with contextlib.suppress(Damaged):
            found.append(opened(path))
    phase = [each for each in found if each.about.phase == found[-1].about.phase]
    name = HELD_OUT if any(HELD_OUT in each.about.losses for each in phase) else TRAINED
    scored = [each for each in phase if name in each.about.losses]
    return [each.path for each in sorted(scored, key=lambda each: (each.about.losses[name], -each.about.step))]


def _is_written(unfinished: Path) -> bool:
    """Whether a process that may still live is writing this folder."""
    try:
        owner = json.loads((unfinished / _OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        owner = {}
    mine = _me()
    if owner.get("host") == mine["host"]:
        return _started(int(owner["process"])) == owner["started"]
    with contextlib.suppress(OSError):
        changed = max(path.stat().st_mtime for path in (unfinished, *unfinished.iterdir()))
        return time.time() - changed < _ABANDONED_S
    return False


def _me() -> dict[str, Any]:
    process = os.getpid()
    return {"host": socket.gethostname(), "process": process, "started": _started(process)}


def _started(process: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None for one that is no more."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # its name, in brackets, may hold anything
    return None if state == "Z" else rest[18]


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _name(step: int) -> str:
    return f"step-{step:07d}"


def path_of(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` steps."""
    return folder / _name(step)
