"""Bodies that no well-meaning client sends: a sentence names the field, and nothing is kept."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from framegrove.serving import pictures
from framegrove.serving.api import MOST_IMAGE_BYTES
from framegrove.serving.web import MOST_BODY_BYTES
from tests.endpoint import PROMPT, Endpoint, picture, serving

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=edge"}


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--edge--\r\n"


def asking(**fields: Any) -> bytes:
    return json.dumps({"prompt": PROMPT, **fields}).encode()


def refused(answer: httpx.Response, status: int, sentence: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert sentence in error["message"]
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


POISON: list[tuple[bytes, str, str]] = [
    (b'{"prompt": "a \\ud800 ball"}', "prompt", "half a character"),
    (b'{"prompt": "\xed\xa0\x80"}', "", "the body is not valid UTF-8"),
    (b'{"prompt": "a\\u0000b"}', "prompt", "U+0000"),
    (b'{"prompt": "a", "model": "\\udfff"}', "model", "half a character"),
    (b'{"prompt": "a", "size": "\\udfff"}', "size", "half a character"),
    (b'{"prompt": "a", "search": {"policy": "\\udfff"}}', "policy", "half a character"),
    (b'{"prompt": "a", "\\udfff": 1}', "", "half a character"),
    (b'{"prompt": "a", "more": [["\\udfff"]]}', "more", "half a character"),
    (b'{"prompt": "a", "search": {"\\udfff": 1}}', "", "half a character"),
    (asking(seconds=10**400), "seconds", "less than 1,000,000 seconds"),
    (asking(seconds="9" * 5000), "seconds", "less than 1,000,000 seconds"),
    (b'{"prompt": "a", "seconds": ' + b"9" * 5000 + b"}", "seconds", "less than 1,000,000 seconds"),
    (b'{"prompt": "a", "seconds": NaN}', "seconds", "not nan"),
    (b'{"prompt": "a", "seconds": 1e999}', "seconds", "not inf"),
    (asking(seconds=[]), "seconds", "must be text"),
    (asking(search={"budget": 10**400}), "search.budget", "a budget is a number"),
    (b'{"prompt": "a", "search": {"budget": Infinity}}', "search.budget", "a budget is a number"),
    (asking(search={"until": 10**400}), "search.until", "search.until must be"),
    (b'{"prompt": "a", "search": {"until": NaN}}', "search.until", "must be a finite number"),
    (b'{"prompt": "a", "search": {"seconds": Infinity}}', "search.seconds", "must be a finite number"),
    (asking(search={"seconds": "inf"}), "search.seconds", "must be a finite number"),
    (asking(search={"seconds": 10**400}), "search.seconds", "search.seconds must be"),
    (asking(seed=10**400), "seed", "seed must be"),
    (asking(seed="9" * 5000), "seed", "whole number of fewer digits"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "seed", "whole number of fewer digits"),
    (b'{"prompt": "a", "seed": -' + b"9" * 5000 + b"}", "seed", "whole number of fewer digits"),
    (b'{"prompt": "a", "seed": NaN}', "seed", "seed must be"),
    (b'{"prompt": "a", "seed": 1.5}', "seed", "must be a whole number"),
    (asking(size="99999x99999"), "", "99999"),
    (b'{"prompt": "a", "seed": 1, "seed": 2}', "seed", "'seed' is given twice"),
    (b'{"prompt": "a", "search": {"budget": "2x", "budget": "4x"}}', "budget", "'budget' is given twice"),
    (b'{"prompt": ' + b"[" * 4000 + b"]" * 4000 + b"}", "", "nested too deeply"),
    (b'{"prompt": ' + b"[" * 400, "", "not valid JSON"),
    (b"[" * 100_000, "", "more than 5,000 brackets and commas"),
    (b'{"prompt": [' + b"1," * 10_000 + b"1]}", "", "more than 5,000 brackets and commas"),
    ('{"prompt": "a"}'.encode("utf-16"), "", "not valid UTF-8"),
    (asking(input_reference="https://elsewhere.example/a.png"), "input_reference", "input_reference must be a section"),
    (asking(input_reference={"file_id": "file-7"}), "input_reference", "no files are kept: send the image itself"),
    (asking(input_reference={"image_url": "file:///etc/passwd"}), "input_reference", "other addresses are not fetched"),
    (asking(input_reference={"image_url": "data:image/svg+xml;base64,AAAA"}), "input_reference", "must be a data URL"),
    (asking(input_reference={"image_url": "data:image/png,AAAA"}), "input_reference", "must be a data URL"),
    *(
        (asking(input_reference={"image_url": f"data:image/png;base64,{data}"}), "input_reference", "not valid base64")
        for data in ("AA-_", "AA\nAA", "A", "AAAA====AAAA", "ÄÄÄÄ", "AA==AA==", "\x01AAA")
    ),
    (asking(input_reference={"image_url": "data:image/png;base64,"}), "input_reference", "is not a picture"),
]


@pytest.mark.parametrize(("body", "param", "sentence"), POISON)
def test_poison_is_refused_by_the_fields_name(tmp_path: Path, body: bytes, param: str, sentence: str) -> None:
    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", content=body, headers=JSON)
        refused(answer, 400, sentence, param or None)
        assert not running.store.queued()

    serving(tmp_path, scene)


HUGE = 15 * 2**20


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"prompt": "a", "' + b"promptseed" * (HUGE // 10) + b'": 1}', "no name has more than 100 characters"),
        (b'{"prompt": ' + b"[" * 900 + b'"' + b"1" * HUGE + b'"' + b"]" * 900 + b"}", "prompt must be text, not"),
        (b'{"prompt": "' + b"\\u00e9" * (HUGE // 6) + b'"}', "shorten it to 2,000"),
        (b'{"prompt": "a", "seed": 1.' + b"1" * HUGE + b"}", "seed must be"),
        (b'{"prompt": "a", "seed": ' + b"9" * HUGE + b"}", "whole number of fewer digits"),
        (b'{"prompt": "a", "search": {"budget": "1000.' + b"1" * HUGE + b'"}}', "more than the 64x allowed"),
        (b" " * HUGE, "not valid JSON"),
    ],
    ids=["name", "nested", "escapes", "fraction", "integer", "budget", "blanks"],
)
def test_a_large_body_does_not_hold_others_up_for_long(tmp_path: Path, body: bytes, sentence: str) -> None:
    """Bodies are read in the event loop: what takes long there, all clients wait for."""

    async def scene(running: Endpoint) -> None:
        began = time.process_time()
        refused(await running.client.post("/v1/videos", content=body, headers=JSON), 400, sentence)
        assert time.process_time() - began < 1.5

    serving(tmp_path, scene)


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json5", ";", "é"]
)
def test_other_bodies_are_told_what_is_taken(tmp_path: Path, kind: str | None) -> None:
    async def scene(running: Endpoint) -> None:
        headers = {} if kind is None else {"content-type": kind.encode()}
        answer = await running.client.post("/v1/videos", content=asking(), headers=headers)
        refused(answer, 415, "send application/json, or multipart/form-data if a file goes with it")

    serving(tmp_path, scene)


WHOLE = form(part("prompt", PROMPT.encode()), part("input_reference", picture(), "a.png"))


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (WHOLE[:-12], 400, "it was cut off, send it again"),
        (WHOLE[: len(WHOLE) // 2], 400, "it was cut off, send it again"),
        (b"", 400, "it was cut off, send it again"),
        (form(part("prompt", b"a"), part("prompt", b"b")), 400, "'prompt' is given twice"),
        (form(part("prompt", b"a"), part("search[budget]", b"2x"), part("search[budget]", b"4x")), 400, "given twice"),
        (form(part("search", b"a"), part("search[budget]", b"2x")), 400, "both as a value and as a section"),
        (form(part("search[budget]", b"2x"), part("search", b"a")), 400, "'search' is given twice"),
        (form(*(part("input_reference", picture(), f"{n}.png") for n in range(2))), 400, "given twice"),
        (form(part("prompt", b"a"), part("other", b"", "a.png")), 400, "the file 'other' is not expected"),
        (form(part("prompt", b"\xff")), 400, "the field 'prompt' is not valid UTF-8"),
        (form(part("prompt", b"a\x00b")), 400, "U+0000"),
        (form(part("prompt", b"a"), part("seed", b"9" * 5000)), 400, "whole number of fewer digits"),
        (form(part("prompt", b"a"), part("seconds", b"9" * 5000)), 400, "less than 1,000,000 seconds"),
        (form(part("prompt", b"a"), part("seconds", b"infinity")), 400, "less than 1,000,000 seconds"),
        (form(part("prompt", b"a" * 70_000)), 413, "'prompt' is larger than 64 KiB"),
        (form(*(part(f"field{n}", b"") for n in range(33))), 400, "more than 32 fields"),
        (form(b"--edge\r\nno headers\r\n"), 400, "does not begin with headers"),
        (form(b"--edge\r\nX: 1\r\n\r\nno name\r\n"), 400, "has no name"),
        (form(b"--edge\r\nX: " + b"1" * 9000 + b"\r\n\r\n\r\n"), 400, "headers of at most 8,192 bytes"),
        (form(b"--edgewise\r\n\r\n\r\n"), 400, "must stand on a line of its own"),
        (form(part("input_reference", b" " * (MOST_IMAGE_BYTES + 1), "a.png"), part("prompt", b"a")), 413, "8 MiB"),
        (form(part("prompt", b"a"), part("input_reference", b"GIF89a", "a.png")), 400, "send a PNG, JPEG or WebP"),
        (
            form(
                part("prompt", b"a"), part("input_reference[image_url]", b"x"), part("input_reference", b"y", "a.png")
            ),
            400,
            "given both as a file and as a field",
        ),
    ],
)
def test_a_bad_form_is_told_in_one_sentence(tmp_path: Path, body: bytes, status: int, sentence: str) -> None:
    async def scene(running: Endpoint) -> None:
        refused(await running.client.post("/v1/videos", content=body, headers=FORM), status, sentence)
        assert not running.store.queued()

    serving(tmp_path, scene)


@pytest.mark.parametrize(
    "kind", ["Multipart/Form-Data; boundary=edge", 'multipart/form-data; charset=utf-8; Boundary="edge"']
)
def test_a_form_is_read_whatever_the_case_of_its_type_and_in_pieces(tmp_path: Path, kind: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(WHOLE), 7):
            yield WHOLE[at : at + 7]

    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", content=pieces(), headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
        record = running.store.get(answer.json()["id"])
        assert record is not None
        assert record.request.image is not None

    serving(tmp_path, scene)


def test_a_chunked_form_is_cut_off_at_the_limit(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield (
            part("prompt", b"a")
            + b'--edge\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n'
        )
        while sent < 2**28:
            sent += 2**16
            yield b" " * 2**16

    async def scene(running: Endpoint) -> None:
        answer = await running.client.post("/v1/videos", content=endless(), headers=FORM)
        refused(answer, 413, "larger than 16 MiB")
        assert sent <= MOST_BODY_BYTES + 2**16

    serving(tmp_path, scene)


def test_no_file_chosen_is_no_picture(tmp_path: Path) -> None:
    """A page's form sends an empty file for a control in which nothing was chosen."""

    async def scene(running: Endpoint) -> None:
        body = form(part("prompt", b"a"), part("input_reference", b"", ""))
        answer = await running.client.post("/v1/videos", content=body, headers=FORM)
        assert answer.status_code == 200, answer.text

    serving(tmp_path, scene)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A black and white PNG file that promises a size and holds what it holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def vast_webp() -> bytes:
    """An animation whose canvas is vast and whose frame is tiny."""
    frame = picture("WEBP", (16, 16), lossless=True)[12:]
    edge = (15_999).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + edge + edge + b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    inner = b"\0" * 6 + (15).to_bytes(3, "little") * 2 + b"\x64\0\0\0" + frame
    chunks += b"ANMF" + struct.pack("<I", len(inner)) + inner
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def many_scans() -> bytes:
    """A progressive JPEG, some of whose scans are repeated until it has far too many."""
    file = picture("JPEG", (64, 64), progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * 100 + file[-2:]


def damaged() -> Iterator[bytes]:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = picture(kind, (64, 64))
        yield whole[: len(whole) * 2 // 3]
        yield whole[:20] + b"\xff" * 20


@pytest.mark.parametrize(
    ("encoded", "sentence"),
    [
        (png(13_000, 13_000, bytes(13_000 * 1626)), "input_reference has more than 64,000,000 pixels"),
        (png(20_000, 20_000), "more than 64,000,000 pixels"),
        (png(64_000_001, 1), "more than 64,000,000 pixels"),
        (vast_webp(), "more than 64,000,000 pixels"),
        (many_scans(), "a JPEG of more than 32 scans"),
        (b"a picture", "send a PNG, JPEG or WebP file"),
        (picture("GIF"), "send a PNG, JPEG or WebP file"),
        (picture("TIFF"), "send a PNG, JPEG or WebP file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "send a PNG, JPEG or WebP file"),
        *((file, "input_reference") for file in damaged()),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_bad_picture_is_refused_at_once(tmp_path: Path, encoded: bytes, sentence: str, as_json: bool) -> None:
    url = f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
    asked: dict[str, Any] = {"data": {"prompt": PROMPT}, "files": {"input_reference": ("a.png", encoded, "image/png")}}
    if as_json:
        asked = {"json": {"prompt": PROMPT, "input_reference": {"image_url": url}}}

    async def scene(running: Endpoint) -> None:
        refused(await running.client.post("/v1/videos", **asked), 400, sentence, "input_reference")
        assert not running.store.queued()

    serving(tmp_path, scene)


def test_whatever_a_decoder_raises_is_the_pictures_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError("a secret of the house")

    monkeypatch.setattr(pictures, "pictures_of", fails)

    async def scene(running: Endpoint) -> None:
        image = {"input_reference": ("a.png", picture(), "image/png")}
        answer = await running.client.post("/v1/videos", data={"prompt": PROMPT}, files=image)
        refused(answer, 400, "cannot be decoded: save the picture again")
        assert "MemoryError: a secret" in caplog.text

    serving(tmp_path, scene)


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_what_is_kept_is_a_file_of_our_own(kind: str) -> None:
    """Its pixels are the client's; nothing else is: neither its bytes, nor its metadata, nor what follows it."""
    exif = Image.Exif()
    exif[0x010E] = "a secret of the client"
    sent = picture(kind, (40, 30), exif=exif) + b"<script>"
    kept = pictures.reencoded(sent)
    assert kept.startswith(b"\x89PNG")
    assert b"secret" not in kept
    assert b"<script>" not in kept
    with Image.open(io.BytesIO(kept)) as shown, Image.open(io.BytesIO(sent)) as original:
        assert np.array_equal(np.asarray(shown), np.asarray(original.convert("RGB")))


def test_a_large_picture_is_kept_small() -> None:
    with Image.open(io.BytesIO(pictures.reencoded(picture("JPEG", (8000, 2000))))) as kept:
        assert kept.size == (4096, 1024)
        assert np.asarray(kept)[512, 2048].tolist() == pytest.approx([255, 0, 0], abs=2)


def test_more_pictures_than_places_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(pictures, "reencoded", lambda encoded: gate.wait(30) and encoded)

    async def scene(running: Endpoint) -> None:
        image = {"input_reference": ("a.png", picture(), "image/png")}
        posts = [
            asyncio.create_task(running.client.post("/v1/videos", data={"prompt": PROMPT}, files=image))
            for _ in range(5)
        ]
        done, waiting = await asyncio.wait(posts, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            more, waiting = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        for turned_away in done:
            refused(turned_away.result(), 503, "3 pictures are being checked already")
        assert (await running.client.get("/v1/models")).status_code == 200
        gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 3

    serving(tmp_path, scene, reading=3)
