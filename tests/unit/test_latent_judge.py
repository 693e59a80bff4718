"""The latent judge: what it sees and learns, that it is refused beside other latents, and that a search uses it."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from actors.local_pools import LocalCrew, LocalPyramidPool, LocalVerifierPool
from actors.model_files import ModelFiles
from actors.searches import SearchRunner
from framegrove.config.model import ModelSource, TextConfig
from framegrove.config.verifier import VerifierConfig
from framegrove.config.verifier_kinds import LatentConfig
from framegrove.data.ingest import DataError
from framegrove.data.schema import LatentClip, schema_of, table_of
from framegrove.errors import UserError
from framegrove.evaluation.branch_cache import BranchCache
from framegrove.evaluation.virtual_time import run_virtual
from framegrove.models.latent_judge import (
    JudgeShape,
    LatentJudge,
    LatentSpace,
    load_judge,
    save_judge,
    sight_of,
)
from framegrove.models.text import TextEncoder
from framegrove.models.vae_files import Affine, LatentNorm
from framegrove.training.judge import Harvested, Siblings, is_held_out, judged, pair_loss, read_harvest, train_judge
from framegrove.types import Assessment, GenerationRequest, ScoreWork
from framegrove.verification.latents import LatentVerifier, check_latents
from jobs import train_judge as job
from tests.tiny import WORDS, save_tiny
from tests.tiny_training import pair

PLAIN = Affine((0.0,), 1.0)
SPACE = LatentSpace("vae", LatentNorm(PLAIN, PLAIN), 8)
SMALL = JudgeShape(4, width=16, blocks=1)
FAMILIES = 60


def text_encoder() -> TextEncoder:
    return TextEncoder.fresh(TextConfig(layers=1, width=16, heads=2), WORDS)


def judge_of(shape: JudgeShape = SMALL, seed: int = 0) -> LatentJudge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentJudge(shape, text_encoder()).eval().requires_grad_(False)


def config_of(folder: Path) -> VerifierConfig:
    return VerifierConfig(name="latent", kind="latent", latent=LatentConfig(model=str(folder)))


def test_what_it_sees_of_a_branch() -> None:
    first, second, third = (torch.full((2, 1, 4, 4), float(value)) for value in (1, 2, 6))
    alone = sight_of([third])
    assert alone.shape == (9, 4, 4)
    assert alone[:, 0, 0].tolist() == [6, 6, 0, 0, 0, 0, 0, 0, 0]
    assert sight_of([first, second, third])[:, 0, 0].tolist() == [6, 6, 2, 2, 1.5, 1.5, 1, 1, 1]


def test_a_verdict_depends_on_its_own_branch_and_prompt_alone() -> None:
    judge = judge_of()
    sights = torch.randn(3, 17, 6, 10)
    prompts = ["a red 3", "a blue 5 moves up and down", "a red 3"]
    together = judge(sights, prompts)
    for at in range(3):
        torch.testing.assert_close(judge(sights[at : at + 1], prompts[at : at + 1])[0], together[at])
    assert judge(sights[:1], ["a blue 3"])[0] != together[0]
    long = "a red 3 " * 40  # what is beyond the text encoder is left out
    assert torch.isfinite(judge(sights[:1], [long])).all()


def test_the_loss_of_pairs_in_closed_form() -> None:
    odds, panel = torch.tensor([[1.0], [-0.5]]), torch.tensor([[2.0], [0.0]])
    wanted = 1 / (1 + math.exp(-2))
    said = 1 / (1 + math.exp(-1.5))
    order = -(wanted * math.log(said) + (1 - wanted) * math.log(1 - said))
    regression = ((1 - 0.5) + 0.125) / 2  # beyond 1 it is linear
    assert pair_loss(odds, panel).item() == pytest.approx(order + 0.1 * regression, rel=1e-5)


def siblings(count: int, seed: int) -> list[Siblings]:
    """The better of two has the larger first channel after "red", the smaller one after "blue"."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        colour = ("red", "blue")[number % 2]
        sights = rng.standard_normal((2, 17, 4, 4)).astype(np.float16)
        sights[:, :4] *= 0.2
        up, down = (1.0, -1.0) if colour == "red" else (-1.0, 1.0)
        sights[0, 0] += np.float16(up)
        sights[1, 0] += np.float16(down)
        found.append(Siblings(f"a {colour} 3", str(number), (sights[0], sights[1]), (0.9, 0.2)))
    return found


def test_it_learns_what_siblings_differ_in_after_which_prompt() -> None:
    data, unseen = Harvested(siblings(200, 0)), siblings(100, 1)
    losses: list[float] = []
    settings = {"steps": 120, "batch": 16, "learning_rate": 3e-3, "seed": 0}
    judge = train_judge(data, SMALL, text_encoder(), **settings, on_step=lambda step, loss: losses.append(loss))
    odds = judged(judge, unseen)
    assert (odds[:, 0] > odds[:, 1]).mean() > 0.95
    assert losses[-1] < losses[0]
    found = job.measured(judge, unseen)
    assert found["siblings"]["mean"] == pytest.approx((odds[:, 0] > odds[:, 1]).mean())
    assert found["verdicts"]["verdicts"] == 200
    assert found["correlation"] > 0.8


