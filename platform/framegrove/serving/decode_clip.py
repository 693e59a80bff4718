"""One clip that a client sent, decoded in a process of its own: ``python -m framegrove.serving.decode_clip TASK``.

Standard input is the clip's file, and TASK a `ClipTask` in JSON. Standard output becomes a line of JSON, either
``{"units": 3}``, with the video after it, or ``{"refused": "the clip .."}``. Whatever a hostile file makes a decoder do
ends with this process, which limits itself first. It imports little, since one is started for every clip.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.media.extending import ClipForm, frames_to_extend
from framegrove.media.frames import MediaError
from framegrove.media.probe import Bounds
from framegrove.media.writing import encode_lossless

log = logging.getLogger(__name__)

UNREADABLE = "the clip cannot be decoded: save it again, as MP4, and send that"
_THREADS = 2  # of the decoder, on however many processors: each holds frames of its own
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # with which an MP4 or MOV file begins
_PICTURES = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")  # brands
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # with which a WebM file begins, and what all else is in


@dataclass(frozen=True)
class Limits:
    """What one clip may have and take."""

    pixels: int = 2**24  # of a frame: 4K has half as many
    decoded: int = 2**31  # pixels of all frames together: 1080p for 17 seconds at 60 frames a second
    frames: int = 2**16
    memory: int = 3 * 2**29  # bytes, beyond those of a process that has not begun to decode
    processor_seconds: int = 60
    seconds: float = 120  # from the start of its process to the end, on a busy machine


@dataclass(frozen=True)
class ClipTask:
    """What a clip is to become, within limits."""

    form: ClipForm
    limits: Limits

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClipTask:
        given = json.loads(text)
        return cls(ClipForm(**given["form"]), Limits(**given["limits"]))


@dataclass(frozen=True)
class CheckedClip:
    """A clip of ``units`` units as a lossless video of frames that the model can encode."""

    video: bytes
    units: int


def decoded_clip(path: Path, task: ClipTask) -> CheckedClip:
    """An MP4, WebM or MOV file, told by its content, as frames of the task's form.

    Raises MediaError, a sentence that does not name the path, whatever a damaged file does to its decoder.
    """
    form, limits = task.form, task.limits
    container = _checked_container(path.read_bytes())
    bounds = Bounds(container, limits.pixels, limits.decoded, limits.frames, _THREADS)
    try:
        frames = frames_to_extend(path, form, bounds)
        return CheckedClip(encode_lossless(frames, form.fps), 1 + (len(frames) - 1) // FRAMES_PER_UNIT)
    except MediaError as error:
        if isinstance(error.__context__, MemoryError):  # ffmpeg's
            raise _too_large(limits) from None
        sentence = str(error).replace(f": '{path}'", "").removeprefix(str(path))
        raise MediaError(f"the clip{sentence}") from None
    except MemoryError:
        raise _too_large(limits) from None
    except Exception:
        log.exception("a clip of %d bytes could not be decoded", path.stat().st_size)
        raise MediaError(UNREADABLE) from None


def _too_large(limits: Limits) -> MediaError:
    return MediaError(
        f"the clip takes more than {limits.memory / 2**20:,.0f} MiB of memory to decode: make it smaller, or save it "
        "again, as MP4"
    )


def _checked_container(sent: bytes) -> str:
    container = _container(sent)
    if _is_cut_off(sent):
        raise MediaError("the clip is half a file: send the whole one")
    return container


def _container(sent: bytes) -> str:
    """How ffmpeg is to read the file. It is never left to guess: some formats name other files and addresses."""
    if sent.startswith(_EBML):
        return "matroska"
    if sent[4:8] in _BOXES and sent[8:12] not in _PICTURES:
        return "mov"
    raise MediaError("the clip is no video that can be read: send an MP4, WebM or MOV file")


def _is_cut_off(sent: bytes) -> bool:
    """Whether the file ends before a part of it that says how long it is."""
    ends = _ends_of_boxes(sent) if not sent.startswith(_EBML) else _ends_of_elements(sent)
    return any(end > len(sent) for end in ends)


def _ends_of_boxes(sent: bytes) -> Iterator[int]:
    """Where the outermost boxes end (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at + 8 <= len(sent):
        size, head = int.from_bytes(sent[at : at + 4]), 8
        if size == 1:
            size, head = int.from_bytes(sent[at + 8 : at + 16]), 16
        if size < head:  # 0: to the end of the file; anything else is for the decoder to find damaged
            return
        at += size
        yield at


def _ends_of_elements(sent: bytes) -> Iterator[int]:
    """Where the EBML header and the segment end (RFC 8794, sections 4 to 6); nothing of one whose size is not known."""
    at = 0
    for name in (_EBML, _SEGMENT):
        if sent[at : at + 4] != name or at + 4 >= len(sent):
            return
        length = 9 - sent[at + 4].bit_length()  # bytes of the size, by the leading zeros of the first
        size = int.from_bytes(sent[at + 4 : at + 4 + length]) & ((1 << 7 * length) - 1)
        if length > 8 or size == (1 << 7 * length) - 1:
            return
        at += 4 + length + size
        yield at


def confine(limits: Limits) -> None:
    """Have the kernel hold this process to its memory and its time on processors, for good."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of address space, libraries included
    memory = pages * os.sysconf("SC_PAGE_SIZE") + limits.memory
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, limits.processor_seconds)  # by SIGXCPU, which tells the parent why
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    task = ClipTask.from_json(sys.argv[1])
    confine(task.limits)
    video = b""
    try:
        clip = decoded_clip(Path("/dev/stdin"), task)
        said: dict[str, int | str] = {"units": clip.units}
        video = clip.video
    except MediaError as error:
        said = {"refused": str(error)}
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n" + video)


if __name__ == "__main__":
    main()
