"""Of a search that is judged by latents, only what somebody looks at is decoded, and its price says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.finishing import left_as_latents
from actors.generator import Generator, Unit
from actors.local_pools import LocalCrew, LocalPyramidPool, LocalVerifierPool
from actors.model_files import ModelFiles
from actors.searches import SearchRunner
from framegrove.config.model import ModelSource
from framegrove.config.verifier import VerifierConfig
from framegrove.config.verifier_kinds import LatentConfig
from framegrove.evaluation.branch_cache import BranchCache
from framegrove.evaluation.report import SearchRecord
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.flow.decoding import LeftAsLatents
from framegrove.models.latent_judge import JudgeShape, save_judge
from framegrove.search.policies import make_policy
from framegrove.search.result import Ending
from framegrove.search.tree import Layout
from framegrove.types import Assessment, GenerationRequest, SampleWork
from tests.fakes import PAID
from tests.tiny import save_tiny
from tests.unit.test_flow_cost import costs_of
from tests.unit.test_latent_judge import judge_of
from tests.unit.test_local import told

IMAGE, MOTION, FINAL = Assessment.IMAGE, Assessment.MOTION, Assessment.FINAL
REQUEST = GenerationRequest("a red 3 moves up", seed=3, units=3, height=64, width=64, budget=4.0, policy="beam")


def bright(frames: np.ndarray, prompt: str) -> float:
    """A verifier that reads frames."""
    return float(frames.mean()) / 255


class Counting(Generator):
    """Counts the units that are decoded."""

    decodes = 0

    def _shown(self, latents: Sequence[Any], *given: Any) -> list[Unit]:
        type(self).decodes += len(latents)
        return super()._shown(latents, *given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(name=str(save_tiny(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def judge(model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> LatentConfig:
    folder = tmp_path_factory.mktemp("judge")
    save_judge(judge_of(JudgeShape(16, width=16, blocks=1)), ModelFiles.read(model).latents(), folder, {})
    return LatentConfig(model=str(folder))


def latent(judge: LatentConfig, *judges: Assessment) -> VerifierConfig:
    return VerifierConfig(name="latent", kind="latent", latent=judge, judges=judges or None)


def looking(*judges: Assessment) -> VerifierConfig:
    function = "tests.unit.test_left_as_latents:bright"
    return VerifierConfig(name="bright", kind="callable", function=function, judges=judges or (IMAGE, MOTION, FINAL))


def search(
    folder: Path,
    model: ModelSource,
    *panel: VerifierConfig,
    request: GenerationRequest = REQUEST,
    generators: int = 2,
    look: Callable[[SearchRecord], None] = lambda record: None,
) -> tuple[SearchRecord, int, np.ndarray]:
    """A search, the units that it has decoded, and its video."""
    with BranchCache(folder) as cache:
        verifiers = [LocalVerifierPool(cache, each) for each in panel]
        pool = LocalPyramidPool(cache, model, generators, worker=Counting)
        runner = SearchRunner(pool, verifiers, crew=LocalCrew(verifiers))

        async def searched() -> SearchRecord:
            try:
                return await runner.search(request)
            finally:
                await runner.close()

        Counting.decodes = 0
        record = run_virtual(searched())
        decodes = Counting.decodes
        look(record)
        return record, decodes, record.frames


def decoded(model: ModelSource, record: SearchRecord, path: tuple[int, ...]) -> np.ndarray:
    """The frames of a branch from its latents, while its cache is open."""
    units = [record.outcome.handles[path[: n + 1]].latent for n in range(len(path))]
    return np.concatenate(Generator(model).decode(None, 0, *units))


def sampled(record: SearchRecord) -> list[SampleWork]:
    """The sample works that were done to their ends."""
    spans = [span for span in record.outcome.spans if span.ending is Ending.DONE]
    return [span.work for span in spans if isinstance(span.work, SampleWork)]


def test_by_latents_alone_only_the_winner_is_decoded(model: ModelSource, judge: LatentConfig, tmp_path: Path) -> None:
    def look(record: SearchRecord) -> None:
        other = next(node.path for node in record.outcome.nodes if node.path != record.outcome.winner[:1])
        assert record.shown[other].frames.dtype == np.uint8, "who looks at a branch has it decoded"
        assert np.array_equal(decoded(model, record, record.outcome.winner), record.frames)

    record, decodes, frames = search(tmp_path / "one", model, latent(judge), look=look)
    assert len(record.outcome.nodes) > REQUEST.units == decodes
    assert record.outcome.sampling.spent.decoding == record.single.decoding
    assert all(span.cost.decoding == 0 for span in record.outcome.spans)
    price = record.price
    assert price.sampling + price.decoding + price.judging <= REQUEST.budget
    assert price.sampling > 1.5, "what is not spent on decoding is spent on sampling"
    ahead, _, same = search(tmp_path / "more", model, latent(judge), generators=4)
    assert told(ahead) == told(record)
    assert np.array_equal(same, frames)


def test_the_time_of_decoding_the_winner_is_the_searchs(
    model: ModelSource, judge: LatentConfig, tmp_path: Path
) -> None:
    record, _, _ = search(tmp_path, model, latent(judge))
    last = max(span.end for span in record.outcome.spans)
    seconds = record.single.decoding / 2e10
    assert record.outcome.seconds >= last + seconds * (1 - 1e-9)
    spent = sum(span.cost.seconds for span in record.outcome.spans if isinstance(span.work, SampleWork))
    assert record.outcome.sampling.spent.seconds == pytest.approx(spent + seconds)


def test_where_frames_are_read_too_all_is_decoded_when_it_is_sampled(
    model: ModelSource, judge: LatentConfig, tmp_path: Path
) -> None:
    record, decodes, _ = search(tmp_path, model, latent(judge), looking())
    assert decodes == sum(len(work.paths) for work in sampled(record))
    assert all(s.cost.decoding > 0 for s in record.outcome.spans if s.work in sampled(record))
    assert record.price.decoding > 1


def test_the_frames_of_survivors_alone_are_read_at_the_end(
    model: ModelSource, judge: LatentConfig, tmp_path: Path
) -> None:
    """A panel in stages: latents weed, and what is left is looked at as a whole."""
    panel = latent(judge, IMAGE, MOTION), looking(FINAL)

    def look(record: SearchRecord) -> None:
        for node in record.outcome.nodes:
            for scored in node.scored:
                if scored.work.verifier == "bright":
                    said = bright(decoded(model, record, node.path), "")
                    assert scored.scores[0][1] == pytest.approx(said, abs=1e-3)

    record, decodes, frames = search(tmp_path / "two", model, *panel, look=look)
    last = [work for work in sampled(record) if work.depth == REQUEST.units - 1]
    assert decodes == sum(len(work.paths) + work.depth for work in last)
    assert decodes < sum(len(work.paths) for work in sampled(record))
    first, later = record.single.decoding - 2 * costs_at(model)[1], costs_at(model)[1]
    expected = sum(len(work.paths) * later + first + later for work in last)
    assert record.outcome.sampling.spent.decoding == expected
    one, _, same = search(tmp_path / "one", model, *panel, generators=1)
    assert told(one) == told(record)
    assert one.outcome.sampling.certain.decoding == record.outcome.sampling.certain.decoding
    assert np.array_equal(same, frames)


def test_a_plan_says_what_is_not_decoded(judge: LatentConfig, tmp_path: Path) -> None:
    from click.testing import Result
    from typer.testing import CliRunner

    from jobs import generate

    def plan(*panel: VerifierConfig) -> Result:
        entries = [each.model_dump(mode="json", exclude_unset=True) for each in panel]
        (tmp_path / "panel.yaml").write_text(json.dumps({"verifiers": entries}))
        given = ["--plan", "--units", "3", "--verifier", str(tmp_path / "panel.yaml")]
        return CliRunner().invoke(generate.app, given)

    alone, staged, both = plan(latent(judge)), plan(latent(judge, IMAGE, MOTION), looking(FINAL)), plan(looking())
    for result in (alone, staged, both):
        assert result.exit_code == 0, result.output
    assert "no verifier looks at the frames of any unit: a search decodes" in " ".join(alone.output.split())
    assert "the frames of units 0, 1: " in " ".join(staged.output.split())
    assert "no verifier" not in both.output


def costs_at(model: ModelSource) -> tuple[int, int]:
    return ModelFiles.read(model).costs(REQUEST).decoding


def test_a_picture_that_is_given_needs_no_decoding(model: ModelSource, judge: LatentConfig, tmp_path: Path) -> None:
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(encoded, "PNG")
    record, _, _ = search(tmp_path, model, latent(judge), request=replace(REQUEST, image=encoded.getvalue()))
    assert record.outcome.sampling.spent.decoding == record.single.decoding == 2 * costs_at(model)[1]


def test_what_is_left_follows_from_who_looks_and_what_a_policy_asks_for() -> None:
    layout = Layout(4, 3)
    usual = (IMAGE, MOTION, FINAL)
    assert left_as_latents(layout, usual, ()).depths == {0, 1, 2, 3}
    assert left_as_latents(layout, usual, {FINAL}).depths == {0, 1, 2}
    assert left_as_latents(layout, usual, {IMAGE}).depths == {1, 2, 3}
    assert left_as_latents(layout, (FINAL,), {FINAL}).depths == set(), "whole videos are decoded as they grow"
    assert left_as_latents(layout, (IMAGE, FINAL), {FINAL}).depths == {0}, "dfs with whole: true"
    assert left_as_latents(layout, (), {MOTION}).depths == {0, 3}
    assert left_as_latents(Layout(4, 3, given=1), usual, ()).depths == {1, 2, 3}


def test_every_unit_of_a_line_is_paid_for_once() -> None:
    whole = replace(costs_of(), decoding=(10, 30))
    for depths in ({0, 1, 2, 3}, {0, 1, 2}, {1, 2, 3}, {1}, set()):
        left = replace(whole, left=LeftAsLatents(frozenset(depths), 2))
        works = sum(left.table(depth, 0, 2, 1) for depth in range(4))
        assert works + left.left_over(4) == whole.unsearched(4).all_flops == left.unsearched(4).all_flops
    left = replace(whole, left=LeftAsLatents(frozenset({0, 1}), 2))
    assert left.unit(2, siblings=3).decoding == 3 * 30 + 10 + 30, "the history once, for all siblings"
    assert left.unit(1, range(2)).decoding == 30 + 10, "drafts are looked at"
    assert left.unit(2, most_steps=1).decoding == 0


@pytest.mark.parametrize("policy", ["beam", "linear", "dfs", "evo", "single", "smc"])
def test_the_end_of_a_search_is_set_aside(policy: str) -> None:
    from framegrove.config.search import SearchConfig

    layout = Layout(4, 2)
    one = PAID.one_sample(layout)
    cheaper = replace(PAID, sample=lambda *work: PAID.sample(*work) // 2, finishing=0)
    finishing = one - cheaper.one_sample(layout)
    cheaper = replace(cheaper, finishing=finishing)
    assert cheaper.one_sample(layout) == one
    config = SearchConfig(policy=policy, budget="4x")
    _, before = make_policy(config, 4, 2, PAID)
    _, after = make_policy(config, 4, 2, cheaper)
    assert after.worst_case + finishing <= 4 * one
    assert after.one_sample == before.one_sample
