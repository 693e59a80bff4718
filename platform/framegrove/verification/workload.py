"""What it costs to ask a vision-language model questions, counted from tokens: two FLOPs per parameter and token."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Tokens = Sequence[int]


class Workload:
    """FLOPs of questions to the model in ``folder``. Frames and whatever else questions begin with count once."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._image_token = config.get("image_token_id")
        merged = config.get("scale_factor") or config.get("vision_config", {}).get("spatial_merge_size") or 1
        self._patches_per_token = int(merged) ** 2
        self._vision, self._text = _parameters(folder)

    @property
    def is_empty(self) -> bool:
        """Whether the folder has no weights in safetensors."""
        return not self._vision + self._text

    def flops(self, prompts: Sequence[Tokens], written: int = 0) -> int:
        """FLOPs of questions about the same frames, whose tokens, those of the frames included, are ``prompts``.

        ``written`` tokens of their answers went through the model too, to be followed by others.
        """
        shared = common(prompts)
        tokens = shared + sum(len(prompt) - shared for prompt in prompts) + written
        patches = self._patches_per_token * sum(token == self._image_token for token in prompts[0])
        return 2 * (self._text * tokens + self._vision * patches)


def common(prompts: Sequence[Tokens]) -> int:
    """How many tokens the prompts begin with in common."""
    alike = (len(set(tokens)) == 1 for tokens in zip(*prompts, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, alike))


def expanded(prompt: Tokens, example: Tokens, example_expanded: Tokens) -> Tokens:
    """The tokens of ``prompt`` with its pictures' in it, as an engine expands them.

    ``example`` is another question about as many pictures of the same size, and ``example_expanded`` what the engine
    made of it. Pictures come first, so that both prompts begin with the same tokens up to where the questions differ.
    """
    shared = common((prompt, example))
    added = len(example_expanded) - len(example)
    return [*example_expanded[: shared + added], *prompt[shared:]]


def _parameters(folder: Path) -> tuple[int, int]:
    """(vision, text) parameters that take part in every token, read from the headers of the weight files."""
    vision = text = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, entry in header.items():
            if name == "__metadata__" or "embed_tokens" in name:
                continue
            count = int(np.prod(entry["shape"], dtype=np.int64))
            vision, text = (vision + count, text) if "vis" in name else (vision, text + count)
    return vision, text
