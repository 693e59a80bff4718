"""How many workers a pool has: a number, or a least and a most between which it grows and shrinks with the work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, PlainSerializer

from framegrove.errors import UserError


@dataclass(frozen=True)
class PoolSize:
    """At least ``least`` workers, and at most ``most``."""

    least: int
    most: int

    @classmethod
    def read(cls, given: Any) -> Self:
        """From a number, or from text such as "4" or "1:4". Raises ValueError."""
        if isinstance(given, cls):
            return given
        match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", str(given)) if isinstance(given, int | str) else None
        least = int(match[1]) if match else 0
        most = int(match[2]) if match and match[2] else least
        if not 1 <= least <= most:
            raise ValueError(f"give a number as 4 or a range as 2:8, not {given!r}")
        return cls(least, most)

    @classmethod
    def option(cls, name: str, given: str) -> Self:
        """From an option of a command. Raises UserError."""
        try:
            return cls.read(given)
        except ValueError:
            raise UserError(f"{name} must be a number as 4 or a range as 2:8, not {given!r}") from None

    @property
    def varies(self) -> bool:
        """Whether it is a range."""
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}:{self.most}" if self.varies else str(self.most)


Workers = Annotated[
    PoolSize,
    BeforeValidator(PoolSize.read),
    PlainSerializer(lambda size: str(size) if size.varies else size.most, return_type=int | str),
]
"""A field of a configuration: 4, or "1:4"."""
