"""The parquet schema of encoded clips, version 2: one row a clip, with its latents as float16 bytes.

| column | holds |
|---|---|
| id | 63 bits that follow from source, start and options (`clip_id`): the same clip has the same id in every run |
| caption, caption_source | what the clip shows, and who says so: "list", "sidecar", a model's name; "" if unknown |
| split | "train" or "heldout": decided by source, so that no video has clips in both |
| kind | "image" or "video": what the source is, a still picture or a moving one, however short |
| source | digest of the source file's content, "" if unknown |
| start | second of the source at which the clip begins |
| height, width, fps, units | of the clip, in pixels and frames a second |
| shape, latents | (C, units, h, w) and as many float16 numbers, little-endian |
| text, text_shape, pooled | embeddings of the caption, float16: (tokens, width) and (width,); or null |

A file of *pairs*, which jobs.collect makes of searches, has a second newest unit for each row. Both are children of one
branch, whose units come before them in ``latents``, and the panel found the clip's own one better:

| column | holds |
|---|---|
| rival | the other unit, (C, 1, h, w), as many float16 numbers |
| chance, rival_chance | probability that the unit is right, by the panel: of the clip's own, of the rival |
| margin | difference of their log-odds, above 0 |
| depth, stage | of both: the number of units before them, the stage of the pyramid that they were sampled to |
| cut | whether the search cut the rival |
| scores | JSON: what each verifier said, {"verifier/question": [own, rival]} |

Latents are the means of the VAE's posterior, not normalised. The file's metadata names the schema's version, the VAE
that made the latents and the text encoder that made the embeddings, because those of another have the same shape and
cannot be told apart by looking at them; it also holds the embeddings of the empty caption (`embedder_of`). Files of
version 1, without the columns in `_ADDED`, are still read.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

VERSION = 2
VERSION_KEY = b"framegrove.schema"
VAE_KEY = b"framegrove.vae"
MADE_BY_KEY = b"framegrove.made-by"  # of what a search made: digest of the model that sampled it
TEXT_KEY = b"framegrove.text"
NO_CAPTION_KEY = b"framegrove.no-caption"  # embeddings of the empty caption, for training without condition
REJECTS = "rejects.parquet"  # beside shards: the clips that were not kept, and why

Kind = Literal["image", "video"]
Half = npt.NDArray[np.float16]

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("start", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float32()),
        ("units", pa.int32()),
        ("shape", pa.list_(pa.int32(), 4)),
        ("latents", pa.large_binary()),
        ("text", pa.large_binary()),
        ("text_shape", pa.list_(pa.int32())),
        ("pooled", pa.large_binary()),
    ]
)
PAIRS = pa.schema(
    [
        *SCHEMA,
        ("rival", pa.large_binary()),
        ("chance", pa.float32()),
        ("rival_chance", pa.float32()),
        ("margin", pa.float32()),
        ("depth", pa.int32()),
        ("stage", pa.int32()),
        ("cut", pa.bool_()),
        ("scores", pa.string()),
    ]
)
RIVAL_COLUMNS = ("rival", "chance", "rival_chance", "stage", "cut", "scores")
TEXT_COLUMNS = ("text", "text_shape", "pooled")
_ADDED = ("caption_source", "kind", "source", "start", *TEXT_COLUMNS)  # in version 2


@dataclass(frozen=True, eq=False)
class StoredText:
    """A caption's embeddings, float16: ``tokens`` (n, width) and ``pooled`` (width,)."""

    tokens: Half
    pooled: Half


@dataclass(frozen=True, eq=False)
class Rival:
    """Another child of the branch that a clip's newest unit grew from, which was found worse; see above.

    ``latents`` is float16 (C, 1, h, w), ``chances`` are the clip's and the rival's.
    """

    latents: Half
    chances: tuple[float, float]
    stage: int
    cut: bool
    scores: Mapping[str, tuple[float, float]]

    @property
    def margin(self) -> float:
        """By how much the log-odds differ."""
        own, other = (math.log(chance / (1 - chance)) for chance in self.chances)
        return own - other


@dataclass(frozen=True, eq=False)
class LatentClip:
    """An encoded clip: ``latents`` is float16 (C, units, h, w), ``height`` and ``width`` are in pixels.

    The other fields are explained above; ``text`` is None where no embeddings are stored, ``rival`` for no pair.
    """

    id: int
    caption: str
    height: int
    width: int
    fps: float
    latents: Half
    split: str = "train"
    kind: Kind = "video"
    source: str = ""
    start: float = 0.0
    caption_source: str = ""
    text: StoredText | None = None
    rival: Rival | None = None

    @property
    def units(self) -> int:
        return self.latents.shape[1]


