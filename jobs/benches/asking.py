"""The bench of asking: all questions of the general set about one clip, beside asking each as if it were the only one.

In vLLM, by the shipped verifier, without and with a cache of prepared frames. Questions about the same frames share
them in the engine's prefix cache. What each would cost alone is found by changing one pixel for every question, so that
no two share anything.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import TYPE_CHECKING

from framegrove.config.engine import EngineConfig
from framegrove.config.verifier import VerifierConfig, environment, load_panel
from framegrove.digits import world
from framegrove.types import Assessment
from framegrove.verification.questions import load_question_set

if TYPE_CHECKING:
    import torch

    from framegrove.evaluation.benches import Finding
    from framegrove.verification.clips import Frames

FRAMES = 8
UNITS = 8  # so that one view of the clip has as many frames
QUESTIONS = 29


def asking(device: torch.device, repeats: int) -> list[Finding]:
    """Seconds of ``repeats`` turns of both, median; ``device`` is not heeded."""
    from framegrove.evaluation.benches import Finding, Times

    findings = []
    for frame_cache_gib in (0.0, 1.0):
        together, alone, cached = asyncio.run(_asked(repeats, frame_cache_gib))
        ratio = statistics.median(alone) / statistics.median(together)
        what = (
            f"{QUESTIONS} questions about {FRAMES} frames, sharing them, beside each alone; engine.frame_cache_gib "
            f"{frame_cache_gib:g}, {sum(cached) / len(cached):.0f} tokens a question in the prefix cache"
        )
        findings.append(
            Finding.timed(what, Times(tuple(together)), Times(tuple(alone)), aim="at most 1/5", met=ratio >= 5)
        )
    return findings


async def _asked(repeats: int, frame_cache_gib: float) -> tuple[list[float], list[float], list[int]]:
    from actors.verifier import VllmVerifier

    (shipped,) = load_panel(None).verifiers
    engine = EngineConfig(**{**shipped.engine.model_dump(), "max_frames": FRAMES, "frame_cache_gib": frame_cache_gib})
    config = VerifierConfig(name="verifier", questions="general", engine=engine)
    os.environ.update(environment(config))
    verifier = VllmVerifier(config)
    try:
        await verifier.ready()
        texts = _texts()
        await verifier.answers(texts, _clip(0))  # whatever is only slow the first time
        together, alone = [], []
        for turn in range(1, repeats + 1):
            began = time.perf_counter()
            await verifier.answers(texts, _clip(turn))
            together.append(time.perf_counter() - began)
            clips = [_clip(turn, mark) for mark in range(1, len(texts) + 1)]
            began = time.perf_counter()
            await asyncio.gather(*(verifier.answers([text], clip) for text, clip in zip(texts, clips, strict=True)))
            alone.append(time.perf_counter() - began)
        return together, alone, await verifier.cached_tokens(texts, _clip(repeats))
    finally:
        verifier.close()


def _texts() -> list[str]:
    questions = load_question_set("general")
    prompt = "a red 3 moves left and right"
    texts = [each.text for assessment in Assessment for each in questions.questions(assessment, prompt)]
    texts = list(dict.fromkeys(texts))[:QUESTIONS]
    assert len(texts) == QUESTIONS, "the general set asks as much"
    return texts


def _clip(index: int, mark: int = 0) -> Frames:
    """A clip of its own for every turn; with a ``mark``, one that shares no frame with the others of its turn."""
    frames = world.clip(seed=index, index=0, units=UNITS).frames.copy()
    frames[:, mark // 8, mark % 8] ^= mark > 0
    return frames
