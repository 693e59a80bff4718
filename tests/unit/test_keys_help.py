"""What --help says of a configuration's keys: their defaults, what they mean, and which values they take."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from jobs.keys import keys_help


class Section(BaseModel):
    first: int = Field(description="needed")
    which: Literal["near", "far"] = Field(default="near", description="what is taken")
    spelt: Literal["on", "off"] | None = Field(default=None, description="on: always; off: never")
    free: str = Field(default="", description="anything")


def test_values_are_listed_where_the_description_does_not_name_them_all() -> None:
    said = keys_help(("Keys:", Section, "part."))
    assert said.splitlines() == [
        "\b",
        "Keys:",
        "  part.first (required): needed",
        "  part.which (default near): what is taken. One of near, far",
        "  part.spelt (default null): on: always; off: never",
        "  part.free (default empty): anything",
    ]
