"""The folder of what searches have left to learn from: winners, and pairs of siblings, as parquet files of clips.

    OUT/examples/clips-*.parquet    the winners of searches: clips like any others (schema.SCHEMA)
    OUT/pairs/clips-*.parquet       two siblings after one history (schema.PAIRS)
    OUT/collection.json             model, verifiers and settings that made it, which another run may not change
    OUT/.collect/                   the searches that are finished, and open shards

A search is finished once it is in the list of those, and counts once, whenever the process is killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framegrove.data.schema import LatentClip
from framegrove.data.shards import ShardWriter, open_ids, stored_ids
from framegrove.errors import UserError
from framegrove.files import append_line, difference_from, identity, locked, whole_lines, write_json

EXAMPLES, PAIRS = "examples", "pairs"
FACTS = "collection.json"
_WORK = ".collect"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Crop:
    """What one search leaves: the ``key`` that tells it from others, its clips, and ``facts`` about it, JSON values."""

    key: str
    examples: Sequence[LatentClip]
    pairs: Sequence[LatentClip]
    facts: Mapping[str, Any]


class Harvest:
    """The folder, for one process at a time, new or continued; see `harvesting`."""

    def __init__(self, out: Path, vae: str, made_by: str) -> None:
        self._file = out / _WORK / "searches.jsonl"
        self.done = {line["key"]: line for line in whole_lines(self._file)}
        ids = {name: {number for line in self.done.values() for number in line[name]} for name in (EXAMPLES, PAIRS)}
        self.writers: dict[str, ShardWriter] = {}
        self._there: dict[str, set[int]] = {}
        for name in (EXAMPLES, PAIRS):
            folder, work = out / name, out / _WORK / name
            for each in (folder, work):
                each.mkdir(parents=True, exist_ok=True)
            closed = stored_ids(folder)
            kept = (open_ids(work) & ids[name]) - closed
            self._there[name] = closed | kept
            self.writers[name] = ShardWriter(folder, work, vae, None, kept, made_by=made_by, pairs=name == PAIRS)

    def add(self, crop: Crop) -> None:
        """Keep what a search leaves; when this returns it is finished for good."""
        for name, clips in ((EXAMPLES, crop.examples), (PAIRS, crop.pairs)):
            for clip in clips:
                if clip.id not in self._there[name]:  # a process was killed between a shard's end and the line below
                    self.writers[name].add(clip)
                    self._there[name].add(clip.id)
        ids = {name: [clip.id for clip in clips] for name, clips in ((EXAMPLES, crop.examples), (PAIRS, crop.pairs))}
        line = {"key": crop.key, **ids, **crop.facts}
        append_line(self._file, line)
        self.done[crop.key] = line


@contextlib.contextmanager
def harvesting(out: Path, vae: str, made_by: str, facts: Mapping[str, Any]) -> Iterator[Harvest]:
    """The harvest in ``out``, where nothing else writes meanwhile; what is open becomes shards at the end.

    ``facts``, JSON values, are what decides the outcome of its searches. Raises UserError where others made the folder.
    """
    wanted = {"collection": _VERSION, **facts, "vae": vae, "made_by": made_by}
    (out / _WORK).mkdir(parents=True, exist_ok=True)
    with locked(out / _WORK / "lock", f"another process collects into {out}: wait for it, or give another --out"):
        _check(out / FACTS, wanted)
        write_json(out / FACTS, identity(wanted))
        with contextlib.ExitStack() as stack:
            harvest = Harvest(out, vae, made_by)
            for writer in harvest.writers.values():
                stack.enter_context(writer)
            yield harvest


def _check(file: Path, wanted: Mapping[str, Any]) -> None:
    other = difference_from(file, identity(wanted))
    if other is not None:
        raise UserError(f"{file.parent} was collected in another way, {other}: give another --out")
