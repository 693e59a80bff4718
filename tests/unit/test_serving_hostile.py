"""Clips that are made to take memory and time, and callers that leave: what the endpoint loses by them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import signal
import struct
import time
import tracemalloc
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


def encoded(height: int, width: int, codec: str = "ffv1") -> bytes:
    """One grey frame as the packet of a codec."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width, context.time_base = height, width, Fraction(1, 25)
    context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frame = av.VideoFrame(width, height, context.pix_fmt)
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    packet, *_ = [*context.encode(frame), *context.encode(None)]
    return bytes(packet)


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
    return filed([encoded(height, width)] * frames, height, width)


def claiming(samples: int) -> bytes:
    """An MP4 file whose tables say in a few bytes that it has so many samples."""
    data = bytearray(FILES["mp4"].replace(b"edts", b"free"))
    struct.pack_into(">II", data, data.index(b"stsz") + 8, 1, samples)
    struct.pack_into(">III", data, data.index(b"stts") + 8, 1, samples, 1)
    stsc = data.index(b"stsc") + 8
    struct.pack_into(">I", data, stsc, 1)
    struct.pack_into(">III", data, stsc + 4, 1, samples, 1)
    return bytes(data)


def recorded_at(milliseconds: Sequence[int]) -> bytes:
    """An MP4 file of frames with these time stamps; those before 0 are left out by its edit list."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for time_stamp in milliseconds:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("height", "width", "word"), [(2, 4000, "wide"), (4000, 2, "high")])
def test_a_frame_of_an_absurd_shape_is_refused(height: int, width: int, word: str) -> None:
    with pytest.raises(MediaError, match=f"the clip is shown at {width}x{height} pixels, .* 8 times as {word}"):
        checked(filed([encoded(height, width, "mjpeg")] * 20, height, width, "mjpeg"))


def test_a_frame_of_an_uncommon_shape_is_cut_and_keeps_no_more_memory_than_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "wide.mkv"
    path.write_bytes(repeated(64, 8 * 64, 20))
    tracemalloc.start()
    try:
        frames = read_clip(path, 10, 20, [(256, 256)], bounds=Bounds("matroska")).frames
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert frames.shape == (20, 256, 256, 3)
    assert peak < 4 * frames.nbytes, "the frames that cover the size are 8 times as large"


def test_frames_larger_than_declared_are_counted_while_they_are_decoded() -> None:
    small, large = encoded(64, 64, "mjpeg"), encoded(512, 512, "mjpeg")
    clip = filed([small] * 5 + [large] * 30, 64, 64, "mjpeg")
    assert checked(clip).units == 2
    with pytest.raises(MediaError, match=r"the clip has more than 1,048,576 pixels in all its frames together"):
        checked(clip, Limits(decoded=2**20))


def test_packets_are_counted_up_to_a_bound_and_kept_small(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"the clip has more than 1,000 frames: make it shorter"):
        checked(claiming(200_000), Limits(frames=1000))
    (tmp_path / "own.mp4").write_bytes(claiming(200_000))
    with pytest.raises(MediaError, match=r"half a file"):
        probe(tmp_path / "own.mp4")


def test_a_clip_that_shows_nothing_is_refused_by_its_edit_list() -> None:
    with pytest.raises(MediaError, match=r"the clip shows nothing: its edit list begins after its last frame"):
        checked(recorded_at([-500, -400, -300, -200]))
    assert checked(recorded_at(range(-200, 600, 100))).units == 1, "players show it from second 0 on"


def children() -> list[psutil.Process]:
    """The processes that decode clips; there may be others, which other tests have started."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "framegrove.serving.decode_clip" in child.cmdline():
                found.append(child)
    return found


async def until_children(count: int) -> list[psutil.Process]:
    for _ in range(3000):
        found = children()
        if len(found) == count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"there are {len(children())} child processes, not {count}")


@asynccontextmanager
async def decoding(waiting: int = 8) -> AsyncIterator[Decoders]:
    decoders = Decoders(waiting)
    try:
        yield decoders
    finally:
        await decoders.close()
        assert not children(), "none outlives what started it"


async def stuck(decoders: Decoders, count: int = 2, limits: Limits | None = None) -> list[asyncio.Task[object]]:
    """Clips whose processes were stopped, as those of clips that take for ever are for all others."""
    tasks: list[asyncio.Task[object]] = []
    for number in range(1, count + 1):
        tasks.append(asyncio.create_task(checked_clip(FILES["mp4"], FORM, decoders, limits or Limits())))
        for process in await until_children(number):
            process.suspend()
    return tasks


