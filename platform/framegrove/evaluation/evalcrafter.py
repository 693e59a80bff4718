"""EvalCrafter (Liu et al., CVPR 2024, arXiv 2310.11440): the names of its videos, and its four aspects and their sum.

Its 17 metrics become four aspects by linear regressions on people's opinions. Coefficients and intercepts are those of
its eval_from_metrics.py. They give the rows of its leaderboard (evalcrafter.github.io) back from the metrics that are
published beside them, as far as their rounding allows: a warping error, for one, is published to four places. (That
page has visual and motion quality in each other's columns.) The intercept of the alignment alone is not multiplied by
five there; the published rows say that this is meant.

EvalCrafter's metrics themselves take a dozen public models, and are not computed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from framegrove.errors import UserError


class Metric(NamedTuple):
    """How a metric counts: ``weight`` for each unit of it, or of one less it where less is better or was fitted so."""

    weight: float
    percent: bool = True  # whether it is published, and written by EvalCrafter, as a percentage
    flipped: bool = False


_OPINIONS = 5.0  # people answer from 1 to 5

VISUAL: dict[str, Metric] = {
    "VQA_A": Metric(0.03004555),
    "VQA_T": Metric(0.02887537),
    "IS": Metric(-0.01382558),
}
ALIGNMENT: dict[str, Metric] = {
    "clip_score": Metric(-0.0701577),
    "blip_bleu": Metric(0.02561424),
    "sd_score": Metric(0.05566109),
    "detection_score": Metric(0.0173974),
    "color_score": Metric(-0.020954),
    "count_score": Metric(0.03069167),
    "ocr_score": Metric(0.00372351, flipped=True),
    "celebrity_id_score": Metric(0.22686202, flipped=True),
}
MOTION: dict[str, Metric] = {
    "action_score": Metric(-0.01641512),
    "motion_ac_score": Metric(-0.01340959),
    "flow_score": Metric(-0.10517075),
}
TEMPORAL: dict[str, Metric] = {
    "clip_temp_score": Metric(2.92492244),
    "warping_error": Metric(0.45475678, percent=False, flipped=True),
    "face_consistency_score": Metric(0.17561504),
}
METRICS: dict[str, Metric] = {**VISUAL, **ALIGNMENT, **MOTION, **TEMPORAL}


_LARGE = 1e6  # no metric is: nor is what is not finite


@dataclass(frozen=True)
class Aspects:
    """What EvalCrafter's table shows, each of about 50 to 70; ``total`` is their sum."""

    visual_quality: float
    text_video_alignment: float
    motion_quality: float
    temporal_consistency: float

    @property
    def total(self) -> float:
        """The sum of the four."""
        return self.visual_quality + self.text_video_alignment + self.motion_quality + self.temporal_consistency


def aspects(metrics: Mapping[str, float]) -> Aspects:
    """The four aspects from all 17 metrics, as they are published: percentages, but for the warping error.

    Raises UserError where one is missing, is unknown, or is no number.
    """
    for name, value in metrics.items():
        if name not in METRICS:
            raise UserError(f"EvalCrafter has no metric {name[:60]!r}: it has {', '.join(METRICS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGE:
            raise UserError(f"EvalCrafter's {name} is {str(value)[:40]!r}, and must be a number")
    missing = [name for name in METRICS if name not in metrics]
    if missing:
        raise UserError(f"EvalCrafter's aspects take all of its 17 metrics, and there is no {', '.join(missing)}")
    return Aspects(
        visual_quality=100 * _OPINIONS * (_sum(metrics, VISUAL) + 0.08707462696457707),
        text_video_alignment=100 * (_OPINIONS * _sum(metrics, ALIGNMENT) - 0.30683181901390977),
        motion_quality=100 * _OPINIONS * (_sum(metrics, MOTION) + 0.1297562020899355),
        temporal_consistency=100 * _OPINIONS * (_sum(metrics, TEMPORAL) - 3.42274050899774),
    )


def _sum(metrics: Mapping[str, float], part: Mapping[str, Metric]) -> float:
    total = 0.0
    for name, metric in part.items():
        value = metrics[name] / 100 if metric.percent else metrics[name]
        total += metric.weight * (1 - value if metric.flipped else value)
    return total


def read_metrics(path: Path) -> dict[str, float]:
    """Metrics by name from a JSON object, as ``aspects`` takes them. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is no JSON: write an object with EvalCrafter's 17 metrics by name") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} has no metrics: write an object with {', '.join(METRICS)}")
    return value


def video_name(index: int) -> str:
    """What EvalCrafter expects the video of the prompt in line ``index``, from 0, to be called."""
    return f"{index:04}.mp4"


def lines(found: Aspects) -> list[tuple[str, str]]:
    """The aspects and their sum, as EvalCrafter's table has them."""
    rows = {
        "visual quality": found.visual_quality,
        "text-video alignment": found.text_video_alignment,
        "motion quality": found.motion_quality,
        "temporal consistency": found.temporal_consistency,
    }
    return [*((name, f"{value:.2f}") for name, value in rows.items()), ("total", f"{found.total:.0f}")]
