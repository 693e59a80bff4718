"""tree.html: what is in it, that nothing in it can be taken for markup, and that it stays small."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framegrove.digits import world
from framegrove.evaluation import tree_clips, tree_page
from framegrove.evaluation.report import SearchRecord, Shown
from framegrove.evaluation.tree_clips import SIZES, Size
from framegrove.search.result import Ending, Fate, Span
from framegrove.types import Assessment, Cost, SampleWork, Scored, ScoreWork
from tests.unit.test_report import ANSWERS, node, search_record

NASTY = "</script><script>alert(1)</script><!-- <b>&amp; \u2028 {{SCRIPT}} 'quote' \"7\""


class Elements(HTMLParser):
    """The elements of a page, their attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data


def embedded(page: str) -> dict[str, object]:
    """The search inside a page."""
    return dict(json.loads(Elements(page).texts["script"][0]))


def wide_record(roots: int) -> SearchRecord:
    """A search with many roots that were cut."""
    record = search_record()
    cut = tuple(node((n,), Fate.DROPPED, Assessment.IMAGE, 0.1) for n in range(3, 3 + roots))
    frames = world.clip(seed=3, index=0).frames[:1]
    outcome = dataclasses.replace(record.outcome, nodes=(*record.outcome.nodes, *cut))
    shown = {**record.shown, **{each.path: Shown(frames) for each in cut}}
    return dataclasses.replace(record, outcome=outcome, shown=shown)


def nasty_record() -> SearchRecord:
    """A search whose prompt and questions look like markup."""
    record = search_record()
    scored = Scored(ScoreWork((1,), Assessment.IMAGE), (), answers=((NASTY, 0.25), ("Is it a 3?", 0.75)))
    nodes = tuple(
        dataclasses.replace(each, scored=(scored,)) if each.path == (1,) else each for each in record.outcome.nodes
    )
    request = dataclasses.replace(record.request, prompt=NASTY)
    return dataclasses.replace(record, request=request, outcome=dataclasses.replace(record.outcome, nodes=nodes))


