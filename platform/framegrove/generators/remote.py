"""A server that makes whole videos, in the shape of the OpenAI Videos API, as a generator for linear searches.

    kind: remote
    where: http://192.0.2.7:8091                 # vLLM-Omni, SGLang, or an endpoint of this project
    options: {width: 832, height: 480, frames: 81, fps: 16, key: VIDEO_SERVER_KEY}

A video is one unit of one stage: best of N, early stopping and the panel work as with any generator, and a budget
counts videos, each of which is priced at ``flops``. A branch's seed is a hash of the request's and its path, so a
server whose videos follow from their seeds gives every branch the same video again. ``key`` names the environment
variable with the API key, which must be set where the search is started and where its actors run. As many videos are
asked for at a time as there are generators, times the works of each (``pack``), times the branches of a work.

Servers of those names were not at hand: this is tested with this project's endpoint and a small server of that shape.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from framegrove.config.base import Config, ConfigError, validated
from framegrove.config.generator import Form
from framegrove.errors import UserError
from framegrove.flow.noise import generator_for
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.protocol import Frames, OnStep, ShouldStop, Task, UnitPrice, Wanted
from framegrove.generators.videos_client import NotWanted, Stopped, Unreachable, VideoFailed, VideosClient
from framegrove.media.clips import read_clip
from framegrove.media.frames import MediaError
from framegrove.media.writing import decode_mp4
from framegrove.search.protocols import WorkFailed

# What a request says itself; the rest of a server's form is for `fields`.
_OWN = {
    *("model", "prompt", "negative_prompt", "size", "seed", "num_inference_steps", "guidance_scale"),
    *("num_frames", "fps", "seconds", "input_reference"),
}
_MISSING = 1 / 8  # of a video's frames that may be missing at its end, and are filled with the last one


class RemoteOptions(Config):
    """What may be set. ``width``, ``height``, ``frames`` and ``fps`` are those of its videos by themselves."""

    width: PositiveInt = 832
    height: PositiveInt = 480
    frames: PositiveInt = Field(default=81, description="of the longest video, too")
    fps: PositiveInt = 16
    multiple: PositiveInt = Field(default=16, description="pixels that sides are multiples of")
    model: str | None = Field(default=None, description="which of the server's models")
    key: str | None = Field(default=None, description="name of the environment variable with the API key")
    fields: dict[str, str | int | float] = Field(default={}, description="further fields of every request")
    length: Literal["num_frames", "seconds"] = Field(
        default="num_frames", description="how the length is asked for: in frames, with fps, or in whole seconds"
    )
    fit: bool = Field(
        default=True, description="scale, cut and resample videos of another size or rate; or else refuse them"
    )
    takes_image: bool = Field(default=False, description="whether videos may begin with a picture")
    flops: PositiveInt = Field(default=10**15, description="the price of a video")
    patience: PositiveFloat = Field(default=300.0, description="seconds that the server may be away")
    attempts: PositiveInt = Field(default=2, description="how often a video is asked for that fails on the server")
    most_mb: PositiveInt = Field(default=512, description="size of the largest file that is taken, in MB")

    @field_validator("fields")
    @classmethod
    def _adds(cls, fields: dict[str, str | int | float]) -> dict[str, str | int | float]:
        if said := sorted(_OWN & fields.keys()):
            raise ValueError(f"fields must not hold {', '.join(said)}: a request says that itself")
        return fields


class Remote:
    """The adapter (protocol.Adapter) of such a server."""

    waits = True  # the work is done elsewhere

    def __init__(self, where: str, **options: Any) -> None:
        """Read the options. Raises ConfigError for those that cannot be used, and where the API key is not there."""
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", where):
            raise ConfigError(f"where is {where!r}, and must be the server's URL, as in http://192.0.2.7:8091")
        self._url = where.rstrip("/").removesuffix("/v1")
        self._options = given = validated(RemoteOptions, options, "options")
        if given.key is not None and not os.environ.get(given.key):
            raise ConfigError(f"the environment variable {given.key} is not set: it holds the server's API key")
        self._key = os.environ[given.key] if given.key is not None else None
        self.form = Form(
            fps=given.fps,
            height=given.height,
            width=given.width,
            first_frames=given.frames,
            multiple=given.multiple,
            takes_image=given.takes_image,
        )

    def identity(self) -> Any:
        """Its options are told from others without this; of a change of the server's model nothing is known here."""
        return {"version": 1}

    def price(self, wanted: Wanted) -> list[UnitPrice]:
        """A video costs the same whatever it is."""
        return [UnitPrice(steps=(1,), step_flops=(self._options.flops,))]

    def load(self, device: str) -> None:
        """Nothing: the weights are elsewhere."""

    def sample(
        self, tasks: Sequence[Task], stages: range, should_stop: ShouldStop, on_step: OnStep
    ) -> list[StageLatent]:
        """Have videos made, all at a time; their latents are their frames, uint8 (T, H, W, 3).

        Raises WorkFailed where the server cannot be reached, and UserError where it makes no video.
        """
        try:
            made = asyncio.run(self._made(tasks, should_stop))
        except NotWanted:
            raise CancelledSampling(0) from None
        except Unreachable as error:
            raise WorkFailed(str(error)) from error
        on_step()
        return [StageLatent(0, torch.from_numpy(frames)) for frames in made]

    def decode(self, tasks: Sequence[Task], latents: Sequence[StageLatent]) -> list[Frames]:
        """The frames."""
        return [latent.x.numpy() for latent in latents]

    async def _made(self, tasks: Sequence[Task], stopped: Stopped) -> list[Frames]:
        given = self._options
        async with VideosClient(self._url, self._key, given.patience, given.most_mb * 10**6) as client:
            each = [self._one(client, task, stopped) for task in tasks]
            # All of them are waited for: what is left on the server when one fails is found again by its key.
            made = await asyncio.gather(*each, return_exceptions=True)
        frames: list[Frames] = []
        for one in made:
            if isinstance(one, BaseException):
                raise one
            frames.append(one)
        return frames

    async def _one(self, client: VideosClient, task: Task, stopped: Stopped) -> Frames:
        """A branch's video; one that fails is asked for again, under another key."""
        fields = self.fields(task)
        form: dict[str, Any] = {name: (None, str(value)) for name, value in fields.items()}
        if task.wanted.image is not None:
            form["input_reference"] = _as_file(task.wanted.image)
        facts = json.dumps([self._url, fields, hashlib.sha256(task.wanted.image or b"").hexdigest()], sort_keys=True)
        for attempt in range(1, self._options.attempts + 1):
            key = hashlib.blake2b(f"{facts}{attempt}".encode(), digest_size=16).hexdigest()
            try:
                file = await client.video(form, key, stopped)
                break
            except VideoFailed:
                if attempt == self._options.attempts:
                    raise
        return await asyncio.to_thread(self._frames, file, task.wanted, client.name)

    def fields(self, task: Task) -> dict[str, str | int | float]:
        """What a branch's video is asked for by."""
        given, wanted = self._options, task.wanted
        asked: dict[str, str | int | float | None] = {
            "model": given.model,
            "prompt": wanted.prompt,
            "size": f"{wanted.width}x{wanted.height}",
            "seed": generator_for(wanted.seed, task.path, "remote").initial_seed() % 2**31,
            "negative_prompt": wanted.sampling.negative,
            "num_inference_steps": wanted.sampling.steps,
            "guidance_scale": wanted.sampling.guidance,
        }
        if given.length == "seconds":
            asked["seconds"] = math.ceil(wanted.frames / given.fps)
        else:
            asked |= {"num_frames": wanted.frames, "fps": given.fps}
        return {**{name: value for name, value in asked.items() if value is not None}, **given.fields}

    def _frames(self, file: bytes, wanted: Wanted, server: str) -> Frames:
        """The frames in a video's file, as many and as large as wanted. Raises UserError for other ones."""
        try:
            frames = self._fitted(file, wanted) if self._options.fit else decode_mp4(file)[0]
        except MediaError:
            raise UserError(f"{server} sent a file that cannot be read as a video") from None
        count, height, width = frames.shape[:3]
        if (height, width) != (wanted.height, wanted.width):
            raise UserError(
                f"{server} made a video of {width}x{height}, not {wanted.width}x{wanted.height}: ask for that size, or "
                "set options.fit"
            )
        missing = wanted.frames - count
        if missing > (_MISSING * wanted.frames if self._options.fit else 0):
            raise UserError(
                f"{server} made a video of {count} frames at {self._options.fps} a second, not {wanted.frames}: set "
                "options.frames and options.fps to what it makes"
            )
        return np.concatenate([frames[: wanted.frames], np.repeat(frames[-1:], max(0, missing), axis=0)])

    def _fitted(self, file: bytes, wanted: Wanted) -> Frames:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as place:
            place.write(file)
            place.flush()
            size = wanted.height, wanted.width
            return read_clip(File(place.name), self._options.fps, wanted.frames, [size]).frames


def _as_file(picture: bytes) -> tuple[str, bytes, str]:
    """An encoded picture as a file of a form; some servers take none of an unknown type."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "webp" if picture[8:12] == b"WEBP" else "png"
    return f"picture.{kind}", picture, f"image/{kind}"
