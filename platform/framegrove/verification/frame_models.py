"""The ``frames`` verifier: a model of transformers that judges some frames of a clip one by one.

What it can compute, and with which models, is said in FramesConfig. The value of a clip is the mean over its frames,
which are those of a view (views.py), all in one batch. FLOPs are those of all matrix products and convolutions: PyTorch
counts them while the model runs on a grey picture, once for each size of frames and each length of prompt.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from framegrove.config.verifier import VerifierConfig
from framegrove.config.verifier_kinds import FramesConfig
from framegrove.errors import UserError
from framegrove.models.counting import counted_flops
from framegrove.types import Assessment, Cost, Scored, ScoreWork
from framegrove.verification.clips import Frames, frames_by_one
from framegrove.verification.scoring import probability
from framegrove.verification.views import View, frames_of_view


class FramesVerifier:
    """Scores clips by ``config.frames``; a plain class, which ``ray.remote`` makes an actor."""

    def __init__(self, config: VerifierConfig) -> None:
        """Nothing is read yet, so that what goes wrong comes out of ``ready`` as it is."""
        assert config.frames is not None, "VerifierConfig checks it"
        self._name, self._assessments, self._frames = config.name, config.assessments, config.frames
        # One thing at a time: while FLOPs are counted, PyTorch computes attention in another way in all threads.
        self._loading, self._turn = asyncio.Lock(), asyncio.Lock()
        self._model: _Model | None = None

    async def ready(self) -> str:
        """The model's name, once it is read. Raises UserError, which names the verifier, where it cannot be used."""
        await self._loaded()
        return Path(self._frames.model).name

    async def score(self, work: ScoreWork, prompt: str, *units: Frames) -> Scored:
        """Judge the clip that ``units``, uint8 (T, H, W, 3) each, make up."""
        began = time.monotonic()
        model, frames = await self._loaded(), frames_by_one(*units)
        shown = [frames[at] for at in self._shown(work.assessment, [len(unit) for unit in units])]
        async with self._turn:
            values = await asyncio.to_thread(model.values, shown, prompt)
            flops = await asyncio.to_thread(model.flops, len(shown), prompt, *shown[0].shape[:2])
        score = probability(self._frames.usual_bias + self._frames.usual_slope * float(np.mean(values)))
        cost = Cost(flops=flops, seconds=time.monotonic() - began)
        return Scored(work, ((self._frames.computes, score),), cost)

    async def price(
        self, prompt: str, lengths: Sequence[int], height: int, width: int
    ) -> dict[Assessment, tuple[int, ...]]:
        """FLOPs of judging a branch at each assessment that it takes part in, by depth: what ``score`` will count."""
        model = await self._loaded()

        async def flops(assessment: Assessment, depth: int) -> int:
            shown = len(self._shown(assessment, lengths[: depth + 1]))
            async with self._turn:
                return await asyncio.to_thread(model.flops, shown, prompt, height, width)

        return {each: tuple([await flops(each, depth) for depth in range(len(lengths))]) for each in self._assessments}

    def pid(self) -> int:
        """The actor's process."""
        return os.getpid()

    def close(self) -> None:
        """Nothing to stop."""

    async def _loaded(self) -> _Model:
        async with self._loading:
            if self._model is None:
                self._model = await asyncio.to_thread(_read, self._name, self._frames)
            return self._model

    def _shown(self, assessment: Assessment, lengths: Sequence[int]) -> list[int]:
        """Places of the frames that are looked at, each once however many selections it is in."""
        usual = View.VIDEO if assessment is Assessment.FINAL else View.UNIT
        view = View(self._frames.view) if self._frames.view is not None else usual
        return sorted({at for shown in frames_of_view(view, lengths, self._frames.max_frames) for at in shown})


class _Model(Protocol):
    """What judges frames."""

    def values(self, frames: Sequence[Frames], prompt: str) -> list[float]:
        """One value a frame, uint8 (H, W, 3) each."""
        ...

    def flops(self, frames: int, prompt: str, height: int, width: int) -> int:
        """What that takes for so many frames of this size."""
        ...