def test_the_page_stands_alone(tmp_path: Path) -> None:
    tree_page.write(search_record(), tmp_path / "tree.html")
    page = (tmp_path / "tree.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert page.startswith("<!doctype html>")
    assert not {"link", "iframe", "object", "embed", "base"} & set(elements.tags)
    assert not {"src", "href", "action"} & {name for name, _ in elements.attributes}
    assert "default-src 'none'" in str(dict(elements.attributes)["content"])
    urls = set(re.findall(r"\w+://[^\s\"']+", page))
    assert urls == {"http://www.w3.org/2000/svg"}, "a name, not an address that is fetched"
    assert "{{" not in page


def test_the_page_has_every_branch_with_its_scores() -> None:
    data = tree_page.data_of(nasty_record())
    branches = {branch["name"]: branch for branch in data["branches"]}
    assert {name: branch["fate"] for name, branch in branches.items()} == {
        "0": "cut", "1": "won", "1.0": "won", "1.0.0": "won", "1.0.0.0": "won", "2": "kept", "2.0": "unused",
    }  # fmt: skip
    assert branches["1.0"]["parent"] == "1"
    assert branches["1"]["parent"] is None
    assert branches["0"]["draft"]
    assert branches["0"]["by"] == "preview"
    (verdict,) = branches["1"]["verdicts"]
    assert (verdict["what"], verdict["score"], verdict["place"], verdict["total"]) == ("image", 0.48, "1/2", 0.7)
    assert verdict["columns"] == [["alignment", 0.6], ["motion", 0.8]]
    assert verdict["answers"] == [["verifier", NASTY, 0.25], ["verifier", "Is it a 3?", 0.75]]
    assert branches["2"]["verdicts"][0]["answers"] == [["verifier", *answer] for answer in ANSWERS]
    assert data["winner"] == "1.0.0.0"
    assert data["notes"] == []


def test_a_prompt_or_a_question_is_never_markup() -> None:
    page = tree_page.page(nasty_record())
    plain = Elements(tree_page.page(search_record()))
    elements = Elements(page)
    assert elements.tags == plain.tags
    assert "<script>alert" not in page
    assert embedded(page)["prompt"] == NASTY
    assert elements.texts["title"] == [f"{NASTY} · search tree"]
    for script in plain.texts["script"][1:]:
        assert "innerHTML" not in script
        assert "insertAdjacentHTML" not in script


def test_clips_are_the_frames_of_the_newest_unit() -> None:
    record = search_record()
    branches = {branch["name"]: branch for branch in tree_page.data_of(record)["branches"]}
    clip = branches["1.0"]["clip"]
    assert (clip["count"], clip["of"], clip["width"], clip["height"]) == (8, 8, 64, 64)
    kind, _, encoded = clip["uri"].partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        strip = np.asarray(picture.convert("RGB")).astype(int)
    wanted = np.concatenate(list(record.shown[(1, 0)].frames), axis=1)
    assert strip.shape == wanted.shape
    assert np.abs(strip - wanted).mean() < 4


def test_large_frames_are_made_smaller() -> None:
    clip = tree_clips.encode(np.zeros((8, 320, 480, 3), np.uint8), Size(64, 4))
    assert (clip.count, clip.of, clip.width, clip.height) == (4, 8, 96, 64)
    tiny = tree_clips.encode(np.zeros((1, 16, 16, 3), np.uint8), Size(64, 4))
    assert (tiny.count, tiny.width, tiny.height) == (1, 16, 16)


def test_a_page_keeps_to_its_limits_and_says_so() -> None:
    record = wide_record(200)
    data = tree_page.data_of(record, cards=50, limit=40_000)
    assert len(data["branches"]) == 50
    names = [branch["name"] for branch in data["branches"]]
    assert {"1", "1.0", "1.0.0", "1.0.0.0", "2"} <= set(names)
    clips = [branch["clip"]["uri"] for branch in data["branches"] if branch["clip"]]
    assert sum(map(len, clips)) <= 40_000
    assert "This page shows 50 of 207 branches" in data["notes"][0]
    whole = tree_page.data_of(record)
    assert len(whole["branches"]) == 207
    assert whole["notes"] == []


def test_clips_shrink_before_any_is_left_out() -> None:
    rng = np.random.default_rng(0)
    noise = {(n,): Shown(rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8)) for n in range(6)}
    order = sorted(noise)
    whole, size = tree_clips.clips_of(noise, order)
    assert (len(whole), size) == (6, SIZES[0])
    smaller, size = tree_clips.clips_of(noise, order, limit=sum(len(clip.uri) for clip in whole.values()) // 3)
    assert len(smaller) == 6
    assert size.frames < 8 or size.height < 64
    few, size = tree_clips.clips_of(noise, order, limit=3000)
    assert size == SIZES[-1]
    assert list(few) == order[: len(few)], "those that matter most keep theirs"
    assert sum(len(clip.uri) for clip in few.values()) <= 3000


def test_left_out_branches_are_counted_where_they_would_stand() -> None:
    record = search_record()
    more = tuple(node((2, n), Fate.DROPPED, Assessment.MOTION, 0.1) for n in range(1, 5))
    shown = {**record.shown, **{each.path: record.shown[(2, 0)] for each in more}}
    outcome = dataclasses.replace(record.outcome, nodes=(*record.outcome.nodes, *more))
    data = tree_page.data_of(dataclasses.replace(record, outcome=outcome, shown=shown), cards=5)
    assert {branch["name"]: branch["left_out"] for branch in data["branches"]}["2"] == "1 unused, 4 cut"


def test_the_timeline_tells_bets_from_losses_and_rows_do_not_overlap() -> None:
    record = search_record()
    early = Span(SampleWork(((1,),), 0, 2), "generator 1", 4.0, 5.0, Ending.DONE, Cost(), speculative=True)
    failed = Span(SampleWork(((1,),), 0, 2), "generator 1", 5.0, 6.0, Ending.FAILED, Cost())
    beside = Span(ScoreWork((1,), Assessment.IMAGE), "verifier", 0.9, 2.0, Ending.DONE, Cost())
    outcome = dataclasses.replace(record.outcome, spans=(*record.outcome.spans, early, failed, beside))
    data = tree_page.data_of(dataclasses.replace(record, outcome=outcome))
    kinds = {(data["lanes"][lane]["name"], start): kind for lane, _, start, _, kind, _ in data["bars"]}
    assert kinds == {
        ("generator 1", 0.0): "sampling", ("generator 2", 0.5): "lost", ("generator 1", 4.0): "early",
        ("generator 1", 5.0): "failed", ("verifier", 0.8): "judging", ("verifier", 0.9): "judging",
        ("verifier", 1.8): "judging",
    }  # fmt: skip
    assert {lane["name"]: lane["rows"] for lane in data["lanes"]} == {"generator 1": 1, "generator 2": 1, "verifier": 2}
    for one in data["bars"]:
        for other in data["bars"]:
            assert one is other or one[:2] != other[:2] or one[3] <= other[2] or other[3] <= one[2]


def test_prices_and_costs_are_those_of_the_report() -> None:
    record = search_record()
    data = tree_page.data_of(record)
    assert [price["name"] for price in data["prices"]] == ["search", "one sample"]
    assert data["prices"][0]["total"] == pytest.approx(record.price.total)
    costs = {row[0]: row[1:] for row in data["costs"]}
    assert costs["generators, needed"] == [100, 3000, 0, 2.0]
    assert costs["all together"][0] == 118


def test_a_search_from_a_journal_has_no_timeline() -> None:
    record = search_record()
    nodes = tuple(dataclasses.replace(each, start=None, end=None) for each in record.outcome.nodes)
    outcome = dataclasses.replace(record.outcome, spans=(), nodes=nodes)
    data = tree_page.data_of(dataclasses.replace(record, outcome=outcome))
    assert data["lanes"] == data["bars"] == []
    assert data["branches"][0]["start"] is None
