"""Branches on the disk, so that policies are tuned without sampling or judging anything twice.

A branch is a pure function of model, prompt, seed, size and path; a verdict is one of the branch and whoever judges.
So both are kept under what decides them, and any search over the same ground finds them again. A new verifier, or
another set of questions, finds every branch and no verdict.

One SQLite file in write-ahead mode, WAL: an entry is there whole or not at all, whenever the process is killed, and
several processes may fill the same cache at the same time (on one machine: WAL needs shared memory). Where two have
computed the same thing, the first stays.

**What is kept of a unit.** Its latent, in full precision, since its children depend on every bit; and its frames,
compressed (33 KB for eight of 64 x 64), since a decoder takes two hundred times as long to make them again as zlib to
unpack them, and a new verifier needs them all. Not the decoder's state, which is larger than all else together
(0.7 MB) and is needed only where a branch grows. A unit that was left as a latent has no frames until somebody looks
at it.

**How exact it is.** Which siblings were denoised in step is not part of the key, nor is the device: they decide the
rounding of floating-point sums, and nothing else. A unit that was sampled with other siblings, or on a GPU, may
differ from the one that a search would have made itself in the last bits.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import numpy as safe_numpy
from safetensors import torch as safe_torch
from torch import Tensor

from framegrove.errors import UserError
from framegrove.search.tree import Latent

Frames = npt.NDArray[np.uint8]

FILE = "branches.sqlite"
_VERSION = 1
_PATIENCE_S = 60.0  # for another process that writes
_OPEN_GROUNDS = 64  # whose lookups are remembered: an evaluation goes prompt by prompt
_COMPRESSION = 6  # of zlib

_TABLES = """
CREATE TABLE IF NOT EXISTS grounds (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE, note TEXT);
CREATE TABLE IF NOT EXISTS judges (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS units (
    ground INTEGER NOT NULL, branch TEXT NOT NULL, latent BLOB NOT NULL, frames BLOB NOT NULL,
    UNIQUE (ground, branch)
);
CREATE TABLE IF NOT EXISTS verdicts (
    ground INTEGER NOT NULL, branch TEXT NOT NULL, judge INTEGER NOT NULL, asked TEXT NOT NULL, said TEXT NOT NULL,
    PRIMARY KEY (ground, branch, judge, asked)
) WITHOUT ROWID;
"""


class BranchCache:
    """The branches and verdicts in ``folder``, which is made if it is missing. Use as a context manager, or ``close``.

    ``added`` counts what this process has put in: units, and verdicts by judge. Raises UserError, in one sentence, for
    a folder that cannot be used.

    >>> with BranchCache(Path("runs/branches")) as cache:
    ...     ground = cache.ground({"prompt": "a red 3 moves up and down", "seed": 7})
    ...     judge = cache.judge({"kind": "signals"})
    ...     ground.verdict(Latent((0,), 2), judge, "image")
    """

    def __init__(self, folder: Path) -> None:
        self.added: Counter[str] = Counter()
        self._file = folder / FILE
        self._grounds: OrderedDict[str, Ground] = OrderedDict()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._file, timeout=_PATIENCE_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"no cache of branches can be made at {folder} ({error}): choose another folder") from None
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. What was kept is there already."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ground(self, facts: Mapping[str, Any]) -> Ground:
        """All branches of which ``facts``, JSON values, decide everything but the path."""
        key = _canonical(facts)
        if key not in self._grounds:
            self._grounds[key] = Ground(self, self._numbered("grounds", key))
            if len(self._grounds) > _OPEN_GROUNDS:
                self._grounds.popitem(last=False)
        self._grounds.move_to_end(key)
        return self._grounds[key]

    def judge(self, facts: Mapping[str, Any]) -> int:
        """The number of whoever gives verdicts and is told from others by ``facts``, JSON values."""
        return self._numbered("judges", _canonical(facts))

    def find(self, query: str, *values: Any) -> Any | None:
        """The first row that a query finds, None if there is none."""
        return self._database.execute(query, values).fetchone()

    def write(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        """Change the cache by all of these rows or, if the process dies, by none."""
        with self._writing():
            self._database.executemany(query, rows)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _prepare(self) -> None:
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the newest entries, whole
            with self._writing():
                (version,) = self._database.execute("PRAGMA user_version").fetchone()
                if version not in (0, _VERSION):
                    raise UserError(
                        f"{self._file} is a cache of version {version}, this program keeps version {_VERSION}: choose "
                        "another folder, or remove it"
                    )
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._file} is no cache of branches ({error}): choose another folder") from None

    def _numbered(self, table: str, facts: str) -> int:
        look = f"SELECT id FROM {table} WHERE facts = ?"
        found = self.find(look, facts)
        if found is None:
            self.write(f"INSERT OR IGNORE INTO {table} (facts) VALUES (?)", [(facts,)])
            found = self.find(look, facts)
        assert found is not None
        return int(found[0])


class Ground:
    """All branches that one prompt, seed, size and model span, as far as they are in a cache.

    What was found once is remembered, so that a second search over the same ground asks the disk for nothing. Nothing
    is ever taken out of a cache, so what is remembered stays true.
    """

    def __init__(self, cache: BranchCache, number: int) -> None:
        self._cache = cache
        self.number = number
        """Tells it from the others in this cache."""
        self._there: set[Latent] = set()
        self._said: dict[tuple[Latent, int, str], Any] = {}

    @property
    def note(self) -> Any | None:
        """What was noted of the ground as a whole, None if nothing was."""
        (note,) = self._cache.find("SELECT note FROM grounds WHERE id = ?", self.number) or (None,)
        return json.loads(note) if note is not None else None

    @note.setter
    def note(self, value: Any) -> None:
        self._cache.write("UPDATE grounds SET note = ? WHERE id = ?", [(json.dumps(value), self.number)])

    def has(self, branch: Latent) -> bool:
        """Whether the newest unit of a branch, up to this stage, is there."""
        if branch not in self._there:
            row = self._cache.find("SELECT 1 FROM units WHERE ground = ? AND branch = ?", self.number, branch.name)
            if row is None:
                return False
            self._there.add(branch)
        return True

    def latent(self, branch: Latent) -> Tensor:
        """The latent of a unit that is there, as it was sampled."""
        return safe_torch.load(self._column("latent", branch))["x"]

    def has_frames(self, branch: Latent) -> bool:
        """Whether a unit that is there has been decoded."""
        return bool(self._column("length(frames)", branch))

    def frames(self, branch: Latent) -> Frames:
        """The frames of a unit that is there, uint8 (T, H, W, 3); of a draft its preview."""
        return safe_numpy.load(zlib.decompress(self._column("frames", branch)))["frames"]

    def keep(self, units: Mapping[Latent, tuple[Tensor, Frames | None]]) -> None:
        """Keep the latents and frames of some units, all or none. What is there already stays.

        There are no frames (None) of a unit that was left as a latent; they are kept later by ``decoded``.
        """
        rows = [
            (self.number, branch.name, safe_torch.save({"x": latent.contiguous()}), _packed(frames))
            for branch, (latent, frames) in units.items()
        ]
        self._cache.write("INSERT OR IGNORE INTO units (ground, branch, latent, frames) VALUES (?, ?, ?, ?)", rows)
        self._cache.added["units"] += len(rows)
        self._there |= units.keys()

    def decoded(self, frames: Mapping[Latent, Frames]) -> None:
        """Keep the frames of some units that are there and had none, all or none."""
        rows = [(_packed(each), self.number, branch.name) for branch, each in frames.items()]
        query = "UPDATE units SET frames = ? WHERE ground = ? AND branch = ? AND length(frames) = 0"
        self._cache.write(query, rows)

    def verdict(self, branch: Latent, judge: int, asked: str) -> Any | None:
        """What a judge said of a branch when it was asked this, a JSON value; None if it never was."""
        key = (branch, judge, asked)
        if key not in self._said:
            row = self._cache.find(
                "SELECT said FROM verdicts WHERE ground = ? AND branch = ? AND judge = ? AND asked = ?",
                *(self.number, branch.name, judge, asked),
            )
            if row is None:
                return None
            self._said[key] = json.loads(row[0])
        return self._said[key]

    def keep_verdict(self, branch: Latent, judge: int, asked: str, said: Any) -> None:
        """Keep what a judge said, a JSON value. What is there already stays."""
        row = (self.number, branch.name, judge, asked, json.dumps(said))
        self._cache.write("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", [row])
        self._cache.added["verdicts"] += 1

    def _column(self, column: str, branch: Latent) -> Any:
        query = f"SELECT {column} FROM units WHERE ground = ? AND branch = ?"
        row = self._cache.find(query, self.number, branch.name)
        if row is None:
            raise KeyError(f"{branch.name} is not in the cache")
        return row[0]


def _packed(frames: Frames | None) -> bytes:
    """Frames as they are kept; nothing where there are none."""
    return (
        b""
        if frames is None
        else zlib.compress(safe_numpy.save({"frames": np.ascontiguousarray(frames)}), _COMPRESSION)
    )


def _canonical(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)
