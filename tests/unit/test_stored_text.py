"""Training on stored embeddings of captions: like encoding them, within their rounding, and without text encoders."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from framegrove.config.train import TrainConfig
from framegrove.data.ingest import open_catalog
from framegrove.data.reading import ClipReader
from framegrove.data.schema import VAE_KEY, Embedder, from_table, to_table
from framegrove.models import pretrained
from framegrove.models.pretrained import load_pipeline, save_pipeline
from framegrove.models.text import TextEncoder
from framegrove.models.text_public import PublicTextEncoder
from framegrove.training.encode import embeddings, text_digest
from framegrove.training.engine import DeepSpeedEngine
from framegrove.training.export import export
from framegrove.training.run import run
from framegrove.training.setup import Setup
from jobs import train
from tests.public_folder import write_public_folder
from tests.tiny_training import losses_of, make_config, make_world
from tests.unit.test_engine import CPU

pytestmark = pytest.mark.usefixtures("group")

ALL = 2**30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, models ``public`` and ``own`` for them, and shards with the embeddings of each: ``public-clips``, ..."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    write_public_folder(folder / "public", "miniflux")
    shutil.copytree(folder / "vae", folder / "public" / "causal_video_vae", dirs_exist_ok=True)
    save_pipeline(Setup.of(make_config(folder)).pipeline, folder / "own")
    for name in ("public", "own"):
        shutil.copytree(folder / "clips", folder / f"{name}-clips")
        for path in sorted((folder / f"{name}-clips").glob("*.parquet")):
            embed(path, folder / name)
    return folder


def embed(path: Path, model: Path, but: Sequence[int] = ()) -> None:
    """Give all captions of a shard embeddings, except some clips'."""
    text = pretrained.load_text(model, pretrained.torch.float32)
    table = pq.read_table(path)
    clips = [replace(c, text=None if c.id in but else embeddings(text, c.caption)) for c in from_table(table)]
    embedder = Embedder(text_digest(model), embeddings(text, ""))
    pq.write_table(to_table(clips, table.schema.metadata[VAE_KEY].decode(), embedder), path, row_group_size=4)


def of_model(world: Path, name: str, stored: bool = True, **changes: Any) -> TrainConfig:
    data = str(world / (f"{name}-clips" if stored else "clips"))
    model = {"start": str(world / name), "train_text": False}
    return make_config(world, **{"model": model, "data": data, "precision": "fp32"} | changes)


def files_of(folder: Path) -> dict[str, bytes]:
    kinds = ("text_encoder*/*", "tokenizer*/*")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.glob(kind)}


def forbid(patch: pytest.MonkeyPatch) -> None:
    """Let no text encoder be loaded."""

    def load(*given: Any, **options: Any) -> None:
        raise AssertionError("a text encoder was loaded")

    for kind in (TextEncoder, PublicTextEncoder):
        patch.setattr(kind, "load", load)


