"""VBench (Huang et al., CVPR 2024, arXiv 2311.17982): its prompts, the names of its videos, and its totals.

VBench scores videos in 16 dimensions, each with prompts of its own. Its totals follow from the dimensions alone: each
is put on a scale between the least and the most that is to be expected of it, then averaged with its weight, quality
and semantics apart; the total is 0.8 quality + 0.2 semantics. Least, most and weights are those of VBench's
scripts/constant.py; published rows of its leaderboard come out as far as their rounding allows.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from framegrove.errors import UserError
from framegrove.words import counted

SAMPLES = 5  # videos of a prompt that VBench reads
FLICKERING = "temporal_flickering"
FLICKERING_SAMPLES = 25  # of its prompts: VBench leaves out those that move, and reads five of the rest
NATIVE = (FLICKERING,)  # the dimensions that need no model, and are computed here
RESULTS = "_eval_results.json"  # how the names of VBench's result files end

_LONGEST_NAME = 255  # bytes, of a file
_SEMANTIC_SHARE = 0.2


class Scale(NamedTuple):
    """What is 0 and what is 1 in a total, and how much that counts among the others."""

    least: float = 0.0
    most: float = 1.0
    weight: float = 1.0


QUALITY: dict[str, Scale] = {
    "subject_consistency": Scale(0.1462),
    "background_consistency": Scale(0.2615),
    FLICKERING: Scale(0.6293),
    "motion_smoothness": Scale(0.706, 0.9975),
    "dynamic_degree": Scale(weight=0.5),
    "aesthetic_quality": Scale(),
    "imaging_quality": Scale(),
}
SEMANTIC: dict[str, Scale] = {
    "object_class": Scale(),
    "multiple_objects": Scale(),
    "human_action": Scale(),
    "color": Scale(),
    "spatial_relationship": Scale(),
    "scene": Scale(most=0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(most=0.364),
    "overall_consistency": Scale(most=0.364),
}
DIMENSIONS: tuple[str, ...] = (*QUALITY, *SEMANTIC)


@dataclass(frozen=True)
class Totals:
    """Shares in [0, 1], which are published as percentages; None where a dimension is ``missing`` for it."""

    total: float | None
    quality: float | None
    semantic: float | None
    missing: tuple[str, ...]


def totals(scores: Mapping[str, float]) -> Totals:
    """Quality, semantic and total score from a score in [0, 1] for each dimension.

    A dimension without a score is not taken for 0, as VBench's own script does: what takes it is not told.
    """
    quality, semantic = _average(scores, QUALITY), _average(scores, SEMANTIC)
    total = None
    if quality is not None and semantic is not None:
        total = (1 - _SEMANTIC_SHARE) * quality + _SEMANTIC_SHARE * semantic
    return Totals(total, quality, semantic, tuple(name for name in DIMENSIONS if name not in scores))


def _average(scores: Mapping[str, float], scales: Mapping[str, Scale]) -> float | None:
    if not scales.keys() <= scores.keys():
        return None
    weighted = (
        scale.weight * (scores[name] - scale.least) / (scale.most - scale.least) for name, scale in scales.items()
    )
    return sum(weighted) / sum(scale.weight for scale in scales.values())


# ---- prompts and videos


@dataclass(frozen=True)
class Prompt:
    """A prompt of the suite, the dimensions that it is for, and what these have to know of it."""

    text: str
    dimensions: tuple[str, ...]
    auxiliary: Mapping[str, Any]

    @property
    def samples(self) -> int:
        """How many videos VBench wants of it."""
        return FLICKERING_SAMPLES if FLICKERING in self.dimensions else SAMPLES


def check_dimensions(names: Iterable[str]) -> tuple[str, ...]:
    """These dimensions, each once. Raises UserError for one that VBench does not have."""
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in DIMENSIONS:
            raise UserError(f"VBench has no dimension {name[:60]!r}: it has {', '.join(DIMENSIONS)}")
    return chosen


def read_suite(path: Path, dimensions: Collection[str] = ()) -> list[Prompt]:
    """The prompts of a file like VBench's own VBench_full_info.json, in its order; of ``dimensions`` (none: of all).

    Prompts that are there twice become one, as their videos are the same files. Raises UserError for what is no such
    file and for one without prompts.
    """
    wanted = check_dimensions(dimensions)
    found: dict[str, Prompt] = {}
    for number, entry in enumerate(_entries(path), 1):
        text, its, auxiliary = _checked(entry, f"entry {number} of {path}")
        before = found.get(text, Prompt(text, (), {}))
        found[text] = Prompt(text, tuple(dict.fromkeys((*before.dimensions, *its))), {**before.auxiliary, **auxiliary})
    prompts = [each for each in found.values() if not wanted or set(wanted) & set(each.dimensions)]
    if not prompts:
        which = f" for {', '.join(wanted)}" if wanted else ""
        raise UserError(f"{path} has no prompts{which}: give VBench's own VBench_full_info.json, or a part of it")
    return prompts


def _entries(path: Path) -> list[Any]:
    value = _read_json(path)
    if not isinstance(value, list):
        raise UserError(f"{path} is no suite of VBench, which is a list of prompts: give its VBench_full_info.json")
    return value


def _checked(entry: Any, where: str) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    text = entry.get("prompt_en") if isinstance(entry, Mapping) else None
    its = entry.get("dimension") if isinstance(entry, Mapping) else None
    if not isinstance(text, str) or not text.strip() or not isinstance(its, list) or not its:
        raise UserError(f"{where} is no prompt of VBench: it needs prompt_en, a text, and dimension, a list of names")
    video_name(text, 0)
    auxiliary = entry.get("auxiliary_info")
    return text, check_dimensions(map(str, its)), auxiliary if isinstance(auxiliary, Mapping) else {}


def video_name(prompt: str, sample: int) -> str:
    """What VBench expects a video's file to be called. Raises UserError for a prompt that no file can be named by."""
    name = f"{prompt}-{sample}.mp4"
    if "/" in prompt or "\0" in prompt or len(name.encode()) > _LONGEST_NAME:
        raise UserError(
            f"VBench names videos by their prompts, and no file can be called {prompt[:60]!r}...: leave out slashes, "
            f"and stay below {_LONGEST_NAME - 10} bytes"
        )
    return name


