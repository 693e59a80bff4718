"""What people preferred: a file of pairs of videos made for the same prompt, and the better one of each.

CSV with the columns prompt, a, b and choice, or a JSON object with these keys on every line. ``a`` and ``b`` are video
files, as paths from the file's own folder; ``choice`` is a, b or tie.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from framegrove.errors import UserError

Choice = Literal["a", "b", "tie"]
_KEYS = ("prompt", "a", "b", "choice")


@dataclass(frozen=True)
class HumanPair:
    """Two videos for one prompt, and which of them was preferred."""

    prompt: str
    a: Path
    b: Path
    choice: Choice

    @property
    def decided(self) -> tuple[Path, Path] | None:
        """The better video and the worse one, None for a tie."""
        return {"a": (self.a, self.b), "b": (self.b, self.a)}.get(self.choice)


def read_pairs(file: Path) -> list[HumanPair]:
    """The pairs of a file. Raises UserError, which names the line, for what is none and for videos that are missing."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets begin their files with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no pairs can be read from {file} ({getattr(error, 'strerror', None) or error})") from None
    pairs = [_pair(file, number, row) for number, row in _rows(file, text)]
    if not pairs:
        raise UserError(f"{file} has no pair in it: write one a line, with {', '.join(_KEYS)}")
    if all(pair.decided is None for pair in pairs):
        raise UserError(f"{file} has nothing but ties: a judge is held against choices")
    return pairs


def _rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The rows of a file with the numbers of their lines."""
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"line {reader.line_num} of {file} is no CSV ({error})") from None
        return
    for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand in a prompt
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                why = getattr(error, "msg", None) or error
                raise UserError(f"line {number} of {file} is no JSON ({why}); a CSV file ends in .csv") from None


def _pair(file: Path, number: int, row: Any) -> HumanPair:
    where = f"line {number} of {file}"
    if not isinstance(row, Mapping) or any(not isinstance(row.get(key), str) for key in _KEYS):
        raise UserError(f"{where} is no pair: it needs {', '.join(_KEYS)}")
    choice = row["choice"].strip().lower()
    if choice not in ("a", "b", "tie"):
        raise UserError(f"{where}: the choice is {row['choice']!r}, and must be a, b or tie")
    if not row["prompt"].strip():
        raise UserError(f"{where} has no prompt: judges are told what the videos should show")
    a, b = (file.parent / row[key].strip() for key in ("a", "b"))
    for video in (a, b):
        if not os.path.isfile(video):  # of a name that no file system takes, too
            raise UserError(f"{where}: there is no video at {str(video)[:300]}")
    if a == b:
        raise UserError(f"{where} compares {a} with itself")
    return HumanPair(row["prompt"].strip(), a, b, cast(Choice, choice))
