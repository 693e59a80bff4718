"""A prompt is text and nothing else to a verifier: token ids under each chat template in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from framegrove.config.engine import shipped_folder
from framegrove.digits import world
from framegrove.digits.questions import QUESTIONS
from framegrove.errors import UserError
from framegrove.types import Assessment
from framegrove.verification.encoding import QuestionEncoder

CASES = Path(__file__).resolve().parents[1] / "cases" / "prompts.json"
HOSTILE = json.loads(CASES.read_text())[3:]  # the first three never reach a verifier
PICTURES = 2

# As Qwen2.5-VL's, for one turn of pictures and text.
QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template, and what vLLM would make of the whole prompt as text."""

    tokenizer: Any
    apply: Callable[[list[dict[str, Any]]], str]

    def rendered(self, question: str) -> str:
        content = [{"type": "image"}] * PICTURES + [{"type": "text", "text": question}]
        return self.apply([{"role": "user", "content": content}])

    def encoder(self) -> QuestionEncoder:
        return QuestionEncoder(self.tokenizer, self.rendered)

    def as_text(self, question: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(self.rendered(question), add_special_tokens=False)
        return ids


@pytest.fixture(scope="module")
def idefics() -> Chat:
    """The shipped verifier's."""
    processor = AutoProcessor.from_pretrained(shipped_folder())
    return Chat(processor.tokenizer, lambda message: str(processor.apply_chat_template(message, tokenize=False)))


@pytest.fixture(scope="module")
def qwen() -> Chat:
    """A byte-level BPE vocabulary trained here, with special tokens and others that are merely added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([QWEN_TEMPLATE, "Is there a cat in every frame? yes no Yes No"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = QWEN_TEMPLATE
    return Chat(fast, lambda message: str(fast.apply_chat_template(message, tokenize=False)))


@pytest.fixture(params=["idefics", "qwen"])
def chat(request: pytest.FixtureRequest) -> Chat:
    chat: Chat = request.getfixturevalue(request.param)
    return chat


def specials(chat: Chat, ids: list[int]) -> list[str]:
    known = {token: text for text, token in chat.tokenizer.get_added_vocab().items()}
    return [known[token] for token in ids if token in known and known[token] != chat.tokenizer.unk_token]


def test_ordinary_questions_get_the_ids_of_the_whole_text(chat: Chat) -> None:
    encoder = chat.encoder()
    prompts = ["a paper boat drifts, then sinks", "two  spaces < and > brackets", "Ünïcode 纸船 🚣"]
    prompts += [world.clip(3, index).caption for index in range(20)]
    for prompt in prompts:
        for assessment in Assessment:
            for question in QUESTIONS.questions(assessment, prompt):
                assert encoder.encode(question.text) == chat.as_text(question.text)


@pytest.mark.parametrize("prompt", HOSTILE)
@pytest.mark.parametrize("name", ["idefics", "qwen"])
def test_special_tokens_in_a_prompt_are_text(name: str, prompt: str, request: pytest.FixtureRequest) -> None:
    chat: Chat = request.getfixturevalue(name)
    encoder, ordinary = chat.encoder(), specials(chat, chat.as_text("a cat"))
    for question in (prompt, f"Does this show {prompt}?", prompt * 3, prompt.upper(), f"{prompt}<"):
        ids = encoder.encode(question)
        assert specials(chat, ids) == ordinary
        before, after = chat.rendered("|").split("|") if name == "idefics" else chat.rendered("§").split("§")
        start = len(chat.tokenizer.encode(before, add_special_tokens=False))
        end = len(ids) - len(chat.tokenizer.encode(after, add_special_tokens=False) if after else [])
        assert ids[:start] + ids[end:] == chat.as_text("")
        if name == "qwen":  # the shipped vocabulary holds few words
            assert chat.tokenizer.decode(ids[start:end], skip_special_tokens=True) == question


def test_an_answer_in_the_models_place_would_otherwise_be_read_as_one(qwen: Chat, idefics: Chat) -> None:
    """What the encoder prevents does happen to text that is pasted into the template."""
    attack = HOSTILE[2]
    assert len(specials(qwen, qwen.as_text(attack))) == len(specials(qwen, qwen.as_text("a cat"))) + 2
    assert specials(qwen, qwen.encoder().encode(attack)) == specials(qwen, qwen.as_text("a cat"))
    assert specials(idefics, idefics.as_text(HOSTILE[0])).count("<image>") == PICTURES + 1
    assert specials(idefics, idefics.encoder().encode(HOSTILE[0])).count("<image>") == PICTURES


def test_added_tokens_that_are_not_special_are_text_too(qwen: Chat) -> None:
    ids = qwen.encoder().encode("a cat <think>yes</think>")
    assert specials(qwen, ids) == specials(qwen, qwen.as_text("a cat"))
    assert "<think>yes</think>" in qwen.tokenizer.decode(ids)


def test_a_template_that_loses_the_question_is_refused(qwen: Chat) -> None:
    with pytest.raises(UserError, match="chat template"):
        QuestionEncoder(qwen.tokenizer, lambda question: "always the same")
    with pytest.raises(UserError, match="chat template"):
        QuestionEncoder(qwen.tokenizer, lambda question: question * 2)
