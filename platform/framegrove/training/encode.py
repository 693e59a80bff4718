"""Encoding clips: latents by the VAE, embeddings of captions by the text encoders; and writing a set of clips whole."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from framegrove.curation.clip import Clip, Stage, through
from framegrove.curation.collecting import Encoded, Outcome
from framegrove.curation.entries import Entry
from framegrove.curation.footage import Footage
from framegrove.data.schema import Embedder, LatentClip, StoredText
from framegrove.data.shards import ShardWriter
from framegrove.errors import UserError
from framegrove.files import replacing
from framegrove.models.pretrained import load_text
from framegrove.models.text import TextEncoder
from framegrove.models.text_public import PublicTextEncoder
from framegrove.models.vae import CausalVideoVae
from framegrove.models.vae_files import read_vae
from framegrove.models.vae_tiling import encode_frames

_SAMPLE = 2**20  # bytes at a time that tell one large file from another
_CAPTIONS = 1024  # whose embeddings are held, because all clips of a video may share one


class NoClips(UserError):
    """There is not a single clip to write."""


def write_clips(
    clips: Iterable[LatentClip],
    vae: str,
    out: Path,
    on_clips: Callable[[int], None] = lambda done: None,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write ``clips``, encoded by the VAE with this digest, as shards in the folder ``out``, which appears when whole.

    ``on_clips`` is given the number of clips so far. Raises UserError if the folder already exists and is not to be
    replaced, NoClips if there is nothing to write.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} already exists: give another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.mkdir()
        with ShardWriter(partial, partial, vae) as writer:
            for number, clip in enumerate(clips, start=1):
                writer.add(clip)
                on_clips(number)
        if not writer.paths:
            raise NoClips("not one clip could be encoded")
    return [out / path.name for path in writer.paths]


class ClipEncoder:
    """Turns clips of frames into clips of latents, and captions into embeddings where there is a text encoder."""

    def __init__(self, vae: CausalVideoVae, text: TextEncoder | PublicTextEncoder | None = None) -> None:
        self._vae, self._text = vae, text
        self._embeddings: OrderedDict[str, StoredText] = OrderedDict()

    def __call__(self, clip: Clip) -> Encoded:
        """Encode one clip, unit by unit."""
        began = time.monotonic()
        latents = encode_frames(self._vae, clip.frames)
        height, width = clip.frames.shape[1:3]
        encoded = LatentClip(
            id=clip.id,
            caption=clip.caption,
            height=height,
            width=width,
            fps=clip.fps,
            latents=latents.half().numpy(),
            split=clip.split,
            kind=clip.kind,
            source=clip.source,
            start=clip.start,
            caption_source=clip.caption_source,
            text=self._embedded(self._text, clip.caption) if self._text is not None else None,
        )
        busy = time.monotonic() - began
        frames = len(clip.frames)
        return Encoded(encoded, clip.entry, clip.path, clip.shot, frames, clip.ended_by_gap, clip.hash, busy)

    def _embedded(self, text: TextEncoder | PublicTextEncoder, caption: str) -> StoredText:
        """The embeddings of a caption, made once."""
        if caption not in self._embeddings:
            if len(self._embeddings) == _CAPTIONS:
                self._embeddings.popitem(last=False)
            self._embeddings[caption] = embeddings(text, caption)
        return self._embeddings[caption]


@dataclass(frozen=True)
class EncoderFiles:
    """What a `ClipEncoder` is read from: ``vae``, the folder of one, and a model folder with text encoders, or None."""

    vae: Path
    allow_pickle: bool = False
    text: Path | None = None
    text_allow_pickle: bool = False

    def load(self) -> ClipEncoder:
        """Read the models, onto a GPU if there is one. Raises UserError."""
        device, dtype = _device()
        return ClipEncoder(read_vae(self.vae, allow_pickle=self.allow_pickle).to(device, dtype), self._text())

    def embedder(self) -> Embedder | None:
        """What the shards say of the text encoders, which are read for it and let go again."""
        text = self._text()
        if self.text is None or text is None:
            return None
        return Embedder(text_digest(self.text), embeddings(text, ""))

    def _text(self) -> TextEncoder | PublicTextEncoder | None:
        if self.text is None:
            return None
        device, dtype = _device()
        return load_text(self.text, dtype, allow_pickle=self.text_allow_pickle).to(device)


@torch.inference_mode()
def embeddings(text: TextEncoder | PublicTextEncoder, caption: str) -> StoredText:
    """A caption as the transformer is given it. What an encoder of ours cannot read as a whole is cut."""
    # The public encoders cut a long caption themselves, CLIP and T5 at places of their own.
    (made,) = text.encode([text.readable(caption) if isinstance(text, TextEncoder) else caption])
    tokens, pooled = (each.float().cpu().numpy().astype(np.float16) for each in (made.tokens_LD, made.pooled_P))
    return StoredText(tokens, pooled)


def _device() -> tuple[torch.device, torch.dtype]:
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.float32


def outcomes(
    entries: Iterable[Entry], footage: Footage, later: Sequence[Stage], files: EncoderFiles
) -> Iterator[Outcome]:
    """What becomes of entries, one by one, in this process; ``later`` are the stages that see decoded clips."""
    encoder = functools.cache(files.load)  # not read where there is nothing new to encode
    for entry in entries:
        for found in footage.clips(entry):
            outcome = through(found, later) if isinstance(found, Clip) else found
            yield encoder()(outcome) if isinstance(outcome, Clip) else outcome


def vae_digest(vae: CausalVideoVae) -> str:
    """A fingerprint of the encoder's weights, equal for every precision that they may have been saved in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]


def text_digest(folder: Path) -> str:
    """A fingerprint of a model folder's text encoders, from parts of their files: T5 alone has 10 GB."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("text_encoder*/*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for place in (0, size // 2, max(0, size - _SAMPLE)):
                file.seek(place)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
