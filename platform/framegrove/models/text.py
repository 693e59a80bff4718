"""Text encoders from transformers: prompts to token and pooled embeddings.

Small models have a CLIP text model over whole words, which is trained together with the transformer.
"""

from __future__ import annotations

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
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

__all__ = ["TextEmbedding", "TextEncoder", "vocabulary"]

_PAD, _END, _UNKNOWN = "[PAD]", "[END]", "[UNK]"  # ids 0, 1, 2


class TextEncoder(nn.Module):
    """A CLIP text model with its tokenizer. Differentiable, so that it can be trained jointly.

    The empty prompt is valid and stands for "no condition" in classifier-free guidance.
    """

    def __init__(self, model: CLIPTextModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        # For a few tokens plain products do; the fused kernel's bfloat16 gradient takes a CPU four times as long.
        model.set_attn_implementation("eager")
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def fresh(cls, config: TextConfig, words: Iterable[str], seed: int = 0) -> TextEncoder:
        """An untrained encoder whose vocabulary is ``words``; other words are read as one unknown word.

        An entry of several words ("left and right") is one token wherever it occurs: fewer tokens, sooner learned.
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
        from transformers.utils import logging

        for name, file in (("text_encoder", "model.safetensors"), ("tokenizer", "tokenizer.json")):
            if not (folder / name / file).is_file():
                raise UserError(f"{folder} is not a whole model: {name}/{file} is missing")
        logging.disable_progress_bar()
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(model, tokenizer)

    def save(self, folder: Path) -> None:
        """Write ``text_encoder/`` and ``tokenizer/`` into ``folder``."""
        from transformers.utils import logging

        logging.disable_progress_bar()
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


def vocabulary(captions: Iterable[str]) -> list[str]:
    """The words of some captions, and their set phrases, sorted.

    A word that is always followed by the same word, and makes up at least a fifth of what that one follows, is joined
    to it, again and again: "left and right" becomes one entry, a digit in front of "moves" does not. Rare words
    (fewer than 50 times) stay alone.
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
    """Lower-cased words split at blanks, punctuation dropped, phrases joined by hyphens, an end mark behind them."""
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
