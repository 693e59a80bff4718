"""What a study's report claims: no importance where there is chance alone, no sureness of few prompts, none is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from framegrove.evaluation import study_page, study_pictures
from framegrove.evaluation.study_front import doubt, front, standings, ties
from framegrove.evaluation.study_optuna import LEAST, importances
from framegrove.evaluation.study_results import Trial, Video, read_parquet, write_parquet
from jobs.console import Display
from jobs.studies import report as left
from tests.unit.test_study import Page, study, trial


def drawn(count: int, seed: int = 0, prompts: int = 8, *, told: float = 0.0, **fixed: Any) -> list[Trial]:
    """Trials of random parameters, whose score ``cap`` decides to the share ``told``."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(1, count + 1):
        policy, cap = str(rng.choice(["linear", "dfs"])), int(rng.integers(2, 9))
        scores = tuple(told * cap / 8 + (1 - told) * rng.uniform(size=prompts))
        trials.append(trial(number, fixed.get("scores", scores), 1e9, policy=policy, cap=cap))
    return trials


# ---- what matters


def test_what_decides_is_beyond_chance_and_the_rest_is_not() -> None:
    found, untold = importances(study(objectives=["score"]), drawn(20, told=0.9))
    assert found["score"].beyond == {"cap"}
    assert sum(found["score"].shares.values()) == pytest.approx(1)
    assert untold == {}


def test_nothing_matters_to_an_objective_that_is_always_the_same() -> None:
    found, untold = importances(study(), drawn(LEAST, scores=(1.0, 1.0)))
    assert found == {}
    assert set(untold) == {"score", "flops", "motion"}
    assert set(untold.values()) == {"is the same in all trials"}


def test_of_chance_alone_hardly_anything_is_said() -> None:
    told = [importances(study(objectives=["score"]), drawn(12, seed))[0] for seed in range(20)]
    assert sum(map(bool, told)) <= 3, "one in twenty on average"


def test_few_trials_and_parameters_of_one_value_say_nothing() -> None:
    config = study(objectives=["score"])
    assert importances(config, drawn(LEAST - 1, told=1.0)) == (
        {},
        {"score": "has too few trials, fewer than 10 finished"},
    )
    same = [trial(n, (n / 20,), 1e9, policy="dfs", cap=2) for n in range(1, 13)]
    assert importances(config, same) == ({}, {"score": "has no parameter with two values"})


def test_the_page_says_why_what_matters_is_not_shown(tmp_path: Path) -> None:
    few, constant, both = drawn(4), drawn(LEAST, scores=(1.0, 1.0)), drawn(20, told=0.9)
    path = tmp_path / "importance.png"
    path.write_bytes(b"of an earlier report")
    shown = left._what_matters("t", study(objectives=["score"]), few, path)
    assert (shown.path, path.exists()) == (None, False)
    assert shown.note == "This is not shown. score has too few trials, fewer than 10 finished."
    assert "Each of score, flops, motion is the same" in left._what_matters("t", study(), constant, path).note
    shown = left._what_matters("t", study(objectives=["score", "motion"]), both, path)
    assert shown.path == path
    assert shown.note.endswith("Not all objectives are shown. motion is the same in all trials.")
    assert "association, and no cause" in shown.note


# ---- the page


def page(trials: list[Trial], prompts: int, pictures: Any = ()) -> str:
    config = study(prompts=prompts)
    found = standings(trials, config.goals, draws=50)
    report = study_page.Report("mine", config, trials, found, pictures, {}, "use it")
    return " ".join(Page(study_page.page(report)).text.split())


def test_trials_that_tie_are_told() -> None:
    trials = [
        trial(1, (1.0, 0.5), 1e9),
        trial(2, (1.0, 0.5), 1e9),
        trial(3, (0.1, 0.5), 1e9),
        trial(4, (0.5, 1.0), 1e9),
    ]
    goals = study().goals
    found = standings(trials, goals, draws=50)
    assert [each.trial.number for each in front(found, goals)] == [1]
    assert [(each.trial.number, first.trial.number) for each, first in ties(found, goals)] == [(2, 1), (4, 1)]
    text = page(trials, 2)
    assert "Finished trials that equal one on the front" in text
    assert text.count("trial 1") == 2
    assert "equal" not in page(trials[::2], 2)


