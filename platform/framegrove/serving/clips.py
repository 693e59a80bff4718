"""Clips that clients send for videos to go on from: decoded before a request is accepted, and kept as our own files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.media.extending import ClipForm, frames_to_extend
from framegrove.media.frames import MediaError
from framegrove.media.probe import Bounds
from framegrove.media.writing import encode_lossless
from framegrove.serving.api import ApiError

log = logging.getLogger(__name__)

FIELD = "video"
MOST_PIXELS = 2**24  # of a frame: 4K has half as many
MOST_DECODED = 2**31  # of all frames together: 1080p for 17 seconds at 60 frames a second
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # with which an MP4 or MOV file begins
_PICTURES = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")  # brands
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # with which a WebM file begins, and what all else is in


@dataclass(frozen=True)
class CheckedClip:
    """A clip of ``units`` units as a lossless video of frames that the model can encode."""

    video: bytes
    units: int


def checked_clip(sent: bytes, form: ClipForm) -> CheckedClip:
    """An MP4, WebM or MOV file, told by its content, as frames of the ``form``; no later reader sees what was sent.

    Raises ApiError (400), whatever a damaged file does to its decoder.
    """
    bounds = Bounds(_container(sent), MOST_PIXELS, MOST_DECODED)
    if _is_cut_off(sent):
        raise _refused("the clip is half a file: send the whole one")
    try:
        with tempfile.TemporaryDirectory(prefix="framegrove-clip-") as folder:
            path = Path(folder) / "clip"
            path.write_bytes(sent)
            try:
                frames = frames_to_extend(path, form, bounds)
            except MediaError as error:
                sentence = str(error).replace(f": '{path}'", "").removeprefix(str(path))
                raise _refused(f"the clip{sentence}") from None
        return CheckedClip(encode_lossless(frames, form.fps), 1 + (len(frames) - 1) // FRAMES_PER_UNIT)
    except (ApiError, OSError):  # a full disk is not the clip's fault
        raise
    except Exception:
        log.exception("a clip of %d bytes could not be decoded", len(sent))
        raise _refused("the clip cannot be decoded: save it again, as MP4, and send that") from None


def _refused(sentence: str) -> ApiError:
    return ApiError(400, sentence, param=FIELD)


def _container(sent: bytes) -> str:
    """How ffmpeg is to read the file. It is never left to guess: some formats name other files and addresses."""
    if sent.startswith(_EBML):
        return "matroska"
    if sent[4:8] in _BOXES and sent[8:12] not in _PICTURES:
        return "mov"
    raise _refused("the clip is no video that can be read: send an MP4, WebM or MOV file")


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
