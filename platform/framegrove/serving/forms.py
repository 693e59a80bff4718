"""Multipart forms (RFC 7578): a body that is in memory, taken apart into fields and files."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from framegrove.serving.api import ApiError

MOST_FIELDS = 32
MOST_HEADER_BYTES = 8 * 2**10
_LONGEST_BOUNDARY = 70  # RFC 2046, section 5.1.1


@dataclass(frozen=True)
class Part:
    """A field of a form; ``filename`` is None unless it is a file."""

    name: str
    content: bytes
    filename: str | None = None


def parse_form(body: bytes, boundary: bytes) -> list[Part]:
    """The fields of a form, in their order. Raises ApiError, also for a form that ends before its closing boundary.

    The body is split at its boundaries, which takes time in proportion to its length, whatever it holds.
    """
    if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise ApiError(
            400, f"the form's boundary must have 1 to {_LONGEST_BOUNDARY} characters: give it in Content-Type"
        )
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, MOST_FIELDS + 2)  # before the first one is a preamble
    if len(parts) > MOST_FIELDS + 1:
        raise ApiError(400, f"the form has more than {MOST_FIELDS} fields: send each field of a video request once")
    if not parts or not parts[-1].startswith(b"--"):
        raise ApiError(400, "the form ends before its closing boundary: it was cut off, send it again")
    return [_part(part) for part in parts[:-1]]


def _part(part: bytes) -> Part:
    blanks, line_end, rest = part.partition(b"\r\n")
    if blanks.strip(b" \t") or not line_end:
        raise ApiError(400, "the form's boundary must stand on a line of its own: choose one that occurs in no field")
    end = rest.find(b"\r\n\r\n", 0, MOST_HEADER_BYTES)
    if end < 0:
        raise ApiError(400, f"a field of the form does not begin with headers of at most {MOST_HEADER_BYTES:,} bytes")
    options = _disposition(rest[:end])
    if b"name" not in options:
        raise ApiError(
            400, 'a field of the form has no name: give it one in Content-Disposition: form-data; name="prompt"'
        )
    name = decoded(options[b"name"], "a field's name")
    filename = decoded(options[b"filename"], "a file's name") if b"filename" in options else None
    return Part(name, rest[end + 4 :], filename)


def _disposition(headers: bytes) -> dict[bytes, bytes]:
    """The parameters of the header Content-Disposition, empty where there is none."""
    for line in headers.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return parse_options_header(value.strip().decode("latin-1"))[1]
    return {}


def decoded(text: bytes, whose: str) -> str:
    """Text in UTF-8. Raises ApiError, which says ``whose`` it is."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"{whose} is not valid UTF-8: send text in this encoding") from None
