"""The vLLM verifier with the shipped model under Ray: answers, shared prefixes, scores, refusals, and how it dies."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import ray
import torch
from PIL import Image
from ray.exceptions import RayTaskError

from actors.verifier import VllmVerifier
from framegrove.config.engine import shipped_folder
from framegrove.config.request import frames_of, unit_lengths
from framegrove.config.verifier import environment, load_panel
from framegrove.digits import world as digits
from framegrove.digits.questions import QUESTIONS
from framegrove.errors import UserError
from framegrove.types import Assessment, ScoreWork
from framegrove.verification.scoring import on_grid, probability
from framegrove.verification.views import View, frames_of_view, shown_frames

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster

(CONFIG,) = load_panel(None).verifiers
CLIP = digits.clip(5, 0, split="heldout", digits=2)
UNITS = [CLIP.frames[:1], *(CLIP.frames[at : at + 8] for at in range(1, len(CLIP.frames), 8))]
ASKED = [question.text for question in QUESTIONS.questions(Assessment.FINAL, CLIP.caption)]
HOSTILE = json.loads((Path(__file__).resolve().parents[1] / "cases" / "prompts.json").read_text())[3:]


def expected_probabilities() -> list[float]:
    """P(yes) by transformers, one question at a time."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(shipped_folder())
    model = AutoModelForImageTextToText.from_pretrained(shipped_folder(), dtype=torch.float32).eval()
    yes, no = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    images = [Image.fromarray(CLIP.frames[at]) for at in shown_frames(unit_lengths(len(CLIP.frames)))]
    probabilities = []
    for text in ASKED:
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}])
        with torch.no_grad():
            logits = model(**processor(text=prompt, images=images, return_tensors="pt")).logits[0, -1]
        probabilities.append(float(torch.sigmoid(logits[yes] - logits[no])))
    return probabilities


