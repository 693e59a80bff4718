"""The frames verifier, on tiny models of transformers: what is computed, of which frames, at what price."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor

from framegrove.config.base import ConfigError, validated
from framegrove.config.verifier import PanelConfig, VerifierConfig
from framegrove.errors import UserError
from framegrove.models.counting import counted_flops
from framegrove.types import Assessment, Scored, ScoreWork
from framegrove.verification.frame_models import FramesVerifier, read_head
from framegrove.verification.identity import verifier_identity
from jobs.evaluations.options import with_signals
from tests.tiny_clip import FEATURES, PATCH, SIDE, WIDTH, save_tiny_clip, save_tiny_reward

PROMPT = "a red 3 moves up"
FINAL = ScoreWork((0, 0), Assessment.FINAL)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_reward(tmp_path_factory.mktemp("models") / "reward")


def config_of(model: Path, **frames: Any) -> VerifierConfig:
    return validated(VerifierConfig, {"kind": "frames", "frames": {"model": str(model), **frames}}, "test")


def units(seed: int = 0, count: int = 2, side: int = SIDE) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (1 if unit == 0 else 8, side, side, 3), np.uint8) for unit in range(count)]


def scored(verifier: FramesVerifier, *given: np.ndarray, work: ScoreWork = FINAL, prompt: str = PROMPT) -> Scored:
    return asyncio.run(verifier.score(work, prompt, *given))


def test_similarity_is_the_mean_cosine_through_the_logistic_function(clip: Path) -> None:
    verifier = FramesVerifier(config_of(clip, bias=0.25, slope=2.0, view="dense", max_frames=8))
    given = units()
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    pictures = [Image.fromarray(frame) for frame in given[1]]
    with torch.no_grad():
        out = model(**processor(text=[PROMPT], images=pictures, return_tensors="pt"))
    value = (out.image_embeds @ out.text_embeds.T).mean().item()
    (name, score), *others = scored(verifier, *given).scores
    assert (name, others) == ("similarity", [])
    assert score == pytest.approx(1 / (1 + math.exp(-(0.25 + 2.0 * value))), abs=1e-6)
    assert asyncio.run(verifier.ready()) == "clip"


LENGTHS = (1, 8, 8, 8)


def test_which_frames_are_looked_at_follows_the_assessment(clip: Path) -> None:
    verifier = FramesVerifier(config_of(clip))
    given = units(count=4)
    looked_at = {
        frame for shown in (0, 1, 2, 3) for frame in verifier._shown(Assessment.FINAL, LENGTHS)[shown : shown + 1]
    }
    assert looked_at == {0, 3, 12, 21}  # of every unit one
    assert verifier._shown(Assessment.MOTION, LENGTHS) == [
        0,
        16,
        20,
        24,
    ]  # of the newest unit two, beside what was before
    other = [*given[:2], 255 - given[2], given[3]]
    motion = ScoreWork((0, 0, 0, 0), Assessment.MOTION)
    assert scored(verifier, *given, work=motion).scores != scored(verifier, *other, work=motion).scores  # frame 16
    changed = [frame.copy() for frame in given]
    changed[1][0] = 0
    assert scored(verifier, *given, work=motion).scores == scored(verifier, *changed, work=motion).scores


def test_an_aesthetic_head_is_affine_in_the_features_whatever_the_prompt(clip: Path, tmp_path: Path) -> None:
    weight, bias = torch.randn(1, FEATURES), torch.randn(1)
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    given = units(count=1)
    frames = {"computes": "aesthetic", "head": str(tmp_path / "head.safetensors"), "bias": 0.0, "slope": 1.0}
    verifier = FramesVerifier(config_of(clip, **frames))
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        out = model(**processor(text=["a"], images=[Image.fromarray(given[0][0])], return_tensors="pt"))
    value = (out.image_embeds @ weight.T + bias).item()
    ((name, score),) = scored(verifier, *given, work=ScoreWork((0,), Assessment.IMAGE)).scores
    assert name == "aesthetic"
    assert score == pytest.approx(1 / (1 + math.exp(-value)), abs=1e-6)
    assert scored(verifier, *given, prompt="blue 7").scores == scored(verifier, *given).scores


def test_layers_in_a_row_are_one_affine_map(tmp_path: Path) -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in ((5, 4), (4, 3), (3, 1))))
    # Eleven layers apart, as after dropouts: 10 stands behind 2 by number, not by spelling.
    names = {"0": "layers.0", "1": "layers.2", "2": "layers.10"}
    state = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in layers.state_dict().items()}
    torch.save(state, tmp_path / "head.pt")
    head, x = read_head(tmp_path / "head.pt"), torch.randn(7, 5)
    torch.testing.assert_close(x @ head[:-1] + head[-1], layers(x)[:, 0])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, "must give one number"),
        ({"weight": torch.ones(1, 3)}, "cannot be read as a linear head"),
        ({}, "is no linear head"),
        ({"weight": Path("/")}, "cannot be read as a linear head"),  # a pickle of more than tensors is not opened
    ],
)
def test_a_head_that_is_none_is_one_sentence(tmp_path: Path, state: dict[str, Any], said: str) -> None:
    torch.save(state, tmp_path / "head.pt")
    with pytest.raises(UserError, match=said) as caught:
        read_head(tmp_path / "head.pt")
    assert "\n" not in str(caught.value)


def test_a_head_for_another_model_is_refused_by_name(clip: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, tmp_path / "head.safetensors")
    config = config_of(clip, computes="aesthetic", head=str(tmp_path / "head.safetensors"))
    with pytest.raises(UserError, match=f"reads 5 features, and .*clip gives {FEATURES}"):
        asyncio.run(FramesVerifier(config).ready())


def test_a_reward_model_reads_picture_and_prompt(reward: Path) -> None:
    verifier = FramesVerifier(config_of(reward, computes="reward"))
    given, other = units(side=32), units(1, side=32)
    first = scored(verifier, *given)
    assert [name for name, _ in first.scores] == ["reward"]
    assert first.scores != scored(verifier, *other).scores
    assert first.scores != scored(verifier, *given, prompt="a blue 7 moves up").scores
    assert first.scores == scored(verifier, *given, prompt=f"<image>{PROMPT}<end_of_utterance>").scores
    assert first.cost.flops > 0


def test_of_two_logits_the_difference_counts(tmp_path: Path) -> None:
    verifier = FramesVerifier(config_of(save_tiny_reward(tmp_path / "two", logits=2), computes="reward"))
    assert 0 < scored(verifier, *units(side=32)).scores[0][1] < 1
    three = FramesVerifier(config_of(save_tiny_reward(tmp_path / "three", logits=3), computes="reward"))
    with pytest.raises(UserError, match="one logit or two, and ModernVBertForSequenceClassification gives 3"):
        scored(three, *units(side=32))


def test_the_price_is_what_a_verdict_costs_and_has_a_closed_form(clip: Path) -> None:
    verifier = FramesVerifier(config_of(clip))
    prices = asyncio.run(verifier.price(PROMPT, (1, 8, 8), SIDE, SIDE))
    assert set(prices) == set(Assessment)
    for depth in range(3):
        work = ScoreWork((0,) * (depth + 1), Assessment.MOTION)
        assert scored(verifier, *units(count=depth + 1), work=work).cost.flops == prices[Assessment.MOTION][depth]

    def layer(tokens: int) -> int:  # four projections, two of the feed-forward, and two products of attention
        return 2 * tokens * (4 * WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH) + 4 * tokens * tokens * WIDTH

    patches = (SIDE // PATCH) ** 2
    picture = 2 * patches * 3 * PATCH * PATCH * WIDTH + layer(patches + 1) + 2 * WIDTH * FEATURES
    text = layer(7) + 2 * WIDTH * FEATURES  # five words and two marks
    assert prices[Assessment.IMAGE] == (picture + text, 4 * picture + text, 4 * picture + text)


def test_a_model_that_cannot_be_used_is_one_sentence(clip: Path, reward: Path, tmp_path: Path) -> None:
    for config, said in [
        (config_of(tmp_path), "verifier verifier cannot be read from"),
        (config_of(reward), "which has no features of pictures and of texts"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            asyncio.run(FramesVerifier(config).ready())
        assert "\n" not in str(caught.value)


def test_a_gpu_is_taken_where_one_is_asked_for(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = config_of(clip, device="cuda")
    assert (on_gpu.gpus, config_of(clip).gpus, VerifierConfig().gpus, VerifierConfig(kind="signals").gpus) == (
        1,
        0,
        1,
        0,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="verifier verifier is to run on cuda and there is no GPU here"):
        asyncio.run(FramesVerifier(on_gpu).ready())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "frames"}, "of kind frames: it needs a section frames that names its model"),
        ({"kind": "signals", "frames": {"model": "a/b"}}, "of kind signals: only frames takes a section frames"),
        ({"kind": "frames", "frames": {"model": "a/b", "computes": "aesthetic"}}, "aesthetic needs a head"),
        ({"kind": "frames", "frames": {"model": "a/b", "head": "x.pt"}}, "similarity takes no head"),
        ({"kind": "frames", "frames": {"model": "a/b", "slope": -1}}, "slope must be greater than 0"),
        ({"kind": "latent"}, "of kind latent: it needs a section latent that names its model"),
        ({"kind": "latent", "latent": {"model": "x"}, "judges": ["potential"]}, "judges no drafts"),
    ],
)
def test_a_faulty_section_is_one_sentence(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validated(PanelConfig, {"verifiers": [data]}, "panel")


def test_files_are_looked_for_and_identities_follow_them(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model at nowhere"):
        PanelConfig(verifiers=(config_of(Path("nowhere")),)).check_files()
    head = tmp_path / "head.safetensors"
    config = config_of(clip, computes="aesthetic", head=str(head))
    with pytest.raises(ConfigError, match="no head at"):
        PanelConfig(verifiers=(config,)).check_files()
    save_file({"weight": torch.ones(1, FEATURES), "bias": torch.ones(1)}, head)
    PanelConfig(verifiers=(config,)).check_files()
    before = verifier_identity(config)
    assert verifier_identity(config_of(clip, computes="aesthetic", head=str(head), slope=3.0)) != before
    save_file({"weight": torch.zeros(1, FEATURES), "bias": torch.ones(1)}, head)
    assert verifier_identity(config) != before


def test_a_judge_held_out_is_another_one_where_its_model_is(tmp_path: Path) -> None:
    panel, file = PanelConfig(verifiers=(config_of(Path("a/one")),)), tmp_path / "held_out.yaml"
    file.write_text("verifiers: [{name: apart, kind: frames, frames: {model: a/one}}]")
    with pytest.raises(UserError, match="the judge held out, apart, is one of the panel"):
        with_signals(str(file), panel)
    file.write_text("verifiers: [{name: apart, kind: frames, frames: {model: a/other}}]")
    apart = with_signals(str(file), panel)
    assert apart is not None
    assert [each.name for each in apart.verifiers] == ["apart", "signals"]


def test_one_thing_is_computed_at_a_time(clip: Path) -> None:
    """Attention is another kernel in all threads while FLOPs are counted, and what is left on is for the process."""
    verifier = FramesVerifier(config_of(clip))
    busy = most = 0

    class Watched:
        def __init__(self, model: Any) -> None:
            self._model = model

        def __getattr__(self, name: str) -> Any:
            def called(*given: Any) -> Any:
                nonlocal busy, most
                busy += 1
                most = max(most, busy)
                time.sleep(0.02)
                found = getattr(self._model, name)(*given)
                busy -= 1
                return found

            return called

    async def many() -> None:
        await verifier.ready()
        verifier._model = Watched(verifier._model)  # type: ignore[assignment]
        scores = (verifier.score(FINAL, f"{PROMPT} {number}", *units()) for number in range(3))
        await asyncio.gather(*scores, verifier.price(PROMPT, LENGTHS, 2 * SIDE, SIDE))

    asyncio.run(many())
    assert most == 1


def test_a_folder_with_code_of_its_own_is_refused(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    (tmp_path / "own" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="verifier verifier cannot be read from"):
        asyncio.run(FramesVerifier(config_of(tmp_path / "own")).ready())
    assert not (tmp_path / "ran").exists()


def test_two_who_count_leave_attention_as_it_was() -> None:
    first, second, done = threading.Event(), threading.Event(), threading.Event()

    def count_first() -> None:
        counted_flops(lambda: (first.set(), second.wait(0.5)))
        done.set()

    def count_second() -> None:
        first.wait()
        counted_flops(lambda: (second.set(), done.wait(0.5)))

    assert torch.backends.cuda.flash_sdp_enabled()
    threads = [threading.Thread(target=count) for count in (count_first, count_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.backends.cuda.flash_sdp_enabled()