def clip_id(source: str, start: float, options: str) -> int:
    """63 bits that tell a clip: the digest of its source, the second at which it begins, how it was prepared."""
    digest = hashlib.blake2b(f"{source}\n{start:.6f}\n{options}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shard_paths(folder: Path) -> list[Path]:
    """The parquet files of clips below a folder, sorted; lists of rejects and files still being written are none."""
    return sorted(
        path
        for path in folder.rglob("*.parquet")
        if path.name != REJECTS and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def unreadable(schema: pa.Schema) -> str | None:
    """Why a file of this schema holds no clips that can be read here, for a sentence; None if it does."""
    missing = sorted(set(SCHEMA.names) - set(_ADDED) - set(schema.names))
    if missing:
        return f"it has no column {missing[0]}"
    version = (schema.metadata or {}).get(VERSION_KEY, b"1").decode()
    if version not in {str(number) for number in range(1, VERSION + 1)}:
        return f"its schema is of version {version}, and this release reads versions up to {VERSION}"
    return None


@dataclass(frozen=True, eq=False)
class Embedder:
    """The text encoder that embedded the captions of a file: its digest, and what it makes of no caption at all."""

    digest: str
    no_caption: StoredText


def metadata(vae_digest: str, embedder: Embedder | None = None, made_by: str = "") -> dict[bytes, bytes]:
    """What a file of clips says about all of them."""
    facts = {VERSION_KEY: str(VERSION).encode(), VAE_KEY: vae_digest.encode()}
    if made_by:
        facts[MADE_BY_KEY] = made_by.encode()
    if embedder is not None:
        with io.BytesIO() as file:
            np.savez(file, tokens=embedder.no_caption.tokens, pooled=embedder.no_caption.pooled)
            facts |= {TEXT_KEY: embedder.digest.encode(), NO_CAPTION_KEY: base64.b64encode(file.getvalue())}
    return facts


def embedder_of(schema: pa.Schema) -> Embedder | None:
    """The text encoder that embedded the captions of a file, None where none did."""
    facts = schema.metadata or {}
    if TEXT_KEY not in facts:
        return None
    with np.load(io.BytesIO(base64.b64decode(facts[NO_CAPTION_KEY]))) as held:
        return Embedder(facts[TEXT_KEY].decode(), StoredText(held["tokens"], held["pooled"]))


def schema_of(
    vae_digest: str, embedder: Embedder | None = None, made_by: str = "", *, pairs: bool = False
) -> pa.Schema:
    """The schema of a file, whose metadata names what encoded it, and which model sampled it if a search made it."""
    return (PAIRS if pairs else SCHEMA).with_metadata(metadata(vae_digest, embedder, made_by))


def to_table(clips: Sequence[LatentClip], vae_digest: str, embedder: Embedder | None = None) -> pa.Table:
    """Clips as a table of this schema, whose metadata names the VAE and the text encoder that encoded them.

    Raises ValueError for latents or embeddings that are not finite.
    """
    return table_of(clips, schema_of(vae_digest, embedder))


def table_of(clips: Sequence[LatentClip], schema: pa.Schema) -> pa.Table:
    """The same with a schema that there is already."""
    return pa.Table.from_pylist([_row(clip) for clip in clips], schema=schema)


def from_table(table: pa.Table | pa.RecordBatch) -> Iterator[LatentClip]:
    """The clips of a table or batch of this schema, or of version 1.

    Raises ValueError, which names the clip, where bytes and shape do not agree, and where latents are not finite.
    """
    for row in table.to_pylist():
        latents = _numbers(row, "latents", "shape")
        units = row["units"]
        if latents.shape[1] != units:
            raise ValueError(f"clip {row['id']} has {units} units and latents of shape {latents.shape}")
        tokens = _numbers(row, "text", "text_shape") if row.get("text") is not None else None
        yield LatentClip(
            id=row["id"],
            caption=row["caption"],
            height=row["height"],
            width=row["width"],
            fps=row["fps"],
            latents=latents,
            split=row["split"],
            kind=cast(Kind, row.get("kind") or ("video" if units > 1 else "image")),
            source=row.get("source") or "",
            start=row.get("start") or 0.0,
            caption_source=row.get("caption_source") or "",
            text=None if tokens is None else StoredText(tokens, np.frombuffer(row["pooled"], dtype="<f2")),
            rival=_rival(row) if row.get("rival") is not None else None,
        )


def _row(clip: LatentClip) -> dict[str, Any]:
    row = {
        "id": clip.id,
        "caption": clip.caption,
        "caption_source": clip.caption_source,
        "split": clip.split,
        "kind": clip.kind,
        "source": clip.source,
        "start": clip.start,
        "height": clip.height,
        "width": clip.width,
        "fps": clip.fps,
        "units": clip.units,
        "shape": list(clip.latents.shape),
        "latents": _bytes(clip, clip.latents),
    }
    if clip.text is not None:
        row |= {
            "text": _bytes(clip, clip.text.tokens),
            "text_shape": list(clip.text.tokens.shape),
            "pooled": _bytes(clip, clip.text.pooled),
        }
    if clip.rival is not None:
        row |= {
            "rival": _bytes(clip, clip.rival.latents),
            "chance": clip.rival.chances[0],
            "rival_chance": clip.rival.chances[1],
            "margin": clip.rival.margin,
            "depth": clip.units - 1,
            "stage": clip.rival.stage,
            "cut": clip.rival.cut,
            "scores": json.dumps(dict(clip.rival.scores)),
        }
    return row


def _rival(row: Mapping[str, Any]) -> Rival:
    channels, _, height, width = row["shape"]
    held = {**row, "rival_shape": (channels, 1, height, width)}
    scores = {name: (float(own), float(other)) for name, (own, other) in json.loads(row["scores"]).items()}
    chances = row["chance"], row["rival_chance"]
    return Rival(_numbers(held, "rival", "rival_shape"), chances, row["stage"], row["cut"], scores)


def _bytes(clip: LatentClip, numbers: Half) -> bytes:
    if not np.isfinite(numbers).all():
        raise ValueError(f"clip {clip.id} ({clip.caption[:40]!r}) has latents or embeddings that are not finite")
    return np.ascontiguousarray(numbers, dtype="<f2").tobytes()


def _numbers(row: Mapping[str, Any], column: str, shape_column: str) -> Half:
    shape = tuple(row[shape_column])
    numbers: Half = np.frombuffer(row[column], dtype="<f2")
    if numbers.size != np.prod(shape):
        raise ValueError(f"clip {row['id']} holds {numbers.size} numbers for {column} of shape {shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"clip {row['id']} ({row['caption'][:40]!r}) holds {column} that are infinite or NaN")
    return numbers.reshape(shape)
