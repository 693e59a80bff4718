"""The prompts that jobs.evaluate makes videos for: of the digits world, of VBench's suite, or of a list, one a line."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.config.request import check_prompt
from framegrove.errors import UserError
from framegrove.evaluation import evalcrafter, vbench

if TYPE_CHECKING:
    from framegrove.digits.world import DigitObject

VBENCH, LIST = "vbench:", "prompts:"


@dataclass(frozen=True)
class Asked:
    """A prompt, and how many videos of it are made, which differ by their seeds.

    ``index`` tells it from others of its source, however many of these are used. ``objects`` are what the oracle of the
    digits world is asked for, ``dimensions`` what a suite has the prompt for.
    """

    index: int
    text: str
    takes: int = 1
    objects: tuple[DigitObject, ...] | None = None
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """Prompts of one source. ``which``, JSON values, tells them from others; ``suite`` is VBench's, where they are.

    Videos of VBench's suite are called as VBench expects it, and others as EvalCrafter does, with the number of the
    take where there are several: 0007.mp4, 0007-1.mp4.
    """

    asked: tuple[Asked, ...]
    which: Any
    suite: tuple[vbench.Prompt, ...] = ()

    def video_name(self, asked: Asked, take: int) -> str:
        """The file name of one video."""
        if self.suite:
            return vbench.video_name(asked.text, take)
        name = evalcrafter.video_name(asked.index)
        return name if take == 0 else name.replace(".", f"-{take}.")


def digits_prompts(count: int, seed: int, digits: int | None = None, takes: int = 1) -> Prompts:
    """Held-out prompts of the digits world."""
    from framegrove.digits import world

    drawn = world.prompts(count, seed, digits=digits)
    asked = tuple(Asked(n, world.caption(objects), takes, objects) for n, objects in enumerate(drawn))
    return Prompts(asked, [seed, digits])


def is_listed(suite: str | None) -> bool:
    """Whether a suite is a list of prompts, and no file of settings and aims."""
    return suite is not None and suite.startswith((VBENCH, LIST))


def listed_prompts(
    suite: str, seed: int, dimensions: Collection[str] = (), *, most: int | None = None, takes: int | None = None
) -> Prompts:
    """Those of ``vbench:FILE.json``, of some dimensions or all, or of ``prompts:FILE.txt``, at most ``most``.

    ``takes`` of None: as many videos as VBench wants of each, or one. Raises UserError for what is no such file, and
    for one without prompts.
    """
    name, _, file = suite.partition(":")
    path = Path(file)
    if f"{name}:" == LIST:
        if dimensions:
            raise UserError("--dimension is for VBench's suite: add --suite vbench:FILE.json, or leave it out")
        asked = [Asked(n, text, takes or 1) for n, text in enumerate(_lines(path))]
        return Prompts(tuple(asked[:most]), ["prompts", _digest([each.text for each in asked]), seed])
    whole, some = vbench.read_suite(path), vbench.read_suite(path, dimensions)
    places = {prompt.text: n for n, prompt in enumerate(whole)}
    asked = [Asked(places[each.text], each.text, takes or each.samples, None, each.dimensions) for each in some]
    return Prompts(tuple(asked[:most]), ["vbench", _digest([each.text for each in whole]), seed], tuple(some))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no prompts can be read from {path} ({getattr(error, 'strerror', None) or error})") from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand in a prompt
        if line.strip():
            try:
                found.append(check_prompt(line))
            except UserError as error:
                raise UserError(f"line {number} of {path}: {error}") from None
    if not found:
        raise UserError(f"{path} has no prompts in it: write one a line")
    return found


def _digest(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()
