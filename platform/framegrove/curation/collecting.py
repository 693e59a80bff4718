"""Collecting what the stages give: clips into shards, rejections into a report, and all of it into the journal.

out/clips-00000.parquet ...   the shards
out/rejects.parquet           path, shot, start, stage, reason of everything that was not kept
out/.prepare/                 options, journal and open shard: what a run needs to go on
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framegrove.curation.clip import Rejection
from framegrove.curation.footage import Finished
from framegrove.curation.journal import ClipLine, EntryLine, Journal
from framegrove.data.schema import REJECTS, Embedder, LatentClip
from framegrove.data.shards import SHARD_BYTES, ShardWriter, open_ids, stored_ids
from framegrove.errors import UserError
from framegrove.files import difference_from, identity, locked, replacing, write_json

WORK = ".prepare"
_REJECTS = pa.schema(
    [
        ("path", pa.string()),
        ("shot", pa.int32()),
        ("start", pa.float64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A clip after its last stage, with what the journal wants to know besides. ``busy`` is seconds of encoding."""

    clip: LatentClip
    entry: str
    path: str
    shot: int
    frames: int
    ended_by_gap: bool
    hash: bytes
    busy: float


Outcome = Encoded | Rejection | Finished


@dataclass
class Report:
    """What became of all entries of a list, earlier runs included."""

    entries: int = 0
    before: int = 0  # of them finished by earlier runs
    seconds: float = 0.0  # of footage that was read
    clips: list[ClipLine] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    unlisted: int = 0  # clips of entries that are no longer listed, or not in this form; they stay
    busy: float = 0.0  # seconds of encoding in this run
    new: int = 0  # clips encoded in this run

    @property
    def kept_seconds(self) -> float:
        """Seconds of video in clips."""
        return sum(clip.seconds for clip in self.clips)

    @property
    def rejected_share(self) -> float:
        """Rejected clips and files among all."""
        return len(self.rejections) / max(1, len(self.rejections) + len(self.clips))

    def reasons(self) -> list[tuple[str, str, int]]:
        """(stage, reason without its numbers, how often), the most frequent first."""
        counts = Counter((each.stage, general(each.reason)) for each in self.rejections)
        return [(stage, reason, count) for (stage, reason), count in counts.most_common()]

    def counts(self, attribute: str) -> list[tuple[Any, int]]:
        """How many clips have each value of an attribute of `ClipLine`, in the values' order."""
        return sorted(Counter(getattr(clip, attribute) for clip in self.clips).items())


def general(reason: str) -> str:
    """What a reason has in common with others of its kind: numbers and names stand behind it."""
    for mark in (" (", ": ", ", "):
        reason = reason.partition(mark)[0]
    return reason


