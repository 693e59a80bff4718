"""Videos that go on from a clip that its sender made elsewhere: what is taken, what is refused, what survives."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framegrove.media.extending import ClipForm
from framegrove.media.frames import MediaError
from framegrove.media.writing import decode_mp4
from framegrove.serving.api import MOST_CLIP_BYTES
from framegrove.serving.backup import back_up
from framegrove.serving.decode_clip import CheckedClip, ClipTask, Limits, decoded_clip
from framegrove.serving.store import VideoStore
from tests.endpoint import PROMPT, Endpoint, endpoint, picture, serving
from tests.fakes import FakeRunner
from tests.films import panned, recorded, scenery
from tests.unit.test_serving_store import broken

FORM = ClipForm(64, 64, 8, 6)  # a unit lasts a second
WIDE = panned(scenery(3), 51, 2)  # 160x96, just over two seconds at 24 frames a second
FILES = {
    "mp4": recorded(WIDE),
    "mp4 with sound": recorded(WIDE, sound=True),
    "mov": recorded(WIDE, form="mov", sound=True),
    "webm": recorded(WIDE, form="webm"),
    "webm with sound": recorded(WIDE, form="webm", sound=True),
}
SOUND = {form: recorded(WIDE, form=form, pictures=False, sound=True) for form in ("mp4", "webm")}


def checked(sent: bytes, limits: Limits | None = None) -> CheckedClip:
    """A clip as it is decoded in a process of its own; here in this one, which is faster."""
    with tempfile.TemporaryFile() as file:
        file.write(sent)
        file.flush()
        return decoded_clip(Path(f"/dev/fd/{file.fileno()}"), ClipTask(FORM, limits or Limits()))


async def upload(running: Endpoint, clip: bytes, **fields: str) -> httpx.Response:
    data = {"prompt": PROMPT, "seconds": "2", **fields}
    return await running.client.post("/v1/videos/extensions", data=data, files={"video": ("clip.bin", clip)})


async def send(running: Endpoint, **fields: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "seconds": "2", **fields}
    return await running.client.post("/v1/videos/extensions", json=body)


def data_url(clip: bytes, kind: str = "mp4") -> str:
    return f"data:video/{kind};base64,{base64.b64encode(clip).decode()}"


@pytest.mark.parametrize("name", FILES)
def test_a_clip_becomes_what_the_model_makes(name: str) -> None:
    clip = checked(FILES[name])
    frames, fps = decode_mp4(clip.video)
    assert (frames.shape, fps, clip.units) == ((17, 64, 64, 3), 8, 3)
    middle = WIDE[0, 16:80, 48:112].astype(int)  # covered: 96 rows become 64, so that 96 columns are kept
    assert np.abs(frames[0].astype(int).mean((0, 1)) - middle.mean((0, 1))).max() < 25
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1, "it moves"


def test_a_clip_ends_as_it_ended() -> None:
    """Of 20 frames the 17 last ones are kept: what follows goes on from the end."""
    film = np.repeat(np.arange(20, dtype=np.uint8)[:, None, None, None] * 12, 64, 1).repeat(64, 2).repeat(3, 3)
    frames, _ = decode_mp4(checked(recorded(film, fps=8)).video)
    greys = frames.mean((1, 2, 3))
    assert len(frames) == 17
    assert greys[0] == pytest.approx(36, abs=4)
    assert greys[-1] == pytest.approx(228, abs=4)


def test_a_video_goes_on_from_an_uploaded_clip(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        answers = [
            await upload(running, FILES["webm"], seed="4", **{"search[budget]": "2x"}),
            await send(running, video={"video_url": data_url(FILES["webm"], "webm")}, seed=4, search={"budget": "2x"}),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            video = await running.until(answer.json()["id"], "completed")
            assert (video["seconds"], video["size"], video["seed"]) == ("4.125", "64x64", 4)
            assert video["extended_from_video_id"] is None
        one, other = running.runner.asked
        assert one == other
        assert (one.given, one.units, one.frames, one.start, one.budget) == (3, 5, 33, None, 2.0)
        assert one.clip is not None
        assert decode_mp4(one.clip)[0].shape == (17, 64, 64, 3)

    serving(tmp_path, scene)


@asynccontextmanager
async def waiting(folder: Path) -> AsyncIterator[tuple[Endpoint, str]]:
    """An endpoint at which a video that goes on from a clip waits behind another one, and its id."""
    runner = FakeRunner()
    runner.gate.clear()
    async with endpoint(folder, runner, searches=1) as running:
        first = (await running.post(prompt=PROMPT)).json()
        await running.until(first["id"], "in_progress")
        yield running, (await upload(running, FILES["mp4"])).json()["id"]


def test_a_clip_outlives_the_process(tmp_path: Path) -> None:
    async def play() -> None:
        async with waiting(tmp_path) as (_, video_id):
            pass
        async with endpoint(tmp_path) as again:
            await again.until(video_id, "completed")
            asked = next(each for each in again.runner.asked if each.given)
            assert asked.clip is not None
            assert decode_mp4(asked.clip)[0].shape == (17, 64, 64, 3)
            remix = await again.client.post(f"/v1/videos/{video_id}/remix", json={"prompt": "a blue 5"})
            await again.until(remix.json()["id"], "completed")
            assert again.runner.asked[-1].clip == asked.clip, "a remix goes on from the same clip"
            for each in (video_id, remix.json()["id"]):
                assert (tmp_path / "videos" / f"{each}.clip" / "clip.mkv").read_bytes() == asked.clip
                await again.client.delete(f"/v1/videos/{each}")
            assert not list((tmp_path / "videos").glob("*.clip"))

    asyncio.run(play())


def test_a_lost_clip_fails_its_video_in_a_sentence(tmp_path: Path) -> None:
    async def play() -> None:
        async with waiting(tmp_path) as (running, video_id):
            (tmp_path / "videos" / f"{video_id}.clip" / "clip.mkv").unlink()
            running.runner.gate.set()
            failed = await running.until(video_id, "failed")
            assert failed["error"]["code"] == "invalid_request"
            assert "the clip that it goes on from is gone: send it again" in failed["error"]["message"]
            remix = await running.client.post(f"/v1/videos/{video_id}/remix", json={"prompt": "a blue 5"})
            assert (remix.status_code, remix.json()["error"]["code"]) == (410, "file_missing")

    asyncio.run(play())


def test_no_clip_stays_of_what_was_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        runner = FakeRunner()
        runner.gate.clear()
        async with endpoint(tmp_path, runner, searches=1, waiting=1) as running:
            await running.until((await running.post(prompt=PROMPT)).json()["id"], "in_progress")
            with monkeypatch.context() as patch:
                patch.setattr("framegrove.serving.store.row_of", broken)
                assert (await upload(running, FILES["mp4"])).status_code == 503
            assert not list((tmp_path / "videos").glob("*.clip"))
            headers = {"Idempotency-Key": "one"}
            answers = [
                await running.client.post(
                    "/v1/videos/extensions",
                    data={"prompt": PROMPT, "seconds": "2", "seed": "1"},
                    files={"video": ("a.mp4", FILES["mp4"])},
                    headers=headers,
                )
                for _ in range(2)
            ]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].json()["id"] == answers[1].json()["id"]
            full = await upload(running, FILES["webm"])
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert len(list((tmp_path / "videos").glob("*.clip"))) == 1
            assert running.store.usage().stored > 1000, "it counts as stored"

    asyncio.run(play())


def test_a_copy_of_the_store_has_the_clips(tmp_path: Path) -> None:
    async def play() -> None:
        async with waiting(tmp_path / "folder") as (running, video_id):
            back_up(tmp_path / "folder", tmp_path / "copy")
            clip = running.store.clip(video_id)
        copy = VideoStore(tmp_path / "copy")
        copy.recover()
        assert copy.clip(video_id) == clip
        copy.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"", "the clip is no video that can be read: send an MP4, WebM or MOV file"),
        (b"no clip at all", "the clip is no video that can be read"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "the clip is no video that can be read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "the clip is no video that can be read"),
        (picture("GIF"), "the clip is no video that can be read"),
        (picture("AVIF", (64, 64)), "the clip is no video that can be read"),
        (SOUND["mp4"], "the clip cannot be read as a video (it holds none)"),
        (SOUND["webm"], "the clip cannot be read as a video (it holds none)"),
        (b"\x1aE\xdf\xa3" + bytes(100), "the clip"),
        (b"\0\0\0\x10ftypisom" + bytes(100), "the clip"),
        (recorded(panned(scenery(1), 60, 1), fps=8), "lasts 7.5 seconds"),
    ],
)
def test_what_is_no_clip_is_refused_in_a_sentence(sent: bytes, sentence: str) -> None:
    with pytest.raises(MediaError) as refusal:
        checked(sent)
    assert sentence in str(refusal.value)
    assert "/dev" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_half_a_file_is_refused(name: str, share: float) -> None:
    whole = FILES[name]
    with pytest.raises(MediaError, match=r"half a file|cannot be read as a video"):
        checked(whole[: int(share * len(whole))])


def test_pixels_are_counted_before_any_is_decoded() -> None:
    pixels = 51 * 160 * 96
    with pytest.raises(MediaError, match=r"the clip has frames of more than 15,359 pixels"):
        checked(FILES["mp4"], Limits(pixels=160 * 96 - 1))
    with pytest.raises(MediaError, match=r"the clip has more than 783,359 pixels in all its frames together"):
        checked(FILES["webm"], Limits(decoded=pixels - 1))
    with pytest.raises(MediaError, match=r"the clip has more than 50 frames: make it shorter"):
        checked(FILES["webm"], Limits(frames=50))
    assert checked(FILES["webm"], Limits(decoded=pixels, frames=51)).units == 3


damages = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["mp4", "webm with sound", "mov"]), damages)
def test_a_damaged_clip_is_refused_or_read(name: str, patches: list[tuple[int, int, bytes]]) -> None:
    body = FILES[name]
    for at, gone, new in patches:
        place = at % len(body)
        body = body[:place] + new + body[place + gone :]
    with contextlib.suppress(MediaError):  # nothing else is raised
        assert 1 <= checked(body).units <= FORM.units


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({}, 400, "the field video is missing: send a clip as a file"),
        ({"video": {}}, 400, "video needs either an id or a video_url"),
        ({"video": {"id": "video_1", "video_url": data_url(b"")}}, 400, "video needs either an id or a video_url"),
        ({"video": {"video_url": "https://example.org/a.mp4"}}, 400, "other addresses are not fetched"),
        ({"video": {"video_url": "data:video/mp4;base64,??"}}, 400, "video.video_url is not valid base64"),
        ({"video": {"video_url": data_url(b"no clip")}}, 400, "the clip is no video that can be read"),
        ({"video": {"video_url": data_url(FILES["mp4"])}, "seconds": 7.2}, 400, "ask for 7 s at most"),
        ({"video": {"video_url": data_url(FILES["mp4"])}, "seconds": 6.5}, 400, "lasts 2.1 seconds"),
        ({"video": {"video_url": data_url(FILES["mp4"])}, "promt": "x"}, 400, "unknown field 'promt', did you mean"),
    ],
)
def test_a_request_that_cannot_go_on_is_refused(
    tmp_path: Path, fields: dict[str, Any], status: int, sentence: str
) -> None:
    async def scene(running: Endpoint) -> None:
        answer = await send(running, **fields)
        assert answer.status_code == status, answer.text
        assert sentence in answer.json()["error"]["message"]
        assert (await running.client.get("/v1/videos")).json()["data"] == []

    serving(tmp_path, scene)


def test_forms_carry_one_clip_of_a_size(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first = (await running.post(prompt=PROMPT, seed=3)).json()
        await running.until(first["id"], "completed")
        by_id = {"prompt": (None, PROMPT), "seconds": (None, "1"), "video[id]": (None, first["id"])}
        assert (await running.client.post("/v1/videos/extensions", files=by_id)).status_code == 200
        both = await upload(running, FILES["mp4"], **{"video[id]": first["id"]})
        assert (both.status_code, "both as a file and as a field" in both.text) == (400, True)
        misplaced = await running.client.post("/v1/videos", data={"prompt": PROMPT}, files={"video": ("a", b"a")})
        assert "only input_reference is" in misplaced.json()["error"]["message"]
        large = await upload(running, bytes(MOST_CLIP_BYTES + 1))
        assert (large.status_code, "the clip is larger than 24 MiB" in large.text) == (413, True)
        larger = await upload(running, bytes(MOST_CLIP_BYTES * 2))
        assert (larger.status_code, "the body is larger than 33 MiB" in larger.text) == (413, True)
        elsewhere = await running.client.post("/v1/videos", content=io.BytesIO(bytes(17 * 2**20)).read())
        assert (elsewhere.status_code, "the body is larger than 16 MiB" in elsewhere.text) == (413, True)

    serving(tmp_path, scene)


def test_a_remix_goes_on_from_what_its_video_went_on_from(tmp_path: Path) -> None:
    async def scene(running: Endpoint) -> None:
        first = (await running.post(prompt=PROMPT, seed=3)).json()
        await running.until(first["id"], "completed")
        longer = (await send(running, video={"id": first["id"]})).json()
        await running.until(longer["id"], "completed")
        remix = await running.client.post(f"/v1/videos/{longer['id']}/remix", content=json.dumps({"prompt": "a 5"}))
        assert remix.status_code == 415
        remix = await running.client.post(f"/v1/videos/{longer['id']}/remix", json={"prompt": "a 5"})
        made = await running.until(remix.json()["id"], "completed")
        assert (made["remixed_from_video_id"], made["extended_from_video_id"]) == (longer["id"], first["id"])
        assert running.runner.asked[-1].start == running.runner.asked[-2].start == b"latents of 3"

    serving(tmp_path, scene)
