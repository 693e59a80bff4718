from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.evaluation import results
from framegrove.evaluation.results import Row, Sample, open_ledger, read_ledger

SINGLE, LINEAR, TOF = Setting(policy="single"), Setting(policy="linear", budget=4.0), Setting(policy="tof", budget=4.0)


def row(index: int, setting: Setting, right: bool) -> Row:
    return Row(
        prompt_index=index,
        prompt="a red 3 moves left and right",
        objects=1 + index % 2,
        setting=setting,
        units=4,
        seed=index,
        oracle_score=1.0 if right else 0.5,
        fully_right=right,
        verifier_score=0.5,
        nfe=120,
        generator_flops=int(1000 * setting.budget),
        wasted_flops=0 if setting == SINGLE else 100,
        decoding_flops=0,
        verifier_flops=0 if setting == SINGLE else 50,
        single_flops=1000,
        branches=4,
        seconds=1.0,
    )


ROWS = [
    row(index, setting, right)
    for index in range(12)
    for setting, right in ((SINGLE, index < 4), (LINEAR, index < 6), (TOF, index < 10))
]


def test_every_search_is_held_against_the_single_sample_and_tof_against_linear() -> None:
    found = results.comparisons(ROWS, results.METRICS["fully right"])
    assert [(each.left, each.right) for each in found] == [
        ("linear 4x", "single"),
        ("tof 4x", "single"),
        ("tof 4x", "linear 4x"),
    ]
    assert [round(each.difference.mean, 3) for each in found] == [0.167, 0.5, 0.333]
    assert found[1].difference.low > 0


def test_prices_count_what_was_wasted_and_the_verifier() -> None:
    drawn = results.curves(ROWS, results.METRICS["fully right"])
    assert [point.cost for point in drawn["tof"]] == pytest.approx([1.0, 4.15])
    assert [point.label for point in drawn["linear"]] == ["1x", "4x"]
    price = results.mean_price([each for each in ROWS if each.setting == TOF])
    assert (price.sampling, price.wasted, price.judging) == pytest.approx((4.0, 0.1, 0.05))


def test_findings_are_json_and_split_by_objects() -> None:
    found = json.loads(json.dumps(results.findings(ROWS)))
    assert set(found) == {"all", "1 object", "2 objects"}
    assert found["all"]["fully right"]["means"]["single"]["mean"] == pytest.approx(1 / 3)


def test_ledger_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first = open_ledger(path, {"model": "m"})
    first.add(ROWS[0])
    first.add(ROWS[1])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"prompt_index": 2, "pro')  # killed while writing
    second = open_ledger(path, {"model": "m"})
    assert second.rows == ROWS[:2]
    assert second.has(0, (LINEAR, 0))
    assert not second.has(0, TOF)
    second.add(ROWS[2])
    assert open_ledger(path, {"model": "m"}).rows == ROWS[:3]
    with pytest.raises(UserError, match=r"another evaluation, its model is 'm' and here it is 'n'"):
        open_ledger(path, {"model": "n"})


def test_parquet_has_every_row(tmp_path: Path) -> None:
    results.write_parquet(ROWS, tmp_path / "results.parquet")
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.num_rows == len(ROWS)
    assert table.column("price").to_pylist()[2] == pytest.approx(4.15)


def test_takes_of_a_prompt_are_one_prompt() -> None:
    """Their mean is what is drawn: more takes of the same prompts make no interval of prompts narrower."""
    once = [each for each in ROWS if each.setting == LINEAR]
    twice = [replace(each, take=take) for each in once for take in range(2)]
    metric = results.METRICS["fully right"]
    assert results.summary(twice, metric) == results.summary(once, metric)
    (alone,) = results.comparisons([each for each in ROWS if each.setting != TOF], metric)
    assert alone.prompts == 12
    mixed = [replace(each, take=1, fully_right=not each.fully_right) for each in once]
    assert results.summary([*once, *mixed], metric).mean == 0.5


def test_every_judge_is_compared_and_the_oracle_where_it_knows() -> None:
    apart = {"one/looks": 0.25, "one/moves": 0.75, "other/all": 0.125}
    known = replace(ROWS[0], held_out=apart)
    assert known.judgements() == {"oracle": 1.0, "panel": 0.5, "one": 0.5, "other": 0.125}
    assert list(results.metrics_of([known])) == ["oracle score", "fully right", "verifier score", "one", "other"]
    free = sample(0, SINGLE, apart)
    assert list(results.metrics_of([free])) == ["verifier score", "one", "other"]
    assert results.summary([free], results.metrics_of([free])["other"]).mean == 0.125


def sample(index: int, setting: Setting, held_out: dict[str, float]) -> Sample:
    own = {name: value for name, value in vars(row(index, setting, True)).items() if name in SHARED}
    return Sample(**{**own, "held_out": held_out, "dimensions": ("color", "scene")})


SHARED = {part.name for part in fields(Sample)}


def test_rows_of_any_prompts_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    ledger = open_ledger(path, {"model": "m"})
    some = [replace(sample(0, SINGLE, {"one/all": 0.5}), video="videos/single/a bird-0.mp4"), ROWS[0]]
    for each in some:
        ledger.add(replace(each, take=1))
    _, rows = read_ledger(path)
    assert rows == [replace(each, take=1) for each in some]
    assert [type(each) for each in rows] == [Sample, Row]
    assert open_ledger(path, {"model": "m"}).has(0, (SINGLE, 1))
    assert set(results.findings(rows[:1])) == {"all", "color", "scene"}


def test_results_of_another_version_are_told_in_a_sentence(tmp_path: Path) -> None:
    for name, text in (("old", '{"model": "m", "rows": 1}\n'), ("none", "[]\n")):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UserError, match="holds no results of this version: remove the file, or choose another"):
            open_ledger(path, {"model": "m"})


def test_damaged_results_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "torn").write_text("mine\n")
    with pytest.raises(UserError, match="torn is damaged"):
        open_ledger(tmp_path / "torn", {"model": "m"})
    path = tmp_path / "results.jsonl"
    open_ledger(path, {"model": "m"})
    path.write_text(path.read_text() + '{"a": 1}\n')
    with pytest.raises(UserError, match=r"results\.jsonl is damaged"):
        read_ledger(path)


def test_searches_that_were_interrupted_say_nothing_of_time() -> None:
    slow = replace(ROWS[0], seconds=100.0, generators_busy=0.1, resumed=True)
    usual = replace(ROWS[0], seconds=2.0, generators_busy=0.9)
    assert results.timed([slow, usual]) == [usual]
    assert results.mean_load([slow, usual])[0] == 0.9
    assert results.timed([slow]) == [slow]
