"""Rows that are kept as they come in, so that what was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from framegrove import files
from framegrove.errors import UserError


class LedgerRow(Protocol):
    """A row of a ledger."""

    @property
    def key(self) -> tuple[int, Hashable]:
        """The prompt and the setting that it is about."""
        ...

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        ...


AnyRow = TypeVar("AnyRow", bound=LedgerRow)


class Ledger(Generic[AnyRow]):
    """Rows as lines of JSON, on the disk one by one; the first line says what is measured.

    ``read`` makes a row of a line. Raises UserError when the file holds rows of something else. A torn last line is
    dropped.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], read: Callable[[Mapping[str, Any]], AnyRow]) -> None:
        self._path, wanted = path, files.identity(identity)
        lines = files.whole_lines(path)
        other = files.difference(lines[0], wanted) if lines else None
        if other is not None:
            raise UserError(
                f"{path} holds results of another evaluation, {other}: choose another --out, or remove the file"
            )
        self.rows = [read(line) for line in lines[1:]]
        self._there = {row.key for row in self.rows}
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append_line(path, wanted)

    def has(self, prompt: int, setting: Hashable) -> bool:
        """Whether the row of this prompt and setting is there."""
        return (prompt, setting) in self._there

    def add(self, row: AnyRow) -> None:
        """Keep a row; when this returns it is on the disk."""
        files.append_line(self._path, row.as_json())
        self.rows.append(row)
        self._there.add(row.key)
