"""The ``callable`` verifier: a function of the user's own that scores frames.

    def redness(frames, prompt):  # frames: uint8 (T, H, W, 3)
        return frames[..., 0].mean() / 255

``function: my_package.scores:redness`` in the verifiers' YAML names it. It may be async, and may return a mapping of
several scores by name instead of one number. The module must be importable where the actors run.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import numbers
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framegrove.config.base import imported
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.clips import Frames, clip_of

ONLY_SCORE = "score"  # what the score of a function that returns a number is called


class CallableVerifier:
    """Scores clips with ``config.function``. A function that is not async runs in a thread of its own."""

    def __init__(self, config: VerifierConfig) -> None:
        self._config = config
        self._function: Callable[[Frames, str], Any] | None = None

    async def ready(self) -> str:
        """The function's dotted name, once it is imported. Raises UserError where it cannot be."""
        self._loaded()
        return str(self._config.function)

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """Call the function with the frames of ``units``, uint8 (T, H, W, 3) each, and the prompt.

        Raises UserError, which names the verifier, for a result that is no score; what the function raises comes
        through.
        """
        began = time.monotonic()
        function, frames = self._loaded(), clip_of(*units)
        if inspect.iscoroutinefunction(function):
            found = await function(frames, prompt)
        else:
            found = await asyncio.to_thread(function, frames, prompt)
            if inspect.isawaitable(found):
                found = await found
        cost = Cost(flops=self._flops(len(frames)), seconds=time.monotonic() - began)
        return Scored(work, self._scores(found), cost)

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: ``price`` a frame."""
        return dict.fromkeys(self._config.assessments, tuple(map(self._flops, itertools.accumulate(lengths))))

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Nothing to stop."""

    def _flops(self, frames: int) -> int:
        return round(self._config.price * frames)

    def _loaded(self) -> Callable[[Frames, str], Any]:
        if self._function is None:
            self._function = _imported(self._config)
        return self._function

    def _scores(self, found: Any) -> tuple[tuple[str, float], ...]:
        named = found if isinstance(found, Mapping) else {ONLY_SCORE: found}
        who = f"verifier {self._config.name} ({self._config.function})"
        if not named:
            raise UserError(f"{who} returned no score: return a number, or a mapping of names to numbers, in [0, 1]")
        for name, score in named.items():
            if not isinstance(score, numbers.Real) or not 0.0 <= float(score) <= 1.0:  # no comparison holds for nan
                raise UserError(f"{who} returned {score!r} as {name!r}: a score must be a number in [0, 1]")
        return tuple((str(name), float(score)) for name, score in named.items())


def _imported(config: VerifierConfig) -> Callable[[Frames, str], Any]:
    function = imported(str(config.function), f"verifier {config.name}", "function")
    if not callable(function):
        raise UserError(f"verifier {config.name}: {config.function} is a {type(function).__name__}, not a function")
    found: Callable[[Frames, str], Any] = function
    return found
