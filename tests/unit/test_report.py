from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framegrove.digits import world
from framegrove.evaluation import report, tree_layout, tree_picture
from framegrove.evaluation.report import SearchRecord, Shown, warnings_of
from framegrove.search.result import CostBreakdown, Ending, Fate, Node, SearchResult, Span
from framegrove.search.tree import Judgement, Scores
from framegrove.types import Assessment, Cost, GenerationRequest, SampleWork, Scored, ScoreWork
from jobs.writing import report_line

REQUEST = GenerationRequest("a red 3 moves left and right", seed=5, units=4, height=64, width=64, policy="tof")
ANSWERS = (("Is there a red 3?", 0.75), ("Does it move?", 0.8))
PANEL: Scores = (("alignment", 0.6), ("motion", 0.8))
LAST = ScoreWork((1, 0, 0, 0), Assessment.FINAL)


def node(path: tuple[int, ...], fate: Fate, assessment: Assessment | None = None, total: float | None = None) -> Node:
    judged = (Judgement(path, assessment, 0.5, total),) if assessment and total else ()
    scores, chances = (((assessment, PANEL),), (0.48,)) if assessment else ((), ())
    said = (Scored(ScoreWork(path, assessment), PANEL, answers=ANSWERS),) if assessment else ()
    return Node(path, fate, assessment if fate is Fate.DROPPED else None, scores, chances, judged, 0.0, 1.0, said)


def search_record() -> SearchRecord:
    """A small finished search with every fate a branch can have."""
    frames = world.clip(seed=3, index=0).frames
    units = [frames[:1], *(frames[1 + 8 * i : 9 + 8 * i] for i in range(3))]
    nodes = (
        node((0,), Fate.DROPPED, Assessment.POTENTIAL, 0.2),
        node((1,), Fate.WON, Assessment.IMAGE, 0.7),
        node((1, 0), Fate.WON, Assessment.MOTION, 1.4),
        node((1, 0, 0), Fate.WON, Assessment.MOTION, 1.9),
        node((1, 0, 0, 0), Fate.WON, Assessment.FINAL, 2.6),
        node((2,), Fate.KEPT, Assessment.IMAGE, 0.4),
        node((2, 0), Fate.SPECULATIVE),
    )
    sampled, early, scored = SampleWork(((1,),), 0, 2), SampleWork(((2, 0),), 0, 2), ScoreWork((1,), Assessment.IMAGE)
    spans = (
        Span(sampled, "generator 1", 0.0, 1.0, Ending.DONE, Cost(30, 1000, 1.0)),
        Span(early, "generator 2", 0.5, 2.0, Ending.CANCELLED, Cost(10, 300, 1.5)),
        Span(scored, "verifier", 0.8, 1.2, Ending.DONE, Cost(4, 30, 0.4)),
        Span(LAST, "verifier", 1.8, 3.0, Ending.DONE, Cost(4, 30, 0.4)),
    )
    outcome = SearchResult(
        winner=(1, 0, 0, 0),
        nodes=nodes,
        certain=frozenset({sampled, scored, LAST}),
        sampling=CostBreakdown(certain=Cost(100, 3000, 2.0), at_stake=Cost(), wasted=Cost(10, 300, 0.2)),
        verifiers={"verifier": CostBreakdown(certain=Cost(8, 60, 0.5), at_stake=Cost(), wasted=Cost())},
        spans=spans,
        handles={},
        seconds=3.0,
        restored=0,
    )
    shown = {each.path: Shown(units[len(each.path) - 1], draft=each.path == (0,)) for each in nodes}
    return SearchRecord(REQUEST, 8.0, outcome, shown, Cost(60, 1000, 1.0))


def test_a_search_that_judged_nothing_says_so() -> None:
    record = search_record()
    assert not [each for each in warnings_of(record) if "nothing was judged" in each]
    nodes = tuple(dataclasses.replace(each, scores=()) for each in record.outcome.nodes)
    blind = dataclasses.replace(record, outcome=dataclasses.replace(record.outcome, nodes=nodes))
    (warning,) = warnings_of(blind)
    assert warning.startswith("nothing was judged, since the budget pays for one video")
    assert warnings_of(dataclasses.replace(blind, outcome=dataclasses.replace(blind.outcome, verifiers={}))) == [], (
        "of a policy without judges"
    )


