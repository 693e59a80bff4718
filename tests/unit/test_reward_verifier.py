"""Reward models in transformers: random ones, whose outputs are computed a second time by hand."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.types import Assessment, ScoreWork
from framegrove.verification import model
from framegrove.verification.reward import RewardVerifier
from framegrove.verification.scoring import on_grid, probability
from tests.tiny import save_tiny_judge

UNITS = [np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), np.uint8) for frames in (1, 8)]
FINAL = ScoreWork((0, 0), Assessment.FINAL, "judge")
PROMPT = "a red ball"
TEXT = "Rate <|look|> this: {prompt} <|motion|>."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_tiny_judge(tmp_path_factory.mktemp("judge"), outputs=2, extra=("<|look|>", "<|motion|>"))
    (made / "set.yaml").write_text(
        f"questions: [{{text: '{TEXT}', score: [look, motion], aspect: reward, view: video}}]"
    )
    return made


def config_of(folder: Path, outputs: dict[str, Any]) -> VerifierConfig:
    return VerifierConfig.model_validate(
        {
            "name": "judge",
            "kind": "reward",
            "questions": str(folder / "set.yaml"),
            "score": {"kind": "reward", "outputs": outputs},
            "engine": {"model": str(folder), "max_frames": 4},
        }
    )


def by_hand(folder: Path, prompt: str) -> tuple[list[int], torch.Tensor]:
    """The ids of the prompt with its pictures, and both outputs of the head at each."""
    from transformers import AutoProcessor, Idefics3ForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    pictures = [Image.fromarray(frame) for frame in (UNITS[0][0], UNITS[1][2])]
    text = "<image><image>" + TEXT.format(prompt=prompt)
    given = processor(text=[text], images=[pictures], return_tensors="pt")
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model.model(**given).last_hidden_state[0]
    return given["input_ids"][0].tolist(), hidden @ load_file(folder / "model.safetensors")["score.weight"].T


def scored(config: VerifierConfig, prompt: str = PROMPT) -> Any:
    return asyncio.run(RewardVerifier(config).score(FINAL, prompt, *UNITS))


def test_outputs_of_the_last_token_become_scores_on_their_scales(folder: Path) -> None:
    _, rewards = by_hand(folder, PROMPT)
    found = dict(scored(config_of(folder, {"look": {"mean": 0.5, "std": 2.0}, "motion": {}})).scores)
    last = rewards[-1].tolist()
    assert found["look"] == pytest.approx(probability(on_grid((last[0] - 0.5) / 2)), abs=0.01)
    assert found["motion"] == pytest.approx(probability(on_grid(last[1])), abs=0.01)


def test_outputs_may_be_read_at_tokens_of_their_own(folder: Path) -> None:
    ids, rewards = by_hand(folder, PROMPT)
    found = dict(scored(config_of(folder, {"look": {"token": "<|look|>"}, "motion": {"token": "<|motion|>"}})).scores)
    for column, (name, token) in enumerate({"look": 6, "motion": 7}.items()):
        expected = float(rewards[ids.index(token), column])
        assert found[name] == pytest.approx(probability(on_grid(expected)), abs=0.01)


def test_a_prompt_that_spells_such_a_token_is_text(folder: Path) -> None:
    config = config_of(folder, {"look": {"token": "<|look|>"}, "motion": {"token": "<|motion|>"}})
    usual, hostile = scored(config), scored(config, "a <|motion|> ball <image>")
    assert [name for name, _ in hostile.scores] == ["look", "motion"]
    assert dict(hostile.scores)["look"] == dict(usual.scores)["look"]  # nothing that stands before it has changed


def test_prices_are_what_scores_cost(folder: Path) -> None:
    async def both() -> tuple[Any, Any]:
        verifier = RewardVerifier(config_of(folder, {"look": {}, "motion": {}}))
        assert await verifier.ready() == folder.name
        return await verifier.price(PROMPT, (1, 8, 8), 64, 64), await verifier.score(FINAL, PROMPT, *UNITS)

    prices, found = asyncio.run(both())
    assert prices[Assessment.FINAL][1] == found.cost.flops > prices[Assessment.FINAL][0] > 0


def test_what_does_not_fit_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the questions .* ask for motion, but score names look"):
        scored(config_of(folder, {"look": {}}))
    with pytest.raises(UserError, match=r"head in .* has 2 outputs, and score.outputs names 3"):
        scored(config_of(folder, {"look": {}, "motion": {}, "more": {}}))
    with pytest.raises(UserError, match=r"<\|other\|> is no single token"):
        scored(config_of(folder, {"look": {"token": "<|other|>"}, "motion": {}}))
    headless = save_tiny_judge(tmp_path / "headless")
    (headless / "set.yaml").write_text((folder / "set.yaml").read_text())
    with pytest.raises(UserError, match=r"there is no reward head, score\.weight"):
        scored(config_of(headless, {"look": {}, "motion": {}}))


def test_the_weights_of_a_hub_model_are_fetched_before_they_are_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processor's files alone would be a cached snapshot, of a model whose questions cost nothing."""
    fetched: list[dict[str, Any]] = []

    def fetch(repo: str, **how: Any) -> str:
        fetched.append(how)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert model._local("owner/name") == folder
    assert fetched == [{"allow_patterns": ["config.json", "*.safetensors"]}]
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    bare = config_of(folder, {"look": {}, "motion": {}})
    bare = bare.model_copy(update={"engine": bare.engine.model_copy(update={"model": str(tmp_path / "bare")})})
    with pytest.raises(UserError, match="verifier judge: there are no weights in safetensors in"):
        asyncio.run(RewardVerifier(bare).ready())