async def gone(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("name", FILES)
def test_another_process_decodes_bit_for_bit_the_same(name: str) -> None:
    async def play() -> None:
        async with decoding() as decoders:
            assert await checked_clip(FILES[name], FORM, decoders) == checked(FILES[name])

    asyncio.run(play())


async def refusal(clip: bytes, limits: Limits) -> str:
    """Why a clip is refused, by a process whose memory, in this one, is not felt."""
    async with decoding() as decoders:
        before = psutil.Process().memory_info().rss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ApiError) as refused:
            await checked_clip(clip, FORM, decoders, limits)
        assert psutil.Process().memory_info().rss - before < 32 * 2**20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 32 * 2**10
    assert (refused.value.status, refused.value.param) == (400, "video")
    return str(refused.value)


def test_a_clip_that_takes_too_much_memory_is_refused() -> None:
    limits = Limits(memory=2**27)
    assert "takes more than 128 MiB of memory" in asyncio.run(refusal(repeated(4000, 4000, 2), limits))
    assert "the clip" in asyncio.run(refusal(claiming(80_000_000), limits)), "its tables alone take gigabytes"


def test_a_clip_that_takes_too_long_is_refused() -> None:
    slow = repeated(1080, 1920, 600)
    sentence = asyncio.run(refusal(slow, Limits(processor_seconds=1)))
    assert "takes more than 1 seconds of a processor's time, or 120 seconds in all" in sentence
    assert "or 0.5 seconds in all" in asyncio.run(refusal(slow, Limits(seconds=0.5)))


@pytest.mark.parametrize(
    ("by", "status", "says"),
    [
        (signal.SIGSEGV, 400, "the clip cannot be decoded: save it again"),
        (signal.SIGKILL, 503, "the endpoint cannot decode clips now: try again later"),  # a machine without memory left
    ],
)
def test_whose_fault_it_is_that_a_clips_process_dies(by: signal.Signals, status: int, says: str) -> None:
    async def play() -> None:
        async with decoding() as decoders:
            (task,) = await stuck(decoders, 1)
            (child,) = children()
            child.send_signal(by)
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
            with pytest.raises(ApiError, match=says) as refused:
                await task
            assert refused.value.status == status
            assert (await checked_clip(FILES["mp4"], FORM, decoders)).units == 3

    asyncio.run(play())


def test_pictures_do_not_wait_for_clips_and_clips_wait_in_a_bounded_line() -> None:
    async def play() -> None:
        async with decoding(waiting=3) as decoders:
            held = await stuck(decoders)
            assert await asyncio.wait_for(checked_picture(PICTURE, decoders), 10)
            third = asyncio.create_task(checked_clip(FILES["webm"], FORM, decoders))
            await asyncio.sleep(0.1)
            assert len(children()) == 2, "no more at a time"
            with pytest.raises(ApiError, match="3 clips are being checked already") as refused:
                await checked_clip(FILES["mp4"], FORM, decoders)
            assert (refused.value.status, refused.value.code) == (503, "busy")
            await gone(held)
            assert (await third).units == 3, "its turn came when a process was gone"

    asyncio.run(play())


def test_a_caller_that_hangs_up_leaves_nothing() -> None:
    async def play() -> None:
        async with decoding(waiting=4) as decoders:
            held = await stuck(decoders)
            before = psutil.Process().memory_info().rss
            for _ in range(30):
                body = FILES["mp4"] + bytes([1]) * 2**23
                task = asyncio.create_task(checked_clip(body, FORM, decoders))
                del body
                await asyncio.sleep(0.01)
                await gone([task])
                del task
            assert psutil.Process().memory_info().rss - before < 64 * 2**20, "30 bodies are 240 MiB"
            await gone(held)
            await until_children(0)

    asyncio.run(play())


def test_a_picture_keeps_its_place_while_its_thread_works_on() -> None:
    async def play() -> None:
        async with decoding(waiting=2) as decoders:
            left = [asyncio.create_task(decoders.in_thread(time.sleep, 0.5)) for _ in range(2)]
            await asyncio.sleep(0.1)
            await gone(left)
            with pytest.raises(ApiError, match="2 pictures are being checked already"):
                await checked_picture(PICTURE, decoders)
            await asyncio.sleep(1)
            assert await checked_picture(PICTURE, decoders)

    asyncio.run(play())


def test_the_endpoint_tells_others_to_try_again_and_goes_on_after_a_caller_left(tmp_path: Path) -> None:
    async def play() -> None:
        async with endpoint(tmp_path, reading=1) as running:
            sending = asyncio.create_task(upload(running, FILES["mp4"]))
            (process,) = await until_children(1)
            process.suspend()
            busy = await upload(running, FILES["webm"])
            assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
            form = {"data": {"prompt": "a 3"}, "files": {"input_reference": ("a.png", PICTURE)}}
            assert (await running.client.post("/v1/videos", **form)).status_code == 200
            sending.cancel()
            await until_children(0)
            assert (await upload(running, FILES["webm"])).status_code == 200

    asyncio.run(play())
