"""Results of claims on the disk, and the table that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framegrove.errors import UserError
from jobs.claims import registry
from jobs.claims.claim import VERSION, Figure


def verdict(met: bool | None) -> str:
    """In a word."""
    return {True: "met", False: "missed", None: "open"}[met]


def read(path: Path) -> dict[str, Any]:
    """A claim's result. Raises UserError for a file that is none, or of another version."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} holds no result of a claim: remove it, or name another folder") from None
    if version != VERSION:
        raise UserError(
            f"{path} is of version {version} and this is {VERSION}: measure the claim again, with --overwrite"
        )
    return found


def read_all(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, in the order of the registry. Raises UserError where there are none."""
    found = [read(folder / f"{name}.json") for name in registry.CLAIMS if (folder / f"{name}.json").is_file()]
    if not found:
        raise UserError(
            f"{folder} holds no results of claims: measure one first, python -m jobs.evidence NAME --out .."
        )
    return found


def as_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A table: a row for each claim, also for those of which there is no result."""
    by_name = {result["claim"]: result for result in results}
    lines = ["| claim | figure | found | aim | |", "|---|---|---|---|---|"]
    for name, claim in registry.CLAIMS.items():
        cells = _cells(by_name[name]) if name in by_name else ("", "not measured here", claim.aim, "")
        lines.append(f"| `{name}` | {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    (headline,) = (each for each in result["figures"] if each["name"] == result["headline"])
    figure = Figure(**headline)
    prompts = f" ({result['prompts']} prompts)" if result["prompts"] else ""
    return f"{figure.name}{prompts}", str(figure), str(result["aim"]), verdict(result["met"])
