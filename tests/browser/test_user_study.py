"""The study and the page of an evaluation in a browser: by keys alone, and by the rules of accessibility."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from framegrove.evaluation import results_page
from framegrove.evaluation.results import read_ledger
from framegrove.evaluation.user_study import is_swapped, pairs_of
from framegrove.evaluation.user_study_store import FILE, StudyStore
from framegrove.evaluation.user_study_web import build_study
from tests.browser.conftest import wait_until
from tests.unit.test_user_study import write_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(tmp_path, prompts=1)


@pytest.fixture
def store(folder: Path) -> Iterator[StudyStore]:
    opened = StudyStore(folder / FILE, {"model": "m"})
    yield opened
    opened.close()


@pytest.fixture
def url(folder: Path, store: StudyStore) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    pairs = pairs_of(read_ledger(folder / "results.jsonl")[1], folder)
    server = uvicorn.Server(uvicorn.Config(build_study(folder, pairs, store), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_person_chooses_by_keys_alone(page: Page, url: str, folder: Path, store: StudyStore) -> None:
    page.goto(url)
    page.get_by_label("Your name").press_sequentially("Ann")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="a red 3 moves left and right")).to_be_visible()
    assert Axe().run(page).violations_count == 0
    wait_until(page, "[...document.querySelectorAll('video')].every((video) => video.readyState > 1)")
    expect(page.locator("#send")).to_be_disabled()
    for key in ("1", "3", "2"):
        page.keyboard.press(key)
    expect(page.locator("#send")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_have_text("1 of 3 pairs answered")
    expect(page.locator("input:checked")).to_have_count(0)
    first, second, third = store.choices()
    pairs = {pair.key: pair for pair in pairs_of(read_ledger(folder / "results.jsonl")[1], folder)}
    left, right = ("other", "one") if is_swapped("ann", pairs[first.key]) else ("one", "other")
    assert [(each.question, each.better) for each in (first, second, third)] == [
        ("aesthetics", left),
        ("motion", right),
        ("alignment", "tie"),
    ]
    for done in (2, 3):
        for key in "222":
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(page.locator("#progress")).to_have_text(f"{done} of 3 pairs answered")
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()


def test_a_choice_that_could_not_be_sent_is_told_and_not_lost(page: Page, url: str, store: StudyStore) -> None:
    page.goto(url)
    page.get_by_label("Your name").fill("Ann")
    page.get_by_role("button", name="Begin").click()
    for name in ("Looks", "Motion", "Words"):
        page.get_by_role("group", name=name).get_by_label("Right").check()
    page.route("**/choices", lambda route: route.abort())
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert store.choices() == []
    page.unroute("**/choices")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#progress")).to_have_text("1 of 3 pairs answered")
    assert len(store.choices()) == 3


def test_an_evaluation_is_looked_through(page: Page, tmp_path: Path) -> None:
    folder = write_study(tmp_path, prompts=3)
    results_page.write(read_ledger(folder / "results.jsonl")[1], folder / "report.html")
    page.goto(f"file://{folder / 'report.html'}")
    expect(page.get_by_text("9 videos for 3 prompts, in 3 settings")).to_be_visible()
    wait_until(page, "[...document.querySelectorAll('video')].slice(0, 3).every((video) => video.readyState > 1)")
    assert Axe().run(page).violations_count == 0
    expect(page.locator("#prompts > li")).to_have_count(3)
    page.get_by_label("Order").select_option("as they were asked")
    expect(page.locator("#prompts .about .quiet").first).to_have_text("prompt 0")
    page.get_by_label("Prompts with").fill("no such words")
    expect(page.locator("#prompts > li")).to_have_count(0)
    expect(page.locator("#count")).to_have_text("0 prompts")
