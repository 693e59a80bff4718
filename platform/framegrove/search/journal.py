"""The durable record of a search: what is finished stays finished, whatever dies.

An append-only file of JSON lines, each on the disk before its work counts as finished. The first line identifies the
search; a search with another identity is refused. A last line that was torn by a crash is dropped, and its work done
again: everything in here can be computed again with the same result. Latents are kept by a LatentStore, under the names
of tree.Latent, always before the line that says that they are there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from framegrove import files
from framegrove.errors import UserError
from framegrove.search.protocols import WorkFailed
from framegrove.search.tree import Latent, Result
from framegrove.search.workers import GENERATORS
from framegrove.types import Assessment, Cost, Sampled, SampleWork, Scored, ScoreWork

JOURNAL = "journal.jsonl"  # in the folder of a search
_VERSION = 5


class JournalError(UserError):
    """A journal that cannot be used; the message is one sentence for the user."""


class LatentStore(Protocol):
    """Where the caller keeps what handles stand for. ``name`` is a file name, such as ``2-0-1.stage2``."""

    async def save(self, name: str, handle: Any) -> None:
        """Keep it durably; saving a name again replaces it, by the same content. Raises WorkFailed if it is lost."""
        ...

    async def load(self, name: str) -> Any | None:
        """A handle for it, None if it is not there: the search then samples it again."""
        ...


@dataclass(frozen=True)
class Restored:
    """What was done before: results with their handles, in the order they came in, and what each pool wasted."""

    results: tuple[tuple[Result, tuple[Any, ...]], ...]
    wasted: tuple[tuple[str, Cost], ...]


class Journal:
    """The journal of one search, at ``path``, begun or continued. Use as a context manager, or ``close`` it.

    ``identity`` holds everything that decides the outcome (prompt, seed, model, configuration), as JSON values. Raises
    JournalError if the file is the journal of another search, or no journal.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], store: LatentStore) -> None:
        self._path, self._store = Path(path), store
        self._lines: list[Any] = []
        self._next: _Batch | None = None  # what is written once the disk is free
        self._writing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)  # its own, so that closing can wait for it
        header = {"journal": _VERSION, "identity": files.identity(identity)}
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lines = self._read()
            if self._lines:
                _check_header(self._lines.pop(0), header, self._path)
            else:
                self._write([json.dumps(header)])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, after what is being written. Everything that was recorded is on the disk already."""
        self._thread.shutdown(wait=True)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def restore(self) -> Restored:
        """What was finished when the file was opened. Samples whose latents are gone were for nothing.

        A work can stand there twice: what it had made was lost, and it was done again.
        """
        results: list[tuple[Result, tuple[Any, ...]]] = []
        wasted = []
        for number, line in enumerate(self._lines, start=2):
            try:
                entry = _parse(line)
            except (KeyError, TypeError, ValueError, IndexError):
                raise JournalError(f"{self._path}, line {number} is no entry of a journal: {_REMOVE}") from None
            if isinstance(entry, tuple):
                wasted.append(entry)
            elif isinstance(entry, Scored):
                results.append((entry, ()))
            else:
                handles = [await self._store.load(name) for name in _names(entry.work)]
                if all(handle is not None for handle in handles):
                    results.append((entry, tuple(handles)))
                else:
                    wasted.append((GENERATORS, entry.cost))
        return Restored(tuple(results), tuple(wasted))

    async def record(self, result: Result) -> None:
        """Keep a result; when this returns it survives anything but the disk. Raises WorkFailed if it is lost."""
        if isinstance(result, Sampled):
            for name, handle in zip(_names(result.work), result.handles, strict=True):
                try:
                    await self._store.save(name, handle)
                except WorkFailed as failure:
                    raise WorkFailed(str(failure), result.cost) from failure
        await self._append(_line(result))

    async def record_waste(self, pool: str, cost: Cost) -> None:
        """Keep what an attempt without a result has cost."""
        await self._append({"wasted": pool, "cost": _cost_line(cost)})

    async def _append(self, entry: Any) -> None:
        """Return once the entry is on the disk. Waiting for the disk is a thread's; one wait serves all who ask."""
        if self._next is None:
            self._next = _Batch()
        batch = self._next
        batch.lines.append(json.dumps(entry))
        async with self._writing:
            if batch.written is None:  # the first of them writes for all, and each learns how that went
                self._next = None
                batch.written = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch.lines)
            await asyncio.shield(batch.written)

    def _write(self, lines: Sequence[str]) -> None:
        """All of these lines, or none."""
        size = os.fstat(self._file).st_size
        try:
            files.write_all(self._file, "".join(f"{line}\n" for line in lines).encode())
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)  # the next line would begin in the middle of this one
            raise

    def _read(self) -> list[Any]:
        """The whole lines of the file; a torn last one is cut off, so that the next one starts on a line of its own."""
        data = self._path.read_bytes()
        *whole, torn = data.split(b"\n")
        entries = []
        for number, line in enumerate(whole, start=1):
            try:
                entries.append(json.loads(line))
            except ValueError:
                if number < len(whole) or torn:
                    raise JournalError(f"{self._path}, line {number} is damaged: {_REMOVE}") from None
                torn = line + b"\n"
        if torn:
            os.ftruncate(self._file, len(data) - len(torn))
        return entries


