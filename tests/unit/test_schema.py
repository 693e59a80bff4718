"""The schema of shards: what comes back, what older files say, and what is refused by name."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framegrove.data.ingest import DataError, open_catalog
from framegrove.data.reading import ClipReader
from framegrove.data.schema import (
    SCHEMA,
    VAE_KEY,
    VERSION_KEY,
    Embedder,
    LatentClip,
    StoredText,
    clip_id,
    embedder_of,
    from_table,
    shard_paths,
    to_table,
)
from tests.shards import clips_below

SIZE = (64, 64)


def make_clip(number: int, units: int = 2) -> LatentClip:
    latents = np.random.default_rng(number).standard_normal((16, units, 8, 8)).astype(np.float16)
    return LatentClip(number, f"clip {number}", *SIZE, 8.0, latents)


def test_every_field_comes_back() -> None:
    text = StoredText(np.ones((3, 5), np.float16), np.zeros(4, np.float16))
    clip = replace(
        make_clip(1, units=1), split="heldout", kind="image", source="ab12", start=2.5, caption_source="list", text=text
    )
    back, plain = from_table(to_table([clip, make_clip(2)], "v"))
    assert back.text is not None
    assert plain.text is None
    np.testing.assert_array_equal(back.text.tokens, text.tokens)
    np.testing.assert_array_equal(back.text.pooled, text.pooled)
    np.testing.assert_array_equal(back.latents, clip.latents)
    names = [field.name for field in fields(LatentClip) if field.name not in ("text", "latents")]
    assert [getattr(back, name) for name in names] == [getattr(clip, name) for name in names]


def write_version_1(path: Path) -> None:
    old = [
        "id", "caption", "split", "height", "width", "fps", "units", "shape", "latents",
    ]  # fmt: skip
    table = to_table([make_clip(0, units=1), make_clip(1, units=3)], "v").select(old)
    table = table.set_column(old.index("latents"), "latents", table["latents"].cast(pa.binary()))
    pq.write_table(table.replace_schema_metadata({VAE_KEY: b"v"}), path)


def test_version_1_is_still_read(tmp_path: Path) -> None:
    write_version_1(tmp_path / "old.parquet")
    clips = clips_below(tmp_path)
    assert [(clip.kind, clip.units, clip.source, clip.start, clip.text) for clip in clips] == [
        ("image", 1, "", 0.0, None),
        ("video", 3, "", 0.0, None),
    ]
    catalog = open_catalog([tmp_path])
    assert [shard.vae for shard in catalog.shards] == ["v"]
    assert catalog.picture_N.tolist() == [True, False]


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    later = {VERSION_KEY: b"3", VAE_KEY: b"v"}
    pq.write_table(to_table([make_clip(0)], "v").replace_schema_metadata(later), tmp_path / "new.parquet")
    with pytest.raises(DataError, match=r"new\.parquet .*version 3, and this release reads versions up to 2"):
        open_catalog([tmp_path])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_latents_that_are_not_finite_name_clip_and_file(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip 7 \('clip 7'\) has latents"):
        to_table([replace(make_clip(7), latents=np.full((16, 2, 8, 8), value, np.float16))], "v")
    rows = to_table([make_clip(6), make_clip(7)], "v").to_pylist()
    rows[1]["latents"] = np.full((16, 2, 8, 8), value, "<f2").tobytes()
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({VAE_KEY: b"v"}))
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet .*clip 7 \('clip 7'\) holds latents that are infinite or NaN"):
        ClipReader(open_catalog([tmp_path]), 2**30).read([0, 1])


def test_a_file_holds_the_embeddings_of_no_caption() -> None:
    nothing = StoredText(np.ones((1, 5), np.float16), np.zeros(4, np.float16))
    told = embedder_of(to_table([make_clip(1)], "v", Embedder("t5", nothing)).schema)
    assert told is not None
    assert told.digest == "t5"
    np.testing.assert_array_equal(told.no_caption.tokens, nothing.tokens)
    assert embedder_of(to_table([make_clip(1)], "v").schema) is None


def test_an_identity_follows_from_content() -> None:
    assert clip_id("ab", 1.0, "o") == clip_id("ab", 1.0, "o")
    assert (
        len({clip_id("ab", 1.0, "o"), clip_id("ab", 1.5, "o"), clip_id("ac", 1.0, "o"), clip_id("ab", 1.0, "p")}) == 4
    )
    assert all(0 <= clip_id(str(number), 0, "") < 2**63 for number in range(100))


def test_rejects_and_files_in_the_making_are_no_shards(tmp_path: Path) -> None:
    for name in ("1/a.parquet", "b.parquet", "rejects.parquet", ".c.parquet.partial", ".work/d.parquet", ".e.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert shard_paths(tmp_path) == [tmp_path / "1" / "a.parquet", tmp_path / "b.parquet"]
