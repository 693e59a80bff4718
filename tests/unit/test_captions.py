"""Captions of clips that have none, by a describer that is no model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.captions import CaptionStage, captioner
from framegrove.config.base import ConfigError
from framegrove.config.curate import CaptionsConfig
from framegrove.config.engine import shipped_folder
from framegrove.curation.clip import Clip, Rejection
from tests.fakes import FakeDescriber

MODEL = str(shipped_folder())
CLIP = Clip(1, "e", "a.mp4", "s", "video", "train", 0, 0.0, 8, np.full((17, 8, 8, 3), 9, np.uint8))


def make_stage(config: CaptionsConfig) -> tuple[CaptionStage, FakeDescriber]:
    made: list[FakeDescriber] = []

    def make(verifier: object) -> FakeDescriber:
        made.append(FakeDescriber(verifier))
        return made[-1]

    stage = CaptionStage(config, make)
    return stage, made[0]


def test_only_clips_without_a_caption_are_described() -> None:
    stage, describer = make_stage(CaptionsConfig(model=MODEL, prompt="Tell me.", max_tokens=9, frames=4))
    captioned = replace(CLIP, caption="a square", caption_source="sidecar")
    assert stage(captioned) is captioned
    assert describer.asked == []
    described = stage(CLIP)
    assert isinstance(described, Clip)
    assert (described.caption, described.caption_source) == ("4 frames of light", "verifier")
    assert describer.asked == [("Tell me.", 9)]
    still = stage(replace(CLIP, frames=CLIP.frames[:1]))
    assert isinstance(still, Clip)
    assert still.caption == "1 frames of light"
    together = stage.several([captioned, CLIP, CLIP])
    assert [each.caption for each in together if isinstance(each, Clip)] == ["a square", *["4 frames of light"] * 2]
    stage.close()


def test_silence_is_a_rejection_unless_captions_are_not_required() -> None:
    dark = replace(CLIP, frames=np.zeros_like(CLIP.frames))
    stage, _ = make_stage(CaptionsConfig(model=MODEL))
    assert stage(dark) == Rejection("e", "a.mp4", 0, 0.0, "captions", "no caption (the model has said nothing)")
    stage, _ = make_stage(CaptionsConfig(model=MODEL, required=False))
    silent = stage(dark)
    assert isinstance(silent, Clip)
    assert (silent.caption, silent.caption_source) == ("", "")


def test_one_verifier_that_sees_enough_frames_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"captions\.frames is 30, and .* sees 6 at a time"):
        captioner(CaptionsConfig(model=MODEL, frames=30))
    (tmp_path / "two.yaml").write_text("verifiers:\n- {name: a, kind: signals}\n- {name: b, kind: signals}\n")
    with pytest.raises(ConfigError, match=r"two\.yaml must name one verifier of kind vllm, not 2"):
        captioner(CaptionsConfig(model=str(tmp_path / "two.yaml")))
