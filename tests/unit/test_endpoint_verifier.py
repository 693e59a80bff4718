"""The verifier at an endpoint: what it asks a server, how it reads the answers, and what it makes of failures."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from framegrove.config.scores import YesNo
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError
from framegrove.media.writing import decode_mp4
from framegrove.types import Assessment, ScoreWork
from framegrove.verification.chat import _token
from framegrove.verification.endpoint import EndpointVerifier, _harmless
from framegrove.verification.readings import Words, read
from framegrove.verification.scoring import on_grid, probability
from tests.fakes import FakeChatServer

RANDOM = np.random.default_rng(0)
UNITS = [RANDOM.integers(0, 255, (frames, 16, 16, 3), np.uint8) for frames in (1, 8)]
FINAL = ScoreWork((0, 0), Assessment.FINAL, "judge")
PROMPT = "a red ball <|im_end|> rolls"


def says(**probabilities: float) -> Any:
    could = {text: math.log(chance) for text, chance in probabilities.items()}
    return lambda asked: [(max(could, key=lambda text: could[text]), could)]


YES = says(Yes=0.75, No=0.25)


@contextmanager
def served(fake: FakeChatServer) -> Iterator[str]:
    """The address of a server that answers as the fake says."""
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


def config_of(url: str, score: dict[str, Any] | None = None, questions: str | None = "brief", **endpoint: Any) -> Any:
    return VerifierConfig.model_validate(
        {
            "name": "judge",
            "kind": "endpoint",
            "questions": questions,
            "endpoint": {"url": url, "model": "m", "max_frames": 4, **endpoint},
            **({"score": score} if score else {}),
        }
    )


def scored(config: VerifierConfig, work: ScoreWork = FINAL) -> Any:
    return asyncio.run(EndpointVerifier(config).score(work, PROMPT, *UNITS))


def texts_of(asked: Any) -> list[str]:
    return [part["text"] for part in asked.messages[0]["content"] if part["type"] == "text"]


def brightness_of(asked: Any, at: int) -> float:
    """The mean level of one of the pictures in a request."""
    pictures = [part["image_url"]["url"] for part in asked.messages[0]["content"] if part["type"] == "image_url"]
    data = base64.b64decode(pictures[at].removeprefix("data:image/png;base64,"))
    return float(np.asarray(Image.open(io.BytesIO(data))).mean())


def test_frames_come_first_and_the_score_is_the_share_of_yes() -> None:
    fake = FakeChatServer(YES)
    with served(fake) as url:
        found = scored(config_of(url, price=1e12))
    asked = fake.requests[1:]  # the first is about a grey picture
    assert len(asked) == len(found.answers) == 6
    assert all(chance == pytest.approx(probability(on_grid(math.log(3)))) for _, chance in found.answers)
    assert found.mass == pytest.approx(1.0)
    assert found.cost.flops == 6e12
    first = asked[0]
    assert (first.max_tokens, first.temperature, first.logprobs, first.top_logprobs) == (1, 0.0, True, 20)
    *pictures, text = first.messages[0]["content"]
    assert [part["type"] for part in pictures] == ["image_url"] * 2
    data = base64.b64decode(pictures[0]["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(data))) == UNITS[0][0]).all()
    assert text["text"].endswith("yes or no only.")
    assert not any("<|" in each for request in asked for each in texts_of(request))


def test_prices_are_what_scores_cost() -> None:
    fake = FakeChatServer(YES)

    async def both(config: VerifierConfig) -> tuple[Any, Any]:
        verifier = EndpointVerifier(config)
        assert await verifier.ready() == "m"
        return await verifier.price(PROMPT, (1, 8, 8), 16, 16), await verifier.score(FINAL, PROMPT, *UNITS)

    with served(fake) as url:
        for logprobs, each in ((True, 1), (False, 3)):
            prices, found = asyncio.run(both(config_of(url, price=2e9, logprobs=logprobs, samples=3)))
            assert prices[Assessment.FINAL][1] == found.cost.flops == 6 * 2e9 * each
            assert set(prices) == set(Assessment)


@pytest.mark.parametrize(
    ("listed", "odds"),
    [
        ([("Yes", 0.6), ("So", 0.3), ("It", 0.05)], math.log(0.6 / 0.05)),  # no is at most as likely as the last one,
        ([("Yes", 0.6), ("So", 0.39)], math.log(0.6 / 0.01)),  # and has at most what is left over,
        ([("Yes", 0.6)], math.log(0.6 / 0.4)),  # however few the server lists;
        ([("Yes", 0.6), ("\ufffd", 0.3), ("\ufffd", 0.05)], math.log(0.6 / 0.05)),  # tokens may have the same text
        ([("Yes", 1.0)], math.inf),
        ([], math.log(0.6 / 0.4)),
    ],
)
def test_what_a_server_does_not_list_is_bounded_by_what_it_does(listed: list[tuple[str, float]], odds: float) -> None:
    top = [SimpleNamespace(token=text, logprob=math.log(chance)) for text, chance in listed]
    token = _token(SimpleNamespace(token="Yes", logprob=math.log(listed[0][1] if listed else 0.6), top_logprobs=top))
    assert read(YesNo(), "", [token], Words(("Yes",), ("No",))).odds == pytest.approx(odds)


@pytest.mark.parametrize("name", ["<|im_end|>", "<image>", "</s>", "[INST]", "[/INST]", "[IMG]", "<\uff5cUser\uff5c>"])
def test_a_prompt_spells_no_special_token(name: str) -> None:
    assert name not in _harmless(f"a ball {name} rolls")
    assert _harmless("a [red] ball, 3 < 4 [A]") == "a [red] ball, 3 < 4 [A]"


def test_without_log_probabilities_frequencies_count() -> None:
    fake = FakeChatServer(YES, offers_logprobs=False, most=2)
    with served(fake) as url:
        with pytest.raises(UserError, match=r"judge.*gives no log-probabilities: set endpoint\.logprobs to false"):
            scored(config_of(url))
        fake.requests.clear()
        fake.samples = ["Yes.", "No", " yes", "Well"]
        found = scored(config_of(url, logprobs=False, samples=4))
    assert all(chance == pytest.approx(probability(on_grid(math.log(2.5 / 1.5)))) for _, chance in found.answers)
    assert found.mass == pytest.approx(3 / 4)
    assert [(request.n, request.temperature, request.logprobs) for request in fake.requests[:2]] == [
        (4, 1.0, False),
        (2, 1.0, False),
    ]


def test_a_digit_follows_an_answer_that_was_begun() -> None:
    fake = FakeChatServer(lambda asked: [("4", {"4": math.log(0.5), "2": math.log(0.5)})])
    with served(fake) as url:
        found = scored(config_of(url, {"kind": "digits", "answer": "Score: "}))
    assert found.answers[0][1] == pytest.approx(0.5)
    last = fake.requests[-1]
    assert last.messages[-1] == {"role": "assistant", "content": "Score: "}
    assert (last.continue_final_message, last.add_generation_prompt) == (True, False)


def test_json_is_asked_for_by_its_schema(tmp_path: Any) -> None:
    (tmp_path / "set.yaml").write_text(
        "questions: [{text: 'Rate this: {prompt}', score: [look, motion], aspect: rating}]\n"
    )
    fake = FakeChatServer(lambda asked: [('{"look": 5, "motion": 3}', {})])
    score = {"kind": "json", "scores": ["look", "motion"], "low": 1, "high": 5, "max_tokens": 99}
    with served(fake) as url:
        found = scored(config_of(url, score, str(tmp_path / "set.yaml"), extra={"seed": 7}))
    assert dict(found.scores) == {"look": pytest.approx(1.0, abs=1e-6), "motion": pytest.approx(0.5)}
    (asked,) = fake.requests[1:]
    assert asked.response_format.json_schema.json_schema["required"] == ["look", "motion"]
    assert (asked.max_tokens, asked.seed) == (99, 7)


def test_scores_stand_in_what_is_written(tmp_path: Any) -> None:
    (tmp_path / "set.yaml").write_text("questions: [{text: 'Rate {prompt}', score: [look, motion], aspect: rating}]\n")
    tokens = [
        ("look", {}),
        (": ", {}),
        ("2", {"2": math.log(0.5), "4": math.log(0.5)}),
        (" motion: ", {}),
        ("5", {"5": 0.0}),
    ]
    fake = FakeChatServer(lambda asked: tokens)
    score = {"kind": "generated", "scores": {"look": "look:", "motion": "motion:"}}
    with served(fake) as url:
        found = scored(config_of(url, score, str(tmp_path / "set.yaml")))
        assert dict(found.scores) == {"look": pytest.approx(0.5), "motion": pytest.approx(1.0, abs=1e-6)}
        assert len(fake.requests) == 2
        other = {"kind": "generated", "scores": {"look": "look:"}}
        with pytest.raises(UserError, match=r"judge: the questions .* ask for motion, but score names look"):
            scored(config_of(url, other, str(tmp_path / "set.yaml")))


def test_a_model_that_writes_is_asked_again_where_its_scores_are_missing(tmp_path: Any) -> None:
    (tmp_path / "set.yaml").write_text("questions: [{text: 'Rate {prompt}', score: look, aspect: rating}]\n")

    def rambles_at_first(asked: Any) -> list[tuple[str, dict[str, float]]]:
        return [("look: ", {}), ("4", {"4": 0.0})] if asked.temperature else [("Well,", {})]

    fake = FakeChatServer(rambles_at_first)
    score = {"kind": "generated", "scores": {"look": "look:"}}
    with served(fake) as url:
        found = scored(config_of(url, score, str(tmp_path / "set.yaml")))
        assert dict(found.scores) == {"look": pytest.approx(0.75, abs=0.01)}
        assert [(request.temperature, request.seed) for request in fake.requests] == [(0.0, None), (0.7, 1)] * 2
        fake.requests.clear()
        asked_twice = scored(config_of(url, score, str(tmp_path / "set.yaml"), price=1e12))
        assert asked_twice.cost.flops == 2e12
        fake.requests.clear()
        with pytest.raises(UserError, match=r"judge .m. did not answer .*no number from 1 to 5 follows 'look:'"):
            scored(config_of(url, score | {"tries": 1}, str(tmp_path / "set.yaml")))
        assert len(fake.requests) == 1


def test_a_weight_of_a_score_that_no_question_counts_towards_is_told() -> None:
    config = config_of("http://127.0.0.1:1/v1").model_copy(update={"weight": {"alinment": 2.0}})
    with pytest.raises(
        UserError, match="judge has a weight for 'alinment', but its scores are alignment, clarity, motion"
    ):
        scored(config)


def test_frames_may_go_as_a_video() -> None:
    fake = FakeChatServer(YES)
    with served(fake) as url:
        scored(config_of(url, media="video"))
    part, _ = fake.requests[-1].messages[0]["content"]
    data = base64.b64decode(part["video_url"]["url"].removeprefix("data:video/mp4;base64,"))
    assert decode_mp4(data)[0].shape == (2, 16, 16, 3)


def test_two_videos_are_compared_in_both_orders() -> None:
    def prefers_the_first_and_the_brighter(asked: Any) -> list[tuple[str, dict[str, float]]]:
        odds = 0.5 + (1.5 if brightness_of(asked, 0) > 128 else -1.5)
        chance = 1 / (1 + math.exp(-odds))
        return [("A", {"A": math.log(chance), "B": math.log(1 - chance)})]

    fake = FakeChatServer(prefers_the_first_and_the_brighter)
    dark, bright = (np.full((5, 16, 16, 3), value, np.uint8) for value in (10, 200))

    async def compared(config: VerifierConfig) -> float:
        return await EndpointVerifier(config).compare(PROMPT, bright, dark)

    with served(fake) as url:
        assert asyncio.run(compared(config_of(url, {"kind": "pairwise"}, None))) == pytest.approx(1.5)
        fake.reply = YES
        with pytest.raises(UserError, match="judge does not compare"):
            asyncio.run(compared(config_of(url)))
    assert len(fake.requests[1].messages[0]["content"]) == 5


def test_passing_failures_are_waited_for_as_the_server_says() -> None:
    fake = FakeChatServer(YES, failures=[(429, {"Retry-After": "1"}), (503, {"Retry-After": "0.1"})])
    with served(fake) as url:
        began = time.monotonic()
        asyncio.run(EndpointVerifier(config_of(url, retries=2)).ready())
        assert 1.0 <= time.monotonic() - began < 10
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("fake", "endpoint", "said"),
    [
        ({"failures": [(500, {})] * 2}, {"retries": 0}, "still answers 500 after one try .*not now"),
        ({"failures": [(400, {})]}, {}, "refuses to answer for m .400: .*not now"),
        ({"key": "right"}, {}, "refuses calls without a key"),
        ({"key": "right"}, {"key": "JUDGE_KEY"}, "refuses the key in JUDGE_KEY .401"),
        ({}, {"key": "NO_SUCH_KEY"}, "judge needs a key, and the environment variable NO_SUCH_KEY is not set on"),
        (
            {"delay": 0.5},
            {"timeout": 0.1, "retries": 0},
            "did not answer within endpoint.timeout, 0.1 s, after one try",
        ),
        ({"reply": says(Well=1.0)}, {}, "judge .m. did not answer .*: there is no mass on yes or no"),
    ],
)
def test_lasting_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, fake: dict[str, Any], endpoint: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "wrong")
    with served(FakeChatServer(**{"reply": YES, **fake})) as url, pytest.raises(UserError, match=said) as caught:
        scored(config_of(url, **endpoint))
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match=r"judge: http://127\.0\.0\.1:1/v1 cannot be reached, after one try"):
        scored(config_of("http://127.0.0.1:1/v1", retries=0))


def test_so_many_calls_go_out_at_a_time() -> None:
    fake = FakeChatServer(YES, delay=0.05)
    with served(fake) as url:
        scored(config_of(url, at_a_time=2))
    assert fake.most_at_once == 2
