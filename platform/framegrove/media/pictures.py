"""Picture files as they are meant to be seen: upright, over white, eight bits a channel, cut to a size.

What is honoured: the orientation in EXIF or XMP data (all eight of them), transparency in any form (shown over white),
palettes, grey of 16 bits, CMYK. What is not: colour profiles, and the resolution tags of a still, which browsers ignore
too (they are about printing).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from framegrove.media.frames import Frames, MediaError, Size, one_line

# Named one by one: Pillow also knows formats that run other programs (EPS) or that take videos for pictures (MPEG).
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "PPM", "JPEG2000")
_SHOWN_FORMATS = "PNG, JPEG, WebP, GIF, AVIF, TIFF or BMP"
_ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")  # what else holds several pictures does not show them one after the other
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LOOKED_AT = 2**25  # bytes of a file in which JPEG pictures would follow each other
_DEFAULT_DURATION = 100  # ms of a frame that gives none, as browsers have it
# Damaged files make Pillow's readers raise almost anything.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class NotAPicture(MediaError):
    """A file in none of the known picture formats; it may be a video."""


def read_picture(encoded: bytes, size: Size, name: str = "the image") -> Frames:
    """The middle of a picture file, scaled to ``size``: uint8 (H, W, 3). Of an animation it is the first frame.

    Raises MediaError, which calls the file ``name``.
    """
    _, picture = next(pictures_of(io.BytesIO(encoded), name))
    return fitted(picture, size)


def check_picture(encoded: bytes, name: str = "the image") -> None:
    """Raise MediaError, which calls the file ``name``, unless `read_picture` can read it. Decodes it once."""
    next(pictures_of(io.BytesIO(encoded), name))


def pictures_of(
    file: IO[bytes], name: str, *, formats: tuple[str, ...] = _FORMATS, most_pixels: int | None = None
) -> Iterator[tuple[float, Image.Image]]:
    """The pictures of a file in RGB, each with the second at which it is shown: one, or the frames of an animation.

    Only ``formats`` are looked for, by what the file begins with. More than ``most_pixels`` (None: some 180 million)
    are refused by the file's header, before anything is decoded.

    Raises NotAPicture for a file that is none, and MediaError for one that is damaged, too large or of a kind that
    cannot be shown.
    """
    Image.init()  # with formats named, Pillow looks only among the readers that are loaded
    try:
        with Image.open(file, formats=formats) as opened:
            if most_pixels is not None and opened.width * opened.height > most_pixels:
                raise _too_many_pixels(most_pixels, name)
            if opened.format == "JPEG" and _is_a_stream(file):
                raise _not_a_picture(file, name)
            count = getattr(opened, "n_frames", 1) if opened.format in _ANIMATED else 1
            milliseconds = 0.0
            for number in range(count):
                opened.seek(number)
                yield milliseconds / 1000, _as_seen(opened, name)
                milliseconds += opened.info.get("duration") or _DEFAULT_DURATION
    except UnidentifiedImageError:
        raise _not_a_picture(file, name) from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(most_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0), name) from None
    except _DAMAGE as error:
        raise MediaError(f"{name} cannot be read as a picture ({one_line(error)}): it is damaged") from None


def fitted(picture: Image.Image, size: Size) -> Frames:
    """The middle of an RGB picture, scaled to cover ``size`` and cut to it: uint8 (H, W, 3)."""
    height, width = size
    scale = min(picture.width / width, picture.height / height)
    crop_w, crop_h = width * scale, height * scale
    left, top = (picture.width - crop_w) / 2, (picture.height - crop_h) / 2
    box = (left, top, left + crop_w, top + crop_h)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def reduced(frames: Frames, most: int) -> Frames:
    """Frames uint8 (T, H, W, 3) scaled down to at most ``most`` pixels on their longer side."""
    height, width = frames.shape[1:3]
    scale = most / max(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def small_copy(frames: Frames | None, most: int) -> Frames | None:
    """Frames scaled down to at most ``most`` pixels on their longer side; None of none, or of no larger ones."""
    small = reduced(frames, most) if frames is not None else None
    return small if small is not frames else None


def _as_seen(opened: Image.Image, name: str) -> Image.Image:
    """The current picture of a file, in RGB."""
    if opened.mode in ("F", "LAB") or (opened.mode == "I" and opened.format == "TIFF"):
        kind = "Lab colours" if opened.mode == "LAB" else "grey values without an agreed white"
        raise MediaError(f"{name} stores {kind} ({opened.mode}): save it with 8 or 16 bits of grey, or as RGB")
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    # Over white at full size: scaled first, the colours hidden in transparent pixels would bleed into the edges.
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8. Pillow's own conversion clips at 255, which makes nearly everything white."""
    values = np.clip(np.asarray(picture).astype(np.int32), 0, 65535)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    invisible: Any = picture.info.get("transparency")
    if isinstance(invisible, int):  # the one value that stands for "nothing here"
        grey.putalpha(Image.fromarray(np.where(values == invisible, 0, 255).astype(np.uint8)))
    return grey


def _too_many_pixels(most: int, name: str) -> MediaError:
    return MediaError(f"{name} has more than {most:,} pixels: make the picture smaller")


def _is_a_stream(file: IO[bytes]) -> bool:
    """Whether JPEG pictures follow each other: a video without a container. A thumbnail makes one such seam at most."""
    place = file.tell()
    file.seek(0)
    seams = file.read(_LOOKED_AT).count(b"\xff\xd9\xff\xd8")
    file.seek(place)
    return seams > 1


def _not_a_picture(file: IO[bytes], name: str) -> MediaError:
    file.seek(0)
    head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in _HEIC:
        return MediaError(f"{name} is a HEIC picture, which cannot be read here: save it as JPEG or PNG")
    return NotAPicture(f"{name} is not a picture that can be read: give a {_SHOWN_FORMATS} file")
