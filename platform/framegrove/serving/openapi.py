"""What the API's OpenAPI document says about request bodies, which the routes read by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from framegrove.serving.api import VideoRequest

_SCHEMA = "#/components/schemas/{model}"

VIDEO_REQUEST_BODY: dict[str, Any] = {
    "description": "JSON, or a multipart form with the same fields, which can carry the image as a file in "
    "input_reference; a nested field is then written as search[policy].",
    "required": True,
    "content": {"application/json": {"schema": {"$ref": _SCHEMA.format(model=VideoRequest.__name__)}}},
}


def document_requests(app: FastAPI, policies: Mapping[str, str]) -> None:
    """Add the schema of requests to the application's document, with the ``policies`` (names and descriptions)."""
    _, given = models_json_schema([(VideoRequest, "validation")], ref_template=_SCHEMA)
    schemas = given["$defs"]
    policy = schemas["Search"]["properties"]["policy"]
    policy["enum"] = list(policies)
    policy["description"] += ". " + "; ".join(f"{name}: {text}" for name, text in policies.items())
    app.openapi()["components"]["schemas"].update(schemas)  # FastAPI keeps the document that it makes