class Collector:
    """Takes outcomes in any order, an entry's end after or before its clips, and keeps them for good."""

    def __init__(
        self,
        out: Path,
        options: Mapping[str, Any],
        vae: str,
        embedder: Embedder | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Begin in ``out``, or go on there. Raises UserError where other options made the folder."""
        self._out, work = out, out / WORK
        _check(out, options)
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / "options.json", identity(options))
        self.journal = Journal(work / "journal.jsonl")
        in_shards = stored_ids(out)
        self.journal.keep(in_shards | open_ids(work))
        left_open = self.journal.clips.keys() - in_shards
        self._writer = ShardWriter(out, work, vae, embedder, left_open, shard_bytes)
        self._pending: dict[str, list[Rejection | None]] = {}  # None: a clip that is kept
        self._ends: dict[str, Finished] = {}
        self._seen: list[Finished] = []
        self._lost: list[Rejection] = []
        self._report = Report()

    @property
    def done(self) -> int:
        """Entries that are finished, by this run or before."""
        return len(self._seen)

    @property
    def progress(self) -> Report:
        """What this run has done so far; without the clips and rejections of earlier ones."""
        return self._report

    def add(self, outcome: Outcome) -> None:
        """Keep a clip or a rejection, or take note of the end of an entry."""
        if isinstance(outcome, Finished):
            self._ends[outcome.key] = outcome
            key = outcome.key
        else:
            key = outcome.entry
            rejection = self._store(outcome) if isinstance(outcome, Encoded) else outcome
            self._pending.setdefault(key, []).append(rejection)
        end = self._ends.get(key)
        if end is not None and len(self._pending.get(key, ())) == end.outcomes:
            self._finish(end)

    def report(self) -> Report:
        """What became of the entries so far, and ``rejects.parquet`` with it."""
        report, journal = self._report, self.journal
        owners = {line.content: line.entry for line in journal.entries.values() if not line.same}
        keys: set[str] = set()
        for end in self._seen:
            line = journal.entries.get(end.key)
            if line is not None:
                keys.add(owners[line.content] if line.same else line.entry)
        report.entries = len(self._seen)
        report.before = sum(end.before or end.same for end in self._seen)
        report.clips = [clip for clip in journal.clips.values() if clip.entry in keys]
        report.unlisted = len(journal.clips) - len(report.clips)
        lines = [journal.entries[key] for key in sorted(keys)]
        report.seconds = sum(line.seconds for line in lines)
        report.rejections = [each for line in lines for each in line.rejections()] + self._lost
        report.rejections.sort(key=lambda each: (each.path, each.shot, each.start))
        columns = {name: [getattr(each, name) for each in report.rejections] for name in _REJECTS.names}
        with replacing(self._out / REJECTS) as partial:
            pq.write_table(pa.Table.from_pydict(columns, schema=_REJECTS), partial)
        return report

    def close(self, whole: bool) -> None:
        """Close the journal; ``whole`` makes what is open a shard, otherwise the next run continues it."""
        self._writer.__exit__(None if whole else InterruptedError, None, None)
        self.journal.close()

    def _store(self, encoded: Encoded) -> Rejection | None:
        clip = encoded.clip
        if clip.id in self.journal.clips:
            reason = "listed twice (the same file, second and caption)"
            return Rejection(encoded.entry, encoded.path, encoded.shot, clip.start, "read", reason)
        self._writer.add(clip)
        line = ClipLine(
            clip=clip.id,
            entry=encoded.entry,
            kind=clip.kind,
            split=clip.split,
            height=clip.height,
            width=clip.width,
            fps=clip.fps,
            frames=encoded.frames,
            units=clip.units,
            caption_source=clip.caption_source,
            ended_by_gap=encoded.ended_by_gap,
            hash=encoded.hash.hex(),
        )
        self.journal.add(line)
        self._report.busy += encoded.busy
        self._report.new += 1
        self._report.clips.append(line)
        return None

    def _finish(self, end: Finished) -> None:
        del self._ends[end.key]
        outcomes = self._pending.pop(end.key, [])
        self._seen.append(end)
        self._report.seconds += end.seconds
        rejections = [each for each in outcomes if each is not None]
        if end.again:
            self._lost += rejections
        elif not end.before:
            rejected = [[each.shot, each.start, each.stage, each.reason] for each in rejections]
            kept = self.journal.kept[end.key]
            self.journal.add(EntryLine(end.key, end.content, end.path, end.seconds, kept, rejected, end.same))


@contextlib.contextmanager
def collecting(
    out: Path, options: Mapping[str, Any], vae: str, embedder: Embedder | None = None, shard_bytes: int = SHARD_BYTES
) -> Iterator[Collector]:
    """A collector that nobody else may have on the same folder. Raises UserError, also where somebody has."""
    with _alone(out):
        collector = Collector(out, options, vae, embedder, shard_bytes)
        whole = False
        try:
            yield collector
            whole = True
        finally:
            collector.close(whole)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    if out.exists() and not (out / WORK).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and was not made by this command: give another --out, or remove it")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    with locked(out / WORK / "lock", f"another process prepares clips in {out}: wait for it, or give another --out"):
        yield


def _check(out: Path, options: Mapping[str, Any]) -> None:
    differs = difference_from(out / WORK / "options.json", identity(options))
    if differs is not None:
        raise UserError(f"{out} was prepared with other options ({differs}): give another --out, or the same options")