@dataclass
class _Batch:
    """Lines that are written together."""

    lines: list[str] = field(default_factory=list)
    written: asyncio.Future[None] | None = None


_REMOVE = "remove the file to search from the start"


def _check_header(found: Any, wanted: Mapping[str, Any], path: Path) -> None:
    if not isinstance(found, dict) or found.get("journal") != _VERSION or not isinstance(found.get("identity"), dict):
        raise JournalError(f"{path} is not a search journal of version {_VERSION}: choose another place, or remove it")
    other = files.difference(found["identity"], wanted["identity"])
    if other is not None:
        raise JournalError(f"{path} is the journal of another search, {other}: choose another place, or {_REMOVE}")


def _names(work: SampleWork) -> list[str]:
    return [Latent(path, work.last_stage).name for path in work.paths]


def _line(result: Result) -> dict[str, Any]:
    if isinstance(result, Sampled):
        work = result.work
        return {"sampled": work.paths, "stages": (work.first_stage, work.last_stage), "cost": _cost_line(result.cost)}
    score = result.work
    return {
        "scored": score.path,
        "assessment": score.assessment,
        "verifier": score.verifier,
        **({"against": score.against} if score.against else {}),
        "scores": result.scores,
        "mass": result.mass,
        "answers": result.answers,
        "cost": _cost_line(result.cost),
    }


def _cost_line(cost: Cost) -> tuple[int, int, float, int]:
    return cost.nfe, cost.flops, cost.seconds, cost.decoding


def _parse(line: dict[str, Any]) -> Result | tuple[str, Cost]:
    nfe, flops, seconds, decoding = line["cost"]
    cost = Cost(int(nfe), int(flops), float(seconds), int(decoding))
    if "wasted" in line:
        return str(line["wasted"]), cost
    if "scored" in line:
        against = tuple(map(_path, line.get("against", ())))
        work = ScoreWork(_path(line["scored"]), Assessment(line["assessment"]), str(line["verifier"]), against)
        mass = float(line["mass"]) if line["mass"] is not None else None
        return Scored(work, _numbers(line["scores"]), cost, mass, _numbers(line["answers"]))
    first, last = line["stages"]
    return Sampled(SampleWork(tuple(map(_path, line["sampled"])), int(first), int(last)), cost)


def _numbers(line: list[Any]) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(number)) for name, number in line)


def _path(line: list[Any]) -> tuple[int, ...]:
    return tuple(int(index) for index in line)
