"""Pictures that clients send: decoded before a request is accepted, and kept as files of our own making."""

from __future__ import annotations

import io
import logging
import math

from PIL import Image

from framegrove.media.frames import MediaError
from framegrove.media.pictures import NotAPicture, pictures_of
from framegrove.serving.api import MOST_IMAGE_BYTES, ApiError
from framegrove.serving.decoding import Decoders

log = logging.getLogger(__name__)

FIELD = "input_reference"
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 64_000_000
MOST_KEPT_PIXELS = 2**22  # more than any model's frame has
MOST_SCANS = 32  # of a progressive JPEG; encoders write about 10


async def checked_picture(encoded: bytes, decoders: Decoders) -> bytes:
    """The picture, upright and over white, as a PNG file. Raises ApiError."""
    if len(encoded) > MOST_IMAGE_BYTES:
        raise ApiError(
            413, f"the image is larger than {MOST_IMAGE_BYTES // 2**20} MiB: send a smaller one", param=FIELD
        )
    return await decoders.in_thread(reencoded, encoded)


def reencoded(encoded: bytes) -> bytes:
    """A PNG, JPEG or WebP file as a PNG file that holds its first picture and nothing else.

    No later reader sees what the client sent. The picture is scaled down to ``MOST_KEPT_PIXELS``, so that what is kept
    of a small file is not large. Raises ApiError (400), whatever a damaged file does to its decoder.
    """
    if encoded.count(b"\xff\xda") > MOST_SCANS and encoded.startswith(b"\xff\xd8"):  # each scan passes over all pixels
        raise ApiError(400, f"{FIELD} is a JPEG of more than {MOST_SCANS} scans: save it as a plain one", param=FIELD)
    try:
        _, picture = next(pictures_of(io.BytesIO(encoded), FIELD, formats=FORMATS, most_pixels=MOST_PIXELS))
        return _png(picture)
    except NotAPicture:
        raise ApiError(
            400, f"{FIELD} is not a picture that can be read: send a PNG, JPEG or WebP file", param=FIELD
        ) from None
    except MediaError as error:
        raise ApiError(400, str(error), param=FIELD) from None
    except Exception:
        log.exception("a picture of %d bytes could not be decoded", len(encoded))
        raise ApiError(400, f"{FIELD} cannot be decoded: save the picture again and send that", param=FIELD) from None


def _png(picture: Image.Image) -> bytes:
    scale = math.sqrt(MOST_KEPT_PIXELS / (picture.width * picture.height))
    if scale < 1:
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    picture.info.clear()  # Pillow would write colour profiles and EXIF data into the new file
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