def expected_description(prompt: str, frames: int, tokens: int) -> str:
    """What transformers makes the shipped model write, greedily; it was not trained to, and writes single words."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(shipped_folder())
    model = AutoModelForImageTextToText.from_pretrained(shipped_folder(), dtype=torch.float32).eval()
    content = [{"type": "image"} for _ in range(frames)] + [{"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = processor(text=text, images=[Image.fromarray(CLIP.frames[at]) for at in range(frames)], return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**given, max_new_tokens=tokens, do_sample=False)
    return str(processor.tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


@pytest.mark.timeout(900)
def test_the_verifier_actor(cluster: Cluster) -> None:
    actor = ray.remote(VllmVerifier).options(runtime_env={"env_vars": environment(CONFIG)}).remote(CONFIG)
    asyncio.run(examine(actor))
    asyncio.run(examine_views(actor))
    asyncio.run(examine_prices(actor))
    described = ray.get(actor.describe.remote("what is shown", CLIP.frames[:4], 3))
    assert described == expected_description("what is shown", 4, 3)
    assert described
    pid = ray.get(actor.pid.remote())

    # The engine dies and its actor lives: the next question starts it again.
    odds = ray.get(actor.answers.remote(ASKED, CLIP.frames))
    engines = [child for child in psutil.Process(pid).children() if "EngineCore" in child.name()]
    assert len(engines) == 1
    engines[0].kill()
    assert ray.get(actor.answers.remote(ASKED, CLIP.frames)) == odds
    assert ray.get(actor.pid.remote()) == pid

    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, "the engine outlived the actor that hosted it"


async def examine(actor: ray.actor.ActorHandle[VllmVerifier]) -> None:
    assert await actor.ready.remote() == "verifier"
    odds = await actor.answers.remote(ASKED, CLIP.frames)
    for answer, expected in zip(odds, expected_probabilities(), strict=True):
        assert 1 / (1 + math.exp(-answer)) == pytest.approx(expected, abs=1e-4)

    # A question never asked before: on frames seen before, and on new ones.
    other = digits.clip(5, 1, split="heldout", digits=1).frames
    assert (await actor.cached_tokens.remote(["Is there a 4 in every frame?"], other))[0] == 0
    assert (await actor.cached_tokens.remote(["Is there a 5 in every frame?"], other))[0] == 64
    assert (await actor.cached_tokens.remote(["Is there a 5 in every frame?"], np.flip(other, axis=2).copy()))[0] == 0

    finals = [actor.score.remote(ScoreWork((0, 0, 0, 0), Assessment.FINAL), CLIP.caption, *UNITS) for _ in range(2)]
    middle = actor.score.remote(ScoreWork((0, 0), Assessment.MOTION), CLIP.caption, *UNITS[:2])
    first, second, motion = [await ref for ref in (*finals, middle)]
    assert first.scores == second.scores
    assert [name for name, _ in first.scores] == ["alignment", "motion", "clarity"]
    assert [name for name, _ in motion.scores] == ["alignment", "motion"]
    assert len(first.answers) == len(ASKED)
    assert first.cost.flops > 0
    assert motion.cost.flops > 0
    assert first.mass == pytest.approx(1.0, abs=0.01)

    # Prompts that spell out special tokens add no picture and are judged like any other.
    for prompt in HOSTILE:
        scored = await actor.score.remote(ScoreWork((0,), Assessment.IMAGE), prompt, UNITS[0])
        assert [name for name, _ in scored.scores] == ["alignment", "clarity"]

    with pytest.raises(ValueError, match="uint8"):
        await actor.answers.remote(ASKED, CLIP.frames.astype(np.float32))


async def examine_views(actor: ray.actor.ActorHandle[VllmVerifier]) -> None:
    """A question about a view is asked once of each of its selections, and the log-odds are averaged."""
    text = ASKED[0]
    alone = [  # of four frames by themselves, the view of their newest unit is all of them
        (await actor.answers.remote([text], CLIP.frames[list(shown)], View.UNIT))[0]
        for shown in frames_of_view(View.DENSE, unit_lengths(len(CLIP.frames)), 4)
    ]
    assert len(alone) == 2
    (dense,) = await actor.answers.remote([text], CLIP.frames, View.DENSE)
    assert dense == pytest.approx(sum(alone) / 2, abs=1e-3)

    middle = await actor.score.remote(ScoreWork((0, 0, 0, 0), Assessment.MOTION), CLIP.caption, *UNITS)
    asked = QUESTIONS.questions(Assessment.MOTION, CLIP.caption)
    assert [question for question, _ in middle.answers] == [question.text for question in asked]
    for question, (_, said) in zip(asked, middle.answers, strict=True):
        (odds,) = await actor.answers.remote([question.text], CLIP.frames, question.view)
        assert said == pytest.approx(probability(on_grid(odds)), abs=0.005)


async def examine_prices(actor: ray.actor.ActorHandle[VllmVerifier]) -> None:
    """What judging will cost is told in advance, to the last FLOP, for other prompts and sizes too."""
    for prompt, height, width in ((CLIP.caption, 64, 64), ("a boat drifts, then sinks", 48, 96)):
        told = await actor.price.remote(prompt, unit_lengths(frames_of(7)), height, width)
        assert set(told) == set(Assessment)
        for assessment, prices in told.items():
            assert len(prices) == 7
            for depth in (0, 1, 3, 4, 6):
                units = [np.zeros((8 if unit else 1, height, width, 3), np.uint8) for unit in range(depth + 1)]
                work = ScoreWork((0,) * (depth + 1), assessment)
                assert (await actor.score.remote(work, prompt, *units)).cost.flops == prices[depth] > 0
        assert told[Assessment.MOTION][3:] == told[Assessment.MOTION][3:4] * 4  # however long the video
        assert told[Assessment.FINAL][3] < told[Assessment.FINAL][4]


@pytest.mark.timeout(900)
def test_a_model_that_says_something_else_first_is_refused(cluster: Cluster) -> None:
    """The shipped model puts next to nothing on "red" and "blue" where it should say yes or no."""
    engine = CONFIG.engine.model_copy(update={"yes_words": ("red",), "no_words": ("blue",)})
    config = CONFIG.model_copy(update={"name": "thinker", "engine": engine})
    actor = ray.remote(VllmVerifier).options(runtime_env={"env_vars": environment(config)}).remote(config)
    with pytest.raises(RayTaskError) as caught:
        ray.get(actor.ready.remote())
    assert isinstance(caught.value.cause, UserError)
    assert "verifier thinker" in str(caught.value.cause)
    assert "as thinking models do (only" in str(caught.value.cause)
    ray.kill(actor)
