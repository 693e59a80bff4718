"""What ``jobs.generate --watch`` draws, from snapshots, on a console that keeps it."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Callable

import pytest
from rich.console import Console

from framegrove.evaluation.outlook import Lookout, Outlook
from framegrove.evaluation.report import Price
from framegrove.search.commands import Attempt
from framegrove.search.result import CostBreakdown
from framegrove.search.snapshot import BranchNow, PoolNow, Snapshot, Standing
from framegrove.types import Assessment, Cost, GenerationRequest, Path, SampleWork, ScoreWork
from jobs import live_tree
from jobs.console import Display
from tests.fakes import FREE

REQUEST = GenerationRequest("a [bold]red[/bold] 3", seed=5, units=4, height=64, width=64, policy="tof")
OUTLOOK = Outlook(Price(sampling=1.5, wasted=0.25, decoding=0.5, judging=0.125), known=0.8, at_most=2.1)
NOTHING = CostBreakdown(Cost(), Cost(), Cost())


def branch(path: Path, standing: Standing, score: float | None = None, attempt: Attempt | None = None) -> BranchNow:
    scores = ((Assessment.MOTION, (("alignment", score),)),) if score is not None else ()
    chances = (score,) if score is not None else ()
    return BranchNow(path, standing, False, scores, chances, (attempt,) if attempt else ())


SAMPLING = Attempt(3, SampleWork(((1, 0), (1, 1)), 0, 2), "generator 1", 20.0, speculative=True)
JUDGING = Attempt(4, ScoreWork((1,), Assessment.IMAGE), "verifier", 28.0)
BRANCHES = (
    branch((0,), Standing.CUT, 0.25),
    branch((0, 0), Standing.CUT),
    branch((1,), Standing.KEPT, 0.75),
    branch((1, 0), Standing.RUNNING, attempt=SAMPLING),
    branch((1, 1), Standing.RUNNING, attempt=SAMPLING),
    branch((2,), Standing.JUDGED, 0.5),
)


def snapshot(branches: tuple[BranchNow, ...] = BRANCHES, generators: int = 2) -> Snapshot:
    pools = {
        "generators": PoolNow(tuple(f"generator {n}" for n in range(1, generators + 1)), 5, 3, NOTHING),
        "judge": PoolNow(("verifier",), 0, 2, NOTHING),
    }
    return Snapshot(30.0, branches, pools, (SAMPLING, JUDGING), (), (SAMPLING.work,), 9, 20, None)


def drawn(shown: Snapshot, lines: int = 40, width: int = 140) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    console.print(live_tree.draw(shown, OUTLOOK, REQUEST, lines))
    return console.export_text().rstrip().splitlines()


def test_costs_and_counts_come_first() -> None:
    prompt, title, cost, parts, counts, *_ = drawn(snapshot())
    assert prompt == "a [bold]red[/bold] 3"
    assert title == "30 s, 8 of at most 20 works done  tof, budget 4x, seed 5"
    assert cost == "cost 2.38x, to go 0.80x certain, about 2.10x at most"
    assert parts == "  sampling 1.50, decoding 0.50, judging 0.12, speculative or wasted 0.25"
    assert counts == "6 branches:  2 running  1 kept  1 judged  2 cut"


def test_long_searches_tell_minutes() -> None:
    title = drawn(dataclasses.replace(snapshot(), seconds=3723.9))[1]
    assert title.startswith("62 min 3 s, ")


def test_workers_say_what_they_do() -> None:
    said = "\n".join(drawn(snapshot()))
    assert "generators  1 of 2 at work, 17% busy so far, 5 works to come" in said
    assert "generator 1  33% busy  sampling 1.0 1.1 (10 s, speculative)" in said
    assert "generator 2  0% busy  idle: what is to come waits for other works" in said
    assert "verifier judge  1 of 1 at work" in said
    assert "judging 1 (2 s)" in said


def test_many_workers_are_one_line() -> None:
    said = "\n".join(drawn(snapshot(generators=64)))
    assert "generators  1 of 64 at work, 1% busy so far" in said
    assert "generator 2 " not in said


def test_the_tree_has_every_branch_with_fate_and_scores() -> None:
    said = [line.strip("├└─│ ") for line in drawn(snapshot())]
    assert "0  cut  motion: alignment 0.25" in said
    assert "1  kept  motion: alignment 0.75" in said
    assert "1.1  running  sampled by generator 1 for 10 s" in said
    assert "2  judged  motion: alignment 0.50" in said


def test_a_large_tree_shows_what_is_of_interest_and_counts_the_rest() -> None:
    roots = tuple(branch((n,), Standing.CUT, 0.1) for n in range(5, 105))
    below = tuple(branch((1, n), Standing.CUT, 0.1) for n in range(2, 52))
    shown = snapshot(tuple(sorted((*BRANCHES, *roots, *below), key=lambda each: each.path)))
    lines = drawn(shown, lines=18)
    assert len(lines) == 18
    said = "\n".join(lines)
    assert "1.0  running" in said
    assert "1.1  running" in said
    chosen = live_tree.choose(shown.branches, 7)
    assert len(chosen.shown) == 7
    hidden = sum(sum(counts.values()) for counts in chosen.hidden.values())
    assert hidden + 7 == len(shown.branches)
    assert f"+ {chosen.hidden[(1,)][Standing.CUT]} cut" in said
    assert f"and {chosen.hidden[()][Standing.CUT]} cut" in said


def test_ancestors_of_a_shown_branch_are_shown() -> None:
    deep = [*(branch((7,) * n, Standing.CUT) for n in range(1, 6)), branch((7,) * 6, Standing.RUNNING)]
    chosen = live_tree.choose([*BRANCHES, *deep], 6)
    assert set(chosen.shown) == {each.path for each in deep}, "the deepest branch at work, and all that it grew from"
    assert chosen.hidden[()] == {Standing.RUNNING: 2, Standing.KEPT: 1, Standing.JUDGED: 1, Standing.CUT: 2}


def test_a_tree_under_a_given_unit_has_its_roots_below_nothing() -> None:
    said = "\n".join(drawn(snapshot((branch((0, 2), Standing.RUNNING), branch((0, 2, 1), Standing.WAITING)))))
    assert "0.2  running" in said
    assert "0.2.1  waiting" in said


def test_a_deep_tree_fits_on_a_narrow_terminal() -> None:
    """Sixteen units, and a sibling at two of them: only what has siblings is indented."""
    chain = [branch((0,) * n, Standing.KEPT, 0.5) for n in range(1, 17)]
    siblings = [branch((0, 1), Standing.CUT, 0.1), branch((0, 0, 0, 1), Standing.CUT, 0.1)]
    tree = drawn(snapshot(tuple(sorted((*chain, *siblings), key=lambda each: each.path))), width=80)[-18:]
    assert not any(line.endswith("…") for line in tree)
    depths = [line.index("0") for line in tree]
    assert depths == sorted(depths[:-1]) + depths[-1:]
    assert len(set(depths)) == 3


def test_lines_are_cut_off_and_not_broken() -> None:
    lines = drawn(snapshot(), width=40)
    assert len(lines) == len(drawn(snapshot()))
    assert max(map(len, lines)) <= 40


async def nothing(path: Path) -> None:
    """No frames are shown in a terminal."""


class Search:
    """Something to look at, which counts how often it was looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> Snapshot:
        self.looks += 1
        return snapshot()

    async def run(self, begin: Callable[[Lookout], None], seconds: float) -> None:
        begin(Lookout(self.look, Cost(flops=1000), FREE, nothing))
        await asyncio.sleep(seconds)


def watch(display: Display, seconds: float) -> int:
    search = Search()

    async def main() -> None:
        async with live_tree.watching(display, REQUEST) as begin:
            await search.run(begin, seconds)

    asyncio.run(main())
    return search.looks


def test_a_search_is_drawn_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    with Display() as display:
        display.begin("searching")
        assert 2 <= watch(display, 0.6) <= 5
        display.begin("drawing the tree")
    assert "1.1  " in capsys.readouterr().out


def test_without_a_terminal_it_says_so_and_never_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.begin("searching")
        assert watch(display, 0.01) == 0
    assert "--watch draws on a terminal, and this is none: progress comes as lines" in capsys.readouterr().out


def test_a_failure_to_draw_is_logged_and_ends_no_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")

    def broken(*given: object) -> None:
        raise RuntimeError("no drawing")

    monkeypatch.setattr(live_tree, "draw", broken)
    with Display() as display:
        display.begin("searching")
        assert watch(display, 0.05) == 1
    assert "the tree is not drawn any more" in caplog.text
    assert "no drawing" in caplog.text
