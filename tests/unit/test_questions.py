"""What is asked, of whom, and which frames are shown."""

from __future__ import annotations

import pytest

from framegrove.digits import world as digits
from framegrove.types import Assessment
from framegrove.verification.questions import Aspect, Panel, questions, shown_frames
from framegrove.verification.rewriting import staged

TWO = staged("a red 3 moves left and right and a blue 2 moves up and down")
OTHER = staged("a paper boat drifts down a stream, then sinks")


def test_every_object_is_asked_about_by_itself() -> None:
    asked = questions(Assessment.FINAL, TWO)
    for about, name in enumerate(("red 3", "blue 2")):
        of_object = {q.aspect: q.text for q in asked if q.about == about}
        assert set(of_object) == {Aspect.BINDING, Aspect.DIGIT, Aspect.COLOUR, Aspect.MOTION}
        assert all(name in of_object[aspect] for aspect in (Aspect.BINDING, Aspect.MOTION))
    assert "Does the red 3 move left and right?" in [q.text for q in asked]


def test_a_single_picture_is_not_asked_about_motion() -> None:
    for assessment in (Assessment.POTENTIAL, Assessment.IMAGE):
        assert {q.panel for q in questions(assessment, TWO)} == {Panel.ALIGNMENT, Panel.CLARITY}


@pytest.mark.parametrize("prompt", [TWO, OTHER], ids=["digits", "other"])
@pytest.mark.parametrize("assessment", list(Assessment))
def test_every_assessment_asks_something_and_repeats_itself(assessment: Assessment, prompt: object) -> None:
    asked = questions(assessment, prompt)  # type: ignore[arg-type]
    assert asked == questions(assessment, prompt)  # type: ignore[arg-type]
    assert len({q.text for q in asked}) == len(asked) >= 2
    assert all(0 < q.weight <= 1 for q in asked)


def test_other_prompts_are_judged_by_their_stages() -> None:
    assert "paper boat" in questions(Assessment.IMAGE, OTHER)[0].text
    assert "sinks" not in questions(Assessment.MOTION, OTHER)[0].text
    assert any(q.text.endswith("like this? sinks") for q in questions(Assessment.FINAL, OTHER))


def test_shown_frames_come_one_from_every_unit() -> None:
    assert shown_frames(25) == (0, 3, 12, 21)
    for units in range(1, 30):
        frames = shown_frames(digits.frame_count(units), most=64)
        assert [0 if f == 0 else (f - 1) // 8 + 1 for f in frames] == list(range(units))


@pytest.mark.parametrize("most", [2, 4, 7])
def test_a_parents_frames_begin_its_childs_unless_they_must_thin_out(most: int) -> None:
    for units in range(1, most):
        parent, child = (shown_frames(digits.frame_count(n), most) for n in (units, units + 1))
        assert child[: len(parent)] == parent
    for units in range(1, 60):
        frames = shown_frames(digits.frame_count(units), most)
        assert len(frames) <= most
        assert list(frames) == sorted(set(frames))
        assert units == 1 or (frames[-1] - 1) // 8 + 1 == units - 1  # the newest unit is always seen


def test_a_clip_that_ends_inside_a_unit_shows_its_last_frame() -> None:
    assert shown_frames(2) == (0, 1)
    with pytest.raises(ValueError, match="at least 1 frame"):
        shown_frames(0)