def _read(verifier: str, config: FramesConfig) -> _Model:
    """Read a verifier's model. Raises UserError, in one sentence, where that cannot be."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor
    from transformers.utils import logging as transformers_logging

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"verifier {verifier} is to run on cuda and there is no GPU here: set frames.device to cpu")
    transformers_logging.disable_progress_bar()
    kind = AutoModelForSequenceClassification if config.computes == "reward" else AutoModel
    usual = logging.getLogger("transformers").level
    try:
        logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns of pictures prepared without torchvision
        # Neither code nor pickles from a folder or the hub.
        processor = AutoProcessor.from_pretrained(config.model, trust_remote_code=False)
        dtype = getattr(torch, config.dtype)
        model = kind.from_pretrained(config.model, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"verifier {verifier} cannot be read from {config.model}: {reason}") from error
    finally:
        logging.getLogger("transformers").setLevel(usual)
    model = model.to(config.device).eval().requires_grad_(False)
    if config.computes == "reward":
        return _Rewards(model, processor)
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UserError(
            f"verifier {verifier}: {config.model} is a {type(model).__name__}, which has no features of pictures and "
            f"of texts: {config.computes} needs a model of the CLIP class"
        )
    head = None if config.head is None else read_head(Path(config.head)).to(config.device)
    features = getattr(model.config, "projection_dim", None)
    if head is not None and features is not None and head.shape[0] != features + 1:
        raise UserError(
            f"verifier {verifier}: the head {config.head} reads {head.shape[0] - 1} features, and {config.model} gives "
            f"{features}: use the head that was trained for this model"
        )
    return _Similarities(model, processor) if head is None else _Aesthetics(model, processor, head)


class _Pictures:
    """Features of frames by a model of the CLIP class, each of length 1."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self._counted: dict[tuple[int, ...], int] = {}

    @torch.inference_mode()
    def _features(self, frames: Sequence[Frames]) -> Tensor:
        """(N, F), float32."""
        pictures = [Image.fromarray(frame) for frame in frames]
        pixels = self._processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self._model.device, self._model.dtype)
        return _of_length_1(self._model.get_image_features(pixel_values=pixels))

    def _flops(self, height: int, width: int) -> int:
        """Of one frame."""
        return _remembered(self._counted, (height, width), lambda: self._features([_grey(height, width)]))


class _Similarities(_Pictures):
    """The cosine of each frame's features and the prompt's (CLIP, arXiv 2103.00020)."""

    def values(self, frames: Sequence[Frames], prompt: str) -> list[float]:
        found: list[float] = (self._features(frames) @ self._text(self._tokens(prompt))[0]).tolist()
        return found

    def flops(self, frames: int, prompt: str, height: int, width: int) -> int:
        tokens = self._tokens(prompt)
        text = _remembered(self._counted, (tokens["input_ids"].shape[1],), lambda: self._text(tokens))
        return frames * self._flops(height, width) + text

    def _tokens(self, prompt: str) -> Any:
        """The prompt, cut to what the model reads."""
        config = self._model.config
        padded = config.model_type.startswith("siglip")  # trained on padded prompts, which its pooling sees
        most = config.text_config.max_position_embeddings
        given = {"truncation": True, "max_length": most, "padding": "max_length" if padded else False}
        return self._processor.tokenizer([prompt], return_tensors="pt", **given).to(self._model.device)

    @torch.inference_mode()
    def _text(self, tokens: Any) -> Tensor:
        read = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        return _of_length_1(self._model.get_text_features(**read))


class _Aesthetics(_Pictures):
    """An affine ``head`` (F + 1,), the bias last, on each frame's features."""

    def __init__(self, model: Any, processor: Any, head: Tensor) -> None:
        super().__init__(model, processor)
        self._head = head

    def values(self, frames: Sequence[Frames], prompt: str) -> list[float]:
        found: list[float] = (self._features(frames) @ self._head[:-1] + self._head[-1]).tolist()
        return found

    def flops(self, frames: int, prompt: str, height: int, width: int) -> int:
        return frames * (self._flops(height, width) + 2 * (len(self._head) - 1))


