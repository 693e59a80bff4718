from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from framegrove.config.suite import Setting
from framegrove.errors import UserError
from framegrove.evaluation import results
from framegrove.evaluation.results import Row, open_ledger

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
    assert found[1].decided


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
    assert second.has(0, LINEAR)
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