def test_winners_teach_it_to_read_the_prompt() -> None:
    rng = np.random.default_rng(0)
    pairs = siblings(8, 0)
    winners = []
    for number in range(60):
        sight = (0.2 * rng.standard_normal((17, 4, 4))).astype(np.float16)
        sight[1] += np.float16(number % 2)
        winners.append((("a red 3", "a blue 3")[number % 2], sight))
    settings = {"steps": 150, "batch": 16, "learning_rate": 3e-3, "seed": 0}
    judge = train_judge(Harvested(pairs, winners), SMALL, text_encoder(), **settings)
    seen = torch.from_numpy(np.stack([sight for _, sight in winners])).float()
    with torch.no_grad():
        own = judge(seen, [prompt for prompt, _ in winners])
        other = judge(seen, [{"a red 3": "a blue 3", "a blue 3": "a red 3"}[prompt] for prompt, _ in winners])
    assert (own > other).float().mean() > 0.9


def test_a_folder_brings_it_back(tmp_path: Path) -> None:
    judge = judge_of()
    save_judge(judge, SPACE, tmp_path / "judge", {"siblings": 0.9})
    again, space = load_judge(tmp_path / "judge")
    assert space == SPACE
    sights = torch.randn(2, 17, 4, 4)
    torch.testing.assert_close(again(sights, ["a red 3"] * 2), judge(sights, ["a red 3"] * 2))
    assert json.loads((tmp_path / "judge" / "judge.json").read_text())["measured"] == {"siblings": 0.9}


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no latent judge"):
        load_judge(tmp_path)
    save_judge(judge_of(), SPACE, tmp_path, {})
    weights = load_file(tmp_path / "judge.safetensors")
    save_file({name: value for name, value in weights.items() if "enter" not in name}, tmp_path / "judge.safetensors")
    with pytest.raises(UserError, match="2 missing keys: enter"):
        load_judge(tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read"):
        load_judge(tmp_path)
    (tmp_path / "judge.json").write_text('{"version": 7}')
    with pytest.raises(UserError, match="of version 7"):
        load_judge(tmp_path)


def test_other_latents_are_refused_by_name(tmp_path: Path) -> None:
    save_judge(judge_of(), SPACE, tmp_path, {})
    config = config_of(tmp_path)
    check_latents(config, SPACE)
    with pytest.raises(
        UserError, match=r"verifier latent \(.*\) judges latents of the VAE vae, and the model has .* o1"
    ):
        check_latents(config, replace(SPACE, vae="o1"))
    with pytest.raises(UserError, match="normalised in another way"):
        check_latents(config, replace(SPACE, norm=LatentNorm(PLAIN, Affine((0.0,), 2.0))))
    check_latents(VerifierConfig(kind="signals"), replace(SPACE, vae="o1"))


def test_the_price_is_what_a_verdict_costs_at_any_depth(tmp_path: Path) -> None:
    save_judge(judge_of(), SPACE, tmp_path, {})
    verifier = LatentVerifier(config_of(tmp_path))
    prices = asyncio.run(verifier.price("a red 3", (1, 8, 8), 64, 48))
    assert set(prices) == {Assessment.IMAGE, Assessment.MOTION, Assessment.FINAL}
    units = [SimpleNamespace(x=torch.randn(4, 1, 8, 6)) for _ in range(3)]
    for depth in range(3):
        work = ScoreWork((0,) * (depth + 1), Assessment.MOTION)
        scored = asyncio.run(verifier.score(work, "a red 3", *units[: depth + 1]))
        assert scored.cost.flops == prices[Assessment.MOTION][depth] > 0
        ((name, score),) = scored.scores
        assert name == "right"
        assert 0 < score < 1


def harvest(folder: Path, vae: str, count: int = FAMILIES) -> Path:
    """What jobs.collect would have left: pairs of several lengths after several prompts, and two winners."""
    for name in ("pairs", "examples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pairs = []
    for seed in range(count):
        each = pair(seed, units=1 + seed % 3)
        prompt = f"a {('red', 'green', 'blue')[seed % 3]} {seed % 10}"
        pairs.append(replace(each, caption=prompt, source=f"search {seed % 20}"))
    pq.write_table(table_of(pairs, schema_of(vae, pairs=True)), folder / "pairs" / "clips-00000.parquet")
    winners = [replace(each, rival=None) for each in pairs[:2]]
    pq.write_table(table_of(winners, schema_of(vae)), folder / "examples" / "clips-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def space(model: Path) -> LatentSpace:
    return ModelFiles.read(ModelSource(name=str(model))).latents()


@pytest.fixture(scope="module")
def trained(model: Path, space: LatentSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of the tiny model's latents, by the job."""
    folder = tmp_path_factory.mktemp("judge")
    result = run(harvest(folder / "collected", space.vae), folder / "judge", model)
    assert "AUC within siblings: pairs in the panel's order" in result.output
    return folder / "judge"


def run(data: Path, out: Path, model: Path, *more: str, status: int = 0) -> Result:
    given = ["--data", str(data), "--out", str(out), "--model", str(model), "--steps", "4", "--batch", "4"]
    result = CliRunner().invoke(job.app, [*given, "--width", "16", "--heldout", "0.3", *more])
    assert result.exit_code == status, result.output
    return result


def test_what_is_held_out_follows_from_the_prompt(space: LatentSpace, tmp_path: Path) -> None:
    kept, apart = read_harvest([harvest(tmp_path, space.vae)], space, 0.3)
    assert len(kept.pairs) + len(apart.pairs) == FAMILIES
    assert not set(kept.prompts) & set(apart.prompts)
    assert all(is_held_out(prompt, 0.3) for prompt in apart.prompts)
    more, _ = read_harvest([harvest(tmp_path, space.vae, 2 * FAMILIES)], space, 0.3)
    assert set(kept.prompts) <= set(more.prompts)
    pairs_alone, _ = read_harvest([tmp_path / "pairs"], space, 0.3)
    assert len(pairs_alone.pairs) == len(more.pairs)
    one = kept.pairs[0]
    assert one.sights[0].shape == (4 * 16 + 1, 8, 8)
    assert np.array_equal(one.sights[0][16:], one.sights[1][16:]), "they share their history"
    assert not np.array_equal(one.sights[0][:16], one.sights[1][:16])


def test_the_job_leaves_a_judge_and_its_report(trained: Path, model: Path, space: LatentSpace) -> None:
    _, read = load_judge(trained)
    assert read == space
    report = json.loads((trained / "report.json").read_text())
    assert report["pairs"] + report["held_out_pairs"] == FAMILIES
    assert 0 <= report["siblings"]["low"] <= report["siblings"]["mean"] <= report["siblings"]["high"] <= 1
    assert report["flops"] > 0
    again = run(trained.parent / "collected", trained, model, status=1)
    assert "already exists" in again.output


def test_collections_that_cannot_be_learned_from(model: Path, space: LatentSpace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds latents of the VAE other, and the model has the VAE"):
        read_harvest([harvest(tmp_path / "other", "other")], space, 0.3)
    alone: list[LatentClip] = [pair(1)]
    (tmp_path / "one").mkdir()
    pq.write_table(table_of(alone, schema_of(space.vae, pairs=True)), tmp_path / "one" / "clips.parquet")
    result = run(tmp_path / "one", tmp_path / "judge", model, status=1)
    assert "of 1 pair none is left" in result.output
    clips = harvest(tmp_path / "clips", space.vae) / "examples"
    assert "hold clips that are no pairs" in run(clips, tmp_path / "judge", model, status=1).output


def test_a_search_over_a_cache_is_judged_by_it(trained: Path, model: Path, space: LatentSpace, tmp_path: Path) -> None:
    request = GenerationRequest("a red 3 moves up", seed=3, units=3, height=64, width=64, budget=3.0, policy="beam")
    source, config = ModelSource(name=str(model)), config_of(trained)

    async def searched(runner: SearchRunner) -> object:
        try:
            return await runner.search(request)
        finally:
            await runner.close()

    with BranchCache(tmp_path / "cache") as cache:
        verifiers = [LocalVerifierPool(cache, config)]
        runner = SearchRunner(LocalPyramidPool(cache, source), verifiers, crew=LocalCrew(verifiers))
        record = run_virtual(searched(runner))
        judge, _ = load_judge(trained)
        for node in record.outcome.nodes:
            for scored in node.scored:
                units = [record.outcome.handles[node.path[: depth + 1]].latent.x for depth in range(len(node.path))]
                with torch.no_grad():
                    odds = float(judge(sight_of(units)[None], [request.prompt]))
                assert dict(scored.scores)["right"] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5)
        assert record.outcome.verifiers["latent"].spent.flops > 0
        assert cache.added["verdicts"] > 0
        other = save_judge_for(tmp_path / "foreign", replace(space, vae="foreign"))
        verifiers = [LocalVerifierPool(cache, config_of(other))]
        runner = SearchRunner(LocalPyramidPool(cache, source), verifiers, crew=LocalCrew(verifiers))
        with pytest.raises(UserError, match="judges latents of the VAE foreign"):
            run_virtual(searched(runner))


def save_judge_for(folder: Path, space: LatentSpace) -> Path:
    save_judge(judge_of(JudgeShape(16, width=16, blocks=1)), space, folder, {})
    return folder