def videos_of(folder: Path, prompts: Iterable[Prompt], dimension: str) -> list[tuple[Prompt, Path]]:
    """The videos that VBench reads for a dimension, as far as they are there, prompt by prompt."""
    asked = [prompt for prompt in prompts if dimension in prompt.dimensions]
    most = FLICKERING_SAMPLES if dimension == FLICKERING else SAMPLES
    videos = [(prompt, folder / video_name(prompt.text, sample)) for prompt in asked for sample in range(most)]
    return [(prompt, path) for prompt, path in videos if path.is_file()]


def native_score(dimension: str, folder: Path, prompts: Iterable[Prompt]) -> tuple[float, list[dict[str, Any]]]:
    """The score of a dimension that needs no model, and each video's, as VBench's own file of results has them.

    Each video's ``temporal_flickering`` is exactly VBench's. VBench leaves out those that move before, by optical flow
    (its static_filter); here all are read, all 25 of a prompt. Raises UserError where there is no video.
    """
    from framegrove.media.writing import decode_mp4
    from framegrove.verification.signals import flicker

    assert dimension == FLICKERING, "no other dimension is native"
    each = [(path, flicker(decode_mp4(path)[0])) for _, path in videos_of(folder, prompts, dimension)]
    if not each:
        raise UserError(f"{folder} has no video for {dimension}: make some, or leave it out of --dimension")
    mean = sum(score for _, score in each) / len(each)
    return mean, [{"video_path": str(path), "video_results": score} for path, score in each]


# ---- results


def read_results(source: Path) -> dict[str, float]:
    """Scores by dimension from what VBench leaves: a file of results, a folder of them, or the zip for its leaderboard.

    Raises UserError for what is none of these, for a dimension that is there twice, and for scores beyond [0, 1].
    """
    scores: dict[str, float] = {}
    for name, value in _result_files(source):
        if not isinstance(value, Mapping):
            continue  # VBench leaves its list of prompts beside its results
        for dimension, result in value.items():
            known = dimension.replace(" ", "_")
            if known not in DIMENSIONS:
                raise UserError(f"{name} has results for {dimension!r}, and VBench has {', '.join(DIMENSIONS)}")
            if known in scores:
                raise UserError(f"{name} has {known}, which another file of {source} has as well: keep one of them")
            scores[known] = _share(result, f"{known} in {name}")
    if not scores:
        raise UserError(f"{source} has no results of VBench: give a file that ends in {RESULTS}, or its folder")
    return scores


def _share(result: Any, what: str) -> float:
    """VBench writes [score, [scores of videos]]; a table of published scores has the number alone."""
    score = result[0] if isinstance(result, Sequence) and not isinstance(result, str) and result else result
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"{what} is {str(score)[:40]}: scores are shares between 0 and 1, not percentages")
    return float(score)


def _result_files(source: Path) -> Iterator[tuple[str, Any]]:
    if source.is_dir():
        for path in sorted(source.rglob("*.json")):
            yield str(path), _read_json(path)
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json") and not name.startswith("__MACOSX"):
                    yield f"{name} in {source}", _parsed(archive.read(name), f"{name} in {source}")
    else:
        yield str(source), _read_json(source)


def _read_json(path: Path) -> Any:
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _parsed(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{name} is no JSON: see whether it was written to its end") from None


def lines(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """A table of dimensions and totals, as percentages."""
    found = totals(scores)
    rows = [(name.replace("_", " "), f"{100 * scores[name]:.2f}") for name in DIMENSIONS if name in scores]
    parts = {"quality": (found.quality, QUALITY), "semantic": (found.semantic, SEMANTIC)}
    for name, (value, takes) in {**parts, "total": (found.total, {**QUALITY, **SEMANTIC})}.items():
        lacking = counted(len(takes.keys() - scores.keys()), "dimension")
        rows.append((name, f"{100 * value:.2f}" if value is not None else f"- ({lacking} missing)"))
    return rows
