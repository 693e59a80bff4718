"""The study: which pairs are shown, how choices are kept, what they say, and that no name reaches a browser."""

from __future__ import annotations

import csv
import json
import math
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from framegrove.errors import UserError
from framegrove.evaluation.human_pairs import read_pairs
from framegrove.evaluation.results import open_ledger
from framegrove.evaluation.user_study import QUESTIONS, Choice, Pair, is_swapped, next_pair, pairs_of, verdicts
from framegrove.evaluation.user_study_store import FILE, StudyStore
from framegrove.evaluation.user_study_web import build_study
from framegrove.media.writing import encode_mp4
from jobs import evaluate
from jobs.console import Display
from jobs.evaluations.user_study import _told as told
from tests.readme import ROOT
from tests.unit.test_results import LINEAR, ROWS, SINGLE, TOF, row

ANSWERS = {"aesthetics": "left", "motion": "right", "alignment": "tie"}


def write_study(folder: Path, prompts: int = 2) -> Path:
    """An evaluation's folder: rows of three settings, with their videos."""
    ledger = open_ledger(folder / "results.jsonl", {"model": "m"})
    for prompt in range(prompts):
        for shade, setting in enumerate((SINGLE, LINEAR, TOF)):
            video = Path("videos", str(setting), f"000{prompt}.mp4")
            (folder / video).parent.mkdir(parents=True, exist_ok=True)
            frames = np.full((9, 32, 32, 3), 60 * shade + prompt, np.uint8)
            (folder / video).write_bytes(encode_mp4(frames, 8))
            ledger.add(replace(row(prompt, setting, True), video=str(video)))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture
def pairs(folder: Path) -> list[Pair]:
    return pairs_of(open_ledger(folder / "results.jsonl", {"model": "m"}).rows, folder)


def test_every_two_settings_of_a_prompt_are_a_pair(folder: Path, pairs: list[Pair]) -> None:
    assert len(pairs) == 2 * 3
    assert {(pair.one, pair.other) for pair in pairs} == {
        ("linear 4x", "single"),
        ("linear 4x", "tof 4x"),
        ("single", "tof 4x"),
    }
    (folder / "videos" / "single" / "0000.mp4").unlink()
    assert len(pairs_of(open_ledger(folder / "results.jsonl", {"model": "m"}).rows, folder)) == 3 + 1
    with pytest.raises(UserError, match="has no two videos of one prompt to choose between"):
        pairs_of(ROWS, folder)  # whose videos were not kept


def test_people_are_shown_what_the_fewest_have_answered(pairs: list[Pair]) -> None:
    answered: dict[Any, set[str]] = {}
    for person in ("ann", "bob"):
        seen = []
        while (pair := next_pair(person, pairs, answered)) is not None:
            assert pair == next_pair(person, pairs, answered), "asking again changes nothing"
            seen.append(pair.key)
            answered.setdefault(pair.key, set()).add(person)
        assert sorted(seen) == sorted(pair.key for pair in pairs)
    half = {pair.key: {"ann"} for pair in pairs[:3]}
    assert next_pair("cid", pairs, half) in pairs[3:]


def test_sides_are_swapped_half_of_the_time(pairs: list[Pair]) -> None:
    swapped = [is_swapped(f"person {n}", pair) for n in range(200) for pair in pairs]
    assert 0.45 < np.mean(swapped) < 0.55


def choice(person: str, pair: Pair, better: Any, question: str = "motion") -> Choice:
    return Choice(person, pair.key, question, better, "one")


def test_a_choice_is_kept_once(tmp_path: Path, pairs: list[Pair]) -> None:
    store = StudyStore(tmp_path / "x.sqlite", {"model": "m"})
    first = [choice("ann", pairs[0], "one", question) for question in QUESTIONS]
    assert store.add(first) == 3
    assert store.add([replace(each, better="other") for each in first]) == 0, "what was said first stays"
    assert store.add([choice("bob", pairs[0], "tie")]) == 1
    assert store.choices() == [*first, choice("bob", pairs[0], "tie")]
    assert store.answered() == {pairs[0].key: {"ann", "bob"}}
    again = StudyStore(tmp_path / "x.sqlite", {"model": "m"})
    assert again.choices() == store.choices()
    assert again.secret == store.secret
    for each in (store, again):
        each.close()


