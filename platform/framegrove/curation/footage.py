"""From an entry to its clips: fetched, probed, split, decoded, and sent through the stages that look at pictures."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from framegrove.config.base import imported
from framegrove.config.curate import CurateConfig
from framegrove.curation import remote
from framegrove.curation.clip import Clip, Rejection, Stage, through
from framegrove.curation.duplicates import hashed
from framegrove.curation.entries import Entry, sidecar_caption
from framegrove.curation.measures import motion_stage, picture_stage
from framegrove.curation.remote import Unreachable
from framegrove.curation.shots import Window, cuts, windows, within
from framegrove.data.ingest import DataError
from framegrove.data.schema import clip_id
from framegrove.media.clips import read_clip, shown_frames
from framegrove.media.frames import MediaError
from framegrove.media.probe import Probe, probe

_CUT_SIDE = 256  # pixels at which cuts are looked for


@dataclass(frozen=True)
class Finished:
    """The end of an entry, with what its journal will say.

    ``key`` tells the entry by name and version, ``content`` by what stands in the file. ``outcomes`` is how many clips
    and rejections it has given; ``seconds`` is its footage. ``again`` if another run should try again, ``before`` if
    an earlier run has finished it, ``same`` if one has finished another entry of the same content.
    """

    key: str
    path: str
    content: str = ""
    outcomes: int = 0
    seconds: float = 0.0
    again: bool = False
    before: bool = False
    same: bool = False


@dataclass(frozen=True)
class Known:
    """What earlier runs have done: keys and contents of finished entries, and clips of those that were broken off."""

    keys: Collection[str] = frozenset()
    contents: Collection[str] = frozenset()
    clips: Collection[int] = frozenset()


@dataclass(frozen=True)
class Footage:
    """How entries become clips, for the VAE of digest ``vae`` and with ``step`` frames in a unit."""

    config: CurateConfig
    vae: str
    step: int
    known: Known = Known()

    def clips(self, entry: Entry) -> Iterator[Clip | Rejection | Finished]:
        """The clips of an entry and its rejections, and at last its end."""
        key = _digest(entry.path, entry.caption, entry.start, entry.end)
        count = 0
        try:
            key = _digest(key, remote.version(entry.location))
            if key in self.known.keys:
                yield Finished(key, entry.path, before=True)
                return
            with remote.fetched(entry.location, entry.part) as path:
                digest = _digest(entry.origin) if entry.origin else _file_digest(path)
                content = _digest(digest, entry.start, entry.end, entry.caption, entry.origin_start)
                if content in self.known.contents:
                    yield Finished(key, entry.path, content, same=True)
                    return
                source = _Source(self, entry, key, path, digest)
                for outcome in source.outcomes():
                    count += 1
                    yield outcome
                yield Finished(key, entry.path, content, count, source.seconds)
        except Unreachable as error:
            yield Rejection(key, entry.path, -1, entry.start, "read", _reason(error, entry.location))
            yield Finished(key, entry.path, outcomes=count + 1, again=True)

    @functools.cached_property
    def stages(self) -> list[Stage]:
        """The stages that a clip passes on its own."""
        config = self.config
        stages: list[Stage] = []
        if config.picture:
            stages.append(picture_stage(config.picture))
        if config.motion:
            stages.append(motion_stage(config.motion))
        stages += [imported(dotted, "stages", "function") for dotted in config.stages]
        if config.duplicates:
            stages.append(hashed)
        return stages


class _Source:
    """A file at hand, and how much footage was found in it."""

    def __init__(self, footage: Footage, entry: Entry, key: str, path: Path, digest: str) -> None:
        self.footage, self.entry, self.key, self.path, self.digest = footage, entry, key, path, digest
        self.seconds = 0.0

    def outcomes(self) -> Iterator[Clip | Rejection]:
        entry, config = self.entry, self.footage.config
        caption, caption_source = entry.caption, entry.caption_source
        try:
            if not caption and not entry.part and (caption := sidecar_caption(entry.location)):
                caption_source = "sidecar"
        except DataError as error:
            yield self._rejected("captions", f"no caption ({error})")
            return
        if not caption and config.captions and config.captions.required and config.captions.model is None:
            yield self._rejected("captions", "no caption (give one, a file beside it, or captions.model)")
            return
        try:
            found = probe(self.path)
            split = self._windows(found)
        except MediaError as error:
            yield self._rejected("probe", self._named(error))
            return
        if not split:
            yield self._rejected("windows", f"no footage between second {entry.start:g} and {entry.end or math.inf:g}")
        for window in split:
            identity = clip_id(self.digest, entry.origin_start + window.start, self._options(entry.end))
            if identity in self.footage.known.clips:
                continue
            try:
                clip = self._clip(identity, found, window)
            except MediaError as error:
                yield self._rejected("decode", self._named(error), window)
                continue
            units = 1 + (len(clip.frames) - 1) // self.footage.step
            if found.kind == "video" and units < config.least_units:
                reason = f"too short ({units} units, at least {config.least_units})"
                yield self._rejected("windows", reason, window)
                continue
            captioned = replace(clip, caption=caption, caption_source=caption_source)
            yield through(captioned, self.footage.stages)

    def _windows(self, found: Probe) -> list[Window]:
        """The clips to cut; of a video that is not split, its beginning."""
        entry, config = self.entry, self.footage.config
        end = math.inf if entry.end is None else entry.end
        pieces = within(found.pieces, entry.start, end)
        self.seconds = sum(high - low for low, high in pieces)
        if found.kind == "image":
            return [Window(0, 0.0, math.inf)]
        if config.shots is None and config.stride is None:
            pieces = pieces[:1]
        begins = cuts(shown_frames(self.path, _CUT_SIDE), config.shots) if config.shots else ()
        return windows(pieces, begins, self._most / config.fps, config.stride)

    def _clip(self, identity: int, found: Probe, window: Window) -> Clip:
        entry, config = self.entry, self.footage.config
        # The end is that of the shot; a clip that is full ends by its number of frames.
        read = read_clip(self.path, config.fps, self._most, config.sizes, window.start, window.end)
        whole = 1 + (len(read.frames) - 1) // self.footage.step * self.footage.step
        after = next((high for low, high in found.pieces if low <= window.start <= high), math.inf)
        cut_by_gap = found.kind == "video" and len(read.frames) < self._most and window.end >= after
        return Clip(
            id=identity,
            entry=self.key,
            path=entry.path,
            source=self.digest,
            kind=found.kind,
            split=split_of(self.digest, config.heldout),
            shot=window.shot,
            start=entry.origin_start + window.start,
            fps=config.fps,
            frames=read.frames[:whole],
            ended_by_gap=cut_by_gap and after < found.pieces[-1][1],
        )

    @property
    def _most(self) -> int:
        return 1 + self.footage.step * (self.footage.config.units - 1)

    def _options(self, end: float | None) -> str:
        """What decides a clip's pixels and caption besides its source and its beginning."""
        config = self.footage.config
        return json.dumps([config.sizes, config.units, config.fps, self.footage.vae, end, self.entry.caption])

    def _rejected(self, stage: str, reason: str, window: Window | None = None) -> Rejection:
        shot, start = (window.shot, window.start) if window else (-1, self.entry.start)
        return Rejection(self.key, self.entry.path, shot, start, stage, reason)

    def _named(self, error: MediaError) -> str:
        return _reason(error, str(self.path))


def split_of(source: str, heldout: float) -> str:
    """Whether the clips of a source are trained on or held out: "train" or "heldout", by a hash of the source."""
    place = int.from_bytes(hashlib.blake2b(f"split {source}".encode(), digest_size=8).digest(), "big")
    return "heldout" if place < heldout * 2**64 else "train"


def _reason(error: Exception, name: str) -> str:
    """An error's sentence without the file's name, which stands beside it in the report."""
    return str(error).removeprefix(name).strip()


def _digest(*facts: object) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
