"""The papers' claims: numbers that are known are found, every claim is documented, README shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from framegrove.config.base import validated
from framegrove.config.search import SearchConfig
from framegrove.digits.questions import QUESTIONS
from framegrove.digits.unstaged_questions import UNSTAGED
from framegrove.errors import UserError
from framegrove.evaluation.blockiness import edge_share
from framegrove.evaluation.simulated import Grid, SimulatedJudge, World, searched
from framegrove.flow.noise import HashNoise, double
from framegrove.search.prices import Prices
from framegrove.types import Assessment
from jobs import evidence
from jobs.claims import kept, renoise, results, trained
from jobs.claims.claim import VERSION, Figure, Finding
from jobs.claims.registry import CLAIMS, find
from tests.fakes import fake_cost
from tests.readme import ROOT, TEXT

KEPT = ROOT / "tests" / "evidence" / "claims"


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(evidence.app, list(arguments))
    return done.exit_code, done.output


def test_every_claim_is_documented_and_listed() -> None:
    said = evidence.listed()
    for name, claim in CLAIMS.items():
        assert name == claim.name
        assert claim.question.endswith("?")
        for text in (claim.question, claim.source, claim.measured, claim.aim, claim.takes, claim.missing):
            assert text in said
        assert all((claim.question, claim.source, claim.measured, claim.aim, claim.takes))
        assert claim.source.startswith(("PFM", "VT1"))


def test_the_claims_of_the_papers_are_there() -> None:
    assert set(CLAIMS) == {
        *("tokens", "unit-cost", "temporal-pyramid", "spatial-pyramid", "renoise", "block-causal", "tree-vs-linear"),
        *("scaling", "judge-hacking", "judge-errors", "panel", "staged-prompts", "chain-of-thought"),
    }


def test_token_counts_are_exactly_those_published(tmp_path: Path) -> None:
    code, said = run("tokens", "--out", str(tmp_path))
    assert code == 0, said
    found = json.loads((tmp_path / "tokens.json").read_text())
    values = {figure["name"]: figure["value"] for figure in found["figures"]}
    assert values["tokens of the last unit, history compressed"] == 15_360
    assert values["the same, as budgets count them"] == 15_360
    assert values["tokens of full-sequence diffusion"] == 119_040
    assert found["met"] is True
    assert found["version"] == VERSION
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_claim_is_not_measured_again_unless_asked(tmp_path: Path) -> None:
    assert run("tokens", "--out", str(tmp_path))[0] == 0
    code, said = run("tokens", "--out", str(tmp_path))
    assert code == 1
    assert "a finished run is in" in said
    assert run("tokens", "--out", str(tmp_path), "--overwrite")[0] == 0


def test_two_runs_do_not_share_a_folder_at_a_time(tmp_path: Path) -> None:
    from framegrove.files import locked

    with locked(tmp_path / ".evidence", "taken"):
        code, said = run("tokens", "--out", str(tmp_path))
    assert code == 1
    assert "another run of jobs.evidence writes to" in said
    assert not (tmp_path / "tokens.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense", "--out", "x"], "there is no claim 'nonsense': choose one of tokens, "),
        ([], "name a claim: tokens, "),
        (["tokens"], "--out is missing"),
        (["tokens", "--out", "x", "--prompts", "3"], "the claim tokens takes no prompts"),
        (["tokens", "--out", "x", "--other", "y"], "--other is for block-causal"),
        (["tokens", "--out", "x", "--runs", "y"], "--runs is for spatial-pyramid"),
        (["tokens", "--list"], "--list and --table measure nothing"),
        (["--table", "nowhere"], "nowhere holds no results of claims"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run(*arguments)
    assert code == 1
    assert said in output
    assert len(output.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_the_spatial_pyramid_takes_two_runs(tmp_path: Path) -> None:
    code, said = run("spatial-pyramid", "--out", str(tmp_path))
    assert code == 1
    assert "give --runs twice" in said
    code, said = run("spatial-pyramid", "--out", str(tmp_path), "--runs", "here", "--runs", "there")
    assert code == 1
    assert "here holds no checkpoints of a run" in said


@pytest.mark.parametrize(
    ("text", "said"), [('{"version": 0}', "is of version 0"), ("[]", "holds no result"), ("torn", "holds no result")]
)
def test_results_of_another_version_are_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(UserError, match=said):
        results.read_all(tmp_path)


def test_a_finding_has_its_headline_and_no_figure_twice() -> None:
    twice = (Figure("a", 1.0), Figure("a", 2.0))
    for figures, headline in ((twice, "a"), (twice[:1], "b")):
        with pytest.raises(ValueError, match="must be one of the figures"):
            Finding(figures, headline, None, lambda path: None)


def test_figures_say_what_they_know() -> None:
    assert str(Figure("n", 15360)) == "15,360"
    assert str(Figure("n", 0.2903, 0.2601, 0.3142)) == "0.29 [0.26, 0.314]"
    assert str(Figure("n", 7.75, unit="times")) == "7.75 times"
    assert str(Figure("n", 999.7)) == "1,000"
    assert str(Figure("n", float("nan"))) == "nan"


# How blocky pictures are.


def test_doubled_pictures_have_all_their_steps_on_edges() -> None:
    coarse = np.random.default_rng(0).normal(size=(3, 4, 4))
    doubled = coarse.repeat(2, -1).repeat(2, -2)
    assert edge_share(doubled, 2) == 1
    assert edge_share(coarse.repeat(16, -1).repeat(16, -2), 16) == 1


def test_ramps_and_white_noise_show_no_blocks() -> None:
    rows, columns = np.mgrid[:16, :16].astype(float)
    assert edge_share(rows + 2 * columns, 2) == pytest.approx(0.5)
    noise = np.random.default_rng(0).normal(size=(64, 64, 64))
    assert edge_share(noise, 2) == pytest.approx(0.5, abs=0.005)


def test_a_doubled_picture_under_noise_lies_where_theory_says() -> None:
    """Steps inside a block have the noise's 2 s^2 alone, those between blocks 2 more of the picture's variance."""
    rng = np.random.default_rng(1)
    doubled = rng.normal(size=(256, 32, 32)).repeat(2, -1).repeat(2, -2)
    noisy = doubled + 0.5 * rng.normal(size=doubled.shape)
    assert edge_share(noisy, 2) == pytest.approx(2.5 / 3, abs=0.005)


def test_what_has_no_blocks_is_refused() -> None:
    assert np.isnan(edge_share(np.zeros((8, 8)), 2))
    for pictures, block in ((np.zeros((8, 8)), 3), (np.zeros((8, 8)), 8), (np.zeros(8), 2)):
        with pytest.raises(ValueError, match="block"):
            edge_share(pictures, block)


def test_the_corrected_noise_alone_hides_the_blocks_of_the_jump() -> None:
    """PFM eq. 15 in closed form: white noise n under the picture's own, doubled and jumped, is white again."""
    import torch

    from framegrove.flow.schedule import PyramidSchedule

    schedule = PyramidSchedule()
    alpha, beta = schedule.jump(2)
    shape = (16, 1, 64, 64)
    ended = schedule.end_sigma(1) * torch.randn((16, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    noises = renoise.sources()
    assert list(noises) == [renoise.CORRECTED, renoise.WHITE, renoise.NONE]
    assert isinstance(noises[renoise.CORRECTED], HashNoise)
    found = {
        name: edge_share((alpha * double(ended) + beta * noise.jump(1, (0,), 2, shape)).numpy(), 2)
        for name, noise in noises.items()
    }
    assert found[renoise.CORRECTED] == pytest.approx(0.5, abs=0.01)
    assert found[renoise.WHITE] > 0.55
    assert found[renoise.NONE] == 1


# Simulated judges.

GRID = Grid(4, 3, Prices(fake_cost))


@pytest.mark.parametrize("auc", [0.5, 0.6, 0.8, 0.95, 1.0])
def test_a_judge_has_the_auc_among_siblings_that_was_asked_for(auc: float) -> None:
    world = World((0.5, 0.5), seed=7)
    judge = SimulatedJudge(world, auc)
    agreed: list[float] = []
    for parent in range(400):
        siblings = [(parent, child) for child in range(8)]
        said = {path: judge.says(path, Assessment.MOTION) for path in siblings}
        right = [said[path] for path in siblings if world.unit_right(path)]
        wrong = [said[path] for path in siblings if not world.unit_right(path)]
        agreed += [(one > other) + 0.5 * (one == other) for one in right for other in wrong]
    assert np.mean(agreed) == pytest.approx(auc, abs=0.02)


@pytest.mark.parametrize("assessment", [Assessment.MOTION, Assessment.FINAL])
def test_a_judge_is_calibrated(assessment: Assessment) -> None:
    world = World((0.2, 0.3), seed=3)
    judge = SimulatedJudge(world, 0.8)
    paths = [(root, child) for root in range(400) for child in range(10)]
    said = np.array([judge.says(path, assessment) for path in paths])
    truth = world.right if assessment is Assessment.FINAL else world.unit_right
    right = np.array([truth(path) for path in paths])
    for low, high in ((0.0, 0.4), (0.4, 0.7), (0.7, 0.9), (0.9, 1.0)):
        inside = (said >= low) & (said < high)
        assert right[inside].mean() == pytest.approx(said[inside].mean(), abs=0.06)


def test_branches_go_wrong_as_often_as_they_should_and_stay_so() -> None:
    world = World((0.1, 0.4), seed=1)
    assert np.mean([not world.unit_right((n,)) for n in range(4000)]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([world.right((n, 0)) for n in range(4000)]) == pytest.approx(0.54, abs=0.03)
    wrong = next(n for n in range(100) if not world.unit_right((n,)))
    assert not any(world.right((wrong, child)) for child in range(20))


def test_a_worthless_auc_is_refused() -> None:
    with pytest.raises(ValueError, match="AUC"):
        SimulatedJudge(World((0.1,), 0), 0.4)


def test_a_better_judge_makes_more_winners_right() -> None:
    config = validated(SearchConfig, {"policy": "beam", "budget": "4x", "speculate": "off"}, "beam")
    share = {
        auc: np.mean([searched(config, GRID, SimulatedJudge(World((0.2,) * 4, seed), auc)).right for seed in range(60)])
        for auc in (0.5, 1.0)
    }
    assert share[1.0] > share[0.5] + 0.2
    assert share[0.5] == pytest.approx(0.8**4, abs=0.15)


def test_costs_are_the_planned_ones() -> None:
    config = validated(SearchConfig, {"policy": "linear", "budget": "4x", "speculate": "off"}, "linear")
    assert searched(config, GRID, SimulatedJudge(World((0.2,) * 4, 0), 0.8)).cost == pytest.approx(4.0)


# The others.


def test_unstaged_questions_ask_everything_at_every_depth() -> None:
    prompt = "a red 3 moves left and right"
    whole = QUESTIONS.questions(Assessment.FINAL, prompt)
    assert all(UNSTAGED.questions(assessment, prompt) == whole for assessment in Assessment)
    assert UNSTAGED.fingerprint != QUESTIONS.fingerprint


def test_kept_results_are_read_as_they_stand() -> None:
    found = kept.read(kept.RESULTS.read_text(encoding="utf-8"), 16)
    assert (found.prompts, found.setting, found.plateau, found.ratio) == (100, "dfs 4x", "linear 8", (0.29, 0.26, 0.31))
    (single,) = (row for row in found.rows if row.setting == "single")
    assert (single.right, single.cost) == ((0.48, 0.38, 0.58), (1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="no length of 5 units"):
        kept.read(kept.RESULTS.read_text(encoding="utf-8"), 5)


def test_an_aim_that_was_missed_is_not_read_as_another_that_was_met() -> None:
    text = kept.RESULTS.read_text(encoding="utf-8")
    head = text.index("## `digits-long`: 16 units, 100 prompts")
    begin = text.index("**met**", head)
    end = text.index(";", begin)
    missed = "**missed** by 0.10: the cheapest that reaches the plateau, dfs 4x, costs 0.43 [0.40, 0.47] of it"
    found = kept.read(text[:begin] + missed + text[end:], 16)
    assert (found.setting, found.plateau, found.ratio) == ("dfs 4x", "linear 8", (0.43, 0.40, 0.47))
    with pytest.raises(UserError, match="no setting that reaches the plateau"):
        kept.read(text[:begin] + "**missed**: none reaches it" + text[end:], 16)


def test_flops_to_a_distance_are_read_between_marks() -> None:
    marks = [trained.Mark(1, 10.0, 4.0), trained.Mark(2, 20.0, 2.0)]
    assert trained.reached(marks, 4.5) == 10
    assert trained.reached(marks, 3.0) == 15
    assert trained.reached(marks, 1.0) is None


def test_drift_is_what_differs_from_the_first_picture() -> None:
    three, four = frozenset({(3, "red")}), frozenset({(4, "red")})
    assert trained.kept([[three, three, four], [four, four, four]]) == [[True, True, False], [True, True, True]]
    steady, lost = [True] * trained.LONG, [True] * (trained.LONG - 1) + [False]
    alone = trained.found_of_drift({"block-causal": [steady, steady]})
    assert alone.met is None
    both = trained.found_of_drift({"block-causal": [steady] * 8, "bidirectional": [lost] * 8})
    assert both.met is True


def test_an_unknown_claim_names_those_there_are() -> None:
    with pytest.raises(UserError, match="choose one of tokens, unit-cost"):
        find("x")


def test_readme_shows_the_kept_results() -> None:
    assert results.as_markdown(results.read_all(KEPT)) in TEXT
