"""Clips that are made to take memory and time, and callers that leave: what the endpoint loses by them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from framegrove.media.clips import read_clip
from framegrove.media.frames import MediaError
from framegrove.media.probe import Bounds, probe
from framegrove.serving.api import ApiError
from framegrove.serving.clips import checked_clip
from framegrove.serving.decode_clip import Limits
from framegrove.serving.decoding import Decoders
from framegrove.serving.pictures import checked_picture
from tests.endpoint import endpoint, picture
from tests.unit.test_serving_extensions import FILES, FORM, checked, upload

PICTURE = picture()


def encoded(height: int, width: int, codec: str = "ffv1") -> tuple[bytes, bytes]:
    """One grey frame as the packet of a codec, and what its stream begins with."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.time_base = height, width, Fraction(1, 25)
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frame = av.VideoFrame(width, height, context.pix_fmt)
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    packet, *_ = [*context.encode(frame), *context.encode(None)]
    return bytes(packet), bytes(context.extradata or b"")


def filed(packets: Sequence[bytes], height: int, width: int, codec: str = "ffv1", seconds: float = 2) -> bytes:
    """A Matroska file of packets whose frames are said to be so large."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            packet.pts = packet.dts = round(1000 * seconds * number / len(packets))
            container.mux(packet)
    return file.getvalue()


def repeated(height: int, width: int, frames: int) -> bytes:
    """A small file of many equal frames, each of which takes time to decode."""
    packet, _ = encoded(height, width)
    return filed([packet] * frames, height, width)


def box(name: bytes, data: bytes, at: int = 0) -> int:
    return data.index(name, at)


def claiming(samples: int) -> bytes:
    """An MP4 file whose tables say in a few bytes that it has so many samples."""
    data = bytearray(FILES["mp4"].replace(b"edts", b"free"))
    struct.pack_into(">II", data, data.index(b"stsz") + 8, 1, samples)
    struct.pack_into(">III", data, data.index(b"stts") + 8, 1, samples, 1)
    stsc = data.index(b"stsc") + 8
    struct.pack_into(">I", data, stsc, 1)
    struct.pack_into(">III", data, stsc + 4, 1, samples, 1)
    return bytes(data)