def test_winner_is_put_together_from_its_units() -> None:
    record = search_record()
    assert np.array_equal(record.frames, world.clip(seed=3, index=0).frames)
    assert record.scores == {"alignment": 0.6, "motion": 0.8}


def test_report_adds_up_and_is_json() -> None:
    said = json.loads(json.dumps(report.report_json(search_record())))
    cost = said["cost"]
    parts = ("generator_certain", "generator_wasted", "verifier_certain", "verifier_wasted")
    for key in ("nfe", "flops", "seconds"):
        assert sum(cost[part][key] for part in parts) == pytest.approx(cost["total"][key])
    price = said["price"]["search"]
    assert sum(price[part] for part in ("sampling", "wasted", "decoding", "judging")) == pytest.approx(price["total"])
    assert price["total"] == 3.36
    assert said["price"]["single_sample"]["total"] == 1.0
    assert said["winner"]["path"] == [1, 0, 0, 0]
    assert [b["path"] for b in said["branches"]][:3] == [[0], [1], [2]]
    assert [stretch["needed"] for stretch in said["timeline"]] == [True, False, True, True]
    assert said["size"] == "64x64"
    assert said["branches"][1]["score"] == {"image": 0.48}
    assert said["branches"][1]["answers"] == {"image": {"verifier": dict(ANSWERS)}}
    assert next(b for b in said["branches"] if b["path"] == [2, 0])["answers"] == {}


def test_one_price_is_said_everywhere(tmp_path: Path) -> None:
    """A sample without a search costs 1x, with its decoding; the console says what the report says."""
    record = dataclasses.replace(search_record(), single=Cost(60, 1000, 1.0, decoding=320))
    assert str(record.single_price) == "1.00x (sampling 0.76, decoding 0.24, judging 0.00, wasted 0.00)"
    said = report.report_json(record)["price"]["search"]
    assert report_line(record).startswith(f"7 branches in 3.0 s at a price of {said['total']:.2f}x (sampling 2.27, ")


@pytest.mark.parametrize(("budget", "told"), [(3.0, False), (3.2, True), (4.0, False)])
def test_waste_beyond_the_budget_is_explained(budget: float, told: bool) -> None:
    """The search needed 3.06x and wasted .30x."""
    record = dataclasses.replace(search_record(), request=dataclasses.replace(REQUEST, budget=budget))
    line = "; the budget of 3.2x bounds all but what was wasted"
    assert (line in report_line(record)) == told


def test_a_winner_that_its_judges_doubt_is_a_warning() -> None:
    record = search_record()
    assert report.report_json(record)["warnings"] == []
    doubted = tuple(
        dataclasses.replace(
            each, scores=((Assessment.FINAL, (("alignment", 0.02), ("motion", 0.09))),), chances=(0.002,)
        )
        for each in record.outcome.nodes
    )
    record = dataclasses.replace(record, outcome=dataclasses.replace(record.outcome, nodes=doubted))
    (warning,) = report.report_json(record)["warnings"]
    assert "alignment 0.02, motion 0.09" in warning


def test_places_are_of_one_round_only() -> None:
    places = tree_layout.places_of(search_record().outcome.nodes)
    assert places[(1,), Assessment.IMAGE] == "1/2"
    assert places[(2,), Assessment.IMAGE] == "2/2"
    assert places[(0,), Assessment.POTENTIAL] == "1/1"
    assert places[(1, 0), Assessment.MOTION] == places[(1, 0, 0), Assessment.MOTION] == "1/1"


def test_the_sample_without_a_search_is_found_in_the_tree_or_given() -> None:
    record = search_record()
    assert record.single_frames is None
    shown = {(0,) * n: Shown(record.shown[(1, 0, 0, 0)[:n]].frames[::-1]) for n in range(1, 5)}
    record = dataclasses.replace(record, shown={**record.shown, **shown})
    assert record.single_frames is not None
    assert record.single_frames.shape == record.frames.shape


