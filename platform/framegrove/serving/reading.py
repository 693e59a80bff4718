"""From a request's body to a checked request, with the picture or the clip that comes with it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from framegrove.serving import clips, pictures
from framegrove.serving.api import (
    MOST_CLIP_BYTES,
    MOST_IMAGE_BYTES,
    ApiError,
    Body,
    ExtensionRequest,
    VideoRequest,
    parse,
)
from framegrove.serving.decoding import Decoders
from framegrove.serving.forms import Part, decoded, parse_form

MOST_FIELD_BYTES = 64 * 2**10
_LONGEST_NAME = 100
_LONGEST_HEAD = 100  # of a data URL
_LONGEST_CONTENT_TYPE = 500
# Brackets and commas in a JSON body: a request needs a few dozen. So many also bound how deep it is nested, and how
# much larger than its text it becomes in memory.
_MOST_MARKS = 5000
_LONG = 2**20  # bytes of a body that takes too long to read for everybody else to wait meanwhile
_MOST_DIGITS = 4300  # of an integer, for Python's int


@dataclass(frozen=True)
class _Upload:
    """The file that a request may carry: as a form's file in ``field``, or as a data URL in ``url`` in that field."""

    field: str
    url: str
    most: int  # bytes

    def most_of(self, name: str) -> int:
        """How many bytes the text of a form's field may have."""
        return self.most * 4 // 3 + _LONGEST_HEAD if name == f"{self.field}[{self.url}]" else MOST_FIELD_BYTES


_IMAGE = _Upload(pictures.FIELD, "image_url", MOST_IMAGE_BYTES)
_CLIP = _Upload(clips.FIELD, "video_url", MOST_CLIP_BYTES)


async def read_request(request: Request, decoders: Decoders) -> tuple[VideoRequest, bytes | None]:
    """The request in the body, with its picture as a PNG file. Raises ApiError, in one sentence."""
    fields, image = await _parsed(request, _IMAGE)
    asked = parse(VideoRequest, fields)
    if asked.input_reference is not None:
        if image is not None:
            raise _given_both(_IMAGE)
        image = await asyncio.to_thread(asked.input_reference.image)
    return asked, None if image is None else await pictures.checked_picture(image, decoders)


async def read_extension(request: Request) -> tuple[ExtensionRequest, bytes | None]:
    """The request in the body, with the file of the clip that it sends, if any. Raises ApiError, in one sentence."""
    fields, clip = await _parsed(request, _CLIP)
    asked = parse(ExtensionRequest, fields)
    if asked.video is not None:
        if clip is not None:
            raise _given_both(_CLIP)
        clip = await asyncio.to_thread(asked.video.clip)
    if clip is not None and len(clip) > MOST_CLIP_BYTES:
        raise ApiError(
            413, f"the clip is larger than {MOST_CLIP_BYTES // 2**20} MiB: send a smaller one", param="video"
        )
    return asked, clip


async def read_json(request: Request, kind: type[Body]) -> Body:
    """A request of another kind in a JSON body. Raises ApiError, in one sentence."""
    given = request.headers.get("content-type", "")
    if parse_options_header(given[:_LONGEST_CONTENT_TYPE])[0] != b"application/json":
        raise ApiError(415, f"the Content-Type is {given[:60]!r}: send application/json")
    return parse(kind, parse_json(await request.body()))


async def _parsed(request: Request, upload: _Upload) -> tuple[Any, bytes | None]:
    body, content_type = await request.body(), request.headers.get("content-type", "")
    if len(body) > _LONG:
        return await asyncio.to_thread(_fields, body, content_type, upload)
    return _fields(body, content_type, upload)


