"""What there is to prepare: the entries of a folder, a list, WebDataset tars, or the output of NeMo Curator.

All of them may be on this machine or at a URL (see remote.py).
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from framegrove.curation import remote
from framegrove.data.ingest import DataError
from framegrove.data.lists import read_list

_LISTS = (".csv", ".jsonl", ".json", ".parquet")
_SIDECARS = (".txt", ".json")  # beside a file, of the same name: a caption
_CURATOR_METADATA = "metas/v0"


@dataclass(frozen=True)
class Entry:
    """One file, or a piece of one, and what is known of it.

    ``part`` are offset and size in bytes of a member ``name`` of a tar. ``origin`` names the video that a file was cut
    from where that is another one, and ``origin_start`` the second at which: the split goes by that video.
    """

    location: str
    caption: str = ""
    caption_source: str = ""
    start: float = 0.0
    end: float | None = None
    name: str = ""
    part: tuple[int, int] | None = None
    origin: str = ""
    origin_start: float = 0.0

    @property
    def path(self) -> str:
        """What the entry is called in messages and reports."""
        return f"{self.location}#{self.name}" if self.name else self.location


def read_entries(location: str) -> list[Entry]:
    """All entries of a folder, a list, a tar (or NAME-{0000..0041}.tar), or NeMo Curator's output folder, in order.

    Raises DataError and Unreachable, which name what cannot be read.
    """
    suffix = posixpath.splitext(location)[1].lower()
    if suffix == ".tar":
        entries = [entry for tar in _braces(location) for entry in _of_tar(tar)]
    elif suffix in _LISTS:
        entries = _of_list(location)
    elif remote.is_folder(location):
        names = remote.files_below(location)
        metadata = [name for name in names if f"/{_CURATOR_METADATA}/" in name and name.endswith(".json")]
        entries = list(_of_curator(location, metadata) if metadata else _of_folder(names))
    else:
        raise DataError(f"{location} is not there: give a folder, a tar, or a list ({', '.join(_LISTS)})")
    if not entries:
        raise DataError(f"{location} holds no videos or pictures")
    return entries


def sidecar_caption(location: str) -> str:
    """The caption in a file of the same name beside a video or picture, .txt or .json; empty if there is none."""
    for suffix in _SIDECARS:
        beside = remote.stem_of(location) + suffix
        if beside != location and remote.exists(beside):
            return _caption(beside, remote.read_text(beside))
    return ""


def _of_list(location: str) -> list[Entry]:
    folder = location.rpartition("/")[0] if remote.is_remote(location) else None
    with remote.fetched(location) as path:
        return [
            Entry(each.location, each.caption, "list" if each.caption else "", each.start, each.end)
            for each in read_list(path, folder)
        ]


def _of_folder(names: Iterable[str]) -> Iterator[Entry]:
    """Every file but those that are captions of others: what is no video or picture is rejected with a reason."""
    names = list(names)
    media = {remote.stem_of(name) for name in names if not name.endswith(_SIDECARS)}
    beside = {name for name in names if name.endswith(_SIDECARS) and remote.stem_of(name) in media}
    for name in names:
        if name in beside:
            continue
        found = next((stem for suffix in _SIDECARS if (stem := remote.stem_of(name) + suffix) in beside), None)
        caption = _caption(found, remote.read_text(found)) if found else ""
        yield Entry(name, caption, "sidecar" if caption else "")


def _of_tar(location: str) -> list[Entry]:
    """The samples of a WebDataset: files of one name up to the first dot; .txt and .json hold the caption."""
    media: dict[str, list[tarfile.TarInfo]] = {}
    captions: dict[str, str] = {}
    try:
        with remote.opened(location) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                key = f"{folder}/{base.partition('.')[0]}"
                if base.endswith(_SIDECARS):
                    extracted = tar.extractfile(member)
                    text = extracted.read().decode("utf-8-sig") if extracted else ""
                    caption = _caption(f"{location}#{member.name}", text)
                    captions[key] = caption or captions.get(key, "")
                else:
                    media.setdefault(key, []).append(member)
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(f"{location} cannot be read as a tar of samples ({error})") from None
    return [
        Entry(
            location,
            captions.get(key, ""),
            "sidecar" if captions.get(key) else "",
            name=member.name,
            part=(member.offset_data, member.size),
        )
        for key, members in media.items()
        for member in members
    ]


def _of_curator(location: str, metadata: Iterable[str]) -> Iterator[Entry]:
    """The clips that NeMo Curator has kept, one entry for each of its captioned windows.

    Its file of metadata says from which video and second a clip is, and holds captions as ``MODEL_caption``.
    """
    for name in metadata:
        facts = _json(name, remote.read_text(name))
        clip = posixpath.basename(str(facts.get("clip_location", "")))
        if not clip or facts.get("valid") is False:
            continue
        span = facts.get("duration_span") or [0.0, 0.0]
        origin = str(facts.get("source_video", ""))
        rate = float(facts.get("framerate") or facts.get("framerate_source") or 24)
        windows = facts.get("windows") or [{}]
        for window in windows:
            model, caption = _curator_caption(window)
            begin, end = (window.get(key) for key in ("start_frame", "end_frame"))
            several = len(windows) > 1 and begin is not None and end is not None
            start = begin / rate if several else 0.0
            yield Entry(
                remote.joined(location, f"clips/{clip}"),
                caption,
                model,
                start,
                end / rate if several else None,
                origin=origin,
                origin_start=float(span[0]),
            )


def _curator_caption(window: dict[str, Any]) -> tuple[str, str]:
    """Who has described a window, and how: an enhanced caption where there is one."""
    found = {key: str(text) for key, text in window.items() if key.endswith("_caption") and text}
    for key in sorted(found, key=lambda key: "enhanced" not in key):
        return key.removesuffix("_caption").removesuffix("_enhanced"), found[key]
    return "", ""


def _caption(name: str, text: str) -> str:
    """The caption in a file beside a video: all of a .txt, the key ``caption`` of a .json."""
    if name.endswith(".txt"):
        return text.strip()
    caption = _json(name, text).get("caption", "")
    return caption.strip() if isinstance(caption, str) else ""


def _json(name: str, text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DataError(f"{name} is not a JSON object: correct it or remove it")
    return facts


def _braces(location: str) -> list[str]:
    """The names that NAME-{0000..0041}.tar stands for."""
    before, brace, rest = location.partition("{")
    inside, closing, after = rest.partition("}")
    first, dots, last = inside.partition("..")
    if not (brace and closing and dots and first.isdigit() and last.isdigit()):
        return [location]
    return [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)]
