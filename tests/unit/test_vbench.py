"""VBench's totals against published rows, its suites and names, its native dimension against its formula."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from framegrove.errors import UserError
from framegrove.evaluation import vbench
from framegrove.evaluation.vbench import DIMENSIONS, native_score, read_results, read_suite, totals, video_name
from framegrove.media.writing import encode_mp4

# Dimensions: table 4 of Lumina-Video (arXiv 2502.06782), in percent, in the order of DIMENSIONS. Totals: VBench's
# leaderboard as CausVid (arXiv 2412.07772) and ContentV print it; Pyramid Flow's from its own paper (arXiv 2410.05954).
PUBLISHED = {
    "Pyramid Flow": (
        [96.95, 98.06, 99.49, 99.12, 64.63, 63.26, 65.01, 86.67, 50.71, 85.6, 82.87, 59.53, 43.2, 20.91, 23.09, 26.23],
        (81.72, 84.74, 69.62),
    ),
    "CogVideoX-5B": (
        [96.23, 96.52, 98.66, 96.92, 70.97, 61.98, 62.9, 85.23, 62.11, 99.4, 82.81, 66.35, 53.2, 24.91, 25.38, 27.59],
        (81.61, 82.75, 77.04),
    ),
    "HunyuanVideo": (
        [97.37, 97.76, 99.44, 98.99, 70.83, 60.36, 67.56, 86.1, 68.55, 94.4, 91.6, 68.68, 53.88, 19.8, 23.89, 26.44],
        (83.24, 85.09, 75.82),
    ),
    "VideoCrafter-2.0": (
        [96.85, 98.22, 98.41, 97.73, 42.5, 63.13, 67.22, 92.55, 40.66, 95.0, 92.92, 35.86, 55.29, 25.13, 25.84, 28.23],
        (80.44, 82.20, 73.42),
    ),
    "Gen-3": (
        [97.1, 96.62, 98.61, 99.23, 60.14, 63.34, 66.82, 87.81, 53.64, 96.4, 80.9, 65.09, 54.57, 24.31, 24.71, 26.69],
        (82.32, 84.11, 75.17),
    ),
}
SHARES = {name: percent / 100 for name, percent in zip(DIMENSIONS, PUBLISHED["Pyramid Flow"][0], strict=True)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_totals_come_out(model: str) -> None:
    """To 0.01: dimensions are published with two places, which moves a total by up to 0.007."""
    row, expected = PUBLISHED[model]
    found = totals({name: percent / 100 for name, percent in zip(DIMENSIONS, row, strict=True)})
    assert found.total is not None
    assert found.quality is not None
    assert found.semantic is not None
    assert [100 * found.total, 100 * found.quality, 100 * found.semantic] == pytest.approx(expected, abs=0.01)
    assert found.missing == ()


def test_a_missing_dimension_is_not_taken_for_zero() -> None:
    found = totals({name: share for name, share in SHARES.items() if name != "scene"})
    assert (found.total, found.semantic, found.missing) == (None, None, ("scene",))
    assert found.quality == totals(SHARES).quality
    shown = dict(vbench.lines({name: share for name, share in SHARES.items() if name != "scene"}))
    assert (shown["quality"], shown["semantic"], shown["total"]) == ("84.75", *["- (1 dimension missing)"] * 2)


ENTRIES: list[dict[str, Any]] = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a bird", "dimension": ["object_class"], "auxiliary_info": {"object_class": {"object": "bird"}}},
    {"prompt_en": "a person swimming", "dimension": ["subject_consistency", "motion_smoothness"]},
    {"prompt_en": "a bird", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
]


def suite(folder: Path, entries: Any = ENTRIES) -> Path:
    path = folder / "info.json"
    path.write_text(json.dumps(entries))
    return path


def test_a_suite_is_read_from_vbenchs_own_file(tmp_path: Path) -> None:
    prompts = read_suite(suite(tmp_path))
    assert [prompt.text for prompt in prompts] == ["In a still frame, a stop sign", "a bird", "a person swimming"]
    assert prompts[1].dimensions == ("object_class", "color")
    assert prompts[1].auxiliary == {"object_class": {"object": "bird"}, "color": {"color": "red"}}
    assert [prompt.samples for prompt in prompts] == [25, 5, 5]
    assert [prompt.text for prompt in read_suite(suite(tmp_path), ["color", "motion_smoothness"])] == [
        "a bird",
        "a person swimming",
    ]
    assert video_name("a bird", 3) == "a bird-3.mp4"


@pytest.mark.parametrize(
    ("entries", "dimensions", "message"),
    [
        ([], [], "has no prompts: give VBench's own"),
        (ENTRIES, ["scene"], "has no prompts for scene"),
        (ENTRIES, ["beauty"], "VBench has no dimension 'beauty': it has subject_consistency"),
        ({"prompts": []}, [], "is no suite of VBench"),
        ([{"prompt": "a bird"}], [], "entry 1 of .* is no prompt of VBench"),
        ([{"prompt_en": " ", "dimension": ["color"]}], [], "is no prompt of VBench"),
        ([{"prompt_en": "either/or", "dimension": ["color"]}], [], "no file can be called"),
        ([{"prompt_en": "a" * 250, "dimension": ["color"]}], [], "no file can be called"),
    ],
)
def test_what_is_no_suite_is_told(tmp_path: Path, entries: Any, dimensions: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_suite(suite(tmp_path, entries), dimensions)


def test_a_suite_that_is_not_there_or_torn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_suite(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('[{"prompt_en": "a b')
    with pytest.raises(UserError, match="is no JSON"):
        read_suite(tmp_path / "torn.json")


def test_flickering_is_vbenchs_own_to_the_last_digits(tmp_path: Path) -> None:
    """VBench decodes by OpenCV and takes the mean absolute difference of consecutive frames, in float32."""
    rng = np.random.default_rng(0)
    prompts = read_suite(suite(tmp_path))
    expected = []
    for sample in range(2):
        frames = np.clip(np.cumsum(rng.integers(-9, 10, (9, 64, 96, 3)), 0) + 128, 0, 255).astype(np.uint8)
        path = tmp_path / video_name(ENTRIES[0]["prompt_en"], sample)
        path.write_bytes(encode_mp4(frames, 8))
        shown = list(decoded(path))
        differences = [
            np.mean(cv2.absdiff(before.astype(np.float32), after.astype(np.float32)))
            for before, after in itertools.pairwise(shown)
        ]
        expected.append((255.0 - np.mean(differences).item()) / 255.0)
    score, each = native_score("temporal_flickering", tmp_path, prompts)
    assert [one["video_results"] for one in each] == pytest.approx(expected, abs=1e-8)
    assert score == pytest.approx(sum(expected) / 2, abs=1e-8)
    with pytest.raises(UserError, match="has no video for temporal_flickering"):
        native_score("temporal_flickering", tmp_path / "elsewhere", prompts)


def decoded(path: Path) -> Any:
    video = cv2.VideoCapture(str(path))
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


def test_results_are_read_as_vbench_leaves_them(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for name, share in SHARES.items():
        (folder / f"{name}_eval_results.json").write_text(json.dumps({name: [share, [{"video_path": "a-0.mp4"}]]}))
    (folder / "scene_full_info.json").write_text(json.dumps(ENTRIES))
    assert read_results(folder) == SHARES
    packed = tmp_path / "evaluation_results.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    assert read_results(packed) == SHARES
    flat = tmp_path / "scores.json"
    flat.write_text(json.dumps({name.replace("_", " "): share for name, share in SHARES.items()}))
    assert read_results(flat) == SHARES
    (folder / "again_eval_results.json").write_text(json.dumps({"scene": [0.4, []]}))
    with pytest.raises(UserError, match="has scene, which another file of"):
        read_results(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scene": [43.2, []]}, "scores are shares between 0 and 1, not percentages"),
        ({"scene": "good"}, "scores are shares"),
        ({"beauty": [0.5, []]}, "has results for 'beauty', and VBench has"),
        (ENTRIES, "has no results of VBench"),
    ],
)
def test_what_is_no_result_is_told(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "x_eval_results.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        read_results(path)
