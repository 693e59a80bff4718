"""The page in a browser: a person asks for a video and watches its tree grow, whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from framegrove.serving.keys import add_key
from tests.browser.conftest import wait_until, watched
from tests.browser.server import Server, serving
from tests.endpoint import picture
from tests.films import panned, recorded, scenery

PROMPT = "a red 3 moves left and right"


def ask(page: Page, server: Server, prompt: str = PROMPT) -> None:
    page.goto(server.url)
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Make the video").click()
    expect(page.get_by_role("heading", name=prompt)).to_be_visible()


def grown(server: Server) -> None:
    """A small tree: a root, two children of which one is cut, and what is at work."""
    server.grow("0", "kept", scores={"image": {"alignment": 0.9}})
    server.grow("0-0", "cut", scores={"motion": {"alignment": 0.25, "motion": 0.5}})
    server.grow("0-1", "running", workers=["generator 1"])


def test_one_of_several_models_is_chosen(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path, names=("digits", "clouds")) as server:
        page.goto(server.url)
        page.get_by_label("Model").select_option("clouds")
        page.locator("#prompt").fill(PROMPT)
        page.get_by_role("button", name="Make the video").click()
        expect(page.locator("#stage-says")).to_contain_text("is finished")
        assert page.evaluate("fetch('v1/videos').then(r => r.json()).then(found => found.data[0].model)") == "clouds"


def test_from_a_prompt_to_a_video(page: Page, server: Server) -> None:
    server.hold()
    page.goto(server.url)
    expect(page.get_by_text("digits that move")).to_be_visible()
    page.get_by_label("Budget").fill("3")
    expect(page.locator("#price")).to_contain_text("at most as much computing as 8 samples")
    ask(page, server)
    expect(page.locator("#stage-says")).to_contain_text("is being made")
    grown(server)
    expect(page.locator(".branch")).to_have_count(3)
    cut = page.locator('.branch[data-id="0-0"]')
    expect(cut).to_have_attribute("data-standing", "cut")
    expect(cut).to_have_attribute("aria-label", "Branch 0.0, unit 1: cut; motion: alignment 0.25, motion 0.50")
    cut.click()
    page.locator('.branch[data-id="0"]').click()
    expect(page.locator("#compare figure")).to_have_count(2)
    server.runner.live.summary = {
        "spent": {"sampling": 1.0, "decoding": 0.3, "judging": 0.1, "wasted": 0.0, "total": 1.4},
        "to_go": 0.2, "at_most": 2.0, "works": {"certain": 5, "undone": 1, "at_most": 9}, "pools": {}, "winner": None,
    }  # fmt: skip
    expect(page.locator("#costs")).to_contain_text("Cost so far: 1.4x of one sample")
    server.grow("0-1", "won")
    server.grow("0-2", "running")
    expect(page.locator(".branch")).to_have_count(4)
    server.give_up("0-2")
    expect(page.locator(".branch")).to_have_count(3)
    server.finish()
    expect(page.locator("#stage-says")).to_contain_text("is finished")
    expect(page.locator("#player")).to_be_visible()
    wait_until(page, "document.getElementById('video').readyState >= 2")
    page.get_by_role("button", name="Next frame").click()
    wait_until(page, "document.getElementById('video').currentTime > 0")
    expect(page.locator("#history li")).to_have_count(1)
    wait_until(page, "document.querySelector('#history img').naturalWidth > 0")
    page.get_by_text("The finished tree").click()
    expect(page.frame_locator("#tree-page").get_by_role("heading", name="The finished tree")).to_be_visible()


def test_a_refusal_is_told_in_words_beside_the_button(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.locator("#prompt").fill(PROMPT)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Size").fill("70x64")
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#ask-error")).to_contain_text("width and height must be multiples of 64")
    expect(page.get_by_role("button", name="Make the video")).to_be_enabled()


def test_a_failed_video_says_why(page: Page, server: Server) -> None:
    server.runner.failure = ValueError("a defect")
    ask(page, server)
    expect(page.locator("#stage-error")).to_contain_text("because of an internal error")


def test_a_server_that_dies_is_waited_for(page: Page, server: Server) -> None:
    server.hold()
    ask(page, server)
    grown(server)
    expect(page.locator(".branch")).to_have_count(3)
    server.stop()
    expect(page.locator("#connection")).to_contain_text("The connection is lost", timeout=15_000)
    server.start()
    expect(page.locator("#connection")).to_be_empty(timeout=20_000)
    server.finish()
    expect(page.locator("#stage-says")).to_contain_text("is finished", timeout=20_000)
    expect(page.locator("#player")).to_be_visible()


def test_two_tabs_see_the_same(browser: Browser, server: Server, page: Page) -> None:
    server.hold()
    ask(page, server)
    grown(server)
    other = browser.new_page()
    errors = watched(other)
    other.goto(page.url)
    expect(other.locator(".branch")).to_have_count(3)
    other.get_by_role("button", name="Cancel").click()
    for each in (page, other):
        expect(each.locator("#stage-says")).to_contain_text("was cancelled")
    other.close()
    assert not errors


def test_a_video_is_deleted_and_another_prompt_is_asked_for(page: Page, server: Server) -> None:
    ask(page, server)
    page.get_by_role("button", name="Another prompt").click()
    page.locator("#remix-prompt").fill("a blue 5 moves up and down")
    page.get_by_role("button", name="Make it", exact=True).click()
    expect(page.get_by_role("heading", name="a blue 5 moves up and down")).to_be_visible()
    expect(page.locator("#history li")).to_have_count(2)
    page.get_by_role("button", name="Make it longer").click()
    page.get_by_label("Seconds more").fill("1")
    page.get_by_role("button", name="Make it", exact=True).click()
    expect(page.locator("#stage-says")).to_contain_text("4.125 s")
    expect(page.locator("#stage-says")).to_contain_text("is finished")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.get_by_role("heading", name="Deleted")).to_be_visible()


def test_several_videos_by_some_of_the_verifiers(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("How many videos").fill("3")
    page.get_by_label("signals").uncheck()
    page.locator("#prompt").fill(PROMPT)
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#history li")).to_have_count(3)
    expect(page.locator("#history .how", has_text="is finished")).to_have_count(3, timeout=20_000)
    assert [asked.verifiers for asked in server.runner.asked] == [{"eye": 1.0}] * 3
    page.get_by_label("eye").uncheck()
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#ask-error")).to_have_text("Choose at least one verifier.")


def test_a_video_begins_with_a_picture(page: Page, server: Server, tmp_path: Path) -> None:
    frame = tmp_path / "frame.png"
    frame.write_bytes(picture(size=(64, 64)))
    page.goto(server.url)
    page.get_by_text("More", exact=True).click()
    page.locator("#prompt").fill(PROMPT)
    page.get_by_label("First frame").set_input_files(frame)
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#stage-says")).to_contain_text("is finished")
    (asked,) = server.runner.asked
    assert asked.image is not None


def test_a_clip_is_gone_on_from(page: Page, server: Server, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mov"
    clip.write_bytes(recorded(panned(scenery(3), 60, 2), 24, "mov"))
    page.goto(server.url)
    page.get_by_text("More", exact=True).click()
    page.locator("#prompt").fill(PROMPT)
    page.get_by_label("Length, seconds").fill("1")
    page.get_by_label("Clip to go on from").set_input_files(clip)
    expect(page.get_by_label("First frame")).to_be_disabled()
    page.get_by_role("button", name="Make the video").click()
    expect(page.locator("#stage-says")).to_contain_text("is finished")
    (asked,) = server.runner.asked
    assert (asked.given, asked.clip is not None) == (3, True)
    page.get_by_role("button", name="Without the clip").click()
    expect(page.get_by_label("First frame")).to_be_enabled()


def test_a_video_that_is_gone_leaves_no_other_in_its_place(page: Page, server: Server) -> None:
    """Its buttons must not be those of the video that was shown before."""
    ask(page, server)
    ask(page, server, "a blue 5 moves up and down")
    expect(page.locator("#history li")).to_have_count(2)
    gone = page.locator("#history li").nth(1)
    video = gone.get_attribute("data-id")
    page.evaluate(f"fetch('v1/videos/{video}', {{ method: 'DELETE' }})")
    gone.locator("button").click()
    expect(page.locator("#stage-error")).to_contain_text("There is no video")
    expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
    expect(page.locator("#actions button")).to_have_count(0)
    expect(page.locator("#history li")).to_have_count(1)


def test_a_key_is_asked_for_and_used(page: Page, tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "somebody")
    with serving(tmp_path / "videos", keys=tmp_path / "keys.json") as server:
        page.goto(server.url)
        expect(page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
        page.get_by_label("API key").fill("fg_wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#key-error")).to_have_text("The server does not accept this key.")
        page.get_by_label("API key").fill(secret)
        page.get_by_role("button", name="Use it").click()
        page.locator("#prompt").fill(PROMPT)
        page.get_by_role("button", name="Make the video").click()
        expect(page.locator("#stage-says")).to_contain_text("is finished")
        wait_until(page, "document.getElementById('video').readyState >= 2")


def test_with_the_keyboard_alone(page: Page, server: Server) -> None:
    server.hold()
    page.goto(server.url)
    expect(page.get_by_text("digits that move")).to_be_visible()
    page.locator("#prompt").focus()
    page.keyboard.type(PROMPT)
    for _ in range(10):
        if page.evaluate("document.activeElement.type") == "submit":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#stage-says")).to_contain_text("is being made")
    grown(server)
    page.locator('.branch[data-id="0"]').focus()
    for key, id in (("ArrowRight", "0-0"), ("ArrowDown", "0-1"), ("ArrowUp", "0-0"), ("ArrowLeft", "0")):
        page.keyboard.press(key)
        expect(page.locator(f'.branch[data-id="{id}"]')).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#compare figure")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nobody_is_shut_out(browser: Browser, server: Server, width: int, scheme: str) -> None:
    """No violations of accessibility rules, nothing that runs over the edge, on a phone and on a desk."""
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    errors = watched(page)
    server.hold()
    ask(page, server)
    grown(server)
    expect(page.locator(".branch")).to_have_count(3)
    page.locator('.branch[data-id="0-0"]').click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    server.finish()
    expect(page.locator("#player")).to_be_visible()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert not errors


def test_markup_in_prompts_and_names_stays_text(page: Page, server: Server) -> None:
    prompt = "<img src=x onerror=alert(1)> moves"
    server.hold()
    ask(page, server, prompt)
    server.grow("0", "kept", name="<b>bold</b>", scores={"<i>": {"<u>": 0.5}})
    expect(page.locator(".branch .name")).to_have_text("<b>bold</b>")
    expect(page.locator("#stage-warnings li")).to_have_text(
        "The prompt is unlike anything this model was trained on, and the video will hardly show it; what it knows: "
        "digits that move."
    )
    page.locator(".branch").click()
    assert page.locator("main b, main i, main u, main img[onerror]").count() == 0


def test_large_trees_stay_fluid(page: Page, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """200 branches, all of which change: the longest that the page does not react."""
    server.hold()
    ask(page, server)
    branches = {
        f"{root}-{child}-{leaf}": {"standing": "kept"} for root in range(4) for child in range(6) for leaf in range(7)
    }
    branches |= {f"{root}-{child}": {"standing": "kept"} for root in range(4) for child in range(6)}
    branches |= {str(root): {"standing": "kept"} for root in range(4)}
    assert len(branches) == 196
    server.grow_all(branches)
    expect(page.locator(".branch")).to_have_count(196)
    page.evaluate("""() => {
        window.frames_ = []; let last = performance.now();
        const tick = (now) => { frames_.push(now - last); last = now; requestAnimationFrame(tick); };
        requestAnimationFrame(tick);
    }""")
    for round_ in range(3):
        judged = {"standing": "judged", "score": round_ / 3, "scores": {"motion": {"alignment": round_ / 3}}}
        server.grow_all(dict.fromkeys(branches, judged))
        expect(page.locator(".branch .score").first).to_have_text(f"{round_ / 3:.2f}")
    server.runner.live.summary = {
        "spent": {"sampling": 1.0, "decoding": 0.3, "judging": 0.1, "wasted": 0.0, "total": 1.4},
        "to_go": 0.0, "at_most": 2.0, "works": {"certain": 5, "undone": 0, "at_most": 9}, "pools": {},
        "winner": "3-5-6",
    }  # fmt: skip
    expect(page.locator('.branch[data-id="3-5-6"]')).to_be_in_viewport()
    frames = sorted(page.evaluate("frames_"))
    with capsys.disabled():
        print(f"\nframes of a tree of 196 branches that all change: median {frames[len(frames) // 2]:.0f} ms, "
              f"99 of 100 within {frames[int(0.99 * len(frames))]:.0f} ms")  # fmt: skip
    assert frames[len(frames) // 2] < 100
