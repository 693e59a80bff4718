"""Lists of captioned files: both columns are text as written, and what is wrong is reported by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from framegrove.data.ingest import DataError
from framegrove.data.lists import read_list

CASES = Path(__file__).parents[1] / "cases"
TRICKY = [
    ("0001", "12"),
    ("1e5.mp4", "true"),
    ("NA", "NA"),
    ("null", "null"),
    ("2024-01-01", "007"),
    ("a b.mp4", "a, b"),
    ("c.mp4", 'she says "hello"'),
    ("d.mp4", "two\nlines"),
    ("e.mp4", ""),
    ("f.mp4", "un café, 猫, \U0001f431"),
]

NUMBERS = [("7", "1.10"), ("true", "")]


def read(path: Path) -> list[tuple[str, str]]:
    return [(str(line.path.relative_to(path.parent)), line.caption) for line in read_list(path)]


def write(path: Path, lines: list[tuple[str, str]]) -> Path:
    rows = [{"id": number, "video": video, "caption": caption} for number, (video, caption) in enumerate(lines)]
    if path.suffix.lower() in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        writer = {".csv": pyarrow.csv.write_csv, ".parquet": pq.write_table}[path.suffix.lower()]
        writer(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["list.csv", "list.CSV", "list.jsonl", "list.Json", "list.parquet", "list.PARQUET"])
def test_text_stays_as_it_is_written(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, TRICKY)) == TRICKY


def test_paths_start_at_the_lists_folder(tmp_path: Path) -> None:
    first, second = read_list(write(tmp_path / "list.csv", [("a.mp4", "x"), ("/far/b.mp4", "y")]))
    assert (first.id, first.path, first.caption) == (0, tmp_path / "a.mp4", "x")
    assert (second.id, second.path) == (1, Path("/far/b.mp4"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zeros.csv", [("0001", "a"), ("0002", "b")]),
        ("mixed.csv", [("a.mp4", "12"), ("b.mp4", "a dog")]),
        ("UPPER.CSV", [("a.mp4", "x")]),
    ],
)
def test_cases_that_are_read(name: str, expected: list[tuple[str, str]]) -> None:
    assert read(CASES / name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latin1.csv", r"latin1\.csv is not UTF-8: line 2 of the file holds the byte 0xe9, as Latin-1"),
        ("emptycell.csv", r"emptycell\.csv: line 1 after the header \(line 2 of the file\) has no file name"),
        ("array.json", r"array\.json holds an array: write one object a line"),
    ],
)
def test_cases_that_are_refused(name: str, message: str) -> None:
    refused(CASES / name, message)


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_list(path)
    assert "\n" not in str(caught.value)
    assert "b'" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_line_breaks_in_captions_at_any_size(suffix: str, tmp_path: Path) -> None:
    lines = [(f"{number}.mp4", f"first line of {number}\nsecond line\r\n" + "long " * 70) for number in range(4_000)]
    path = write(tmp_path / f"list{suffix}", lines)
    assert suffix == ".parquet" or path.stat().st_size > 1_500_000
    assert read(path) == lines


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bom.csv", b"\xef\xbb\xbfvideo,caption\na.mp4,x\n", [("a.mp4", "x")]),
        ("bom.jsonl", b'\xef\xbb\xbf{"video": "a.mp4", "caption": "x"}\n', [("a.mp4", "x")]),
        ("windows.csv", b"caption, video\r\nx,a.mp4\r\n\r\ny,b.mp4\r\n", [("a.mp4", "x"), ("b.mp4", "y")]),
        ("more.csv", b'id,video,size,caption\n"3",a.mp4,"1,5",x\n', [("a.mp4", "x")]),
        (
            "numbers.jsonl",
            b'{"video": 7, "caption": 1.10}\n\n{"caption": null, "video": true}',
            [("7", "1.10"), ("true", "")],
        ),
        ("separator.jsonl", '{"video": "a.mp4", "caption": "x\u2028y"}\n'.encode(), [("a.mp4", "x\u2028y")]),
    ],
)
def test_what_is_read(name: str, content: bytes, expected: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"", r"give a \.csv, \.jsonl, \.json, \.parquet file"),
        (
            "list.csv",
            b"file,caption\na.mp4,b\n",
            "needs the columns video and caption: video is missing, there is file, ",
        ),
        ("list.csv", b"video;caption\na.mp4;b\n", "video is missing, there is video;caption"),
        ("list.csv", b"", "there is none"),
        ("list.csv", b"video,caption\n", "lists no videos"),
        ("list.jsonl", b"\n\n", "lists no videos"),
        (
            "list.csv",
            b"video,caption\na.mp4,x\nb.mp4,a dog, running\n",
            r"line 2 after .* \(line 3 .* has 3 cells where",
        ),
        (
            "list.csv",
            b'video,caption\n"a\n.mp4",x\nb.mp4\n',
            r"line 2 after the header \(line 4 of the file\) has 1 cells",
        ),
        (
            "list.csv",
            b'video,caption\na.mp4,"x\n',
            "csv is malformed before line 3 .*a double quote that is not closed",
        ),
        ("list.csv", b'video,caption\na.mp4,"' + b"x" * 200_000 + b'"\n', "malformed"),
        (
            "list.csv",
            b"video,caption\n,a\n  ,b\nc.mp4,c\n,d\n",
            r"line 1 after .* has no file name .*\(the first of 3 such lines\)",
        ),
        ("list.csv", b"video,caption\na.mp4,x\nb\0.mp4,x\n", "line 2 after the header .* holds a NUL"),
        ("list.csv", "video,caption\na,b\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("list.csv", b"video,caption\na.mp4,\xff\n", "line 2 of the file holds the byte 0xff"),
        (
            "list.jsonl",
            b'{"video": "a", "caption": "b"}\n{"video": "a", "caption": "\xe9"}',
            "line 2 of the file holds",
        ),
        (
            "list.jsonl",
            b'{"video": "a", "caption": "b"}\n{"video"',
            "line 2 is not a JSON object: write one object a line",
        ),
        ("list.jsonl", b"[" * 100_000, "holds an array"),
        ("list.jsonl", b'{"a":' * 100_000, "line 1 is not a JSON object"),
        (
            "list.jsonl",
            b'{"video": "a", "caption": ["b"]}\n',
            "line 1 holds a list in the column caption, which must be text",
        ),
        ("list.jsonl", b'{"video": "a"}\n', "caption is missing in line 1, there is video"),
        (
            "list.jsonl",
            b'{"video": "a", "caption": "half \\ud83d"}\n',
            "line 1 holds a NUL or half a character in the column c",
        ),
        ("list.jsonl", b'{"video": null, "caption": "b"}\n', "line 1 has no file name"),
        ("list.parquet", b"no parquet", "cannot be read as a list"),
    ],
)
def test_what_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_an_absent_list_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.csv", r"absent\.csv cannot be read as a list")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, 20]), ["1", "20"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["x", None]), ["x", ""]),
        (pa.array([None, None]), ["", ""]),
        (pa.array([b"caf\xc3\xa9", b"x"]), ["café", "x"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
    ],
)
def test_parquet_columns_that_are_text(column: Any, expected: list[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": ["a", "b"], "caption": column}), tmp_path / "list.parquet")
    assert [line.caption for line in read_list(tmp_path / "list.parquet")] == expected


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"x", b"caf\xe9"]), r"row 2 of the column caption is not UTF-8 \(the byte 0xe9\)"),
        (pa.array([b"x", b"caf\xe9"]).view(pa.string()), "row 2 of the column caption is not UTF-8"),
        (pa.array([1.5, 2.0]), "the column caption is of type double: store it as text"),
        (pa.array([["x"], ["y"]]), "of type list<.*: store it as text"),
    ],
)
def test_parquet_columns_that_are_not(column: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": ["a", "b"], "caption": column}), tmp_path / "list.parquet")
    refused(tmp_path / "list.parquet", message)


def test_parquet_rows_without_a_file_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": ["a", None, ""], "caption": ["x", "y", "z"]}), tmp_path / "list.parquet")
    refused(tmp_path / "list.parquet", r"row 2 has no file name in the column video \(the first of 2 such lines\)")