def test_of_few_prompts_intervals_are_doubted_and_of_one_there_are_none() -> None:
    assert "2 prompts: intervals and sure mean little." in page([trial(1, (1.0, 0.5), 1e9)], 2)
    single = page([trial(1, (0.5,), 1e9)], 1)
    assert "1 prompt: there are no intervals, and how sure the front is cannot be told." in single
    for absent in ("[", "sure is", "trialscoreflopsmotionsure", "bootstrap"):
        assert absent not in single
    many = page([trial(1, (1.0,) * 8, 1e9)], 8)
    assert "mean little" not in many
    assert "An interval of no width tells that all prompts gave the same" in many
    assert doubt(8) == ""


def test_a_picture_that_is_not_there_is_words() -> None:
    text = page([trial(1, (0.5, 1.0), 1e9)], 2, [study_page.Picture(None, "What matters", "Not shown.")])
    assert "What matters Not shown." in text


@pytest.mark.parametrize("prompts", [1, 2, 8])
def test_the_closing_table(prompts: int, capsys: pytest.CaptureFixture[str]) -> None:
    config = study(prompts=prompts)
    trials = [trial(n, (0.5,) * prompts, 1e9) for n in (1, 2, 3)]
    found = standings(trials, config.goals, draws=50)
    report = study_page.Report("mine", config, trials, found, (), {}, "use it")
    with Display() as display:
        left._print(report, front(found, config.goals), display)
    text = capsys.readouterr().out
    assert "equal to trial 1 in all objectives: 2, 3" in text
    assert ("100%" in text) == ("[" in text) == (prompts > 1)
    assert doubt(prompts) in text
    assert ("mean little" in text) == (prompts == 2)


# ---- pictures


def axes_of(monkeypatch: pytest.MonkeyPatch, draw: Any) -> list[Any]:
    """The axes of what is drawn."""
    figures: list[Any] = []
    monkeypatch.setattr(study_pictures, "save", lambda figure, _: figures.append(figure))
    draw()
    return list(figures[0].axes)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_an_axis_of_shares_ends_at_what_can_be(score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study()
    found = standings([trial(n, (score, score), n * 1e9) for n in (1, 2, 3)], config.goals, draws=50)
    for axes in axes_of(
        monkeypatch, lambda: study_pictures.draw_front(found, config.goals, Path("none.png"), title="t")
    ):
        low, high = axes.get_ylim()
        assert -0.03 < low < score + 0.001
        assert score - 0.001 < high < 1.03
        assert all(0 <= tick <= 1 for tick in axes.get_yticks())
        numbers = " ".join(text.get_text() for text in axes.texts)
        assert all(str(n) in numbers for n in (1, 2, 3)), "beaten ones have numbers, too"


def test_lines_of_equal_scores_are_not_said_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    config = study()
    for scores, said in (((1.0, 1.0, 1.0), "score: all equal"), ((0.1, 0.2, 0.3), "dark: better score")):
        trials = [trial(n, (score,) * 2, n * 1e9) for n, score in enumerate(scores, 1)]
        found = standings(trials, config.goals, draws=50)
        (axes,) = axes_of(
            monkeypatch, lambda found=found: study_pictures.draw_parallel(found, config, Path("none.png"), title="t")
        )
        assert said in axes.figure.get_suptitle()
        assert {"1", "2", "3"} <= set(", ".join(text.get_text() for text in axes.texts).split(", "))


# ---- results


def test_a_trial_that_has_not_finished_has_no_means_and_keeps_its_videos(tmp_path: Path) -> None:
    whole = trial(1, (1.0, 0.0), 1e9)
    part = Trial(2, {"policy": "dfs", "cap": 2}, "stopped", "fell behind", whole.videos[:1])
    lost = Trial(3, {"policy": "dfs", "cap": 2}, "failed", "broken", whole.videos[:1])
    file = tmp_path / "results.parquet"
    write_parquet(study(), [whole, part, lost], file)
    table = pq.read_table(file)
    for end in ("mean", "low", "high"):
        assert [each is None for each in table[f"score/{end}"].to_pylist()] == [False, True, True]
    assert read_parquet(file)[1] == [whole, part, lost]
    assert isinstance(read_parquet(file)[1][1].videos[0], Video)
