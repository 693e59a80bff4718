"""What was done so far: a line for every clip that is in a shard, and for every entry that is finished.

The journal is what makes preparation go on where it was broken off. A line is written after what it speaks of, so that
what is in the journal is in the shards; a last line that was torn counts as none.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from framegrove.curation.clip import Rejection
from framegrove.curation.footage import Known


@dataclass(frozen=True)
class ClipLine:
    """A clip that is in a shard."""

    clip: int
    entry: str
    kind: str
    split: str
    height: int
    width: int
    fps: float
    frames: int
    units: int
    caption_source: str
    ended_by_gap: bool
    hash: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def seconds(self) -> float:
        """How long the clip is; 0 for a picture."""
        return self.frames / self.fps if self.kind == "video" else 0.0


@dataclass(frozen=True)
class EntryLine:
    """An entry that is finished: how many clips of it were kept, and what was rejected.

    ``same`` if it has the content of another entry, whose line says the rest.
    """

    entry: str
    content: str
    path: str
    seconds: float
    kept: int
    rejected: list[list[Any]] = field(default_factory=list)  # shot, start, stage, reason
    same: bool = False

    def rejections(self) -> list[Rejection]:
        """What was rejected."""
        return [Rejection(self.entry, self.path, *each) for each in self.rejected]


class Journal:
    """The journal of an output folder, read as a whole and appended to."""

    def __init__(self, path: Path) -> None:
        self.clips: dict[int, ClipLine] = {}
        self.entries: dict[str, EntryLine] = {}
        self.kept: Counter[str] = Counter()  # clips by the keys of their entries
        whole = 0
        if path.exists():
            with path.open("rb") as read:
                for line in read:
                    if not line.endswith(b"\n"):
                        break
                    whole += len(line)
                    self._take(json.loads(line))
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "wb")
        self._file.seek(whole)
        self._file.truncate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def keep(self, stored: set[int]) -> None:
        """Forget clips that are in no shard, as a power cut may leave them, and that their entries were finished."""
        self.clips = {number: line for number, line in self.clips.items() if number in stored}
        self.kept = Counter(line.entry for line in self.clips.values())
        self.entries = {key: line for key, line in self.entries.items() if line.same or self.kept[key] == line.kept}
        owners = {line.content for line in self.entries.values() if not line.same}
        self.entries = {key: line for key, line in self.entries.items() if not line.same or line.content in owners}

    def known(self) -> Known:
        """What need not be done again."""
        return Known(
            frozenset(self.entries),
            frozenset(line.content for line in self.entries.values() if not line.same),
            frozenset(self.clips),
        )

    def hashes(self) -> dict[int, bytes]:
        """The perceptual hashes of the clips that are kept."""
        return {number: bytes.fromhex(line.hash) for number, line in self.clips.items() if line.hash}

    def add(self, line: ClipLine | EntryLine) -> None:
        """Remember a clip or an entry, for good."""
        self._file.write(json.dumps(asdict(line)).encode() + b"\n")
        self._file.flush()
        self._keep(line)

    def _take(self, facts: dict[str, Any]) -> None:
        self._keep(ClipLine(**facts) if "clip" in facts else EntryLine(**facts))

    def _keep(self, line: ClipLine | EntryLine) -> None:
        if isinstance(line, ClipLine):
            self.clips[line.clip] = line
            self.kept[line.entry] += 1
        else:
            self.entries[line.entry] = line
