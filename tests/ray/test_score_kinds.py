"""The vLLM verifier with models that write and models that have a head: random ones, read again by transformers."""

from __future__ import annotations

import asyncio
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from ray.exceptions import RayTaskError

from actors.verifier import VllmVerifier
from framegrove.config.verifier import VerifierConfig, environment
from framegrove.types import Assessment, ScoreWork
from framegrove.verification.bradley_terry import both_orders
from framegrove.verification.clips import Frames
from framegrove.verification.model import VerifierModel, grey_frame
from framegrove.verification.reward import RewardVerifier
from framegrove.verification.scoring import on_grid, probability
from framegrove.verification.verdicts import PROBING_PROMPT
from tests.tiny import save_tiny_judge

if TYPE_CHECKING:
    from framegrove.cluster.session import Cluster

CLIP = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
UNITS = [CLIP[:1], CLIP[1:]]
FINAL = ScoreWork((0, 0), Assessment.FINAL, "judge")
PROMPT = "a red ball"
TEXT = "Rate this: {prompt}"
WRITTEN = 24  # tokens
NUMBER = r"(?<![0-9.])[0-9](?![0-9.])"


def config_of(folder: Path, score: dict[str, Any], names: list[str]) -> VerifierConfig:
    entry = f"{{text: '{TEXT}', score: [{', '.join(names)}], aspect: rating, view: video}}"
    (folder / "set.yaml").write_text(f"questions: [{entry}]")
    engine = {"model": str(folder), "max_frames": 4}
    data = {"name": "judge", "questions": str(folder / "set.yaml"), "score": score, "engine": engine}
    return VerifierConfig.model_validate(data)


class Switching(VllmVerifier):
    """A verifier whose engine serves for several configurations, one after the other: it takes long to start."""

    async def asked(self, config: VerifierConfig, *calls: tuple[str, tuple[Any, ...]]) -> list[Any]:
        """What some methods return under a configuration of the same model."""
        self._config, self._examples = config, {}
        if self._engine is not None:
            self._model = VerifierModel(config)
            await self._probe(self._engine)
        return [await getattr(self, method)(*given) for method, given in calls]


@contextmanager
def hosted(config: VerifierConfig) -> Iterator[Callable[..., list[Any]]]:
    """Asks an actor that is started under this configuration."""
    actor: Any = ray.remote(Switching).options(runtime_env={"env_vars": environment(config)}).remote(config)
    try:
        yield lambda *given: ray.get(actor.asked.remote(*given))
    finally:
        ray.get(actor.close.remote())
        ray.kill(actor)


