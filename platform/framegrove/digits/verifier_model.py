"""The small verifier: an Idefics3 with a word-level tokenizer, saved as a folder that transformers and vLLM load.

Its prompt is one ``<image>`` per shown frame, then the question; the answer is read off the probabilities of "yes" and
"no" as the next token. Words are lower-cased and split at punctuation, so that the two libraries cannot disagree about
token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    AttentionInterface,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from framegrove.digits import questions as ask
from framegrove.digits.config import VerifierArchitecture
from framegrove.digits.world import COLOURS, DIGITS, MOTIONS
from framegrove.errors import UserError
from framegrove.files import replacing

PAD, UNKNOWN, IMAGE, AROUND_IMAGE, GLOBAL_IMAGE, END = (
    "<pad>",
    "<unk>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, for the words of every question that this verifier is trained on."""
    samples = [ask.ask_digit(d) for d in DIGITS] + [ask.ask_colour(c) for c in COLOURS]
    samples += [ask.ask_motion(0, "red", m) for m in MOTIONS] + [ask.ask_match(f"a red 0 moves {m}") for m in MOTIONS]
    samples += [
        ask.ask_binding(0, "red"),
        ask.ask_motion_now(0, "red", "up and down"),
        ask.ask_count(1),
        ask.ask_count(2),
        ask.ASK_STABLE,
        ask.ASK_CLEAR,
        "yes no",
    ]
    splitter, lower = pre_tokenizers.BertPreTokenizer(), normalizers.Lowercase()
    words = {word for text in samples for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text))}
    special = [PAD, UNKNOWN, IMAGE, AROUND_IMAGE, GLOBAL_IMAGE, END]
    vocabulary = {word: at for at, word in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = lower
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[IMAGE, AROUND_IMAGE, GLOBAL_IMAGE],
        model_max_length=1024,
    )