def test_a_slide_is_16_to_9(tmp_path: Path) -> None:
    record = search_record()
    tree_picture.draw_slide(record, tmp_path / "slide.png", record.frames[::-1])
    with Image.open(tmp_path / "slide.png") as picture:
        assert picture.size == (1920, 1080)


def test_a_verifier_that_answers_for_many_at_a_time_is_busy_once() -> None:
    work = ScoreWork((1,), Assessment.IMAGE)
    stretches = ((0.0, 2.0), (0.5, 1.0), (1.0, 3.0), (4.0, 5.0))
    spans = [Span(work, "verifier", start, end, Ending.DONE, Cost()) for start, end in stretches]
    assert report.busy_seconds(spans) == 4.0
    assert report.busy_seconds([*spans, Span(work, "another", 0.0, 1.0, Ending.DONE, Cost())]) == 5.0


def test_a_branch_that_was_lost_after_its_cut_has_no_card() -> None:
    record = search_record()
    shown = {path: each for path, each in record.shown.items() if path != (0,)}
    assert set(tree_layout.lay_out(dataclasses.replace(record, shown=shown))) == set(record.shown) - {(0,)}


def test_picture_shows_every_fate(tmp_path: Path) -> None:
    tree_picture.draw(search_record(), tmp_path / "tree.png")
    with Image.open(tmp_path / "tree.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in tree_picture.FATE_COLOUR.values():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(1) <= 2).sum() > 50


def a_large_tree(roots: int) -> SearchRecord:
    """The small search with many more beginnings that were cut, each with a child."""
    record = search_record()
    paths = [path for n in range(3, 3 + roots) for path in ((n,), (n, 0))]
    more = tuple(node(path, Fate.DROPPED, Assessment.IMAGE, 0.1) for path in paths)
    shown = {path: record.shown[(1, 0, 0, 0)[: len(path)]] for path in paths}
    outcome = dataclasses.replace(record.outcome, nodes=(*record.outcome.nodes, *more))
    return dataclasses.replace(record, outcome=outcome, shown={**record.shown, **shown})


def test_a_large_tree_is_drawn_in_so_many_rows_that_they_can_be_read_on_a_screen(tmp_path: Path) -> None:
    sizes = set()
    for roots in (40, 100):
        record = a_large_tree(roots)
        tree_picture.draw(record, tmp_path / "tree.png")
        with Image.open(tmp_path / "tree.png") as picture:
            sizes.add(picture.size)
        chosen = tree_layout.in_rows(tree_layout.by_interest(record), tree_picture.ROWS)
        assert tree_layout.rows_of(chosen) == tree_picture.ROWS
        assert {(1, 0, 0, 0)[:n] for n in range(1, 5)} | {(2,), (3,), (3, 0)} <= chosen
        hidden = tree_layout.left_out(record.outcome.nodes, chosen)
        assert sum(map(len, hidden.values())) + len(chosen) == len(record.outcome.nodes)
    ((width, height),) = sizes
    assert width == 1920
    assert height < 1600


def test_columns_are_those_of_the_cards() -> None:
    record, look = search_record(), tree_layout.Look(strip=2, text=0.4, least=2.0)
    cards = tree_layout.lay_out(record, look)
    lefts = tree_layout.columns(record.request, look)
    assert {card.x for card in cards.values()} == set(lefts[:-1])
    assert max(card.x + card.width for card in cards.values()) == pytest.approx(lefts[-1])
    assert cards[(0,)].width == 2.0


def test_the_sample_without_a_search_is_drawn_where_it_is_another_video() -> None:
    record = search_record()
    assert list(tree_picture._videos(record, record.frames)) == ["winner, which is the sample without a search"]
    assert list(tree_picture._videos(record, record.frames[::-1])) == ["winner", "sample without a search"]
    assert list(tree_picture._videos(record, None)) == ["winner"]


def test_picture_of_an_unsearched_sample(tmp_path: Path) -> None:
    record = search_record()
    won = tuple(each for each in record.outcome.nodes if each.fate is Fate.WON)
    outcome = dataclasses.replace(record.outcome, nodes=won, spans=())
    tree_picture.draw(dataclasses.replace(record, outcome=outcome), tmp_path / "tree.png")
    with Image.open(tmp_path / "tree.png") as picture:
        assert picture.width > 1000
