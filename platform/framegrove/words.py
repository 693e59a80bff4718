"""Words for people."""

from __future__ import annotations

_HISSING = ("s", "x", "z", "ch", "sh")


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "shard"), counted(0, "branch")
    ('1 shard', '0 branches')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(_HISSING) else 's'}"
