"""The frozen text encoders of public checkpoints, as the released pipeline uses them (PFM appendix B).

Tokens come from T5, the pooled vector from CLIP: from CLIP-L and CLIP-G, projected and joined, beside the MM-DiT; from
CLIP-L, not projected, beside the FLUX-style transformer. In a model folder the CLIP models stand first
(``text_encoder``, ``text_encoder_2``), T5 last, each with the tokenizer of the same number.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from framegrove.errors import UserError
from framegrove.models.packed import TextEmbedding
from framegrove.models.text import first_words, quiet_transformers, split_prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T5_TOKENS = 128  # longer prompts are cut off, as released; CLIP reads up to its tokenizer's limit, 77


class PublicTextEncoder(nn.Module):
    """CLIP and T5 text models with their tokenizers, which stay as they are during training."""

    def __init__(self, models: Sequence[PreTrainedModel], tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(dict(zip(_names("text_encoder", len(models)), models, strict=True)))
        self.tokenizers = list(tokenizers)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever ``mode`` says, because T5 has dropout."""
        return super().train(False)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False) -> PublicTextEncoder:
        """Read ``text_encoder*`` and ``tokenizer*`` of a model folder. Raises UserError, in one line."""
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

        quiet_transformers()
        count = 3 if (folder / "text_encoder_3").is_dir() else 2
        clip = CLIPTextModelWithProjection if count == 3 else CLIPTextModel
        kinds = [*[clip] * (count - 1), T5EncoderModel]
        models, tokenizers = [], []
        for kind, name, tokens in zip(kinds, _names("text_encoder", count), _names("tokenizer", count), strict=True):
            models.append(_model(kind, folder / name, dtype, allow_pickle))
            try:
                tokenizers.append(AutoTokenizer.from_pretrained(folder / tokens, local_files_only=True))
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{folder / tokens} cannot be read as a tokenizer ({_line(error)})") from None
        return cls(models, tokenizers)

    @classmethod
    def absent(cls) -> PublicTextEncoder:
        """No encoders at all, for training on embeddings that are stored: it encodes nothing, has nothing to save."""
        return cls([], [])

    def save(self, folder: Path) -> None:
        """Write the folders that `load` reads, each model in its own type."""
        quiet_transformers()
        for name, model in self.models.items():
            _as_saved(model).save_pretrained(folder / name, safe_serialization=True)
        for name, tokenizer in zip(_names("tokenizer", len(self.tokenizers)), self.tokenizers, strict=True):
            tokenizer.save_pretrained(folder / name)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """One embedding per prompt: T5's states (valid tokens, width), and (width,) of CLIP's pooled outputs joined.

        Equal prompts are encoded once and get the same object. The empty prompt stands for "no condition".
        """
        if not prompts:
            return []
        if not self.models:
            raise ValueError("the text encoders were not loaded, because the embeddings of all prompts are stored")
        from ftfy import fix_text

        distinct = list(dict.fromkeys(prompts))
        mended = [fix_text(prompt) for prompt in distinct]  # the released pipeline's CLIP tokenizer did this by itself
        *clips, t5 = self.models.values()
        longest = self.tokenizers[0].model_max_length  # the first tokenizer's limit for both CLIP models, as released
        pooled = [
            _pooled(model, _ids(tokenizer, mended, longest, model)[0])
            for model, tokenizer in zip(clips, self.tokenizers, strict=False)
        ]
        ids, mask = _ids(self.tokenizers[-1], distinct, T5_TOKENS, t5)
        states = t5(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = zip(distinct, states, mask.bool(), torch.cat(pooled, dim=-1), strict=True)
        encoded = {prompt: TextEmbedding(tokens[valid], vector) for prompt, tokens, valid, vector in rows}
        return [encoded[prompt] for prompt in prompts]

    @property
    def max_tokens(self) -> int:
        """The most tokens that a prompt can have."""
        return T5_TOKENS

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens of text each prompt gives the transformer."""
        rows = self.tokenizers[-1](list(prompts), truncation=True, max_length=T5_TOKENS)["input_ids"]
        return [len(row) for row in rows]

    def readable(self, prompt: str) -> str:
        """The part of a prompt that T5 reads; what comes after it has no influence on the video.

        CLIP reads less, but gives one vector for the whole only.
        """
        return split_prompt(prompt, self.tokenizers[-1], T5_TOKENS)[0]

    def unread(self, prompt: str) -> str | None:
        """The first words of a prompt that are cut off because T5 reads no further, None if it reads them all."""
        return first_words(split_prompt(prompt, self.tokenizers[-1], T5_TOKENS)[1])


def count_tokens(folder: Path, text: str) -> int | None:
    """How many tokens of a text the transformer is given by the encoders in a model folder, small or public.

    No weights are read. None where the folder has no tokenizer.json for the encoder that gives them, the last one.
    """
    tokenizer = _tokenizer(folder)
    return min(T5_TOKENS, len(tokenizer.encode(text).ids)) if tokenizer is not None else None


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    file = max(folder.glob("tokenizer*"), default=folder) / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if file.is_file() else None


def _names(stem: str, count: int) -> list[str]:
    return [stem, *(f"{stem}_{number}" for number in range(2, count + 1))][:count]


def _model(kind: Any, folder: Path, dtype: torch.dtype, allow_pickle: bool) -> PreTrainedModel:
    """One model with all of its weights, where the library would initialise missing ones at random."""
    try:
        model, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a text encoder in safetensors ({_line(error)})") from None
    missing = sorted(report["missing_keys"])
    if missing:
        names = ", ".join(missing[:6])
        raise UserError(f"{folder} does not fit its config.json: {len(missing)} missing keys: {names}")
    loaded: PreTrainedModel = model
    return loaded


def _as_saved(model: nn.Module) -> PreTrainedModel:
    from transformers import PreTrainedModel

    assert isinstance(model, PreTrainedModel)
    return model


def _ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded to a fixed length as released, so that an embedding does not depend on other prompts."""
    device = next(model.parameters()).device
    rows = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return rows["input_ids"].to(device), rows["attention_mask"].to(device)


def _pooled(model: nn.Module, ids: Tensor) -> Tensor:
    """The state at the end mark: projected where the model has a projection."""
    out = model(input_ids=ids)
    pooled: Tensor = out.text_embeds if "text_embeds" in out else out.pooler_output
    return pooled


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