class _Rewards:
    """The logit of a sequence classifier that reads one frame and the prompt."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        text = model.config.get_text_config()
        if getattr(text, "pad_token_id", 0) is None:  # without one, transformers' classifiers take one frame at a time
            text.pad_token_id = processor.tokenizer.pad_token_id
        # A prompt that spells one of these would be read as another picture, or as the end of a turn.
        names = sorted({*processor.tokenizer.all_special_tokens, *processor.tokenizer.get_added_vocab()}, key=len)
        self._special = re.compile("|".join(re.escape(name) for name in reversed(names) if name.strip()) or r"(?!)")
        self._counted: dict[tuple[int, ...], int] = {}

    @torch.inference_mode()
    def values(self, frames: Sequence[Frames], prompt: str) -> list[float]:
        logits = self._model(**self._inputs(frames, prompt)).logits.float()
        if logits.shape[-1] not in (1, 2):
            raise UserError(
                f"a reward is one logit or two, and {type(self._model).__name__} gives {logits.shape[-1]}: use a model "
                "that was trained as a reward model"
            )
        found: list[float] = (logits[:, -1] - (logits[:, 0] if logits.shape[-1] == 2 else 0.0)).tolist()
        return found

    def flops(self, frames: int, prompt: str, height: int, width: int) -> int:
        tokens = len(self._processor.tokenizer(self._plain(prompt))["input_ids"])
        one = functools.partial(self.values, [_grey(height, width)], prompt)
        return frames * _remembered(self._counted, (tokens, height, width), one)

    def _inputs(self, frames: Sequence[Frames], prompt: str) -> Any:
        text = self._plain(prompt)
        if getattr(self._processor, "chat_template", None) is not None:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            text = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        pictures = [[Image.fromarray(frame)] for frame in frames]
        inputs = self._processor(text=[text] * len(frames), images=pictures, return_tensors="pt", padding=True)
        return inputs.to(self._model.device, self._model.dtype)

    def _plain(self, prompt: str) -> str:
        return self._special.sub(" ", prompt)


_UNREADABLE = (
    *(OSError, SafetensorError, RuntimeError, pickle.PickleError),  # the file
    *(LookupError, AttributeError, TypeError),  # what is in it
)


def read_head(file: Path) -> Tensor:
    """A linear head, or linear layers in a row without anything between them, as one affine map (F + 1,), bias last.

    LAION's predictors come in both forms. Layers are taken in the order of the numbers in their names. Raises UserError
    for a file that cannot be read or holds something else.
    """
    weight, bias = torch.empty(0), torch.empty(0)
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        for layer in sorted({name.rpartition(".")[0] for name in state}, key=_by_numbers):
            prefix = f"{layer}." if layer else ""
            own, shift = state[f"{prefix}weight"].float(), state[f"{prefix}bias"].float()
            weight, bias = (own, shift) if not len(weight) else (own @ weight, own @ bias + shift)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} cannot be read as a linear head ({reason}): it must hold weights and biases"
        ) from error
    if weight.ndim != 2 or weight.shape[0] != 1:
        raise UserError(
            f"{file} is no linear head: together its layers must give one number, not {weight.shape[0] or 'none'}"
        )
    return torch.cat([weight[0], bias])


def _by_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _of_length_1(found: Any) -> Tensor:
    features: Tensor = (found if isinstance(found, Tensor) else found.pooler_output).float()
    return features / features.norm(dim=-1, keepdim=True)


def _grey(height: int, width: int) -> Frames:
    return np.full((height, width, 3), 128, np.uint8)


def _remembered(counted: dict[tuple[int, ...], int], shape: tuple[int, ...], run: Callable[[], Any]) -> int:
    """FLOPs of what ``run`` does, counted the first time for each shape."""
    if shape not in counted:
        counted[shape] = counted_flops(run)
    return counted[shape]
