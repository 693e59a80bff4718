"""What there is to prepare: folders, lists, tars and NeMo Curator's output, here, on S3 and by HTTP."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from framegrove.config.curate import CurateConfig
from framegrove.curation import remote
from framegrove.curation.clip import Clip, Rejection
from framegrove.curation.entries import Entry, read_entries, sidecar_caption
from framegrove.curation.footage import Finished, Footage, Known
from framegrove.curation.remote import Unreachable
from framegrove.data.ingest import DataError
from tests.films import grey_film
from tests.storage import s3_bucket


def make_folder(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    grey_film(folder / "a.mp4", 3)
    grey_film(folder / "deep" / "b.mp4", 3)
    (folder / "a.txt").write_text(" a grey sheet \n")
    (folder / "deep" / "b.json").write_text(json.dumps({"caption": "a darker sheet"}))
    (folder / "deep" / "c.mp4").write_text("no video")
    (folder / ".hidden.mp4").write_text("")
    (folder / "notes.txt").write_text("belongs to nothing")
    return folder


def told(entries: list[Entry], root: str) -> list[tuple[str, str, str]]:
    return [(entry.path.removeprefix(root).lstrip("/"), entry.caption, entry.caption_source) for entry in entries]


IN_FOLDER = [
    ("a.mp4", "a grey sheet", "sidecar"),
    ("deep/b.mp4", "a darker sheet", "sidecar"),
    ("deep/c.mp4", "", ""),
    ("notes.txt", "", ""),
]


def test_a_folder_gives_every_file_and_the_captions_beside_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "footage")
    assert told(read_entries(str(folder)), str(folder)) == IN_FOLDER
    assert sidecar_caption(str(folder / "deep" / "b.mp4")) == "a darker sheet"
    assert sidecar_caption(str(folder / "deep" / "c.mp4")) == ""


def test_lists_cut_pieces_and_name_urls(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("video,caption,start,end\na.mp4,x,1.5,\ns3://bucket/b.mp4,,,2\n")
    (tmp_path / "list.jsonl").write_text('{"video": "a.mp4", "caption": "x", "start": 1.5}\n')
    first, second = read_entries(str(tmp_path / "list.csv"))
    assert first == Entry(str(tmp_path / "a.mp4"), "x", "list", 1.5, None)
    assert second == Entry("s3://bucket/b.mp4", "", "", 0.0, 2.0)
    assert read_entries(str(tmp_path / "list.jsonl")) == [first]
    for line, message in {
        "a.mp4,x,soon,": "line 1 after the header .* has 'soon' in the column start: give seconds",
        "a.mp4,x,-1,": "has '-1' in the column start",
        "a.mp4,x,3,2": "ends at 2 seconds, and begins at 3",
    }.items():
        (tmp_path / "list.csv").write_text(f"video,caption,start,end\n{line}\n")
        with pytest.raises(DataError, match=message):
            read_entries(str(tmp_path / "list.csv"))


def make_tar(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "a.mp4", "000/0001.mp4")
        tar.add(folder / "a.txt", "000/0001.txt")
        tar.add(folder / "deep" / "b.mp4", "000/0002.mp4")
        tar.add(folder / "deep" / "b.json", "000/0002.json")
    return path


def test_tars_give_their_samples(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "footage")
    for number in (8, 9, 10):
        make_tar(tmp_path / f"set-{number:04d}.tar", folder)
    entries = read_entries(str(tmp_path / "set-{0008..0010}.tar"))
    assert len(entries) == 6
    assert told(entries[:2], str(tmp_path)) == [
        ("set-0008.tar#000/0001.mp4", "a grey sheet", "sidecar"),
        ("set-0008.tar#000/0002.mp4", "a darker sheet", "sidecar"),
    ]
    with remote.fetched(entries[3].location, entries[3].part) as path:
        assert path.read_bytes() == (folder / "deep" / "b.mp4").read_bytes()
    assert not path.exists()
    (tmp_path / "bad.tar").write_text("no tar at all" * 100)
    with pytest.raises(DataError, match=r"bad\.tar cannot be read as a tar of samples"):
        read_entries(str(tmp_path / "bad.tar"))


def test_the_output_of_nemo_curator(tmp_path: Path) -> None:
    """The layout of its ClipWriterStage: clips/UUID.mp4 and metas/v0/UUID.json."""
    (tmp_path / "metas" / "v0").mkdir(parents=True)
    (tmp_path / "clips").mkdir()
    first = {"start_frame": 0, "end_frame": 30, "qwen_caption": "a man", "qwen_lm_enhanced_caption": "a tall man"}
    halves = [
        {"start_frame": 0, "end_frame": 48, "qwen_caption": "x"},
        {"start_frame": 48, "end_frame": 96, "qwen_caption": "y"},
    ]
    told_of = [("u1", [0.0, 5.0], [first], True), ("u2", [5.0, 9.0], halves, True), ("u3", [9.0, 12.0], [], False)]
    for name, span, captions, valid in told_of:
        facts = {
            "span_uuid": name, "source_video": "/raw/long.mp4", "duration_span": span, "framerate": 24.0,
            "clip_location": f"/elsewhere/clips/{name}.mp4", "windows": captions, "valid": valid,
        }  # fmt: skip
        (tmp_path / "metas" / "v0" / f"{name}.json").write_text(json.dumps(facts))
        grey_film(tmp_path / "clips" / f"{name}.mp4", 4)
    entries = read_entries(str(tmp_path))
    assert [(Path(each.location).name, each.caption, each.start, each.end, each.origin_start) for each in entries] == [
        ("u1.mp4", "a tall man", 0.0, None, 0.0),
        ("u2.mp4", "x", 0.0, 2.0, 5.0),
        ("u2.mp4", "y", 2.0, 4.0, 5.0),
    ]
    assert {each.origin for each in entries} == {"/raw/long.mp4"}
    assert entries[0].caption_source == "qwen_lm"


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not there: give a folder, a tar, or a list"):
        read_entries(str(tmp_path / "nowhere"))
    with pytest.raises(Unreachable, match=r"list\.csv cannot be read \(No such file"):
        read_entries(str(tmp_path / "list.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no videos or pictures"):
        read_entries(str(tmp_path / "empty"))
    with pytest.raises(Unreachable, match=r"foo://x cannot be read.*foo"):
        read_entries("foo://x")


@pytest.fixture
def bucket() -> Iterator[str]:
    """The address of an S3 server on this machine, with an empty bucket."""
    with s3_bucket() as address:
        yield address


def upload(endpoint: str, folder: Path, prefix: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "lab", f"{prefix}/{path.relative_to(folder).as_posix()}")


def test_footage_on_s3(bucket: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "footage")
    make_tar(folder / "set.tar", folder)
    (folder / "list.csv").write_text("video,caption\na.mp4,\ndeep/b.mp4,of the list\nabsent.mp4,gone\n")
    upload(bucket, folder, "raw")
    entries = read_entries("s3://lab/raw")
    assert [each for each in told(entries, "s3://lab/raw") if each in IN_FOLDER] == IN_FOLDER
    listed = read_entries("s3://lab/raw/list.csv")
    assert [each.location for each in listed] == [
        f"s3://lab/raw/{name}" for name in ("a.mp4", "deep/b.mp4", "absent.mp4")
    ]
    assert sidecar_caption(listed[0].location) == "a grey sheet"
    with remote.fetched(listed[1].location) as path:
        assert path.read_bytes() == (folder / "deep" / "b.mp4").read_bytes()
    assert remote.version("s3://lab/raw/list.csv") != remote.version(listed[1].location)
    with (
        pytest.raises(Unreachable, match=r"s3://lab/raw/absent\.mp4 cannot be read"),
        remote.fetched(listed[2].location),
    ):
        pass
    tarred = read_entries("s3://lab/raw/set.tar")
    with remote.fetched(tarred[0].location, tarred[0].part) as path:
        assert path.read_bytes() == (folder / "a.mp4").read_bytes()
    footage = Footage(CurateConfig(sizes=((64, 64),), units=2), "v", 8)
    clip, end = footage.clips(listed[0])
    assert isinstance(clip, Clip)
    assert (clip.path, clip.caption, clip.caption_source) == ("s3://lab/raw/a.mp4", "a grey sheet", "sidecar")
    assert isinstance(end, Finished)
    rejection, end = footage.clips(Entry("s3://lab/raw/deep/c.mp4"))
    assert isinstance(rejection, Rejection)
    assert (rejection.path, rejection.stage) == ("s3://lab/raw/deep/c.mp4", "probe")
    assert rejection.reason.startswith("cannot be read as a video (")  # no name of a temporary copy
    assert isinstance(end, Finished)
    assert not end.again
    rejection, end = footage.clips(listed[2])
    assert isinstance(rejection, Rejection)
    assert rejection.stage == "read"
    assert isinstance(end, Finished)
    assert end.again  # it may be there another time
    (*_, end) = footage.clips(listed[0])
    assert isinstance(end, Finished)
    (end,) = replace(footage, known=Known(contents={end.content})).clips(listed[0])
    assert isinstance(end, Finished)
    assert end.same
    with pytest.raises(Unreachable, match=r"s3://absent/x\.csv cannot be read"):
        read_entries("s3://absent/x.csv")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_footage_by_http(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "footage")
    (folder / "list.jsonl").write_text('{"video": "a.mp4", "caption": "x"}\n')
    with served(folder) as url:
        (entry,) = read_entries(f"{url}/list.jsonl")
        assert entry.location == f"{url}/a.mp4"
        with remote.fetched(entry.location) as path:
            assert path.read_bytes() == (folder / "a.mp4").read_bytes()
        with pytest.raises(Unreachable, match=r"b\.mp4 cannot be read"), remote.fetched(f"{url}/b.mp4"):
            pass


def test_a_sidecar_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "footage")
    (folder / "deep" / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json is not a JSON object"):
        read_entries(str(folder))
