"""From a request's body to a checked video request with its picture."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from framegrove.serving.api import MOST_IMAGE_BYTES, ApiError, Body, VideoRequest, parse
from framegrove.serving.forms import Part, decoded, parse_form
from framegrove.serving.pictures import FIELD, PictureReader

MOST_FIELD_BYTES = 64 * 2**10
_LONGEST_NAME = 100
_MOST_URL_BYTES = MOST_IMAGE_BYTES * 4 // 3 + 100  # an image in base64, with a data URL's head
_LONGEST_CONTENT_TYPE = 500
# Brackets and commas in a JSON body: a request needs a few dozen. So many also bound how deep it is nested, and how
# much larger than its text it becomes in memory.
_MOST_MARKS = 5000
_MOST_DIGITS = 4300  # of an integer, for Python's int


async def read_request(request: Request, pictures: PictureReader) -> tuple[VideoRequest, bytes | None]:
    """The request in the body, with its picture as a PNG file. Raises ApiError, in one sentence."""
    fields, image = _parsed(await request.body(), request.headers.get("content-type", ""))
    asked = parse(VideoRequest, fields)
    if asked.input_reference is not None:
        if image is not None:
            raise ApiError(400, f"{FIELD} is given both as a file and as a field: send one of them", param=FIELD)
        image = asked.input_reference.image()
    return asked, None if image is None else await pictures.checked(image)


async def read_json(request: Request, kind: type[Body]) -> Body:
    """A request of another kind in a JSON body. Raises ApiError, in one sentence."""
    given = request.headers.get("content-type", "")
    if parse_options_header(given[:_LONGEST_CONTENT_TYPE])[0] != b"application/json":
        raise ApiError(415, f"the Content-Type is {given[:60]!r}: send application/json")
    return parse(kind, parse_json(await request.body()))


def _parsed(body: bytes, content_type: str) -> tuple[Any, bytes | None]:
    kind, options = parse_options_header(content_type[:_LONGEST_CONTENT_TYPE])
    if kind == b"application/json":
        return parse_json(body), None
    if kind == b"multipart/form-data":
        return _fields_and_file(parse_form(body, options.get(b"boundary", b"")))
    given = f"{content_type[:60]!r}" if content_type else "missing"
    raise ApiError(
        415, f"the Content-Type is {given}: send application/json, or multipart/form-data if an image goes with it"
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


def _fields_and_file(parts: list[Part]) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    image = None
    for part in parts:
        if part.filename is None:
            _put(fields, part.name, _text(part))
        elif part.name != FIELD:
            raise ApiError(400, f"the file {part.name[:60]!r} is not expected, only {FIELD} is", param=part.name[:60])
        elif image is not None:
            raise _given_twice(FIELD)
        elif part.filename or part.content:  # a browser sends neither where no file was chosen
            image = part.content
    return fields, image


def _text(part: Part) -> str:
    most = _MOST_URL_BYTES if part.name == f"{FIELD}[image_url]" else MOST_FIELD_BYTES
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


def _given_twice(name: str) -> ApiError:
    return ApiError(400, f"the field {name[:60]!r} is given twice: send it once", param=name[:60])
