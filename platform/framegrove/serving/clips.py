"""Clips that clients send for videos to go on from: decoded before a request is accepted, and kept as our own files.

Each is decoded in a process of its own, which ends when it takes too much or when nobody waits for it any more. This
process reads nothing of what was sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from typing import IO

from framegrove.media.extending import ClipForm
from framegrove.serving.api import ApiError
from framegrove.serving.decode_clip import UNREADABLE, CheckedClip, ClipTask, Limits
from framegrove.serving.decoding import Decoders

log = logging.getLogger(__name__)

FIELD = "video"
_LIMITS = Limits()
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
# Threads and memory arenas, of which there would be some for each processor, count as memory before any is used.
_FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


async def checked_clip(sent: bytes, form: ClipForm, decoders: Decoders, limits: Limits = _LIMITS) -> CheckedClip:
    """An MP4, WebM or MOV file, told by its content, as frames of the ``form``; no later reader sees what was sent.

    Raises ApiError (400) for one that cannot be read within the limits, and (503) where too many others wait.
    """
    return await decoders.in_process(_decoded, sent, ClipTask(form, limits))


async def _decoded(sent: bytes, task: ClipTask) -> CheckedClip:
    # Files without a name: whoever is killed, none stays behind, and no pipe is left half read.
    with tempfile.TemporaryFile() as clip, tempfile.TemporaryFile() as answer:
        await asyncio.to_thread(_write, clip, sent)
        status = await _ended(clip, answer, task)
        if status != 0:
            log.error("the process that decoded a clip of %d bytes ended with status %d", len(sent), status)
            raise _failure(status, task.limits)
        answer.seek(0)
        said = json.loads(answer.readline())
        if "refused" in said:
            raise _refused(said["refused"])
        return CheckedClip(await asyncio.to_thread(answer.read), said["units"])


def _write(clip: IO[bytes], sent: bytes) -> None:
    clip.write(sent)
    clip.flush()


def _failure(status: int, limits: Limits) -> ApiError:
    """Whose fault it was: the clip's, if its decoder crashed; otherwise the machine's, as of a full disk."""
    if status == -signal.SIGXCPU:
        return _too_long(limits)
    if -status in _CRASHES:
        return _refused(UNREADABLE)
    return ApiError(503, "the endpoint cannot decode clips now: try again later", code="not_ready")


async def _ended(clip: IO[bytes], answer: IO[bytes], task: ClipTask) -> int:
    """The exit status of a process that decodes the clip. It is gone when this returns, raises or is cancelled."""
    command = [sys.executable, "-P", "-m", "framegrove.serving.decode_clip", task.to_json()]
    paths = os.pathsep.join(path for path in sys.path if path)  # wherever this package was found
    environment = {**os.environ, **_FEW_THREADS, "PYTHONPATH": paths}
    process = await asyncio.create_subprocess_exec(*command, stdin=clip, stdout=answer, env=environment)
    try:
        async with asyncio.timeout(task.limits.seconds):
            return await process.wait()
    except TimeoutError:
        raise _too_long(task.limits) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _too_long(limits: Limits) -> ApiError:
    return _refused(
        f"the clip takes more than {limits.processor_seconds} seconds of a processor's time, or {limits.seconds:g} "
        "seconds in all, to decode: make it shorter or smaller"
    )


def _refused(sentence: str) -> ApiError:
    return ApiError(400, sentence, param=FIELD)
