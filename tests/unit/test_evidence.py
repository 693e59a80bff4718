"""What a suite shows, on rows with known answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from framegrove.config.base import ConfigError, load, validated
from framegrove.config.suite import Setting, SuiteConfig
from framegrove.evaluation import evidence
from framegrove.evaluation.blame import blame
from framegrove.evaluation.curves import RESAMPLES
from framegrove.evaluation.evidence import Chapter
from framegrove.evaluation.evidence_page import page
from framegrove.evaluation.evidence_pictures import draw_costs, draw_scores
from framegrove.evaluation.results import Row, write_parquet
from framegrove.search import policies

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "jobs" / "configs" / "suite_digits_long.yaml"
PROMPTS = 100

SINGLE = Setting(policy="single")
LINEAR = {n: Setting(label=f"linear {n}", policy="linear", budget=40.0, options={"roots": n}) for n in (2, 4, 8)}
STOP = Setting(label="linear with stop", policy="linear", budget=40.0, until=0.8)
BEAM, DFS, DFS_MORE = (
    Setting(policy="beam", budget=8.0),
    Setting(policy="dfs", budget=2.0),
    Setting(policy="dfs", budget=8.0),
)

# Share of right videos in percent, and cost in samples. The plateau is linear 4; dfs 8x reaches it at 0.3 of its cost.
WORLD: dict[Setting, tuple[int, float]] = {
    SINGLE: (40, 1.0),
    LINEAR[2]: (60, 2.0),
    LINEAR[4]: (78, 5.0),
    LINEAR[8]: (80, 10.0),
    STOP: (77, 2.0),
    BEAM: (79, 4.0),
    DFS: (60, 1.2),
    DFS_MORE: (76, 1.5),
}


def suite(**changed: Any) -> SuiteConfig:
    facts: dict[str, Any] = {
        "lengths": [{"units": 16, "prompts": PROMPTS}],
        "digits": 2,
        "seed": 0,
        "tuning_seed": 1000,
        "margin": 0.03,
        "trees": ["beam", "dfs"],
        "aims": {"units": 16, "of_plateau": 1 / 3, "of_stop": 0.5},
        "settings": [setting.model_dump() for setting in WORLD],
    }
    return SuiteConfig.model_validate(facts | changed)


def row(setting: Setting, prompt: int, right: bool, cost: float, believed: float = 0.5) -> Row:
    return Row(
        prompt_index=prompt,
        prompt="a red 3 moves left and right",
        objects=2,
        setting=setting,
        units=16,
        seed=prompt,
        oracle_score=1.0 if right else 0.5,
        fully_right=right,
        verifier_score=0.5,
        nfe=10,
        generator_flops=int(700 * cost),
        decoding_flops=int(200 * cost),
        verifier_flops=int(50 * cost),
        wasted_flops=int(50 * cost),
        single_flops=1000,
        branches=4,
        seconds=1.0,
        panel_log_p=math.log(believed),
        travel=2.5,
        moving_as_asked=0.5,
        held_out={"signals/flicker": 0.9},
    )


def rows(
    world: Mapping[Setting, tuple[int, float]] = WORLD, believed: Callable[[Setting], float] = lambda setting: 0.5
) -> list[Row]:
    """The first prompts of each setting are right, so that pairs differ as little as shares allow."""
    return [
        row(setting, prompt, prompt < right, cost, believed(setting))
        for prompt in range(PROMPTS)
        for setting, (right, cost) in world.items()
    ]


@pytest.fixture(scope="module")
def found() -> Chapter:
    return evidence.chapter(rows(), suite())


def test_plateau_is_the_fewest_videos_within_the_margin(found: Chapter) -> None:
    assert found.plateau == "linear 4"
    assert found.stop == "linear with stop"
    assert evidence.chapter(rows(), suite(margin=0.01)).plateau == "linear 8"
    assert evidence.chapter(rows(), suite(margin=0.2)).plateau == "linear 2"


def test_cheapest_tree_setting_on_the_plateau_meets_the_first_aim_and_misses_the_second(found: Chapter) -> None:
    plateau, stop = found.aims
    assert (plateau.against, plateau.setting, plateau.met, plateau.short_by) == ("linear 4", "dfs 8x", True, None)
    assert plateau.ratio is not None
    assert plateau.ratio.mean == pytest.approx(0.3)
    assert (stop.against, stop.setting, stop.met) == ("linear with stop", "dfs 8x", False)
    assert stop.short_by == pytest.approx(0.75 - 0.5)
    assert stop.met_in < 0.2, "only where few draws have dfs 2x on the plateau"
    assert 0.5 < plateau.met_in < 1.0, "76% are near the edge of 78% less the margin"


def test_an_aim_that_no_tree_setting_can_meet_says_so() -> None:
    found = evidence.chapter(rows({**WORLD, DFS_MORE: (60, 1.5), BEAM: (70, 4.0)}), suite())
    assert [(aim.setting, aim.ratio, aim.met) for aim in found.aims] == [(None, None, False)] * 2
    nearest = {standing.policy: standing for standing in found.standings}
    assert (nearest["beam"].setting, nearest["beam"].reached) == ("beam 8x", False)
    assert nearest["beam"].difference.mean == pytest.approx(-0.08)
    assert nearest["beam"].difference.high < 0
    assert "no tree setting reaches the plateau" in page("try", 16, [(found, None, None)])


def test_what_each_setting_gives(found: Chapter) -> None:
    dfs = found.find("dfs 8x")
    assert (dfs.right.mean, dfs.cost.mean) == (pytest.approx(0.76), pytest.approx(1.5, abs=0.01))
    assert (dfs.price.judging, dfs.price.wasted) == (pytest.approx(0.075), pytest.approx(0.075))
    assert dfs.beside_single is not None
    assert dfs.beside_single.mean == pytest.approx(0.36)
    assert dfs.beside_plateau is not None
    assert dfs.beside_plateau.mean == pytest.approx(-0.02)
    assert dfs.beside_plateau.low == pytest.approx(-0.05, abs=0.011), "two prompts in a hundred, paired"
    assert found.find("single").beside_single is None
    assert (dfs.travel.mean, dfs.as_asked.mean, dfs.held_out["signals/flicker"].mean) == pytest.approx((2.5, 0.5, 0.9))


def test_trends_tell_a_deceived_judge_from_a_good_one() -> None:
    """More budget raises what the judge believes in both families, and what is right in linear alone."""
    world = {**WORLD, DFS: (60, 1.2), DFS_MORE: (50, 1.5)}
    trust = {setting: 0.3 + 0.05 * cost for setting, (_, cost) in world.items()}
    trends = {trend.family: trend for trend in evidence.chapter(rows(world, trust.__getitem__), suite()).trends}
    assert set(trends) == {"linear", "dfs"}
    assert trends["linear"].settings == ("linear 2", "linear 4", "linear 8")
    assert trends["linear"].believed.low > 0
    assert trends["linear"].right.low > 0
    assert trends["dfs"].believed.low > 0
    assert trends["dfs"].right.high < 0
    assert [trends[family].rises for family in ("linear", "dfs")] == [True, False]


def test_rank_correlation_of_the_judge_with_the_oracle() -> None:
    assert evidence.correlation([0.1, 0.2, 0.3], [1.0, 5.0, 9.0]) == pytest.approx(1.0)
    assert evidence.correlation([0.1, 0.2, 0.3], [9.0, 5.0, 1.0]) == pytest.approx(-1.0)
    assert evidence.correlation([0.1, 0.2, 0.3], [1.0, 1.0, 1.0]) is None


def test_blame_replaces_one_part_at_a_time(found: Chapter) -> None:
    ceiling = rows({setting: (min(95, right + 15), cost) for setting, (right, cost) in WORLD.items()})
    blamed = blame(rows(), ceiling, found, suite())
    assert blamed is not None
    assert blamed.setting == "dfs 8x"
    assert blamed.judge is not None
    assert blamed.judge.mean == pytest.approx(0.15)
    assert blamed.most_right == "linear 8"
    assert blamed.policy is not None
    assert blamed.policy.mean == pytest.approx(0.04)
    assert (blamed.ceiling, blamed.generator.mean if blamed.generator else 0) == ("linear 8", pytest.approx(0.05))
    assert blamed.hazard == pytest.approx(1 - 0.4 ** (1 / 16))
    alone = blame(rows(), [], found, suite())
    assert alone is not None
    assert (alone.judge, alone.generator, alone.ceiling) == (None, None, None)


def test_a_panel_stands_beside_the_better_of_its_members() -> None:
    def judged_by(label: str, *panel: str) -> Setting:
        return Setting(label=label, policy="linear", budget=40.0, options={"roots": 6}, panel=panel or None)

    both, one, other = judged_by("both", "a", "b"), judged_by("one", "a"), judged_by("other", "b")
    world = {one: (60, 6.0), other: (70, 6.0), both: (75, 6.6), judged_by("all"): (90, 7.0)}
    rows = [row(setting, n, n < right, cost) for setting, (right, cost) in world.items() for n in range(PROMPTS)]
    found = evidence.chapter(rows, suite(settings=list(world)))
    (team,) = found.teamwork
    assert (team.panel, team.best) == ("both", "other")
    assert team.difference.mean == pytest.approx(0.05)
    assert 0 <= team.difference.low < 0.05 < team.difference.high
    assert team.cost.mean == pytest.approx(1.1)
    assert "| both | other | +5.0 [" in page("panels", 16, [(found, None, None)])


def test_only_prompts_that_every_setting_has_count() -> None:
    cut_short = rows()[: 10 * len(WORLD) + 3]
    assert {each.prompt_index for each in evidence.complete(cut_short)} == set(range(10))
    assert evidence.chapter(cut_short, suite()).prompts == 10
    assert evidence.complete([]) == []


def test_without_linear_search_there_is_no_plateau() -> None:
    found = evidence.chapter(rows({SINGLE: (40, 1.0), DFS: (60, 1.2)}), suite())
    assert (found.plateau, found.aims, found.standings) == (None, (), ())


def test_page_and_pictures(found: Chapter, tmp_path: Path) -> None:
    ceiling = evidence.chapter(rows(), suite())
    text = page("digits-long", 16, [(found, ceiling, blame(rows(), rows(), found, suite()))])
    assert "**met** by dfs 8x: 0.30" in text
    assert "**missed** by 0.25" in text
    assert "| dfs 8x | 76% [" in text
    assert "Ceiling: the oracle as judge" in text
    assert "**The aims, which are for 8 units, at this length**" in page("digits-long", 8, [(found, None, None)])
    widths = {line.count("|") for line in text.split("**Aims**")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1, "a table's rows have as many cells as its head"
    draw_costs(found, suite(), tmp_path / "right.png", title="right")
    draw_scores(found, suite(), tmp_path / "judge.png", title="judge")
    lone = evidence.chapter(rows({SINGLE: (40, 1.0)}), suite())
    draw_costs(lone, suite(), tmp_path / "lone.png", title="nothing but the single sample")
    for name in ("right.png", "judge.png", "lone.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_rows_come_back_as_they_were_and_parquet_has_them_flat(tmp_path: Path) -> None:
    first = replace(row(DFS, 3, True, 1.2), search_score=-0.25, held_out={"signals/flicker": 0.9, "other/right": 0.5})
    assert Row.from_json(json.loads(json.dumps(first.as_json()))) == first
    write_parquet([first, row(STOP, 3, False, 2.0)], tmp_path / "rows.parquet", ["panel", "oracle"])
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [each["label"] for each in table] == ["dfs 2x", "linear with stop"]
    assert [each["judge"] for each in table] == ["panel", "oracle"]
    assert [each["held_out/other/right"] for each in table] == [0.5, None]
    assert (table[0]["held_out/signals/flicker"], table[0]["search_score"], table[0]["options"]) == (0.9, -0.25, "{}")


def test_plan_says_what_the_shipped_suite_does() -> None:
    """The pre-registered numbers are those that are run."""
    plan = " ".join((ROOT / "tests" / "evidence" / "PLAN.md").read_text(encoding="utf-8").split())
    shipped = load(SuiteConfig, SHIPPED)
    assert [(each.units, each.prompts) for each in shipped.lengths] == [(8, 200), (16, 100)]
    assert shipped.digits == 2
    for said in (
        f"scans and combinations (`digits.world.prompts`), seed {shipped.seed};",
        f"200 prompts at {shipped.lengths[0].units} units, the first 100 of them at {shipped.lengths[1].units} units",
        f"chosen on prompts of seed {shipped.tuning_seed} alone",
        f"at most the margin, {shipped.margin}, below",
        f"{RESAMPLES} draws, seed 0;",
        f"**Aims**, at {shipped.aims.units} units",
        f"costs at most {shipped.aims.of_plateau} of what the plateau costs",
        f"costs at most {shipped.aims.of_stop} of what linear with stop costs",
    ):
        assert said in plan, said
    roots = [s.options["roots"] for s in shipped.settings if s.family == "linear"]
    assert f"linear with N = {', '.join(map(str, roots))};" in plan
    listed = re.search(r"where ([a-z, ]*) are the tree policies", plan)
    assert listed is not None
    assert re.findall(r"[a-z]+", listed[1].replace(" and ", " ")) == list(shipped.trees)
    assert {s.policy for s in shipped.settings} == {"single", "linear", "tof", "halving", *shipped.trees}
    panel = load(SuiteConfig, SHIPPED.with_name("suite_digits_panel.yaml"))
    assert (panel.seed, panel.tuning_seed, panel.digits) == (shipped.seed, shipped.tuning_seed, shipped.digits)
    assert [(each.units, each.prompts) for each in panel.lengths] == [(16, 100)]


def test_policies_of_the_shipped_suite_are_there_and_have_its_options() -> None:
    for setting in load(SuiteConfig, SHIPPED).settings:
        if setting.policy != "evo":
            validated(policies.find(setting.policy).options, setting.options, str(setting))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"settings": [{"policy": "dfs", "budget": "2x"}, {"policy": "dfs", "budget": 2}]},
            "the label dfs 2x is there twice",
        ),
        ({"lengths": [{"units": 8, "prompts": 1}, {"units": 8, "prompts": 2}]}, "the length 8 is there twice"),
        ({"tuning_seed": 50}, "set them further apart"),
        ({"settings": [{"policy": "dfs", "budget": "0.5x"}]}, "a budget below 1x cannot pay"),
        (
            {"settings": [{"policy": "dfs", "budgets": "2x"}]},
            "unknown key 'settings.0.budgets', did you mean 'budget'?",
        ),
    ],
)
def test_a_suite_that_cannot_be_run_is_told_in_one_sentence(changed: Mapping[str, Any], said: str) -> None:
    facts = suite().model_dump() | changed
    with pytest.raises(ConfigError, match=re.escape(said)):
        validated(SuiteConfig, facts, "suite.yaml")


def test_nothing_measured_is_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        evidence.chapter([], suite())
