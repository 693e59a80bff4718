"""The small text encoder: embeddings without padding, phrases as tokens, unknown words, folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framegrove.config.model import TextConfig
from framegrove.digits import world
from framegrove.errors import UserError
from framegrove.models.text import TextEncoder, first_words, split_prompt, vocabulary
from framegrove.models.text_public import count_tokens

CONFIG = TextConfig(layers=1, width=16, heads=2)
CAPTIONS = [world.caption(world.draw_objects(np.random.default_rng(i), split="train")) for i in range(1500)]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.fresh(CONFIG, vocabulary(CAPTIONS))


def test_a_prompt_is_encoded_the_same_in_any_company(encoder: TextEncoder) -> None:
    prompts = ["a red 3 moves up and down", "", CAPTIONS[0]]
    together = encoder.encode(prompts)
    for prompt, embedding in zip(prompts, together, strict=True):
        alone = encoder.encode([prompt])[0]
        torch.testing.assert_close(embedding.tokens_LD, alone.tokens_LD)
        torch.testing.assert_close(embedding.pooled_P, alone.pooled_P)


def test_no_padding_and_one_object_for_equal_prompts(encoder: TextEncoder) -> None:
    first, empty, again = encoder.encode(["a red 3 moves up and down", "", "a red 3 moves up and down"])
    assert first.tokens_LD.shape == (6, 16)  # a, red, 3, moves, up and down, end
    assert empty.tokens_LD.shape == (1, 16)
    assert first.pooled_P.shape == (16,)
    assert again is first
    assert encoder.encode([]) == []


def test_the_pooled_vector_is_read_at_the_end_mark(encoder: TextEncoder) -> None:
    (embedding,) = encoder.encode(["a red 3"])
    torch.testing.assert_close(embedding.pooled_P, embedding.tokens_LD[-1])


def test_spelling_does_not_matter_and_unknown_words_do(encoder: TextEncoder) -> None:
    plain, shouted, other, another = encoder.encode(["a red 3", "  A RED, 3! ", "a red zebra", "a red okapi"])
    assert torch.equal(plain.tokens_LD, shouted.tokens_LD)
    assert not torch.equal(plain.tokens_LD, other.tokens_LD)
    assert torch.equal(other.tokens_LD, another.tokens_LD)


def test_every_caption_is_in_the_vocabulary(encoder: TextEncoder) -> None:
    held_out = [world.caption(objects) for objects in world.prompts(200, seed=5)]
    unknown = encoder.tokenizer.unk_token_id
    assert not any(unknown in row for row in encoder.tokenizer(held_out)["input_ids"])


def test_set_phrases_are_joined_and_free_words_are_not() -> None:
    words = vocabulary(CAPTIONS)
    assert {"left and right", "up and down", "rising diagonal", "3", "moves", "red", "left"} <= set(words)
    assert not any("3 " in word or word.startswith(("a ", "red ")) for word in words)
    assert vocabulary(["a b", "a b"]) == ["a", "b"]  # too rare to tell


def test_a_prompt_that_is_too_long(encoder: TextEncoder) -> None:
    with pytest.raises(UserError, match="has 40 words, this model reads at most 31: shorten it"):
        encoder.encode(["a " * 40])


def test_the_words_that_do_not_fit_are_told(encoder: TextEncoder) -> None:
    assert encoder.unread("a " * 31) is None
    assert encoder.readable("a " * 31) == "a " * 31
    long = "a red 3 " * 10 + "moves left and right, then stops and turns round again"
    assert encoder.readable(long) == "a red 3 " * 10 + "moves"
    assert encoder.unread(long) == "left and right, then stops and turns round"


@pytest.mark.parametrize(
    ("prompt", "most", "read", "cut"),
    [
        ("a red 3 moves left and right", 5, "a red 3 moves", "left and right"),
        ("a red 3 moves left and right", 6, "a red 3 moves left and right", ""),
        ("  a red,   3  moves", 3, "  a red,", "3  moves"),
        ("a red-blue 3", 3, "a", "red-blue 3"),
        ("a red", 1, "", "a red"),
        ("", 1, "", ""),
        ("a-" * 60, 3, "a-a", "-a" * 58 + "-"),  # no blank far and wide: cut where the tokens end
    ],
)
def test_a_prompt_is_split_between_words(encoder: TextEncoder, prompt: str, most: int, read: str, cut: str) -> None:
    assert split_prompt(prompt, encoder.tokenizer, most) == (read, cut)


def test_first_words_are_few() -> None:
    assert first_words("") is None
    assert first_words("one two\n three") == "one two three"
    assert first_words("word " * 20) == " ".join(["word"] * 8)
    assert first_words("漢" * 500) == "漢" * 80


def test_gradients_reach_every_word(encoder: TextEncoder) -> None:
    encoder.zero_grad()
    sum(e.tokens_LD.square().sum() + e.pooled_P.sum() for e in encoder.encode(["a red 3", "blue"])).backward()
    grad = encoder.model.embeddings.token_embedding.weight.grad
    assert grad is not None
    ids = encoder.tokenizer("a red 3 blue")["input_ids"]
    assert grad[ids].any(dim=1).all()


def test_saved_and_loaded_it_is_the_same(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = TextEncoder.load(tmp_path)
    for a, b in zip(encoder.encode(CAPTIONS[:3]), loaded.encode(CAPTIONS[:3]), strict=True):
        assert torch.equal(a.tokens_LD, b.tokens_LD)
        assert torch.equal(a.pooled_P, b.pooled_P)


def test_tokens_are_counted_without_the_encoder(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    prompts = ["", "a red 3 moves left and right", "Something ELSE, altogether"]
    assert [count_tokens(tmp_path, prompt) for prompt in prompts] == encoder.token_counts(prompts)
    assert count_tokens(tmp_path / "nowhere", "a red 3") is None


def test_fresh_weights_follow_the_seed_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c = (TextEncoder.fresh(CONFIG, ["x"], seed).model.embeddings.token_embedding.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.rand(1), expected)


def test_a_missing_tokenizer(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer/tokenizer.json is missing"):
        TextEncoder.load(tmp_path)
