"""What the teacher says of a whole video: a judge apart from the verifier, for any place where verifiers are listed.

    verifiers:
      - {name: teacher, kind: callable, function: "framegrove.digits.second_opinion:second_opinion"}

It is made of a classifier and a tracker (teacher.py) and not of a language model, and shares nothing with the oracle.
Held out, it shows whether a search found what is right or only what its own verifier likes; though not independently of
the verifier's training, for which the teacher gave the labels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framegrove.config.request import FRAMES_PER_UNIT
from framegrove.digits.teacher import Teacher
from framegrove.digits.teacher_training import taught
from framegrove.digits.world import parse
from framegrove.errors import UserError

Pixels = npt.NDArray[np.uint8]

_SAID = {True: 0.98, None: 0.6, False: 0.05}


def second_opinion(frames: Pixels, prompt: str) -> dict[str, float]:
    """How right a video, uint8 (T, H, W, 3), is.

    ``newest`` is about its last unit, ``whole`` the mean over all units, ``every`` their product. A unit that is told
    to be right counts 0.98, one that cannot be told 0.6, a wrong one 0.05. Raises UserError for a prompt that is no
    caption of the digits world.
    """
    asked = parse(prompt)
    if asked is None:
        raise UserError(f"the teacher reads digits, and cannot judge {prompt[:60]!r}: give it a caption of theirs")
    said = [_SAID[shipped_teacher().read(unit, asked).right] for unit in _units(frames)]
    return {"newest": said[-1], "whole": float(np.mean(said)), "every": float(np.prod(said))}


@functools.cache
def shipped_teacher() -> Teacher:
    """The teacher that comes with the package."""
    return taught(Path(str(resources.files("framegrove") / "assets" / "teacher" / "model.safetensors")))


def _units(frames: Pixels) -> Iterator[Pixels]:
    """The first frame, then every unit behind the frame before it."""
    yield frames[:1]
    for start in range(1, len(frames), FRAMES_PER_UNIT):
        yield frames[start - 1 : start + FRAMES_PER_UNIT]
