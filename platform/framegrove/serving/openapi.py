"""What the API's OpenAPI document says about request bodies, which the routes read by themselves."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from framegrove.serving.api import ExtensionRequest, PolicyOffer, RemixRequest, VideoRequest

_SCHEMA = "#/components/schemas/{model}"

_FORM = "VideoForm"
_EXTENSION_FORM = "ExtensionForm"


class ErrorDetails(BaseModel):
    """What was wrong: a sentence, the kind of error, and, where there are such, the field and a word for programs."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer to a request that is refused, or that failed."""

    error: ErrorDetails


ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is refused."},
    "5XX": {"model": ErrorAnswer, "description": "The endpoint failed, or (503) has no room at this moment."},
}

VIDEO_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}
}

VIDEO_REQUEST_BODY: dict[str, Any] = {
    "description": "JSON, or a multipart form with the same fields, which can carry the image as a file in "
    "input_reference; a nested field is then written as search[policy].",
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": _SCHEMA.format(model=VideoRequest.__name__)}},
        "multipart/form-data": {"schema": {"$ref": _SCHEMA.format(model=_FORM)}},
    },
}


REMIX_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": _SCHEMA.format(model=RemixRequest.__name__)}}},
}


EXTENSION_BODY: dict[str, Any] = {
    "description": "JSON, or a multipart form with the same fields, which can carry a clip (MP4, WebM or MOV) as a "
    "file in video, or name a video in video[id].",
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": _SCHEMA.format(model=ExtensionRequest.__name__)}},
        "multipart/form-data": {"schema": {"$ref": _SCHEMA.format(model=_EXTENSION_FORM)}},
    },
}


def document_requests(app: FastAPI, policies: Mapping[str, PolicyOffer]) -> None:
    """Have the application's document, made when it is first asked for, say what requests are like.

    The ``policies`` are told by names and descriptions.
    """
    plain = app.openapi

    @functools.cache
    def documented() -> dict[str, Any]:
        document = plain()
        document["components"]["schemas"].update(_requests(policies))
        _link(document["paths"])
        return document

    app.openapi = documented  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _requests(policies: Mapping[str, PolicyOffer]) -> dict[str, Any]:
    """The schemas of requests."""
    _, given = models_json_schema(
        [(kind, "validation") for kind in (VideoRequest, RemixRequest, ExtensionRequest)], ref_template=_SCHEMA
    )
    schemas: dict[str, Any] = given["$defs"]
    policy = schemas["Search"]["properties"]["policy"]
    policy["enum"] = list(policies)
    policy["description"] += ". " + "; ".join(f"{name}: {offer.description}" for name, offer in policies.items())
    schemas[_FORM] = _form(schemas, VideoRequest, _FORM, _IMAGE_FILE)
    schemas[_EXTENSION_FORM] = _form(schemas, ExtensionRequest, _EXTENSION_FORM, _CLIP_FILE)
    schemas[ExtensionRequest.__name__]["required"].append("video")  # without a form there is no file in its place
    return schemas


def _link(paths: Mapping[str, Any]) -> None:
    """Say of every answer that is a new video which operations take its id (OpenAPI 3.1, Link Object)."""
    of_video = {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {"video_id": "$response.body#/id"},
        }
        for path, operations in paths.items()
        if "{video_id}" in path and "{branch}" not in path
        for operation in operations.values()
    }
    for path in ("/v1/videos", "/v1/videos/{video_id}/remix"):
        paths[path]["post"]["responses"]["200"]["links"] = of_video


_IMAGE_FILE: dict[str, Any] = {
    "input_reference": {
        "type": "string",
        "format": "binary",
        "description": "the video's first frame, a PNG, JPEG or WebP file",
    }
}
_CLIP_FILE: dict[str, Any] = {
    "video": {"type": "string", "format": "binary", "description": "a clip to go on from, an MP4, WebM or MOV file"},
    "video[id]": {"type": "string", "maxLength": 64, "description": "in place of a clip: the id of a completed video"},
}


def _form(
    schemas: Mapping[str, Any], kind: type[BaseModel], title: str, files: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The schema of a request as a form: nested fields are flat, and ``files`` are files."""
    request, search = schemas[kind.__name__], schemas["Search"]
    fields = {name: field for name, field in request["properties"].items() if name not in ("search", *files)}
    fields |= {f"search[{name}]": field for name, field in search["properties"].items()}
    description = f"{request['description'].splitlines()[0].rstrip('.')}, as a form."
    required = [name for name in request["required"] if name not in files]
    return {
        **request,
        "title": title,
        "description": description,
        "properties": {**fields, **files},
        "required": required,
    }