@pytest.mark.parametrize("name", ["public", "own"])
def test_stored_embeddings_train_like_encoding_and_no_encoder_is_loaded(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(of_model(world, name, stored=False), tmp_path / "encoded")
    with monkeypatch.context() as patch:
        forbid(patch)
        run(of_model(world, name), tmp_path / "stored")
        assert export(tmp_path / "stored", tmp_path / "exported", "raw") == 14
    encoded, stored = losses_of(tmp_path / "encoded"), losses_of(tmp_path / "stored")
    assert [step for step, _ in stored] == [step for step, _ in encoded]
    assert stored != encoded, "float16 has rounded them"
    for (_, ours), (_, theirs) in zip(stored, encoded, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    for folder in ("stored", "encoded"):
        assert files_of(tmp_path / folder / "model") == files_of(world / name)
    assert files_of(tmp_path / "exported") == files_of(world / name)
    load_pipeline(tmp_path / "stored")


def test_a_dropped_prompt_has_the_embedding_of_no_caption_and_plans_know_every_length(world: Path) -> None:
    setup = Setup.of(of_model(world, "public"))
    text = pretrained.load_text(world / "public", pretrained.torch.float32)
    seen = set()
    for step in range(setup.config.steps):
        plan, share = setup.plan(step), setup.feed().at(step)
        samples = [sample for pack in share.packs for sample in pack]
        prompts = [sample.prompt for sample in samples]
        lengths = [len(sample.text.tokens_LD) for sample in samples if sample.text is not None]
        assert lengths == text.token_counts(prompts)
        assert sorted(plan.tokens) == sorted(n + s.visual_tokens(2) for n, s in zip(lengths, samples, strict=True))
        seen |= {prompt == "" for prompt in prompts}
    assert seen == {True, False}


@pytest.mark.parametrize("zero", [1, 3])
def test_deepspeed_trains_on_stored_embeddings_in_bfloat16(
    zero: Literal[1, 3], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setup and samples as a worker has them."""
    forbid(monkeypatch)
    setup: Setup = pickle.loads(pickle.dumps(Setup.of(of_model(world, "public", precision="bf16"))))
    engine = DeepSpeedEngine(setup.trainable(), "bf16", CPU, zero)
    feed, phase = setup.feed(), setup.config.phases[0]
    found = [engine.update(share.packs, share.batch, phase, 1.0) for share in map(feed.at, range(3))]
    assert all(update.gradient_norm > 0 and not update.skipped for update in found)


def test_an_adapter_needs_no_text_encoders_either(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    model = {"start": str(world / "own"), "tune": {"lora": {"rank": 2}}}
    run(of_model(world, "own", model=model), tmp_path / "out")
    assert not files_of(tmp_path / "out" / "model")


def test_embeddings_that_cannot_be_used_are_told_once(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(world / "clips", tmp_path / "some")
    embed(tmp_path / "some" / "1.parquet", world / "public", but=(9,))
    cases = {
        "by other text encoders than those in": of_model(world, "own", data=str(world / "public-clips")),
        "17 of 24 clips have no embeddings of their captions": of_model(world, "public", data=str(tmp_path / "some")),
    }
    for said, config in cases.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            setup = Setup.of(config)
        (record,) = caplog.records
        assert said in record.message
        assert "\n" not in record.message
        assert setup.feed().at(0).packs[0][0].text is None
        assert setup.trainable().text.encode(["a red 3"])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained = of_model(world, "own", model={"start": str(world / "own")})
        for config in (of_model(world, "own", stored=False), trained):
            assert Setup.of(config).no_caption is None
    assert not caplog.records


def test_a_reader_holds_embeddings_only_where_they_are_used(world: Path) -> None:
    catalog = open_catalog([world / "public-clips"])
    without, with_text = ClipReader(catalog, ALL), ClipReader(catalog, ALL, with_text=True)
    plain, whole = without.read(range(24)), with_text.read(range(24))
    assert all(clip.text is None for clip in plain)
    texts = [clip.text for clip in whole if clip.text is not None]
    assert catalog.text_N is not None
    assert catalog.text_N.tolist() == [len(text.tokens) for text in texts]
    more = with_text._bytes - without._bytes
    assert more >= sum(text.tokens.nbytes + text.pooled.nbytes for text in texts)


def test_the_plan_tells_who_holds_the_text_encoders(world: Path, tmp_path: Path) -> None:
    def printed(*sets: str) -> str:
        given = ["--config", str(Path(__file__).parents[2] / "jobs" / "configs" / "miniflux_384p.yaml"), "--plan"]
        given += [f"--set={key}" for key in (f"model.start={world / 'public'}", "model.variant=384p", *sets)]
        result = CliRunner().invoke(train.app, given, env={"COLUMNS": "400"})
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "hold embeddings of their captions: no worker holds" in printed(f"data={world / 'public-clips'}")
    assert "hold no embeddings of all captions" in printed(f"data={world / 'clips'}")
    assert "are not both here to say" in printed(f"data={tmp_path / 'nowhere'}")
