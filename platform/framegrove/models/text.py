"""The small text encoder, trained together with the transformer: a CLIP text model over a vocabulary of whole words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from framegrove.config.model import TextConfig
from framegrove.errors import UserError
from framegrove.models.packed import TextEmbedding

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["TextEmbedding", "TextEncoder", "first_words", "quiet_transformers", "split_prompt", "vocabulary"]

_LONGEST_WORD = 40  # characters; what has no blank for longer is not made of words (Chinese, for example)
_PAD, _END, _UNKNOWN = "[PAD]", "[END]", "[UNK]"  # ids 0, 1, 2


class TextEncoder(nn.Module):
    """A CLIP text model with its tokenizer. Differentiable, so that it can be trained jointly.

    The empty prompt is valid and stands for "no condition" in classifier-free guidance.
    """

    def __init__(self, model: CLIPTextModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        # With so few tokens the fused kernel gains nothing, and its bfloat16 gradient takes a CPU four times as long.
        model.set_attn_implementation("eager")
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def fresh(cls, config: TextConfig, words: Iterable[str], seed: int = 0) -> TextEncoder:
        """An untrained encoder whose vocabulary is ``words``; all other words become the same unknown word.

        An entry of several words ("left and right") is one token wherever it occurs, which makes for fewer tokens and
        quicker learning.
        """
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = _word_tokenizer(words, config.max_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=config.width,
                    intermediate_size=4 * config.width,
                    projection_dim=config.width,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    max_position_embeddings=config.max_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    bos_token_id=tokenizer.eos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            )
            # The library's tiny initial embeddings suit a long pretraining; words must differ from the first step on.
            nn.init.normal_(model.embeddings.token_embedding.weight, std=1.0)
        return cls(model, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Read ``text_encoder/`` and ``tokenizer/`` of a model folder. Raises UserError where one is missing."""
        from transformers import CLIPTextModel, PreTrainedTokenizerFast

        for name, file in (("text_encoder", "model.safetensors"), ("tokenizer", "tokenizer.json")):
            if not (folder / name / file).is_file():
                raise UserError(f"{folder} is not a whole model: {name}/{file} is missing")
        quiet_transformers()
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(model, tokenizer)

    def save(self, folder: Path) -> None:
        """Write ``text_encoder/`` and ``tokenizer/`` into ``folder``."""
        quiet_transformers()
        self.model.save_pretrained(folder / "text_encoder", safe_serialization=True)
        self.tokenizer.save_pretrained(folder / "tokenizer")

    @property
    def max_tokens(self) -> int:
        """The longest prompt in tokens, end mark included."""
        return int(self.model.config.max_position_embeddings)

    def encode(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """One embedding per prompt: (tokens, width) without padding, and (width,) read at the end mark.

        Equal prompts are encoded once and get the same object. Raises UserError for a prompt that is too long.
        """
        if not prompts:
            return []
        distinct = list(dict.fromkeys(prompts))
        rows = self.tokenizer(distinct, verbose=False)["input_ids"]
        for prompt, row in zip(distinct, rows, strict=True):
            if len(row) > self.max_tokens:
                raise UserError(
                    f"the prompt {prompt[:40]!r}... has {len(row) - 1} words, this model reads at most "
                    f"{self.max_tokens - 1}: shorten it"
                )
        longest = max(map(len, rows))
        pad = self.model.config.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self.model.device)
        # Padding stands on the right and attention is causal, so no valid token ever sees it.
        out = self.model(input_ids=ids)
        tokens, pooled = out.last_hidden_state, out.pooler_output
        encoded = {
            prompt: TextEmbedding(states[: len(row)], summary)
            for prompt, row, states, summary in zip(distinct, rows, tokens.unbind(0), pooled.unbind(0), strict=True)
        }
        return [encoded[prompt] for prompt in prompts]

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens of text each prompt gives the transformer."""
        return [len(row) for row in self.tokenizer(list(prompts))["input_ids"]]

    def readable(self, prompt: str) -> str:
        """The part of a prompt that fits. `encode` refuses a prompt that is longer."""
        return split_prompt(prompt, self.tokenizer, self.max_tokens)[0]

    def unread(self, prompt: str) -> str | None:
        """The first words that do not fit, None if all of them do."""
        return first_words(split_prompt(prompt, self.tokenizer, self.max_tokens)[1])


def split_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, most: int) -> tuple[str, str]:
    """What of a prompt fits ``most`` tokens, marks included, and what is cut off; a word that is cut is cut off whole.

    >>> split_prompt("a red ball rolls down the stairs", tokenizer, 5)  # a token a word, and an end mark
    ("a red ball rolls", "down the stairs")
    """
    encoded = tokenizer(prompt, verbose=False, return_offsets_mapping=True, return_special_tokens_mask=True)
    ends = [
        end
        for (_, end), special in zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        if not special
    ]
    marks = len(encoded["input_ids"]) - len(ends)
    if len(encoded["input_ids"]) <= most:
        return prompt, ""
    kept = max(0, most - marks)
    end, next_end = max(ends[:kept], default=0), ends[kept]
    start, stop = _word_at(prompt, end)
    if next_end > stop:  # the word is read to its end, what follows in it is no token
        end = stop
    elif stop - start <= _LONGEST_WORD:
        end = start
    return prompt[:end].rstrip(), prompt[end:].lstrip()


def first_words(text: str, most: int = 8) -> str | None:
    """The beginning of a text for a message, None if there is none."""
    return " ".join(text.split()[:most])[: 10 * most] or None


def _word_at(text: str, place: int) -> tuple[int, int]:
    """Where the word that ``place`` lies in, or ends, begins and ends; words are what blanks separate."""
    start = next((here for here in range(place, 0, -1) if text[here - 1].isspace()), 0)
    stop = next((here for here in range(place, len(text)) if text[here].isspace()), len(text))
    return start, stop


def vocabulary(captions: Iterable[str]) -> list[str]:
    """The words of some captions, and their set phrases, sorted.

    A word is joined to the one after it if that is always the same one, and if at least a fifth of that one's
    occurrences follow it; then the joined words are looked at again. "left and right" thus becomes one entry, a digit
    before "moves" does not. Words that occur fewer than 50 times are not joined.
    """
    rows = [caption.lower().split() for caption in captions]
    words = {word for row in rows for word in row}
    while joined := _set_pairs(rows):
        rows = [_join(row, joined) for row in rows]
    return sorted(words | {entry for row in rows for entry in row})


def _set_pairs(rows: Sequence[Sequence[str]]) -> dict[str, str]:
    followers: dict[str, Counter[str]] = {}
    seen: Counter[str] = Counter()
    for row in rows:
        seen.update(row)
        for word, follower in zip(row, [*row[1:], ""], strict=True):
            followers.setdefault(word, Counter())[follower] += 1
    pairs = {word: next(iter(after)) for word, after in followers.items() if len(after) == 1 and seen[word] >= 50}
    return {word: after for word, after in pairs.items() if after and 5 * seen[word] >= seen[after]}


def _join(row: Sequence[str], pairs: Mapping[str, str]) -> list[str]:
    result: list[str] = []
    open_pair = False
    for word in row:
        if open_pair:
            result[-1] += f" {word}"
        else:
            result.append(word)
        open_pair = not open_pair and word in pairs
    return result


def _word_tokenizer(words: Iterable[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """Lower-cases, drops punctuation, joins phrases by hyphens, splits at blanks and appends an end mark."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = [word.lower() for word in words]
    phrases = sorted((entry for entry in entries if " " in entry), key=len, reverse=True)
    joined = [entry.replace(" ", "-") for entry in entries]
    ids = {word: index for index, word in enumerate(dict.fromkeys([_PAD, _END, _UNKNOWN, *joined]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[^a-z0-9]+"), " "),
            *(normalizers.Replace(Regex(rf"\b{phrase}\b"), phrase.replace(" ", "-")) for phrase in phrases),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, ids[_END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=max_tokens,
    )


def quiet_transformers() -> None:
    """Have transformers read and save models without a progress bar, and without a warning of DeepSpeed's."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not torch.cuda.is_available():  # saving imports DeepSpeed, which warns that it has looked for a GPU in vain
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
