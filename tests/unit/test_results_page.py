"""report.html: what is in it, in which order, and that nothing in it can be taken for markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framegrove.evaluation import results_page
from framegrove.evaluation.disagreement import disagreements
from framegrove.evaluation.results import Row
from tests.unit.test_results import LINEAR, ROWS, SINGLE, row
from tests.unit.test_tree_page import NASTY, Elements, embedded


def test_judges_need_no_common_scale_to_disagree() -> None:
    said = [{"a": score, "b": 100 * score - 5} for score in (0.1, 0.5, 0.9)]
    assert disagreements(said) == pytest.approx([0, 0, 0])
    turned = [{"a": score, "b": -score} for score in (0.1, 0.5, 0.9)]
    assert disagreements(turned) == pytest.approx([1, 0, 1])
    assert disagreements([{"a": 0.1}, {"a": 0.9}]) == [0, 0]
    assert disagreements([{"a": 0.5, "b": 0.1}, {"a": 0.5, "b": 0.9}]) == pytest.approx([0.5, 0.5])
    assert disagreements([{"a": 0.5, "b": 0.5}]) == [0]
    assert disagreements([]) == []


def disputed() -> list[Row]:
    """Three prompts in two settings; of the second, the panel likes best what the oracle likes least."""
    rows = []
    for prompt, (oracle, panel) in enumerate([(0.9, 0.9), (0.1, 0.95), (0.5, 0.5)]):
        for setting in (SINGLE, LINEAR):
            one = replace(row(prompt, setting, False), oracle_score=oracle, verifier_score=panel)
            rows.append(replace(one, video=f"videos/{setting}/000{prompt}.mp4"))
    return rows


def test_what_the_page_holds() -> None:
    data = embedded(results_page.page(disputed()))
    assert data["settings"] == ["single", "linear 4x"]
    assert data["judges"] == ["oracle", "panel"]
    prompts = data["prompts"]
    assert isinstance(prompts, list)
    assert [prompt["index"] for prompt in prompts] == [0, 1, 2]
    assert max(prompts, key=lambda prompt: prompt["disagreement"])["index"] == 1
    assert [video["file"] for video in prompts[1]["videos"]] == [
        "videos/single/0001.mp4",
        "videos/linear%204x/0001.mp4",
    ]
    assert prompts[1]["videos"][0]["scores"] == [0.1, 0.95]
    table = data["table"]
    assert isinstance(table, dict)
    assert table["head"] == ["oracle score", "fully right", "verifier score", "price"]
    assert [line[0] for line in table["rows"]] == ["single", "linear 4x"]


def test_several_takes_stand_in_a_row() -> None:
    rows = [replace(each, take=take) for each in disputed() for take in range(2)]
    (first, *_) = results_page.data_of(rows)["prompts"]
    assert [(video["take"], video["setting"]) for video in first["videos"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_nothing_in_a_prompt_is_taken_for_markup(tmp_path: Path) -> None:
    usual, nasty = (
        results_page.page([replace(each, prompt=prompt) for each in ROWS[:3]]) for prompt in ("a red 3", NASTY)
    )
    assert Elements(nasty).tags == Elements(usual).tags
    assert embedded(nasty)["prompts"][0]["text"] == NASTY  # type: ignore[index]
    results_page.write(ROWS, tmp_path / "report.html")
    assert "{{" not in (tmp_path / "report.html").read_text()
