"""Pages in one file, for a browser without a network: a template of page/ with style, script and data put inside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "page"


def part(name: str) -> str:
    """A file of page/."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def assembled(template: str, **parts: str) -> str:
    """A template with each ``{{NAME}}`` replaced by the part of that name."""
    # In one pass: a part may hold such marks, as what people type does.
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], part(template))


def embedded(value: Any) -> str:
    """JSON for a script element: nothing in it can be read as markup, whatever a prompt or a question holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
