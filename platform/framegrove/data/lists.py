"""Lists of captioned files. The columns ``video`` and ``caption`` are text exactly as written.

A csv file has a header and is comma-separated; quoted cells may hold commas, doubled quotes and line breaks. A jsonl
file (or .json) has one object a line. A parquet file has two columns of text. Columns ``start`` and ``end``, where
there are such, hold seconds and cut a piece out of the file; an empty one is the file's beginning or end. Further
columns are ignored. Text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framegrove.data.ingest import DataError

_COLUMNS = ("video", "caption")
_TIMES = ("start", "end")  # optional
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# Where it stands, for messages; the file's name; the caption; start and end as text.
Entry = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Listed:
    """An entry of a list: a video or picture file, what it shows, and the seconds between which it is wanted.

    ``id`` is its zero-based position in the list, ``location`` a path or a URL.
    """

    id: int
    location: str
    caption: str
    start: float = 0.0
    end: float | None = None

    @property
    def path(self) -> Path:
        """The location of a file on this machine."""
        return Path(self.location)


def read_list(path: Path, folder: str | None = None) -> list[Listed]:
    """The entries of a csv, jsonl or parquet file (see above); relative names start at ``folder``, or at the list's.

    Raises DataError, which names the line, for a list that cannot be read as it was meant.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path} is not a list of videos: give a {', '.join(_READERS)} file")
    try:
        entries = list(read(path))
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as a list ({reason})") from None
    if not entries:
        raise DataError(f"{path} lists no videos")
    _check(path, entries)
    result = []
    for number, (where, video, caption, *times) in enumerate(entries):
        start, end = (_seconds(path, where, column, text) for column, text in zip(_TIMES, times, strict=True))
        if end is not None and end <= (start or 0.0):
            raise DataError(f"{path}: {where} ends at {end:g} seconds, and begins at {start or 0:g}: correct it")
        result.append(Listed(number, _located(path, folder, video), caption, start or 0.0, end))
    return result


def _located(path: Path, folder: str | None, video: str) -> str:
    if "://" in video:
        return video
    return f"{folder.rstrip('/')}/{video}" if folder is not None else str(path.parent / video)


def _seconds(path: Path, where: str, column: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{path}: {where} has {text[:40]!r} in the column {column}: give seconds, as in 12.5")
    return seconds


def _check(path: Path, entries: Sequence[Entry]) -> None:
    """Raise DataError for entries without a file name, and for text that no file or tokenizer can hold."""
    unnamed = [where for where, video, *_ in entries if not video.strip()]
    if unnamed:
        more = f" (the first of {len(unnamed)} such lines)" if len(unnamed) > 1 else ""
        raise DataError(f"{path}: {unnamed[0]} has no file name in the column video{more}: add it or remove the line")
    for where, video, caption, *_ in entries:
        for column, text in zip(_COLUMNS, (video, caption), strict=True):
            if not _writable(text):
                raise DataError(f"{path}: {where} holds a NUL or half a character in the column {column}: correct it")


def _writable(text: str) -> bool:
    """Whether text can be a file's name or be written as UTF-8; JSON's escapes allow more than that."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _read_csv(path: Path) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        video, caption = _places(path, header)
        number = 0
        begins = reader.line_num + 1  # quoted line breaks make an entry longer than a line
        for cells in reader:
            if cells:
                number += 1
                where = f"line {number} after the header (line {begins} of the file)"
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}: {where} has {len(cells)} cells where the header has {len(header)}: put captions with "
                        "commas into double quotes"
                    )
                start, end = (cells[header.index(name)] if name in header else "" for name in _TIMES)
                yield where, cells[video], cells[caption], start, end
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: the csv is malformed before line {reader.line_num + 1} of the file ({error}): look for a double "
            "quote that is not closed, or not doubled inside a quoted cell"
        ) from None


def _read_jsonl(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        if number == 1 and line.lstrip().startswith("["):
            raise DataError(f"{path} holds an array: write one object a line, without brackets and commas around them")
        try:
            # Numbers stay as they are written: text is text.
            entry = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {where} is not a JSON object: write one object a line")
        _places(path, list(entry), f" in {where}")
        texts = [_json_text(path, where, column, entry.get(column)) for column in (*_COLUMNS, *_TIMES)]
        yield where, texts[0], texts[1], texts[2], texts[3]


def _json_text(path: Path, where: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise DataError(f"{path}: {where} holds a {type(value).__name__} in the column {column}, which must be text")
    return value


def _read_parquet(path: Path) -> Iterator[Entry]:
    with pq.ParquetFile(path) as file:
        _places(path, file.schema_arrow.names)
        table = file.read(columns=[*_COLUMNS, *(name for name in _TIMES if name in file.schema_arrow.names)])
    texts = [_column_text(path, name, table.column(name)) for name in _COLUMNS]
    texts += [
        _number_text(table.column(name)) if name in table.column_names else itertools.repeat("") for name in _TIMES
    ]
    for number, (video, caption, start, end) in enumerate(zip(*texts, strict=False), start=1):
        yield f"row {number}", video, caption, start, end


def _number_text(column: pa.ChunkedArray) -> Iterator[str]:
    return ("" if value is None else str(value) for value in column.to_pylist())


def _column_text(path: Path, name: str, column: pa.ChunkedArray) -> Iterator[str]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        column = column.cast(pa.string())
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not (any(kind(column.type) for kind in kinds) or pa.types.is_null(column.type)):
        raise DataError(f"{path}: the column {name} is of type {column.type}: store it as text")
    # As bytes, because a column of strings may hold bytes that are none.
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist(), start=1):
        try:
            yield (value or b"").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: row {row} of the column {name} is not UTF-8 ({_byte(error)})") from None


def _text(path: Path) -> str:
    """A whole text file in UTF-8. Raises DataError, which names the line that is not."""
    data = path.read_bytes()
    if data.startswith(_UTF16):
        raise DataError(f"{path} is UTF-16: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} of the file holds {_byte(error)}, as Latin-1 (Windows-1252) has them: "
            "save it as UTF-8"
        ) from None


def _byte(error: UnicodeDecodeError) -> str:
    return f"the byte 0x{error.object[error.start]:02x}"


def _places(path: Path, names: Sequence[str], where: str = "") -> tuple[int, int]:
    """Where the two columns are. Raises DataError if one is missing."""
    for column in _COLUMNS:
        if column not in names:
            found = ", ".join(map(str, names))[:80] or "none"
            raise DataError(f"{path} needs the columns video and caption: {column} is missing{where}, there is {found}")
    return names.index(_COLUMNS[0]), names.index(_COLUMNS[1])


_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}