def _fields(body: bytes, content_type: str, upload: _Upload) -> tuple[Any, bytes | None]:
    kind, options = parse_options_header(content_type[:_LONGEST_CONTENT_TYPE])
    if kind == b"application/json":
        return parse_json(body), None
    if kind == b"multipart/form-data":
        return _fields_and_file(parse_form(body, options.get(b"boundary", b"")), upload)
    given = f"{content_type[:60]!r}" if content_type else "missing"
    raise ApiError(
        415, f"the Content-Type is {given}: send application/json, or multipart/form-data if a file goes with it"
    )


def parse_json(body: bytes) -> Any:
    """The value of a JSON document in UTF-8. Raises ApiError, also for a field that is given twice.

    Integers too long for Python stay text, so that the check of their field refuses them by its name.
    """
    text = decoded(body, "the body")
    if sum(text.count(mark) for mark in "[{,") > _MOST_MARKS:
        raise ApiError(400, f"the body holds more than {_MOST_MARKS:,} brackets and commas: send one request alone")
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_int=_integer)
    except RecursionError:
        raise ApiError(
            400, "the body is nested too deeply: a field of a section is as deep as a request goes"
        ) from None
    except ValueError:
        raise ApiError(400, 'the body is not valid JSON: send an object such as {"prompt": "a red ball"}') from None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a field that is given twice, some readers take the first and some the last."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        _put_once(fields, name, value, name)
    return fields


def _fields_and_file(parts: list[Part], upload: _Upload) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    file = None
    for part in parts:
        if part.filename is None:
            _put(fields, part.name, _text(part, upload.most_of(part.name)))
        elif part.name != upload.field:
            sentence = f"the file {part.name[:60]!r} is not expected, only {upload.field} is"
            raise ApiError(400, sentence, param=part.name[:60])
        elif file is not None:
            raise _given_twice(upload.field)
        elif part.filename or part.content:  # a browser sends neither where no file was chosen
            file = part.content
    return fields, file


def _text(part: Part, most: int) -> str:
    name = part.name[:60]
    if len(part.content) > most:
        raise ApiError(413, f"the field {name!r} is larger than {most // 2**10:,} KiB: shorten it", param=name)
    return decoded(part.content, f"the field {name!r}")


def _put(fields: dict[str, Any], name: str, value: str) -> None:
    """Set a field of a form, where a nested one is written as ``search[budget]``."""
    section, bracket, field = name.partition("[")
    if not (bracket and field.endswith("]")):
        _put_once(fields, name, value, name)
        return
    inner = fields.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ApiError(400, f"the field {section[:60]!r} is given both as a value and as a section", param=section[:60])
    _put_once(inner, field[:-1], value, name)


def _put_once(fields: dict[str, Any], name: str, value: Any, shown: str) -> None:
    if len(name) > _LONGEST_NAME:  # also because it takes long to look for the nearest known name
        sentence = f"the field {shown[:60]!r}... is unknown: no name has more than {_LONGEST_NAME} characters"
        raise ApiError(400, sentence, param=shown[:60])
    flaw = _flaw(name) or _flaw(value)
    if flaw:
        raise ApiError(400, f"the field {shown[:60]!r} holds {flaw}, which is no text: remove it", param=shown[:60])
    if name in fields:
        raise _given_twice(shown)
    fields[name] = value


def _flaw(value: Any) -> str:
    """What the value holds that no text can, empty for nothing: JSON can write "\\ud800" and "\\u0000".

    Objects inside it were looked at before, since they end before what holds them.
    """
    if isinstance(value, list):
        return next(filter(None, map(_flaw, value)), "")
    if not isinstance(value, str):
        return ""
    if "\0" in value:
        return "the character U+0000"
    return "" if _is_unicode(value) else "half a character (a lone surrogate)"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _given_both(upload: _Upload) -> ApiError:
    sentence = f"{upload.field} is given both as a file and as a field: send one of them"
    return ApiError(400, sentence, param=upload.field)


def _given_twice(name: str) -> ApiError:
    return ApiError(400, f"the field {name[:60]!r} is given twice: send it once", param=name[:60])
