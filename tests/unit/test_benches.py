"""The benches measure what they say: the plain implementation gives the same numbers, and every figure is written."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from framegrove.evaluation import bench_sharing, bench_vae, benches
from jobs.bench import app
from jobs.benches import mixture, packs

CPU = torch.device("cpu")


@pytest.mark.parametrize("stage", [0, 2])
def test_the_dense_mask_lets_through_what_packed_attention_does(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_LATENT", (8, 16))
    monkeypatch.setattr(benches, "_HISTORY", 3)
    model = benches._model(CPU)
    packed = model.pack(benches._guided(stage, (5, 9), CPU))
    with torch.no_grad():
        ours, plain = model(packed), model(replace(packed, attention=benches.dense(packed, CPU)))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_padded_step_predicts_what_the_packed_passes_do() -> None:
    plan = packs.plans_of("low-resolution-5s", 1, samples=5, shrunk=2, text_tokens=32)[0]
    model = mixture._model(CPU)
    with torch.no_grad():
        ours = model(model.pack([mixture._sample(plan, i, 32, CPU) for i in range(5)]))
        plain = model(mixture.padded(model, plan, CPU))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_tensors_are_counted_while_they_live() -> None:
    with bench_vae._Counter(torch.nn.Module(), with_host=True) as counter:  # type: ignore[arg-type]
        one = torch.zeros(100)
        two = one + 1
        del one
        three = two.view(10, 10)
        del two
        three = three * 2
    assert counter.most == 2 * 400


def test_memory_of_a_streamed_decode_does_not_grow() -> None:
    size = (48, 48)
    peak, state = bench_vae._counted(torch.float32, size, units=2)
    longer, same = bench_vae._counted(torch.float32, size, units=4)
    whole, _ = bench_vae._counted(torch.float32, size, units=4, at_once=True)
    assert (peak, state) == (longer, same)
    assert peak < whole / 2


def test_figures_are_printed_and_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--only", "jump", "--repeats", "5", "--threads", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (finding,) = json.loads((tmp_path / "bench.json").read_text())
    assert finding["unit"] == "ms"
    assert 0 < finding["ours"] < finding["plain"]
    least, most = finding["ours_range"]
    assert least <= finding["ours"] <= most


def test_times_are_cpu_time_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_TURN", 0.0)  # one call per turn
    turns: list[str] = []

    def sleep() -> None:
        turns.append("sleep")
        time.sleep(0.1)

    def work() -> None:
        turns.append("work")
        began = time.process_time()
        while time.process_time() - began < 0.06:
            pass

    idle, busy = benches.in_turns([sleep, work], 1, CPU)
    assert turns[:4] == ["sleep", "work", "sleep", "work"]
    assert idle.median < 0.05 < busy.median


def test_many_searches_keep_a_pool_busy_that_one_leaves_idle() -> None:
    alone, shared = bench_sharing.loaded(1, 16, 30), bench_sharing.loaded(16, 16, 30)
    assert alone.whole < 0.5
    assert shared.lasting > 0.9
    assert alone.whole < shared.whole <= shared.lasting <= 1
    assert shared.branches > 10 * alone.branches


def test_an_unknown_bench_is_named() -> None:
    result = CliRunner().invoke(app, ["--only", "jump,speed"])
    assert result.exit_code == 1
    assert (
        "unknown bench 'speed' in --only: allowed are jump, transformer, packing, mixture, footage, overhead, faults,"
        in result.stderr
    )