def test_many_people_at_the_same_time(tmp_path: Path, pairs: list[Pair]) -> None:
    store = StudyStore(tmp_path / "x.sqlite", {"model": "m"})

    def choose(person: str) -> None:
        for pair in pairs:
            for _ in range(2):  # a browser may send a thing twice
                store.add(choice(person, pair, "one", question) for question in QUESTIONS)

    threads = [threading.Thread(target=choose, args=(f"person {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.choices()) == 6 * len(pairs) * 3
    store.close()


def test_a_file_of_another_study_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    StudyStore(path, {"model": "m"}).close()
    with pytest.raises(UserError, match="has choices between other videos: move it away"):
        StudyStore(path, {"model": "other"})
    with sqlite3.connect(path) as connection:
        connection.execute("update facts set value = '9' where name = 'version'")
    with pytest.raises(UserError, match="is of another version of Framegrove"):
        StudyStore(path, {"model": "m"})
    path.write_bytes(b"no database, but long enough to be taken for one by its name" * 20)
    with pytest.raises(UserError, match="cannot be used"):
        StudyStore(path, {"model": "m"})


def test_strengths_are_those_of_bradley_and_terry(pairs: list[Pair]) -> None:
    """Of 100 choices, 73 for one: log-odds of 1 apart, but for the prior."""
    pair = pairs[0]
    said = [choice(f"person {n}", pair, "one" if n < 73 else "other") for n in range(100)]
    (found,) = verdicts(said)
    assert (found.question, found.choices, found.people, found.prompts) == ("motion", 100, 100, 1)
    best, worst = found.standings
    assert (best.setting, best.won, best.tied, best.lost) == (pair.one, 73, 0, 27)
    assert (worst.won, worst.lost) == (27, 73)
    assert best.strength.mean - worst.strength.mean == pytest.approx(math.log(73 / 27), abs=0.02)
    assert best.strength.low < best.strength.mean < best.strength.high
    assert worst.strength.high < 0 < best.strength.low
    assert found.left == 0.73


def test_a_tie_counts_half_and_says_nothing_of_sides(pairs: list[Pair]) -> None:
    (found,) = verdicts([choice(name, pairs[0], "tie") for name in ("ann", "bob")])
    assert [each.strength.mean for each in found.standings] == pytest.approx([0, 0])
    assert [each.tied for each in found.standings] == [2, 2]
    assert found.left is None
    assert verdicts([]) == []


def test_choices_of_one_person_are_no_many_people(pairs: list[Pair]) -> None:
    """A hundred choices by one person leave more doubt than one by each of a hundred."""
    wide = replace(pairs[0])
    many = [replace(wide, prompt_index=n) for n in range(40)]
    rng = np.random.default_rng(0)
    likes = rng.random(8) < 0.6
    of_few = [choice(f"p{n % 8}", pair, "one" if likes[n % 8] else "other") for n, pair in enumerate(many)]
    of_many = [choice(f"p{n}", pair, "one" if likes[n % 8] else "other") for n, pair in enumerate(many)]
    (few,), (all_apart,) = verdicts(of_few), verdicts(of_many)

    def width(found: Any) -> float:
        return float(found.standings[0].strength.high - found.standings[0].strength.low)

    assert width(few) > 1.3 * width(all_apart)


def between(one: str, other: str, prompt: int = 0) -> Pair:
    return Pair(prompt, f"prompt {prompt}", 0, one, other, ("a.mp4", "b.mp4"))


def test_settings_that_nobody_has_compared_are_in_groups_apart() -> None:
    said = [choice(f"p{n}", between(*pair), "one") for n in range(9) for pair in ("ab", "bc", "de")]
    (found,) = verdicts(said)
    assert [group.settings for group in found.groups] == [("a", "b", "c"), ("d", "e")]
    assert [each.setting for each in found.standings] == ["a", "b", "c", "d", "e"]
    strength = {each.setting: each.strength.mean for each in found.standings}
    assert strength["a"] + strength["b"] + strength["c"] == pytest.approx(0, abs=1e-6), "each against its own group"
    assert strength["d"] + strength["e"] == pytest.approx(0, abs=1e-6)
    (first,) = verdicts(said[:1])
    assert [(group.settings, group.held) for group in first.groups] == [(("a", "b"), 1.0)]


def test_draws_that_hold_no_group_together_do_not_count() -> None:
    """A chain of one person's choice each: nearly all draws leave somebody out. Of many people, hardly one does."""
    chain = [choice(f"p{n}", between(*pair), "one") for n, pair in enumerate(("ab", "bc", "cd"))]
    (found,) = verdicts(chain)
    assert found.groups[0].held < 0.3
    assert all(math.isnan(each.strength.low) and math.isnan(each.strength.high) for each in found.standings)
    assert found.standings[0].strength.mean > 0
    many = [choice(f"p{n}", between(*pair), "one") for n in range(12) for pair in ("ab", "bc", "cd")]
    (found,) = verdicts(many)
    assert found.groups[0].held == 1.0
    assert all(each.strength.low <= each.strength.mean <= each.strength.high for each in found.standings)


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [choice(f"p{n}", between(*pair), "one") for n, pair in enumerate(("ab", "bc", "de"))]
    with Display() as display:
        told(tmp_path, [], said, display)
    text = " ".join(capsys.readouterr().out.split())
    assert "nobody has compared settings of these groups yet" in text
    assert "across: a, b, c; d, e" in text
    assert "against an average setting of a group" in text
    assert "a, b, c cannot all be compared, which is too many for intervals: ask more people" in text
    (kept,) = json.loads((tmp_path / "user_study.json").read_text())["verdicts"]
    assert kept["standings"][0]["strength"]["low"] is None
    assert [group["settings"] for group in kept["groups"]] == [["a", "b", "c"], ["d", "e"]]


# ---- the page


@pytest.fixture
def store(folder: Path) -> Any:
    opened = StudyStore(folder / FILE, {"model": "m", "rows": 2})
    yield opened
    opened.close()


@pytest.fixture
def client(folder: Path, pairs: list[Pair], store: StudyStore) -> TestClient:
    return TestClient(build_study(folder, pairs, store), base_url="http://localhost")


def test_a_person_answers_everything(client: TestClient, pairs: list[Pair], store: StudyStore) -> None:
    by_prompt = {pair.prompt for pair in pairs}
    for done in range(len(pairs)):
        found = client.get("/next", params={"person": " Ann "}).json()
        assert (found["done"], found["all"]) == (done, len(pairs))
        shown = found["pair"]
        assert shown["prompt"] in by_prompt
        said = client.post("/choices", json={"person": "ann", "pair": shown["token"], **ANSWERS})
        assert said.json() == {"new": 3}
        assert client.post("/choices", json={"person": "ANN", "pair": shown["token"], **ANSWERS}).json() == {"new": 0}
    assert client.get("/next", params={"person": "ann"}).json()["pair"] is None
    kept = store.choices()
    assert len(kept) == 3 * len(pairs)
    by_key = {pair.key: pair for pair in pairs}
    for each in kept:
        swapped = is_swapped("ann", by_key[each.key])
        assert each.left == ("other" if swapped else "one")
        better = {"aesthetics": each.left, "motion": "one" if swapped else "other", "alignment": "tie"}
        assert each.better == better[each.question]


def test_the_videos_are_those_of_the_pair_and_no_name_is_told(
    client: TestClient, pairs: list[Pair], folder: Path
) -> None:
    found = client.get("/next", params={"person": "ann"})
    shown = found.json()["pair"]
    for name in ("linear", "single", "tof", "4x", "videos/"):
        assert name not in found.text
    by_video = {
        (folder / file).read_bytes(): setting
        for pair in pairs
        for file, setting in zip(pair.files, (pair.one, pair.other), strict=True)
    }
    left, right = (client.get(f"/{shown[side]}") for side in ("left", "right"))
    pair = next_pair("ann", pairs, {})
    assert pair is not None
    expected = [pair.other, pair.one] if is_swapped("ann", pair) else [pair.one, pair.other]
    assert [by_video[each.content] for each in (left, right)] == expected
    for each in (left, right):
        assert each.headers["content-type"] == "video/mp4"
        assert "disposition" not in str(each.headers)


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"pair": "0" * 32}, 404, "not in the study any more"),
        ({"motion": "up"}, 400, "motion: input should be 'left', 'right' or 'tie'"),
        ({"person": "  "}, 400, "person: string should have at least 1 character"),
        ({"rank": "1"}, 400, "rank: extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_counted_is_refused(client: TestClient, sent: dict[str, str], status: int, said: str) -> None:
    token = client.get("/next", params={"person": "ann"}).json()["pair"]["token"]
    answer = client.post("/choices", json={"person": "ann", "pair": token, **ANSWERS, **sent})
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.json()


def test_the_page_is_served_and_foreign_pages_are_not_listened_to(client: TestClient) -> None:
    page = client.get("/")
    assert "Which video is better?" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("user_study.css", "user_study.js"):
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/results.js").status_code == 404
    assert client.get("/video/x").status_code == 404
    foreign = client.post("/choices", json={}, headers={"Origin": "https://example.org"})
    assert foreign.status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403


# ---- the command


def test_choices_become_a_table_and_files_for_judges(folder: Path, pairs: list[Pair]) -> None:
    identity = {"model": "m", "rows": 2}
    store = StudyStore(folder / FILE, identity)
    for person in ("ann", "bob"):
        for pair in pairs:
            store.add(choice(person, pair, "one" if "tof" in pair.one else "other", each) for each in QUESTIONS)
    store.close()
    said = CliRunner().invoke(evaluate.app, ["--study", str(folder), "--tally"])
    assert said.exit_code == 0, said.output
    text = " ".join(said.output.split())
    assert "motion: 12 choices by 2 people about 2 prompts" in text
    assert "tof 4x" in text
    read = read_pairs(folder / "study-motion.csv")
    assert len(read) == 12
    with (folder / "study-motion.csv").open() as file:
        assert Counter(line["choice"] for line in csv.DictReader(file)) == {"b": 12}
    assert (folder / "user_study.json").is_file()


def test_a_study_is_ended_by_a_signal_and_tells_what_was_chosen(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs.evaluate", "--study", str(folder), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as serving:
        try:
            url = f"http://127.0.0.1:{port}"
            shown = waited(lambda: httpx.get(f"{url}/next", params={"person": "ann"}).json()["pair"])
            sent = httpx.post(f"{url}/choices", json={"person": "ann", "pair": shown["token"], **ANSWERS})
            assert sent.json() == {"new": 3}
            taken = CliRunner().invoke(evaluate.app, ["--study", str(folder), "--port", str(port)])
            assert "nothing can be served at 127.0.0.1" in taken.stderr
            assert "give another --port" in taken.stderr
            serving.terminate()
            said, _ = serving.communicate(timeout=60)
        finally:
            serving.kill()
    assert serving.returncode == 0, said
    assert "alignment: 1 choice by 1 person about 1 prompt" in " ".join(said.split())
    assert (folder / "user_study.json").is_file()


def waited(ask: Callable[[], Any]) -> Any:
    for _ in range(600):
        try:
            return ask()
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("nobody answers")


def test_a_study_that_cannot_be_run(tmp_path: Path, folder: Path) -> None:
    run = CliRunner().invoke
    assert "there is no evaluation in" in run(evaluate.app, ["--study", str(tmp_path / "none")]).stderr
    assert "--budgets is not for --study" in run(evaluate.app, ["--study", str(folder), "--budgets", "2x"]).stderr
    assert "--tally is for a study" in run(evaluate.app, ["--tally", "--out", str(tmp_path)]).stderr
    empty = run(evaluate.app, ["--study", str(folder), "--tally"])
    assert "nobody has chosen yet" in empty.output
    (folder / "results.jsonl").write_text('{"rows": 1}\n')
    other = run(evaluate.app, ["--study", str(folder), "--tally"])
    assert other.exit_code == 1
    assert "holds no results of this version" in other.stderr
