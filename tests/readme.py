"""README.md and the pages that it leads to, taken apart: their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(ROOT / each for each in ("README.md", "jobs/README.md", "platform/README.md", "deploy/README.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, "" for commands, and its text."""

    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of every line, continuation lines joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(language: str = "") -> list[Block]:
    """The pages' blocks of a language, in order; those of commands without the one that lists files."""
    found = [Block(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)]
    return [block for block in found if block.language == language and not block.text.startswith("platform/")]


def jobs() -> list[tuple[str, list[str]]]:
    """Every job that the pages run, submitted ones included, with its arguments."""
    found = []
    for words in (words for block in blocks() for words in block.commands):
        for at, word in enumerate(words):
            if word == "-m" and words[at + 1].startswith("jobs."):
                found.append((words[at + 1], [part for part in words[at + 2 :] if part != "&"]))
    return found