def build_model(config: VerifierArchitecture, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """A model with random initial weights, drawn from torch's global generator."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=8 * config.text_width // 3,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        num_key_value_heads=config.text_heads,
        max_position_embeddings=1024,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = Idefics3VisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    whole = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=config.scale_factor,
        image_token_id=_id(tokenizer, IMAGE),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration._from_config(whole, attn_implementation="eager")
    with torch.no_grad():
        # Words are as large as the codes of pictures (verifier_codes.py).
        model.get_input_embeddings().weight.normal_(std=1.0)
        # With equal queries and keys a token attends at first to tokens like itself, so a word to what it names.
        for layer in model.model.text_model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


@torch.no_grad()
def start_from(folder: Path, model: Idefics3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give ``model`` the weights of the verifier in ``folder``; words that one does not know keep their own.

    Raises UserError where it has another architecture, or is no verifier of this kind.
    """
    try:
        other = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        words: dict[str, int] = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    except (OSError, ValueError) as error:
        raise UserError(f"there is no verifier to start from in {folder} ({error})") from error
    known = {at: words[word] for word, at in tokenizer.get_vocab().items() if word in words}
    rows, of_rows = list(known), list(known.values())
    theirs = other.state_dict()
    for name, weight in model.state_dict().items():
        by_word = any(part in name for part in ("embed_tokens", "lm_head"))
        fits = name in theirs and theirs[name].shape[by_word:] == weight.shape[by_word:]
        if not fits:
            raise UserError(
                f"the verifier in {folder} has another architecture ({name}): give the model it was made with"
            )
        if by_word:
            weight[rows] = theirs[name][of_rows]
        else:
            weight.copy_(theirs[name])


class _FastNorm(nn.Module):
    """Computes what LlamaRMSNorm does at a third of its cost on a CPU: bfloat16 states are not converted to float32."""

    def __init__(self, usual: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight = usual.weight
        self.epsilon = usual.variance_epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (length.square() / states.shape[-1] + self.epsilon).rsqrt()
        return states * scale.to(states.dtype) * self.weight


def with_fast_norms(model: Idefics3ForConditionalGeneration) -> Idefics3ForConditionalGeneration:
    """The same model, changed in place: its norms are computed faster, its weights stay the same, in the same order."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, _FastNorm(child))
    return model


def tokens_per_frame(config: VerifierArchitecture) -> int:
    """Image tokens of one frame, without the three that surround them."""
    return (config.image_size // config.patch_size // config.scale_factor) ** 2


def save_folder(
    model: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    config: VerifierArchitecture,
    out: Path,
) -> None:
    """Write weights (in the model's dtype), configuration, tokenizer and processor into the folder ``out``.

    A folder that is already there is replaced as a whole.
    """
    with replacing(out) as partial:
        write_files(model, tokenizer, config, partial)


def write_files(
    model: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    config: VerifierArchitecture,
    folder: Path,
) -> None:
    """What ``save_folder`` writes, into a folder that others may complete."""
    model.save_pretrained(folder)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": config.image_size},
        max_image_size={"longest_edge": config.image_size},
        do_image_splitting=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=tokens_per_frame(config), chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    ask.write_settings(folder)


@dataclass(frozen=True)
class Group:
    """``count`` adjacent questions of ``width`` tokens each, padding included."""

    count: int
    width: int


@dataclass(frozen=True)
class PackedQuestions:
    """Questions about B clips, K each, in one row of L tokens per clip: a prefix of frames, then question by question.

        frames (prefix) | question 1 | question 2 | ... | question K

    Every token attends to the frames and to its own question so far. ``ends_BK`` is the index of the last token of each
    question, ``answers_BK`` is 1 for yes. Positions restart after the prefix with every question, as if it were alone.
    """

    prefix: int
    groups: tuple[Group, ...]
    ids_BL: torch.Tensor
    positions_1L: torch.Tensor
    ends_BK: torch.Tensor
    answers_BK: torch.Tensor


_LONG = 2  # this many of the longest questions, mostly whole captions, are a group, so that they widen no others


class Packer:
    """Turns questions into PackedQuestions, for a model with ``frame_tokens`` image tokens per frame."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, frame_tokens: int) -> None:
        self._ids = {w: _id(tokenizer, w) for w in (AROUND_IMAGE, GLOBAL_IMAGE, IMAGE, PAD)}
        self._tokenizer = tokenizer
        self._frame_tokens = frame_tokens
        self._known: dict[str, list[int]] = {}
        self.yes, self.no = (_id(tokenizer, w) for w in ("yes", "no"))
        self.word_ids: dict[str, int] = tokenizer.get_vocab()

    def tokens(self, text: str) -> list[int]:
        """Token ids of a question."""
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def pack(self, shown: int, texts: Sequence[Sequence[str]], answers: Sequence[Sequence[bool]]) -> PackedQuestions:
        """Pack question k of clip b, ``texts[b][k]``.

        Every clip shows ``shown`` frames and has the same number of questions, shortest first.
        """
        image = [self._ids[IMAGE]] * self._frame_tokens
        prefix = [self._ids[AROUND_IMAGE], self._ids[GLOBAL_IMAGE], *image, self._ids[AROUND_IMAGE]] * shown
        rows = [[self.tokens(text) for text in row] for row in texts]
        count = len(rows[0])
        bounds = [0, max(0, count - _LONG), count]
        widths = [0] * count
        groups = []
        for first, last in pairwise(bounds):
            if last > first:
                width = max(len(row[k]) for row in rows for k in range(first, last))
                widths[first:last] = [width] * (last - first)
                groups.append(Group(last - first, width))
        ids = [
            prefix + [t for k, q in enumerate(row) for t in q + [self._ids[PAD]] * (widths[k] - len(q))] for row in rows
        ]
        starts = [len(prefix) + sum(widths[:k]) for k in range(count)]
        ends = [[starts[k] + len(q) - 1 for k, q in enumerate(row)] for row in rows]
        positions = [*range(len(prefix)), *(len(prefix) + i for width in widths for i in range(width))]
        return PackedQuestions(
            len(prefix),
            tuple(groups),
            torch.tensor(ids),
            torch.tensor(positions)[None],
            torch.tensor(ends),
            torch.tensor(answers, dtype=torch.float32),
        )


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    packed: PackedQuestions,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention over PackedQuestions; query, key and value are (B, heads, L, D), the output (B, L, heads, D).

    Scores between different questions are not computed at all.
    """
    shared = packed.prefix
    past_key, past_value = key[:, :, :shared].transpose(2, 3), value[:, :, :shared]
    seen = _softmax(query[:, :, :shared] @ past_key * scaling + _causal(shared, query))
    outputs, start = [seen @ past_value], shared
    for group in packed.groups:
        end = start + group.count * group.width
        own_query, own_key, own_value = (
            t[:, :, start:end].unflatten(2, (group.count, group.width)) for t in (query, key, value)
        )
        far = (query[:, :, start:end] @ past_key).unflatten(2, (group.count, group.width)) * scaling
        near = own_query @ own_key.transpose(3, 4) * scaling + _causal(group.width, query)
        weights = _softmax(torch.cat([far, near], dim=-1))
        far_out = weights[..., :shared].flatten(2, 3) @ past_value
        outputs.append(far_out + (weights[..., shared:] @ own_value).flatten(2, 3))
        start = end
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _causal(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((size, size), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


AttentionInterface.register("packed_questions", packed_attention)


def read_cells(model: Idefics3ForConditionalGeneration, frames_N3HW: torch.Tensor) -> torch.Tensor:
    """What the text model receives of frames in [0, 1], one vector per cell: (N, cells, text width)."""
    pixels = ((frames_N3HW - 0.5) / 0.5).to(model.dtype)
    seen = model.model.vision_model(pixel_values=pixels).last_hidden_state
    cells: torch.Tensor = model.model.connector(seen)
    return cells


def answer_logits(
    model: Idefics3ForConditionalGeneration, cells_BMD: torch.Tensor, packed: PackedQuestions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the token after each question, and states of the text model that other losses look at.

    ``cells_BMD`` has the cells of all frames of a clip, in order. Returns the logits over the vocabulary (B, K, V); the
    states half way up the layers at the cells, of the shape of ``cells_BMD``; and all states before the last layer
    (B, L, D).
    """
    words = model.get_input_embeddings()(packed.ids_BL)
    at_image = (packed.ids_BL == model.config.image_token_id)[..., None]
    inputs = words.masked_scatter(at_image, cells_BMD.to(words.dtype))
    text = model.model.text_model
    usual, text.config._attn_implementation = text.config._attn_implementation, "packed_questions"
    try:
        states = text(
            inputs_embeds=inputs,
            # Keeps transformers from building a mask; packed_attention needs none.
            attention_mask=inputs.new_zeros(1, 1, 1, 1),
            position_ids=packed.positions_1L,
            use_cache=False,
            packed=packed,
            output_hidden_states=True,
        )
    finally:
        text.config._attn_implementation = usual
    hidden = states.last_hidden_state
    last = hidden.gather(1, packed.ends_BK[..., None].expand(-1, -1, hidden.shape[-1]))
    middle = states.hidden_states[(len(states.hidden_states) - 1) // 2]
    return model.lm_head(last).float(), middle[at_image[..., 0]].view(cells_BMD.shape), states.hidden_states[-2]


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found
