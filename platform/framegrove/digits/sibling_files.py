"""Groups of siblings on disk, shard by shard: what has been sampled is kept when the job is stopped."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from framegrove.digits.siblings import PROMPTS, Group, Read, grow, prompts_of
from framegrove.digits.teacher import TaughtObject, UnitReading
from framegrove.digits.world import DigitObject, Split
from framegrove.errors import UserError
from framegrove.files import difference_from, replacing, write_json
from framegrove.models.pretrained import Pipeline

APART = 8  # every eighth shard is kept apart from training, for calibration


def shard_file(folder: Path, shard: int) -> Path:
    """Where a shard lies in its folder."""
    return folder / f"groups-{shard:05}.npz"


def shards_in(folder: Path, *, apart: bool | None = None) -> list[Path]:
    """The shards of a folder, in order: all, those of training or, if ``apart``, those kept apart from it.

    Raises UserError where there is none.
    """
    found = sorted(folder.glob("groups-*.npz"))
    if apart is not None:
        found = [path for path in found if (int(path.stem[-5:]) % APART == APART - 1) == apart]
    if not found:
        kind = {None: "", True: " apart from training", False: " for training"}[apart]
        raise UserError(f"{folder} holds no groups of siblings{kind}: sample more with python -m jobs.siblings")
    return found


def keep_facts(folder: Path, facts: dict[str, object]) -> None:
    """Note beside the groups how they are sampled. Raises UserError where others are in the folder already."""
    path = folder / "siblings.json"
    found = difference_from(path, facts)
    if found is not None:
        raise UserError(f"{folder} holds other groups ({found}): give another --out, or remove it")
    write_json(path, facts)


def sample_shards(
    folder: Path,
    pipeline: Pipeline,
    read: Read,
    *,
    split: Split,
    groups: int,
    units: int,
    seed: int,
    on_groups: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Sample whole shards until there are at least ``groups`` groups; shards that are there are not sampled again.

    ``on_groups(done, total)`` is told of every group. Each shard is a pure function of split, seed and its number.
    """
    a_shard = PROMPTS * units
    count = -(-groups // a_shard)
    for shard in range(count):
        path = shard_file(folder, shard)
        if path.exists():
            continue
        sampled = []
        for group in grow(pipeline, prompts_of(split, seed, shard), read, seed=seed * 10_000 + shard, units=units):
            sampled.append(group)
            on_groups(shard * a_shard + len(sampled), count * a_shard)
        write_groups(path, sampled)


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Write a shard, whole or not at all."""
    facts = [
        {
            "objects": [asdict(one) for one in group.objects],
            "seed": group.seed,
            "path": group.path,
            "lineage": [asdict(reading) for reading in group.lineage],
            "kept": group.kept,
            "children": group.children.shape[:2],
            "readings": [asdict(reading) for reading in group.readings],
        }
        for group in groups
    ]
    frames = [part for group in groups for part in (group.before, *group.children)]
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, frames=np.concatenate(frames), facts=np.frombuffer(json.dumps(facts).encode(), "u1"))


def read_groups(path: Path) -> Iterator[Group]:
    """The groups of a shard. Raises UserError where the file is damaged."""
    try:
        with np.load(path) as kept:
            frames, facts = kept["frames"], json.loads(kept["facts"].tobytes())
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not readable ({error}): remove it to sample its groups again") from error
    at = 0
    for fact in facts:
        before = frames[at : at + len(fact["kept"])]
        at += len(before)
        count, length = fact["children"]
        children = frames[at : at + count * length].reshape(count, length, *frames.shape[1:])
        at += count * length
        yield Group(
            tuple(DigitObject(**one) for one in fact["objects"]),
            fact["seed"],
            tuple(fact["path"]),
            tuple(_reading(one) for one in fact["lineage"]),
            tuple(fact["kept"]),
            before,
            children,
            tuple(_reading(one) for one in fact["readings"]),
        )


def _reading(value: dict[str, Any]) -> UnitReading:
    objects = tuple(
        TaughtObject(**(one | {"centres": tuple((x, y) for x, y in one["centres"])})) for one in value["objects"]
    )
    return UnitReading(objects, value["right"])
