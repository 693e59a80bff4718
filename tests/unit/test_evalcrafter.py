"""EvalCrafter's aspects against its published rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framegrove.errors import UserError
from framegrove.evaluation import evalcrafter
from framegrove.evaluation.evalcrafter import METRICS, aspects, read_metrics, video_name

ORDER = [
    "VQA_A",
    "VQA_T",
    "IS",
    "clip_temp_score",
    "warping_error",
    "face_consistency_score",
    "action_score",
    "motion_ac_score",
    "flow_score",
    "clip_score",
    "blip_bleu",
    "sd_score",
    "detection_score",
    "color_score",
    "count_score",
    "ocr_score",
    "celebrity_id_score",
]

# evalcrafter.github.io: its table of raw metrics, and visual quality, alignment, motion and temporal consistency of its
# leaderboard, which has the first and the third in each other's columns.
PUBLISHED = {
    "Gen2 2023.09": (
        [
            59.44,
            76.51,
            14.53,
            99.94,
            0.0008,
            99.06,
            62.53,
            44.0,
            0.7,
            20.53,
            22.24,
            68.58,
            64.05,
            37.56,
            53.31,
            75.0,
            41.25,
        ],
        (62.51, 60.98, 56.43, 64.41, 244),
    ),
    "PikaLab 2023.10": (
        [
            59.09,
            64.96,
            14.81,
            99.97,
            0.0006,
            99.62,
            71.81,
            44.0,
            0.5,
            20.46,
            21.14,
            68.57,
            58.99,
            34.35,
            51.46,
            84.31,
            45.21,
        ],
        (60.77, 55.80, 55.77, 65.41, 238),
    ),
    "Show-1 2023.10": (
        [
            23.19,
            44.24,
            17.65,
            99.77,
            0.0067,
            99.32,
            81.56,
            50.0,
            2.07,
            20.66,
            23.24,
            68.42,
            58.63,
            48.55,
            44.31,
            58.97,
            37.93,
        ],
        (52.19, 62.07, 53.74, 60.83, 229),
    ),
    "Gen2 2023.12": (
        [
            90.39,
            92.18,
            19.28,
            99.99,
            0.0005,
            99.35,
            73.44,
            44.0,
            0.58,
            20.26,
            22.25,
            67.69,
            69.54,
            47.39,
            58.36,
            63.74,
            38.9,
        ],
        (69.09, 63.92, 55.59, 65.40, 254),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_aspects_come_out(model: str) -> None:
    """CLIP's consistency has two places, and 0.005 of it are 0.07 of the aspect."""
    row, (visual, alignment, motion, temporal, total) = PUBLISHED[model]
    found = aspects(dict(zip(ORDER, row, strict=True)))
    assert found.visual_quality == pytest.approx(visual, abs=0.01)
    assert found.text_video_alignment == pytest.approx(alignment, abs=0.01)
    assert found.motion_quality == pytest.approx(motion, abs=0.01)
    assert found.temporal_consistency == pytest.approx(temporal, abs=0.05)
    assert found.total == pytest.approx(total, abs=0.6)
    assert evalcrafter.lines(found)[-1] == ("total", f"{total}")


def test_what_cannot_be_aggregated_is_told(tmp_path: Path) -> None:
    row = dict(zip(ORDER, PUBLISHED["Gen2 2023.09"][0], strict=True))
    with pytest.raises(UserError, match="take all of its 17 metrics, and there is no clip_score, flow_score"):
        aspects({name: value for name, value in row.items() if name not in ("clip_score", "flow_score")})
    with pytest.raises(UserError, match="EvalCrafter has no metric 'beauty': it has VQA_A"):
        aspects({**row, "beauty": 1.0})
    for odd in (10**400, float("inf"), True):
        with pytest.raises(UserError, match=r"IS is .*, and must be a number"):
            aspects({**row, "IS": odd})
    with pytest.raises(UserError, match="IS is 'nan', and must be a number"):
        aspects({**row, "IS": float("nan")})
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(row))
    assert aspects(read_metrics(file)) == aspects(row)
    file.write_text("[1]")
    with pytest.raises(UserError, match="has no metrics"):
        read_metrics(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "none.json")


def test_names_and_metrics() -> None:
    assert set(ORDER) == set(METRICS)
    assert [video_name(index) for index in (0, 699)] == ["0000.mp4", "0699.mp4"]
