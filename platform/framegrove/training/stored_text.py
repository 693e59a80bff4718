"""Whether a run can do without text encoders, because its clips hold what they made of all captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from framegrove.config.train import TrainConfig
from framegrove.data.ingest import Catalog
from framegrove.data.schema import StoredText, embedder_of
from framegrove.models.sources import find_model
from framegrove.training.encode import text_digest

_log = logging.getLogger(__name__)


def stored_text(config: TrainConfig, catalogs: Sequence[Catalog]) -> StoredText | None:
    """The stored embeddings of the empty caption, where those of all clips can be trained on; otherwise None.

    They can where the text encoders stay as they are, have made the embeddings of every clip in all ``catalogs``, and
    are not needed for samples. Where some clips have embeddings that cannot be used, the reason is logged.
    """
    if config.model.trains_text or config.model.start is None:
        return None
    if not any(shard.text for catalog in catalogs for shard in catalog.shards):
        return None
    folder = find_model(config.model.source).text
    reasons = ["samples are made of prompts"] if config.samples.prompts else []
    reasons += [reason for catalog in catalogs if (reason := _unusable(catalog, folder)) is not None]
    if reasons:
        _log.warning(
            "%s: captions are encoded while training, and every worker holds the text encoders; for a run without "
            "them, prepare all clips with text.model=%s, and without samples.prompts",
            reasons[0],
            folder,
        )
        return None
    embedder = embedder_of(pq.read_schema(catalogs[0].shards[0].path))
    assert embedder is not None
    return embedder.no_caption


def _unusable(catalog: Catalog, folder: Path) -> str | None:
    """Why not all clips can be trained on with their stored embeddings, for a sentence."""
    ours = text_digest(folder)
    for shard in catalog.shards:
        if shard.text not in ("", ours):
            return f"the embeddings of captions in {shard.path} are by other text encoders than those in {folder}"
    assert catalog.text_N is not None
    if missing := int((catalog.text_N == 0).sum()):
        return f"{missing} of {len(catalog)} clips have no embeddings of their captions"
    return None