def greedy(
    folder: Path, frames: Frames, prompt: str, begun: str = "", text: str = TEXT
) -> tuple[list[str], torch.Tensor]:
    """What the model writes about some frames, token by token, and the log-probabilities there."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    pictures = [Image.fromarray(frame) for frame in frames]
    asked = "<image>" * len(pictures) + text.format(prompt=prompt) + begun
    given = processor(text=asked, images=[pictures], return_tensors="pt")
    options = {"max_new_tokens": WRITTEN, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad():
        found = model.generate(**given, **options)
    ids = found.sequences[0, given["input_ids"].shape[1] :].tolist()
    return [processor.tokenizer.decode([each]) for each in ids], torch.stack(found.scores)[:, 0].log_softmax(-1)


def ids_of(folder: Path, words: Iterable[str]) -> list[int]:
    from transformers import AutoTokenizer

    return [int(each) for each in AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids([*words])]


def expectation(folder: Path, logs: torch.Tensor, digits: range) -> tuple[float, float]:
    """The expected digit, and the probability of all of them."""
    chances = logs[ids_of(folder, map(str, digits))].exp()
    return float((chances * torch.tensor([*digits])).sum() / chances.sum()), float(chances.sum())


def share(value: float) -> float:
    """A value in (0, 1) as a score, on the grid."""
    return probability(on_grid(math.log(value / (1 - value))))


def a_writer_of_digits(folder: Path) -> tuple[Path, list[str], torch.Tensor]:
    """The first of some random models that writes a number of one digit, also of the picture it is probed with."""
    for seed in range(64):
        made = save_tiny_judge(folder / f"writer{seed}", seed=seed)
        texts, logs = greedy(made, CLIP[[0, 3]], PROMPT)
        probed, _ = greedy(made, grey_frame(64, 64)[None], PROBING_PROMPT)
        if "." not in texts and all(re.search(NUMBER, "".join(each)) for each in (texts, probed)):
            return made, texts, logs
    raise AssertionError("none of the random models writes a digit")


@pytest.mark.timeout(600)
def test_what_a_model_says_and_writes(cluster: Cluster, tmp_path: Path) -> None:
    folder, texts, logs = a_writer_of_digits(tmp_path)
    score = {"kind": "json", "scores": ["look", "motion"], "low": 0, "high": 4, "max_tokens": 96}
    json_config = config_of(folder, score, ["look", "motion"])
    with hosted(json_config) as ask:
        check_json(ask(json_config, ("score", (FINAL, PROMPT, *UNITS))))
        check_written(ask, folder, texts, logs)
        check_digits(ask, folder)
        check_pairs(ask, folder)


def check_json(found: list[Any]) -> None:
    """Whatever the model, its JSON fits the schema."""
    steps = [probability(on_grid(math.log(each / (4 - each)))) if 0 < each < 4 else each / 4 for each in range(5)]
    assert [name for name, _ in found[0].scores] == ["look", "motion"]
    for _, value in found[0].scores:
        assert min(abs(value - step) for step in steps) < 1e-6


def check_written(ask: Callable[..., list[Any]], folder: Path, texts: list[str], logs: torch.Tensor) -> None:
    """A score is the expected digit where it stands."""
    score = {"kind": "generated", "low": 0, "high": 9, "max_tokens": WRITTEN, "scores": {"all": "(?<![0-9.])"}}
    calls = ("score", (FINAL, PROMPT, *UNITS)), ("price", (PROMPT, (1, 8), 64, 64))
    found, prices = ask(config_of(folder, score, ["all"]), *calls)
    at = [match.start() for match in re.finditer(NUMBER, "".join(texts))][-1]
    place = next(place for place in range(len(texts)) if len("".join(texts[: place + 1])) > at)
    expected, mass = expectation(folder, logs[place], range(10))
    assert dict(found.scores) == {"all": pytest.approx(share(expected / 9), abs=0.01)}
    assert found.mass == pytest.approx(mass, abs=0.01)
    assert found.cost.flops <= prices[Assessment.FINAL][1]
    with pytest.raises(RayTaskError, match="no number from 0 to 9 follows 'never'"):  # nor in other answers
        ask(config_of(folder, score | {"scores": {"all": "never"}, "tries": 2}, ["all"]))


def check_digits(ask: Callable[..., list[Any]], folder: Path) -> None:
    """A digit follows the answer that was begun."""
    score = {"kind": "digits", "low": 0, "high": 9, "answer": "Score: "}
    calls = ("score", (FINAL, PROMPT, *UNITS)), ("price", (PROMPT, (1, 8), 64, 64))
    found, prices = ask(config_of(folder, score, ["all"]), *calls)
    _, logs = greedy(folder, CLIP[[0, 3]], PROMPT, "Score: ")
    expected, mass = expectation(folder, logs[0], range(10))
    assert dict(found.scores) == {"all": pytest.approx(share(expected / 9), abs=0.01)}
    assert found.mass == pytest.approx(mass, abs=0.01)
    assert found.cost.flops == prices[Assessment.FINAL][1]


def check_pairs(ask: Callable[..., list[Any]], folder: Path) -> None:
    """Half of the difference between the log-odds in both orders."""
    first, second = string.ascii_uppercase[:13], string.ascii_uppercase[13:]
    score = {"kind": "pairwise", "question": "{frames} of each: {prompt}", "first": [*first], "second": [*second]}
    data = {"name": "judge", "score": score, "engine": {"model": str(folder), "max_frames": 4}}
    dark, bright = CLIP // 4, 255 - CLIP // 4
    calls = ("compare", (PROMPT, dark, bright)), ("compare", (PROMPT, bright, dark))
    odds, reverse = ask(VerifierConfig.model_validate(data), *calls)
    ids = [ids_of(folder, words) for words in (first, second)]
    by_order = []
    for one, other in ((dark, bright), (bright, dark)):
        frames = np.concatenate([one[[0, -1]], other[[0, -1]]])
        _, logs = greedy(folder, frames, "2 of each: " + PROMPT, text="{prompt}")
        by_order.append(float(logs[0, ids[0]].logsumexp(0) - logs[0, ids[1]].logsumexp(0)))
    assert odds == pytest.approx(both_orders(*by_order), abs=0.01)
    assert odds == pytest.approx(-reverse, abs=1e-3)


@pytest.mark.timeout(600)
def test_a_head_is_read_as_by_transformers(cluster: Cluster, tmp_path: Path) -> None:
    folder = save_tiny_judge(tmp_path / "judge", outputs=2)
    score = {"kind": "reward", "outputs": {"look": {"std": 8.0}, "motion": {"mean": 1.0, "std": 8.0}}}
    config = config_of(folder, score, ["look", "motion"])
    with hosted(config) as ask:
        found, prices = ask(config, ("score", (FINAL, PROMPT, *UNITS)), ("price", (PROMPT, (1, 8), 64, 64)))
    other = RewardVerifier(config.model_copy(update={"kind": "reward"}))
    expected = asyncio.run(other.score(FINAL, PROMPT, *UNITS))
    assert [name for name, _ in found.scores] == ["look", "motion"]
    for (_, value), (_, same) in zip(found.scores, expected.scores, strict=True):
        assert value == pytest.approx(same, abs=0.005)
    assert found.cost.flops == prices[Assessment.FINAL][1] == expected.cost.flops
